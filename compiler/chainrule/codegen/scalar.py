"""Scalar functions as LLVM instructions, on scalars and on vectors alike.

Machine operations become one instruction or intrinsic each, none of which LLVM turns into a call
of a library on a target that has it; every other function is expanded from its recipe.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

from chainrule.codegen.registers import Builder, Region, Register, element, mangled, vector
from chainrule.errors import CompileError
from chainrule.ir.loop import LANES, Literal
from chainrule.ir.machine import MACHINE
from chainrule.ir.recipe import Listing, bfloat16_bits
from chainrule.ir.types import DType, Kind, bfloat16, bool_, float32, float64, int32, int64
from chainrule.loops.library import listing_of
from chainrule.target import Target

_FLOAT_OP = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}
_INT_OP = {"add": "add", "sub": "sub", "mul": "mul", "shl": "shl", "lshr": "lshr", "ashr": "ashr"}
_LOGIC = {"and_": "and", "or_": "or", "xor": "xor"}
_FCMP = {"lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge", "eq": "oeq", "ne": "une"}
_ICMP = {"lt": "lt", "le": "le", "gt": "gt", "ge": "ge"}
#: of the classes that VFPCLASSPS tells (Intel's manual, volume 2): a quiet NaN, a subnormal number,
#: a signalling NaN
_NAN_OR_SUBNORMAL = 0x01 | 0x20 | 0x80
#: a branch that is taken once in so many times
_RARELY = '!{!"branch_weights", i32 1, i32 2000}'
_INTRINSIC = {"sqrt": "sqrt", "copysign": "copysign", "fma": "fma", "abs": "fabs"}


def constant(value: float | int | bool, dtype: DType) -> Register:
    """A number as an LLVM constant, rounded to its type; floats by their bits."""
    if dtype.is_bool:
        return Register("true" if value else "false", dtype)
    if dtype.is_integer:
        return Register(str(int(value)), dtype)
    number = float(value)
    if dtype == bfloat16:
        return Register(str(int(dtype.numpy.type(number).view("uint16"))), dtype)
    if dtype == float32 and math.isfinite(number):
        number = float(dtype.numpy.type(number))
    if math.isnan(number):
        return Register("0x7FF8000000000000", dtype)
    return Register(f"0x{struct.unpack('<Q', struct.pack('<d', number))[0]:016X}", dtype)


class ScalarCode:
    """Emits functions of registers into a builder."""

    def __init__(self, builder: Builder, target: Target) -> None:
        self.builder, self.target = builder, target
        #: lanes that are there, while a part of a vector is worked on
        self.mask: Register | None = None

    def widen(self, value: Register, lanes: int) -> Register:
        """The value in every lane."""
        if value.lanes == lanes:
            return value
        kind = vector(element(value.dtype), lanes)
        if not value.text.startswith("%"):
            return Register(f"splat ({value.typed})", value.dtype, lanes)
        one = self.builder.pure(f"insertelement {kind} poison, {value.typed}, i32 0", value.text)
        text = f"shufflevector {kind} {one}, {kind} poison, <{lanes} x i32> zeroinitializer"
        return Register(self.builder.pure(text, one), value.dtype, lanes)

    def apply(self, fn: str, args: Sequence[Register], to: DType) -> Register:
        """`fn` of registers, the scalars among them widened to the others' lanes."""
        lanes = max(r.lanes for r in args)
        registers = [self.widen(r, lanes) if lanes else r for r in args]
        if fn in MACHINE:
            return self.machine(fn, registers, to)
        if fn == "dot2" and self.target.pairs and lanes == LANES:
            return self.dot2(*registers)
        if fn == "round_pair" and self.target.pairs and lanes == LANES:
            return self.round_pair(*registers)
        return self.recipe(fn, registers)

    def dot2(self, x: Register, y: Register, total: Register) -> Register:
        """The instruction for it: the same two multiply-adds, where all numbers are normal."""
        kind, fn = f"<{2 * LANES} x bfloat>", "@llvm.x86.avx512bf16.dpbf16ps.512"
        pairs = [self.builder.pure(f"bitcast {r.typed} to {kind}", r.text) for r in (x, y)]
        self.builder.declare(f"{total.type} {fn}({total.type}, {kind}, {kind})")
        text = f"call {total.type} {fn}({total.typed}, {kind} {pairs[0]}, {kind} {pairs[1]})"
        return Register(self.builder.pure(text, total.text, *pairs), total.dtype, LANES)

    def round_pair(self, x: Register, y: Register) -> Register:
        """The instruction for it, which takes subnormal numbers as 0."""
        halves = [self.converted("zext", self.rounded_normals(r), int32) for r in (x, y)]
        upper = self.machine("shl", [halves[1], self.widen(constant(16, int32), LANES)], int32)
        return self.machine("or_", [halves[0], upper], int32)

    def recipe(self, fn: str, args: Sequence[Register]) -> Register:
        """The machine operations of `fn` on registers."""
        params, listing = listing_of(fn, tuple(a.dtype for a in args))
        return self.carry_out(listing, dict(zip(params, args, strict=True)))

    def carry_out(self, listing: Listing, values: dict[str, Register]) -> Register:
        """The steps of a recipe on registers by name."""

        def register(operand: str | Literal) -> Register:
            if isinstance(operand, Literal):
                return constant(operand.value, operand.dtype)
            return values[operand]

        for step in listing.steps:
            values[step.name] = self.apply(step.fn, [register(a) for a in step.args], step.dtype)
        return register(listing.result)

    def machine(self, fn: str, args: list[Register], to: DType) -> Register:
        """One machine operation; its operands have one length."""
        x = args[0]
        if args[-1].dtype == bfloat16 and fn not in ("where", "cast"):
            raise CompileError(f"the machine operation {fn} does not take {bfloat16}")
        if fn in _FCMP:
            return self.compare(fn, x, args[1])
        if fn == "where":
            return self.instruction(
                f"select {x.typed}, {args[1].typed}, {args[2].typed}", args, args[1].dtype
            )
        if fn in ("bits", "float_of_bits", "to_int", "to_float", "cast"):
            return self.convert(fn, x, to)
        if fn in _LOGIC:
            return self.instruction(f"{_LOGIC[fn]} {x.typed}, {args[1].text}", args, x.dtype)
        if fn == "not_":
            ones = self.widen(constant(True if x.dtype.is_bool else -1, x.dtype), x.lanes)
            return self.instruction(f"xor {x.typed}, {ones.text}", args, x.dtype)
        return self.float_op(fn, args) if x.dtype.is_float else self.integer_op(fn, args)

    def instruction(self, text: str, args: Sequence[Register], dtype: DType) -> Register:
        name = self.builder.pure(text, *[a.text for a in args])
        return Register(name, dtype, max(a.lanes for a in args))

    def compare(self, fn: str, x: Register, y: Register) -> Register:
        if x.dtype.is_float:
            return self.instruction(f"fcmp {_FCMP[fn]} {x.typed}, {y.text}", (x, y), bool_)
        signed = "s" if x.dtype.kind is Kind.INT else "u"
        condition = signed + _ICMP[fn] if fn in _ICMP else fn
        return self.instruction(f"icmp {condition} {x.typed}, {y.text}", (x, y), bool_)

    def float_op(self, fn: str, args: list[Register]) -> Register:
        x = args[0]
        if fn in _FLOAT_OP:
            return self.instruction(f"{_FLOAT_OP[fn]} {x.typed}, {args[1].text}", args, x.dtype)
        if fn == "neg":
            return self.instruction(f"fneg {x.typed}", args, x.dtype)
        if fn == "fma" and not self.target.fma:
            return self.float_op("add", [self.float_op("mul", args[:2]), args[2]])
        if fn in _INTRINSIC:
            return self.intrinsic(_INTRINSIC[fn], args)
        raise CompileError(f"the machine operation {fn} does not take {x.dtype}")

    def intrinsic(self, name: str, args: Sequence[Register], extra: str = "") -> Register:
        x = args[0]
        full = f"@llvm.{name}.{mangled(element(x.dtype), x.lanes)}"
        self.builder.declare(
            f"{x.type} {full}({', '.join([a.type for a in args] + (['i1'] if extra else []))})"
        )
        text = f"call {x.type} {full}({', '.join([a.typed for a in args])}{extra})"
        return self.instruction(text, args, x.dtype)

    def integer_op(self, fn: str, args: list[Register]) -> Register:
        x = args[0]
        if fn in _INT_OP:
            return self.instruction(f"{_INT_OP[fn]} {x.typed}, {args[1].text}", args, x.dtype)
        if fn == "neg":
            zero = self.widen(constant(0, x.dtype), x.lanes)
            return self.instruction(f"sub {zero.typed}, {x.text}", args, x.dtype)
        if fn == "fma":
            return self.integer_op("add", [self.integer_op("mul", args[:2]), args[2]])
        if fn == "abs":
            unsigned = x.dtype.kind is Kind.UINT
            return x if unsigned else self.intrinsic("abs", [x], ", i1 false")
        if fn == "quotient":
            return self.quotient(x, args[1])
        if fn == "mulhi":
            return self.mulhi(x, args[1])
        raise CompileError(f"the machine operation {fn} does not take {x.dtype}")

    def quotient(self, x: Register, y: Register) -> Register:
        """A division stays where it is written, and lanes that are not there divide by 1."""
        if self.mask is not None and y.lanes:
            one = self.widen(constant(1, y.dtype), y.lanes)
            y = self.instruction(
                f"select {self.mask.typed}, {y.typed}, {one.typed}", (self.mask, y), y.dtype
            )
        word = "sdiv" if x.dtype.kind is Kind.INT else "udiv"
        return Register(self.builder.pinned(f"{word} {x.typed}, {y.text}"), x.dtype, x.lanes)

    def mulhi(self, x: Register, y: Register) -> Register:
        wide = vector("i64", x.lanes)
        a = self.builder.pure(f"zext {x.typed} to {wide}", x.text)
        b = self.builder.pure(f"zext {y.typed} to {wide}", y.text)
        product = self.builder.pure(f"mul nuw {wide} {a}, {b}", a, b)
        by = f"splat (i64 {x.dtype.bits})" if x.lanes else str(x.dtype.bits)
        high = self.builder.pure(f"lshr {wide} {product}, {by}", product)
        return self.instruction(
            f"trunc {wide} {high} to {x.type}", [Register(high, x.dtype, x.lanes)], x.dtype
        )

    def convert(self, fn: str, x: Register, to: DType) -> Register:
        """The five operations that change the element type."""
        integer, real = (int32, float32) if x.dtype.bits == 32 else (int64, float64)
        if fn == "bits":
            return self.converted("bitcast", x, integer)
        if fn == "float_of_bits":
            return self.converted("bitcast", x, real)
        if fn == "to_int":
            return self.converted("fptosi", x, integer)
        if fn == "to_float":
            return self.converted("uitofp" if x.dtype.kind is Kind.UINT else "sitofp", x, real)
        return self.cast(x, to)

    def converted(self, word: str, x: Register, to: DType) -> Register:
        return self.instruction(f"{word} {x.typed} to {vector(element(to), x.lanes)}", (x,), to)

    def cast(self, x: Register, to: DType) -> Register:
        """NumPy's astype; a float that does not fit an integer gives any number."""
        if x.dtype == to:
            return x
        if x.dtype == bfloat16:
            return self.cast(self.from_bfloat16(x), to)
        if to == bfloat16:
            return self.to_bfloat16(self.cast(x, float32))
        if to.is_bool:
            zero = self.widen(constant(0, x.dtype), x.lanes)
            return self.compare("ne", x, zero)
        if x.dtype.is_float and to.is_float:
            return self.converted("fpext" if to.bits > x.dtype.bits else "fptrunc", x, to)
        unsigned = x.dtype.kind is not Kind.INT
        if to.is_float:
            return self.converted("uitofp" if unsigned else "sitofp", x, to)
        if not x.dtype.is_float:
            if to.bits == x.dtype.bits:
                return Register(x.text, to, x.lanes)
            wider = "zext" if unsigned else "sext"
            return self.converted(wider if to.bits > x.dtype.bits else "trunc", x, to)
        if to.bits < 32:
            return self.cast(self.truncated("fptosi", x, int32), to)
        return self.truncated("fptoui" if to.kind is Kind.UINT else "fptosi", x, to)

    def from_bfloat16(self, x: Register) -> Register:
        """A bfloat16 as the float32 of which it is the upper half."""
        low = self.converted("zext", x, int32)
        by = self.widen(constant(16, int32), x.lanes)
        bits = self.instruction(f"shl {low.typed}, {by.text}", (low,), int32)
        return self.converted("bitcast", bits, float32)

    def to_bfloat16(self, x: Register) -> Register:
        """A float32 rounded to bfloat16."""
        if self.target.pairs and x.lanes == LANES:
            return self.to_bfloat16_at_once(x)
        return self.to_bfloat16_in_steps(x)

    def to_bfloat16_in_steps(self, x: Register) -> Register:
        bits = self.carry_out(bfloat16_bits(), {"x": x})
        return self.converted("trunc", bits, bfloat16)

    def to_bfloat16_at_once(self, x: Register) -> Register:
        """The instruction for it, and the steps where it has other bits: it takes subnormal numbers
        as 0, and a NaN keeps its payload.
        """
        builder, mask = self.builder, f"<{LANES} x i1>"
        fn = f"@llvm.x86.avx512.fpclass.ps.{LANES * 32}"
        builder.declare(f"{mask} {fn}({x.type}, i32 immarg)")
        apart = builder.pure(f"call {mask} {fn}({x.typed}, i32 {_NAN_OR_SUBNORMAL})", x.text)
        all_ = builder.pure(f"bitcast {mask} {apart} to i{LANES}", apart)
        some = builder.pure(f"icmp ne i{LANES} {all_}, 0", all_)
        fast = self.rounded_normals(x)
        inside, after = builder.label(), builder.label()
        builder.open(Region(inside, guard=True))
        same = builder.pinned(f"bitcast {x.typed} to {x.type}")  # holds the steps in here
        builder.depth_of[same] = len(builder.regions) - 1
        slow = self.to_bfloat16_in_steps(Register(same, float32, LANES))
        region, parent = builder.close(), builder.here
        parent.lines.append(f"  br i1 {some}, label %{inside}, label %{after}, !prof {_RARELY}")
        parent.lines += [f"{inside}:", *region.lines, f"  br label %{after}", f"{after}:"]
        incoming = f"[{fast.text}, %{parent.label}], [{slow.text}, %{region.label}]"
        parent.label = after
        return Register(builder.pinned(f"phi {fast.type} {incoming}"), bfloat16, LANES)

    def rounded_normals(self, x: Register) -> Register:
        """The instruction that rounds float32 to bfloat16, but subnormal numbers to 0."""
        kind, fn = f"<{LANES} x bfloat>", "@llvm.x86.avx512bf16.cvtneps2bf16.512"
        self.builder.declare(f"{kind} {fn}({x.type})")
        rounded = self.builder.pure(f"call {kind} {fn}({x.typed})", x.text)
        short = self.builder.pure(f"bitcast {kind} {rounded} to <{LANES} x i16>", rounded)
        return Register(short, bfloat16, LANES)

    def truncated(self, word: str, x: Register, to: DType) -> Register:
        """A float as an integer; where it does not fit, one number to all who ask, not poison."""
        number = self.converted(word, x, to)
        return self.instruction(f"freeze {number.typed}", (number,), to)

    def combine(self, fn: str, cell: Register) -> Register:
        """All lanes folded in the one fixed tree: lane i with lane i + half, until one is left."""
        half = cell.lanes // 2
        while half:
            lower, upper = self.half(cell, 0, half), self.half(cell, half, half)
            cell = self.apply(fn, (lower, upper), cell.dtype)
            half //= 2
        return self.lane(cell, 0)

    def lane(self, cell: Register, number: int) -> Register:
        """One lane of a vector, as a scalar."""
        text = f"extractelement {cell.typed}, i32 {number}"
        return Register(self.builder.pure(text, cell.text), cell.dtype)

    def transpose(self, rows: list[Register]) -> list[Register]:
        """The columns of a square of registers, by exchanging ever smaller blocks of it."""
        size = step = len(rows)
        while step := step // 2:
            first = [(size if lane & step else 0) + lane & ~step for lane in range(size)]
            for r in range(size):
                if not r & step:
                    upper, lower = rows[r], rows[r + step]
                    rows[r] = self.picked(upper, lower, first)
                    rows[r + step] = self.picked(upper, lower, [p + step for p in first])
        return rows

    def turn_quarters(self, rows: list[Register]) -> list[Register]:
        """Four vectors of quarters of four lanes: the columns of each square that quarters with one
        number make, side by side. By unpacking alone, which takes no table.
        """

        def pairs(a: Register, b: Register, at: tuple[int, int, int, int]) -> Register:
            return self.picked(a, b, [4 * q + p for q in range(LANES // 4) for p in at])

        n = LANES
        lower, upper = (0, n, 1, n + 1), (2, n + 2, 3, n + 3)
        first, last = (0, 1, n, n + 1), (2, 3, n + 2, n + 3)
        a, b, c, d = rows
        halves = ((pairs(a, b, at), pairs(c, d, at)) for at in (lower, upper))
        return [pairs(left, right, at) for left, right in halves for at in (first, last)]

    def joined(self, a: Register, b: Register) -> Register:
        """Two vectors end to end."""
        count = 2 * a.lanes
        picks = ", ".join(f"i32 {i}" for i in range(count))
        text = f"shufflevector {a.typed}, {b.typed}, <{count} x i32> <{picks}>"
        return Register(self.builder.pure(text, a.text, b.text), a.dtype, count)

    def picked(self, a: Register, b: Register, lanes: list[int]) -> Register:
        picks = ", ".join(f"i32 {p}" for p in lanes)
        text = f"shufflevector {a.typed}, {b.typed}, <{len(lanes)} x i32> <{picks}>"
        return self.instruction(text, (a, b), a.dtype)

    def half(self, cell: Register, start: int, count: int) -> Register:
        picks = ", ".join(f"i32 {start + i}" for i in range(count))
        text = f"shufflevector {cell.typed}, {cell.type} poison, <{count} x i32> <{picks}>"
        return Register(self.builder.pure(text, cell.text), cell.dtype, count)
