"""What makes little code less: nests that programs share, locals that need no 0, known places."""

from __future__ import annotations

import numpy as np
import pytest

from chainrule.codegen.assigned import is_read_unset, runs
from chainrule.codegen.outlined import columns, nests, shared
from chainrule.codegen.spots import Spot, common, given
from chainrule.ir.loop import (
    Apply,
    Buffer,
    Combine,
    Get,
    Literal,
    Load,
    Local,
    Loop,
    Program,
    Set,
    Stmt,
    Store,
)
from chainrule.ir.size import Size
from chainrule.ir.types import float32
from chainrule.loops.interpret import interpret

B, I, J, K = (Size.symbol(s) for s in ("b", "i", "j", "k"))
T = Local("t", float32, (), lanes=True)
ZERO, ONE = Literal(0.0, float32), Literal(1.0, float32)


def product(name: str, inner: int, columns_: int, turned: bool) -> Program:
    """c[b, j] = 1 + sum over k of x[b, k] * w[k, j], or of w[j, k] where it is `turned`."""
    x, w, c = (Buffer(f"{name}{n}", float32, 64) for n in "xwc")
    at = J * inner + K if turned else K * columns_ + J
    fma = Apply("fma", (Load(x, B * inner + K), Load(w, at), Get(T)), float32)
    row = Loop("k", inner, (Loop("j", columns_, (Set(T, (), fma),), "vector"),))
    out = Store(c, B * columns_ + J, Apply("add", (Get(T), ONE), float32))
    body = (Set(T, (), ZERO), row, Loop("j", columns_, (out,), "vector"))
    return Program(name, (x, w, c), ("batch",), (T, Loop("b", Size.symbol("batch"), body)))


def test_rows_of_products_are_one_program() -> None:
    programs = [product("p", 3, 4, False), product("q", 5, 2, True), product("r", 3, 4, False)]
    found = [nest for p in programs for nest in nests(p, short=True)]
    (rows,) = (g for g in shared(found) if any(n.loop.var == "k" for n in g))
    assert len(rows) == 3
    program, places, numbers = columns(rows)
    assert len(places) == len(program.buffers) == 3, "the local is read and written at one place"
    assert len(numbers) == len(program.sizes) < len(rows[0].numbers), "some are the same for all"
    random = np.random.default_rng(0)
    for i, (inner, wide, turned) in enumerate([(3, 4, False), (5, 2, True)]):
        x = random.standard_normal(inner).astype(np.float32)
        w = random.standard_normal(inner * wide).astype(np.float32)
        cells = np.zeros(16, np.float32)
        of = {"px": x, "pw": w, "qx": x, "qw": w, "t": cells}
        given_ = {b.name: of[p[i].of.name] for b, p in zip(program.buffers, places, strict=True)}
        sizes = {s: int(n[i]) for s, n in zip(program.sizes, numbers, strict=True)}  # type: ignore[arg-type]
        assert interpret(program, given_, sizes, fma=False) == 0
        matrix = w.reshape(wide, inner).T if turned else w.reshape(inner, wide)
        np.testing.assert_allclose(cells[:wide], x @ matrix, rtol=1e-5)
        assert not cells[wide:].any()


def test_lanes_of_long_loops_stay_where_they_are() -> None:
    found = list(nests(product("p", 3, 40, False), short=False))
    assert not found, "what others see of a local is a lane, not an element"


@pytest.mark.parametrize(
    ("body", "unset"),
    [
        ((Set(T, (), ZERO), Loop("j", 3, (Store(Buffer("c", float32, 3), J, Get(T)),), "vector")),
         False),
        ((Loop("j", 3, (Set(T, (), ONE),), "vector"),
          Loop("j", 3, (Store(Buffer("c", float32, 3), J, Get(T)),), "vector")), False),
        ((Loop("j", 3, (Set(T, (), ONE),), "vector"),
          Loop("j", 4, (Store(Buffer("c", float32, 4), J, Get(T)),), "vector")), True),
        ((Loop("j", 3, (Set(T, (), ONE),), "vector"),
          Store(Buffer("c", float32, 1), 0, Combine("add", T))), True),
        ((Loop("i", Size.symbol("n"), (Set(T, (), ONE),)),
          Store(Buffer("c", float32, 1), 0, Combine("add", T))), False),
        ((Loop("i", Size.symbol("m"), (Set(T, (), ONE),)),
          Store(Buffer("c", float32, 1), 0, Combine("add", T))), True),
        ((Loop("i", 2, (Loop("j", I, (Set(T, (), ONE),)),)),
          Store(Buffer("c", float32, 1), 0, Combine("add", T))), True),
    ],
    ids=["set", "same lanes", "more lanes", "all lanes", "runs", "may not run", "triangle"],
)  # fmt: skip
def test_a_local_begins_as_0_where_it_shows(body: tuple[Stmt, ...], unset: bool) -> None:
    assert is_read_unset(T, body, {"n"}) == unset


def test_rows_of_locals_begin_as_0_where_it_shows() -> None:
    rows = Local("r", float32, (2, 3))
    out = Buffer("c", float32, 1)
    fill = Loop("i", 2, (Loop("j", 3, (Set(rows, (I, J), ZERO),), "unroll"),), "unroll")
    part = Loop("i", 1, (Loop("j", 3, (Set(rows, (I, J), ZERO),), "unroll"),), "unroll")
    read, other = Store(out, 0, Get(rows, (0, 0))), Store(out, 0, ONE)
    assert not is_read_unset(rows, (other, fill, read), ())
    assert is_read_unset(rows, (read, fill), ()), "a statement before it reads a cell"
    assert is_read_unset(rows, (part, read), ()), "not all of it is filled"


def test_loops_that_run() -> None:
    n = Size.symbol("n")
    assert runs(1, ()) and runs(n * 2 + 1, {"n"}) and runs(n * n, {"n"})
    assert (
        not runs(0, ()) and not runs(n, ()) and not runs(n - 1, {"n"}) and not runs(n // 2, {"n"})
    )


def test_known_places_are_no_parameters() -> None:
    state = Spot("state", 64)
    assert common([state, Spot("state", 64)]) == state
    assert common([state, Spot("state", 128)]) is None and common([state, None]) is None
    told = given([state, None, Spot("workspace", 0)], ["ptr %a", "ptr %b", "ptr %c"])
    assert told == ["ptr %state", "ptr %workspace", "ptr %b"]
