"""What is asked of loops: which registers outlive a turn."""

from __future__ import annotations

from chainrule.ir.loop import (
    Apply,
    Buffer,
    Combine,
    Get,
    Literal,
    Load,
    Local,
    Loop,
    Set,
    Store,
    When,
)
from chainrule.ir.size import Size
from chainrule.ir.types import float32
from chainrule.loops.walk import carried_locals

I, J = Size.symbol("i'"), Size.symbol("j'")
X, Y = Buffer("x", float32, 160), Buffer("y", float32, 160)
HELD = Local("held", float32, (), True)


def across(*body: object) -> frozenset[Local]:
    vector = Loop("j'", 16, body, "vector")  # type: ignore[arg-type]
    return carried_locals((HELD, Loop("i'", 10, (vector,))))


def test_what_is_set_before_it_is_read_is_not_carried():
    assert across(Set(HELD, (), Load(X, I * 16 + J)), Store(Y, I * 16 + J, Get(HELD))) == set()


def test_what_is_read_first_is_carried():
    more = Apply("add", (Get(HELD), Load(X, I * 16 + J)), float32)
    assert across(Set(HELD, (), more)) == {HELD}
    assert across(Store(Y, J, Get(HELD)), Set(HELD, (), Literal(1.0, float32))) == {HELD}


def test_what_another_body_reads_is_carried():
    inside = Loop("i'", 10, (Set(HELD, (), Literal(1.0, float32)),))
    assert carried_locals((HELD, inside, Store(Y, 0, Combine("add", HELD)))) == {HELD}
    later = Loop("j'", 16, (Store(Y, J, Get(HELD)),), "vector")
    assert carried_locals((HELD, Set(HELD, (), Literal(1.0, float32)), later)) == {HELD}


def test_what_an_inner_body_sets_again_is_carried():
    """It may be set or not: a loop may not run, and a condition not hold."""
    first, again = Set(HELD, (), Literal(1.0, float32)), Set(HELD, (), Literal(2.0, float32))
    read = Store(Y, 0, Get(HELD))
    for inner in (Loop("i'", Size.symbol("n"), (again,)), When(((I, 3),), (again,))):
        assert carried_locals((HELD, first, inner, read)) == {HELD}
        assert carried_locals((HELD, first, inner, first, read)) == set()


def test_cells_are_told_apart():
    cells = Local("cells", float32, (2,), True)
    body = (Set(cells, (0,), Literal(1.0, float32)), Store(Y, J, Get(cells, (1,))))
    assert carried_locals((cells, Loop("j'", 16, body, "vector"))) == {cells}
