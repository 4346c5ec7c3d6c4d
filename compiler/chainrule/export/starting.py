"""Natively: how a state begins, and how it is kept: init, save, load."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from chainrule.export.checks import head
from chainrule.export.codes import CODE
from chainrule.export.model import (
    AT_CHECKSUM,
    AT_VARIANT,
    HEAD,
    Drawn,
    Given,
    Model,
    Same,
    StateTensor,
)
from chainrule.export.orthogonal import orthonormal
from chainrule.export.text import Code, number_text
from chainrule.ir.loop import Program
from chainrule.ir.types import DType, float32
from chainrule.loops.begin import drawing

Data = Callable[[bytes], str]


#: a distribution, an element type, and how many members draw
Draws = tuple[str, DType, int]


def programs(model: Model) -> dict[Draws, Program]:
    """What draws tensors."""
    drawn = [t for t in model.kept if isinstance(t.begin, Drawn) and t.elements]
    return {key: drawing(*key) for key in dict.fromkeys(map(_draws, drawn))}


def _draws(tensor: StateTensor) -> Draws:
    assert isinstance(tensor.begin, Drawn)
    return tensor.begin.distribution, tensor.dtype, tensor.members or 1


def begin(model: Model, number: int, data: Data, names: Mapping[Draws, str]) -> str:
    """`void @vN.begin(state)`, which fills a state that has its seed; `names` are of what draws."""
    code = Code(f"internal void @v{number}.begin(ptr %state) #1")
    word = "iw" if model.small else "i64"
    seed = code.at("%state", model.offsets[model.seed])
    for tensor in model.kept:
        if not isinstance(tensor.begin, Drawn) or not tensor.elements:
            continue
        draw = data(np.uint32(tensor.begin.number).tobytes())
        straight = tensor.begin.distribution == "orthogonal"
        scale = 1.0 if straight else tensor.begin.scale
        wide = tensor.dtype.wide.numpy
        line = data(np.array([scale, tensor.begin.shift], wide).tobytes())
        out = code.at("%state", model.offsets[tensor.name])
        code.do(
            f"%d{len(code.lines)} = call i32 @{names[_draws(tensor)]}(ptr {seed}, ptr @{draw}, "
            f"ptr @{line}, ptr {out}, {word} {tensor.elements // (tensor.members or 1)})"
        )
        if straight:
            _straighten(code, tensor, out, tensor.begin.scale)
    _fill_the_rest(code, model, data)
    return code.text("void")


def _straighten(code: Code, tensor: StateTensor, out: str, gain: float) -> None:
    """Make the rows or the columns orthogonal, whichever are fewer, of each member's."""
    members, rows = tensor.members or 1, tensor.shape[0]
    columns = tensor.elements // members // rows
    count, length, step, stride = columns, rows, 1, columns
    if rows < columns:
        count, length, step, stride = rows, columns, columns, 1
    kind = "float" if tensor.dtype == float32 else "double"
    given = f"iw {count}, iw {length}, iw {step * members}, iw {stride * members}"

    def one(member: str) -> None:
        at = code.at(out, code.value(f"mul iw {member}, {tensor.dtype.itemsize}"))
        gained = f"{kind} {number_text(gain, kind)}"
        code.do(f"call void @orthonormal_{kind}(ptr {at}, {given}, {gained})")

    if members == 1:
        one("0")
    else:
        code.loop(str(members), one)


def _fill_the_rest(code: Code, model: Model, data: Data) -> None:
    """Constants, and tensors that begin as others do, which are there by now."""
    late: list[StateTensor] = []
    for tensor in model.kept:
        if isinstance(tensor.begin, Same):
            late.append(tensor)
        elif isinstance(tensor.begin, Given) and tensor.elements:
            _fill(code, model, tensor, tensor.begin, data)
    for tensor in late:
        assert isinstance(tensor.begin, Same)
        source = code.at("%state", model.offsets[tensor.begin.name])
        target = code.at("%state", model.offsets[tensor.name])
        code.copy(target, source, tensor.bytes)


