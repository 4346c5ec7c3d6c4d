"""How tensors begin, natively: programs in the grammar of loops, the bits those of lang.init."""

from __future__ import annotations

from chainrule.ir.loop import (
    LANES,
    Apply,
    Buffer,
    Get,
    IndexValue,
    Literal,
    Load,
    Local,
    Loop,
    Program,
    Set,
    Stmt,
    Store,
    Value,
)
from chainrule.ir.size import Dim, Size
from chainrule.ir.types import DType, bool_, uint32, uint64
from chainrule.ops.philox import UNIT, WORDS

#: a normal number beyond 2 deviations is drawn again so often: that the last one still is has a
#: probability below 1e-32 (0.0455 to the power of 24)
REDRAWS = 24
_FUNCTION = {
    "uniform": "uniform_of_words",
    "normal": "normal_of_words",
    "truncated": "normal_of_words",
    "orthogonal": "normal_of_words",
}


def drawing(distribution: str, of: DType, members: int = 1, vectors: bool = False) -> Program:
    """scale · number + shift for each of `n` elements, of which each of the `members` has its own.

    One by one: in vectors it would be much of an exported kernel, which does it once. With
    `vectors` it is for so many whole vectors, `n` of them.

    Its buffers: the seed of each; the number of the draw, a uint32; scale and shift, in the type
    that `of` is drawn in; what is filled.
    """
    wide = of.wide
    seed, number = Buffer("seed", uint64, members), Buffer("number", uint32, 1)
    line = Buffer("line", wide, 2)
    n, i = Size.symbol("n"), Size.symbol("i'")
    out = Buffer("out", of, n * (LANES if vectors else members))
    member: Dim = Size.symbol("m'") if members > 1 else 0
    key = Load(seed, member)

    def drawn(step: Value) -> Value:
        where = IndexValue(i, uint64)
        draw = Apply("cast", (Load(number, 0),), uint64)
        counter = (where, _high(where), step, draw, key, _high(key))
        function = _FUNCTION[distribution]
        words = tuple(
            Apply("cast", (Apply(f"philox_{w}", counter, uint64),), uint32)
            for w in range(WORDS[function][wide.name])
        )
        return Apply(function, (*words, Literal(UNIT[wide.name], wide)), wide)

    def stored(value: Value) -> Store:
        scaled = Apply("add", (Apply("mul", (value, Load(line, 0)), wide), Load(line, 1)), wide)
        return Store(
            out, i * members + member, scaled if wide == of else Apply("cast", (scaled,), of)
        )

    first = drawn(Literal(0, uint64))
    buffers = (seed, number, line, out)
    name = f"begin_{distribution}_{of}_{members}"

    def program(*body: Stmt) -> Program:
        each = Loop("i'", n * LANES, body, "vector") if vectors else Loop("i'", n, body)
        return Program(
            name, buffers, ("n",), (each if members == 1 else Loop("m'", members, (each,)),)
        )

    if distribution != "truncated":
        return program(stored(first))
    cell = Local("t", wide)
    again = drawn(IndexValue(Size.symbol("r'") + 1, uint64))
    beyond = Apply("gt", (Apply("abs", (Get(cell),), wide), Literal(2.0, wide)), bool_)
    redraw = Set(cell, (), Apply("where", (beyond, again, Get(cell)), wide))
    return program(cell, Set(cell, (), first), Loop("r'", REDRAWS, (redraw,)), stored(Get(cell)))


def _high(value: Value) -> Value:
    """The high word of a uint64."""
    return Apply("lshr", (value, Literal(32, uint64)), uint64)
