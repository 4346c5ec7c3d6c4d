"""The functions of the interface besides step, predict and loss."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from chainrule.export import minibatches, selftest, starting
from chainrule.export.codes import CODE
from chainrule.export.interface import CONST_STATE, STATE, Interface, Parameter
from chainrule.export.model import Kept, Model, Number
from chainrule.export.text import Code, number_text
from chainrule.ir.types import float64

if TYPE_CHECKING:
    from chainrule.export.module import Data, ModuleText

INDEX = Parameter("index", "int32_t")
SEED = Parameter("seed", "uint64_t")
COUNT = Parameter("n", "size_t")
OUT, IN = Parameter("out", "void *"), Parameter("in", "const void *")
BYTES, CONST_BYTES = Parameter("bytes", "void *"), Parameter("bytes", "const void *")
TEXT = Parameter("name", "const char *")

#: the functions that every kernel has, with their results and parameters
FIXED: dict[str, tuple[str, Sequence[Parameter]]] = {
    "state_bytes": ("size_t", ()),
    "init": ("int32_t", (*STATE, SEED)),
    "save": ("int32_t", (*CONST_STATE, BYTES, COUNT)),
    "load": ("int32_t", (*STATE, CONST_BYTES, COUNT)),
    "tensors": ("int32_t", ()),
    "tensor": ("int32_t", (TEXT,)),
    "tensor_name": ("const char *", (INDEX,)),
    "tensor_bytes": ("size_t", (INDEX,)),
    "get": ("int32_t", (*CONST_STATE, INDEX, OUT, COUNT)),
    "set": ("int32_t", (*STATE, INDEX, IN, COUNT)),
    "describe": ("const char *", ()),
    "strerror": ("const char *", (Parameter("code", "int32_t"),)),
}


def functions(model: Model, interface: Interface, data: Data, module: ModuleText) -> list[str]:
    """All of them, as LLVM text."""
    table = _Tensors(model, data)
    texts = []
    for name, (result, parameters) in FIXED.items():
        kind = {"size_t": "iw", "int32_t": "i32"}.get(result, "ptr")
        code = module.head(name, parameters, kind)
        texts.append(_body(name, code, model, table, module))
    texts += [_setter(model, interface, number, module) for number in model.numbers]
    by_name = {t.name: t for t in model.kept}
    kinds = {number_parameter(n, by_name[n.kept]).kind for n in model.numbers}
    texts += map(_set, sorted(kinds))
    texts += minibatches.functions(module)
    texts += selftest.functions(module)
    return texts


def _body(name: str, code: Code, model: Model, table: _Tensors, module: ModuleText) -> str:
    if name == "state_bytes":
        return code.text(f"iw {model.state_bytes}")
    if name == "init":
        return starting.init(code)
    if name == "save":
        return starting.save(code, model)
    if name == "load":
        return starting.load(code, model)
    if name == "tensors":
        return code.text(f"i32 {len(model.kept)}")
    if name == "tensor":
        return table.find(code)
    if name == "tensor_name":
        return table.name(code)
    if name == "tensor_bytes":
        known = table.known(code)
        bytes_ = table.number(code, table.sizes)
        return code.text(f"iw {code.value(f'select i1 {known}, iw {bytes_}, iw 0')}")
    if name in ("get", "set"):
        return table.move(code, out=name == "get")
    if name == "describe":
        import json

        return code.text(f"ptr @{module.data(_zero_ended(json.dumps(model.about)))}")
    return _strerror(code, module)


class _Tensors:
    """The tensors of a state by number: their names, places and bytes, as constants."""

    def __init__(self, model: Model, data: Data) -> None:
        self.count = len(model.kept)
        offsets = model.offsets
        names = [_zero_ended(t.name) for t in model.kept]
        starts = [sum(map(len, names[:i])) for i in range(self.count)]
        self.names = data(b"".join(names))
        self.starts = data(struct.pack(f"<{self.count}q", *starts))
        self.places = data(struct.pack(f"<{self.count}q", *(offsets[t.name] for t in model.kept)))
        self.sizes = data(struct.pack(f"<{self.count}q", *(t.bytes for t in model.kept)))

    def known(self, code: Code) -> str:
        """Whether %index is a tensor's number; %row is it then, and 0 else."""
        known = code.value(f"icmp ult i32 %index, {self.count}")
        safe = code.value(f"select i1 {known}, i32 %index, i32 0")
        code.do(f"%row = zext i32 {safe} to iw")
        return known

    def number(self, code: Code, table: str, row: str = "%row") -> str:
        """An entry of a table."""
        return code.load("iw", f"@{table}", code.value(f"shl iw {row}, 3"))

    def name(self, code: Code) -> str:
        """The body of `NAME_tensor_name`: null where there is none."""
        known = self.known(code)
        text = code.at(f"@{self.names}", self.number(code, self.starts))
        return code.text(f"ptr {code.value(f'select i1 {known}, ptr {text}, ptr null')}")

    def find(self, code: Code) -> str:
        """The body of `NAME_tensor`: the number of a name, -1 where there is none."""
        code.leave_if(code.value("icmp eq ptr %name, null"), "i32 -1")

        def compare(row: str) -> None:
            mine = code.at(f"@{self.names}", self.number(code, self.starts, row))
            before = code.block
            head, same, more, differs = (code.label() for _ in range(4))
            code.do(f"br label %{head}")
            code.open(head)
            i, following = f"%{head}.i", f"%{head}.next"
            code.do(f"{i} = phi iw [0, %{before}], [{following}, %{more}]")
            a, b = code.load("i8", mine, i, align=1), code.load("i8", "%name", i, align=1)
            code.do(f"br i1 {code.value(f'icmp eq i8 {a}, {b}')}, label %{same}, label %{differs}")
            code.open(same)
            end = code.value(f"icmp eq i8 {a}, 0")
            found = code.label()
            code.do(f"br i1 {end}, label %{found}, label %{more}")
            code.open(found)
            code.do(f"ret i32 {code.value(f'trunc iw {row} to i32')}")
            code.open(more)
            code.do(f"{following} = add iw {i}, 1")
            code.do(f"br label %{head}")
            code.open(differs)

        code.loop(str(self.count), compare)
        return code.text("i32 -1")

    def move(self, code: Code, out: bool) -> str:
        """The body of `NAME_get` or `NAME_set`."""
        code.guard("@check_state(ptr %state, iw %state_bytes)")
        buffer = "%out" if out else "%in"
        code.guard(f"@check_pointer(ptr {buffer}, iw 0)")
        bad = f"i32 {CODE['ERROR_NAME']}"
        code.leave_if(code.value(f"xor i1 {self.known(code)}, true"), bad)
        bytes_ = self.number(code, self.sizes)
        code.leave_if(code.value(f"icmp ne iw %n, {bytes_}"), bad)
        place = code.at("%state", self.number(code, self.places))
        to, source = (buffer, place) if out else (place, buffer)
        code.copy(to, source, bytes_)
        return code.text("i32 0")


