"""Programs in regions do what they do whole; registers hold nothing from one to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from chainrule.ir.loop import (
    Apply,
    Barrier,
    Buffer,
    Get,
    IndexValue,
    Let,
    Load,
    Local,
    Loop,
    Program,
    Set,
    Stmt,
    Store,
)
from chainrule.ir.size import Size, evaluate
from chainrule.ir.types import float32
from chainrule.loops.interpret import interpret
from chainrule.loops.regions import Around, Region, every_region, regions_of

N, G, I, TOP = (Size.symbol(s) for s in ("n", "g", "i", "top"))
X, Y, Z = (Buffer(name, float32, 3 * N) for name in "xyz")
T = Local("t", float32)
Arrays = Mapping[str, np.ndarray]


def plus(a: object, b: object) -> Apply:
    return Apply("add", (a, b), float32)  # type: ignore[arg-type]


def program(*body: Stmt) -> Program:
    return Program("p", (X, Y, Z), ("n",), body)


def run(regions: Sequence[Region | Around], arrays: Arrays, sizes: dict[str, int]) -> None:
    """One region after the other, their split loops from the last iteration to the first."""
    for region in regions:
        if isinstance(region, Around):
            for i in range(evaluate(region.extent, sizes)):
                run(region.body, arrays, sizes | {region.var: i})
        else:
            assert region.program.sizes == tuple(sizes)
            assert interpret(region.program, arrays, sizes, backward=True) == 0


def turned(source: Buffer, target: Buffer) -> Loop:
    """target[top + i] = 2 * source[top + n - 1 - i], through the local t."""
    value = Load(source, TOP + N - 1 - I)
    body = (Set(T, (), plus(value, value)), Store(target, TOP + I, Get(T)))
    return Loop("i", N, body, split=True)


def test_regions_do_what_the_whole_does() -> None:
    """Parts meet in a loop, whose turn a name and every region in it depend on."""
    inside = (Let("top", G * N), turned(X, Y), Barrier(), turned(Y, Z), Barrier())
    last = Store(X, I, plus(Load(Z, I), IndexValue(I, float32)))
    whole = program(T, Loop("g", 3, inside), Loop("i", N, (last,), split=True))
    regions = regions_of(whole)
    assert regions is not None and [type(r) for r in regions] == [Around, Region]
    assert len(list(every_region(regions))) == 3
    x = np.arange(12, dtype=np.float32)
    have, want = ({"x": x.copy(), "y": x * 0, "z": x * 0} for _ in range(2))
    run(regions, have, {"n": 4})
    assert interpret(whole, want, {"n": 4}) == 0
    for name in have:
        np.testing.assert_array_equal(have[name], want[name])
    np.testing.assert_array_equal(have["z"], 4 * x)


SET = Set(T, (), Load(X, 0))
READ = Store(Y, 0, Get(T))


@pytest.mark.parametrize(
    ("body", "divided"),
    [
        ((T, SET, Barrier(), READ), False),
        ((T, SET, Barrier(), SET, READ), True),
        ((T, SET, READ, Barrier(), T, READ), True),
        ((T, SET, Barrier(), Loop("i", 2, (SET,)), READ), True),
        # of a loop that may not run nothing is known
        ((T, SET, Barrier(), Loop("i", N, (SET,)), READ), False),
        # the first turn reads what was set before they met
        ((T, SET, Barrier(), Loop("i", 2, (READ, SET))), False),
        ((T, Loop("g", 2, (READ, Barrier(), SET))), False),
    ],
)
def test_what_lives_in_registers_across_a_meeting(body: tuple[Stmt, ...], divided: bool) -> None:
    assert (regions_of(program(*body)) is not None) == divided