def _fill(code: Code, model: Model, tensor: StateTensor, begin: Given, data: Data) -> None:
    bytes_ = np.ascontiguousarray(begin.array, tensor.dtype.numpy).tobytes()
    item = tensor.dtype.itemsize
    if not any(bytes_):
        return  # the state was cleared
    out = code.at("%state", model.offsets[tensor.name])
    if bytes_ != bytes_[:item] * (len(bytes_) // item):
        code.copy(out, f"@{data(bytes_)}", len(bytes_))
        return
    kind = f"i{8 * item}"
    word = int.from_bytes(bytes_[:item], "little", signed=True)

    def store(i: str) -> None:
        at = code.value(f"mul iw {i}, {item}")
        code.store(kind, str(word), out, at, align=item)

    code.loop(str(tensor.elements), store)


def common(model: Model, data: Data) -> list[str]:
    """`@fill`, and what begins a state once it is known which variant."""
    straight = {
        "float" if t.dtype == float32 else "double"
        for t in model.kept
        if isinstance(t.begin, Drawn) and t.begin.distribution == "orthogonal"
    }
    return [_fill_words(), _begin(model, data), *map(orthonormal, sorted(straight))]


def _fill_words() -> str:
    """`void @fill(to, bytes, word)`: one word in a multiple of 8 bytes."""
    code = Code("internal void @fill(ptr %to, iw %bytes, i64 %word) #0")
    words = code.value("lshr iw %bytes, 3")

    def store(i: str) -> None:
        code.store("i64", "%word", "%to", code.value(f"shl iw {i}, 3"))

    code.loop(words, store)
    return code.text("void")


def _begin(model: Model, data: Data) -> str:
    """`void @begin(state, variant, seed)`: a whole new state."""
    code = Code("internal void @begin(ptr %state, i32 %variant, i64 %seed) #0")
    code.do(f"call void @fill(ptr %state, iw {model.state_bytes}, i64 0)")
    begun = head(model)
    code.copy("%state", f"@{data(begun)}", len(begun))
    code.store("i32", "%variant", "%state", AT_VARIANT, align=4)
    seeds = code.at("%state", model.offsets[model.seed])

    def seed(member: str) -> None:
        own = code.value(f"add i64 %seed, {code.wide(member)}")
        code.store("i64", own, seeds, code.value(f"shl iw {member}, 3"))

    if model.members is None:
        code.store("i64", "%seed", seeds)
    else:
        code.loop(str(model.members), seed)
    for number in range(len(model.variants)):
        this = code.value(f"icmp eq i32 %variant, {number}")
        code.when(this, lambda n=number: code.do(f"call void @v{n}.begin(ptr %state)"))  # type: ignore[misc]
    return code.text("void")


def init(code: Code) -> str:
    """The body of `NAME_init`."""
    code.guard("@check_block(ptr %state, iw %state_bytes)")
    variant = chosen(code)
    code.do(f"call void @begin(ptr %state, i32 {variant}, i64 %seed)")
    return code.text("i32 0")


def chosen(code: Code) -> str:
    """The variant for this processor, or leave."""
    where = code.local("i32", 4)
    code.guard(f"@processor(ptr {where})")
    return code.load("i32", where, align=4)


def save(code: Code, model: Model) -> str:
    """The body of `NAME_save`: the state's bytes, with their checksum, at any address."""
    code.guard("@check_state(ptr %state, iw %state_bytes)")
    code.guard("@check_pointer(ptr %bytes, iw 0)")
    small = code.value(f"icmp ult iw %n, {model.state_bytes}")
    code.leave_if(small, f"i32 {CODE['ERROR_ROOM']}")
    code.copy("%bytes", "%state", model.state_bytes)
    code.store("i32", "0", "%bytes", AT_VARIANT, align=1)
    total = code.value(f"call i64 @digest(ptr %bytes, iw {model.state_bytes})")
    code.store("i64", total, "%bytes", AT_CHECKSUM, align=1)
    return code.text("i32 0")


def load(code: Code, model: Model) -> str:
    """The body of `NAME_load`: everything is looked at before the state is touched."""
    code.guard("@check_block(ptr %state, iw %state_bytes)")
    code.guard("@check_pointer(ptr %bytes, iw 0)")
    code.leave_if(code.value(f"icmp ult iw %n, {HEAD}"), f"i32 {CODE['ERROR_ROOM']}")
    code.guard("@check_head(ptr %bytes)")
    small = code.value(f"icmp ult iw %n, {model.state_bytes}")
    code.leave_if(small, f"i32 {CODE['ERROR_ROOM']}")
    total = code.value(f"call i64 @digest(ptr %bytes, iw {model.state_bytes})")
    wanted = code.load("i64", "%bytes", AT_CHECKSUM, align=1)
    other = code.value(f"icmp ne i64 {total}, {wanted}")
    code.leave_if(other, f"i32 {CODE['ERROR_DAMAGED']}")
    variant = chosen(code)
    code.copy("%state", "%bytes", model.state_bytes)
    code.store("i32", variant, "%state", AT_VARIANT, align=4)
    code.store("i64", "0", "%state", AT_CHECKSUM)
    return code.text("i32 0")