def member_parameter(model: Model) -> list[Parameter]:
    """Whose hyper-parameter is set, where there are many."""
    return [] if model.members is None else [Parameter("member", "size_t")]


def number_parameter(number: Number, kept: Kept) -> Parameter:
    """The parameter that a hyper-parameter is set by."""
    return Parameter("value", "double" if kept.dtype == float64 else "float")


def range_of(number: Number, kept: Kept) -> tuple[float, float]:
    """The least and the largest number that may be set."""
    of, (least, low), (most, high) = kept.dtype.numpy.type, number.low, number.high
    first = np.nextafter(of(low), of(np.inf)) if least == "ogt" else of(low)
    last = np.nextafter(of(high), of(-np.inf)) if most == "olt" else of(high)
    return float(first), float(last)


def _setter(model: Model, interface: Interface, number: Number, module: ModuleText) -> str:
    """`NAME_set_learning_rate`, and the like."""
    (kept,) = [t for t in model.kept if t.name == number.kept]
    parameter = number_parameter(number, kept)
    kind = parameter.kind
    parameters = (*STATE, *member_parameter(model), parameter)
    code = module.head(f"set_{interface.numbers[number.called]}", parameters)
    bounds = ", ".join(f"{kind} {number_text(b, kind)}" for b in range_of(number, kept))
    place = f"iw {model.offsets[kept.name]}"
    if model.members is not None:
        none = code.value(f"icmp uge iw %member, {model.members}")
        code.leave_if(none, f"i32 {CODE['ERROR_NAME']}")
        own = code.value(f"mul iw %member, {kept.dtype.itemsize}")
        place = f"iw {code.value(f'add {place}, {own}')}"
    code.guard(f"@set_{kind}(ptr %state, iw %state_bytes, {kind} %value, {bounds}, {place})")
    return code.text("i32 0")


def _set(kind: str) -> str:
    """`i32 @set_KIND(state, state_bytes, value, low, high, offset)`: a number between bounds."""
    given = f"{kind} %value, {kind} %low, {kind} %high, iw %offset"
    code = Code(f"internal i32 @set_{kind}(ptr %state, iw %state_bytes, {given}) #0")
    code.guard("@check_state(ptr %state, iw %state_bytes)")
    above = code.value(f"fcmp oge {kind} %value, %low")
    below = code.value(f"fcmp ole {kind} %value, %high")
    good = code.value(f"and i1 {above}, {below}")
    code.leave_if(code.value(f"xor i1 {good}, true"), f"i32 {CODE['ERROR_VALUE']}")
    code.store(kind, "%value", "%state", "%offset", align=4)
    return code.text("i32 0")


def _strerror(code: Code, module: ModuleText) -> str:
    """The body of `NAME_strerror`: never null."""
    for number, text in module.faults():
        this = code.value(f"icmp eq i32 %code, {number}")
        code.leave_if(this, f"ptr @{module.data(_zero_ended(text))}")
    return code.text(f"ptr @{module.data(_zero_ended('no code of this interface'))}")


def _zero_ended(text: str) -> bytes:
    return text.replace("\0", "").encode() + b"\0"
