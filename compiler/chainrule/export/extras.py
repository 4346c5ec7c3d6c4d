"""The functions of the interface besides step, predict and loss."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from chainrule.export import minibatches, selftest, starting
from chainrule.export.codes import CODE
from chainrule.export.entries import Data, Entries
from chainrule.export.interface import CONST_STATE, STATE, Interface, Parameter
from chainrule.export.model import ALIGN, Model, Number, StateTensor
from chainrule.export.text import Code
from chainrule.ir.types import float64

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


def functions(model: Model, interface: Interface, data: Data, module: Entries) -> list[str]:
    """All of them, as LLVM text."""
    table = _Tensors(model, data)
    texts = []
    for name, (result, parameters) in FIXED.items():
        kind = {"size_t": "iw", "int32_t": "i32"}.get(result, "ptr")
        code = module.head(name, parameters, kind)
        texts.append(_body(name, code, model, table, module))
    numbers = _Numbers(model, data)
    texts += [numbers.setter(module, number) for number in model.numbers]
    texts += numbers.functions()
    texts += [table.found(), *minibatches.functions(module)]
    texts += selftest.functions(module)
    return texts


def _body(name: str, code: Code, model: Model, table: _Tensors, module: Entries) -> str:
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
        buffer = "%out" if out else "%in"
        given = f"ptr %state, iw %state_bytes, i32 %index, ptr {buffer}, iw %n"
        place = code.value(f"call iw @tensor_at({given})")
        code.leave_if(code.value(f"icmp ult iw {place}, {ALIGN}"), f"i32 {code.narrow(place)}")
        tensor = code.value(f"inttoptr iw {place} to ptr")
        to, source = (buffer, tensor) if out else (tensor, buffer)
        code.copy(to, source, "%n")
        return code.text("i32 0")

    def found(self) -> str:
        """`iw @tensor_at(state, state_bytes, index, buffer, n)`: where a tensor of n bytes lies, or
        a code, which no address of a tensor is as small as.
        """
        given = "ptr %state, iw %state_bytes, i32 %index, ptr %buffer, iw %n"
        code = Code(f"internal iw @tensor_at({given}) noinline #0")
        code.guard("@check_state(ptr %state, iw %state_bytes)", wide=True)
        code.guard("@check_pointer(ptr %buffer, iw 0)", wide=True)
        bad = f"iw {CODE['ERROR_NAME']}"
        code.leave_if(code.value(f"xor i1 {self.known(code)}, true"), bad)
        code.leave_if(code.value(f"icmp ne iw %n, {self.number(code, self.sizes)}"), bad)
        place = code.at("%state", self.number(code, self.places))
        return code.text(f"iw {code.value(f'ptrtoint ptr {place} to iw')}")


def member_parameter(model: Model) -> list[Parameter]:
    """Whose hyper-parameter is set, where there are many."""
    return [] if model.members is None else [Parameter("member", "size_t")]


def number_parameter(number: Number, kept: StateTensor) -> Parameter:
    """The parameter that a hyper-parameter is set by."""
    return Parameter("value", "double" if kept.dtype == float64 else "float")


def range_of(number: Number, kept: StateTensor) -> tuple[float, float]:
    """The least and the largest number that may be set."""
    of, (least, low), (most, high) = kept.dtype.numpy.type, number.low, number.high
    first = np.nextafter(of(low), of(np.inf)) if least == "ogt" else of(low)
    last = np.nextafter(of(high), of(-np.inf)) if most == "olt" else of(high)
    return float(first), float(last)


class _Numbers:
    """The hyper-parameters by kind and number: their bounds and places, as constants."""

    def __init__(self, model: Model, data: Data) -> None:
        self.model = model
        kept = {t.name: t for t in model.kept}
        self.rows: dict[str, list[bytes]] = {}
        #: the kind of each, and where it stands among those of its kind
        self.at: dict[str, tuple[str, int]] = {}
        for number in model.numbers:
            tensor = kept[number.kept]
            kind = number_parameter(number, tensor).kind
            rows = self.rows.setdefault(kind, [])
            self.at[number.name] = kind, len(rows)
            row = (*range_of(number, tensor), model.offsets[tensor.name])
            rows.append(struct.pack("<ffq" if kind == "float" else "<ddq", *row))
        self.tables = {kind: data(b"".join(rows)) for kind, rows in self.rows.items()}

    def setter(self, module: Entries, number: Number) -> str:
        """`NAME_set_learning_rate`, and the like."""
        kind, row = self.at[number.name]
        parameters = (*STATE, *member_parameter(self.model), Parameter("value", kind))
        code = module.head(f"set_{module.interface.numbers[number.called]}", parameters)
        member = ""
        if self.model.members is not None:
            none = code.value(f"icmp uge iw %member, {self.model.members}")
            code.leave_if(none, f"i32 {CODE['ERROR_NAME']}")
            own = code.value(f"mul iw %member, {4 if kind == 'float' else 8}")
            member = f", iw {own}"
        given = f"ptr %state, iw %state_bytes, {kind} %value, iw {row}{member}"
        return code.text(f"i32 {code.value(f'call i32 @set_{kind}({given})')}")

    def functions(self) -> list[str]:
        """`i32 @set_KIND(state, state_bytes, value, row)`: a number between bounds; of an ensemble
        how far on the member's lies follows.
        """
        return [self._set(kind) for kind in sorted(self.tables)]

    def _set(self, kind: str) -> str:
        several = self.model.members is not None
        given = f"{kind} %value, iw %row{', iw %member' if several else ''}"
        code = Code(f"internal i32 @set_{kind}(ptr %state, iw %state_bytes, {given}) #0")
        code.guard("@check_state(ptr %state, iw %state_bytes)")
        item = 4 if kind == "float" else 8
        size = 2 * item + 8
        row = code.at(f"@{self.tables[kind]}", code.value(f"mul iw %row, {size}"))
        low, high = (code.load(kind, row, at, align=item) for at in (0, item))
        above = code.value(f"fcmp oge {kind} %value, {low}")
        below = code.value(f"fcmp ole {kind} %value, {high}")
        good = code.value(f"and i1 {above}, {below}")
        code.leave_if(code.value(f"xor i1 {good}, true"), f"i32 {CODE['ERROR_VALUE']}")
        place = code.load("iw", row, 2 * item)
        place = code.value(f"add iw {place}, %member") if several else place
        code.store(kind, "%value", "%state", place, align=item)
        return code.text("i32 0")


def _strerror(code: Code, module: Entries) -> str:
    """The body of `NAME_strerror`: never null."""
    for number, text in module.faults():
        this = code.value(f"icmp eq i32 %code, {number}")
        code.leave_if(this, f"ptr @{module.data(_zero_ended(text))}")
    return code.text(f"ptr @{module.data(_zero_ended('no code of this interface'))}")


def _zero_ended(text: str) -> bytes:
    return text.replace("\0", "").encode() + b"\0"
