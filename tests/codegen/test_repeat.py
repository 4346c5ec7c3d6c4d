"""Calls, copies and loops of them in the entry, held to the same loops in Python."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from chainrule.codegen.host import host_target
from chainrule.codegen.module import emit_module
from chainrule.codegen.native import compile_object, load
from chainrule.codegen.steps import Call, Copy, Place, Repeat, Step, calls_in
from chainrule.ir.loop import Apply, Buffer, Check, Literal, Load, Loop, Program, Store
from chainrule.ir.size import Dim, Size
from chainrule.ir.types import bool_, float64

Array = np.ndarray[Any, Any]
N, T = Size.symbol("n"), Size.symbol("t")
I = Size.symbol("i")


def mixed() -> Program:
    """out = 2 * out + x, element by element; leaves with 5 where x is below 0."""
    x, out = Buffer("x", float64, N), Buffer("out", float64, N)
    doubled = Apply("mul", (Load(out, I), Literal(2.0, float64)), float64)
    new = Apply("add", (doubled, Load(x, I)), float64)
    fine = Apply("ge", (Load(x, I), Literal(0.0, float64)), bool_)
    return Program("mixed", (x, out), ("n",), (Loop("i", N, (Check(fine, 5), Store(out, I, new))),))


def run(order: list[Step], arrays: list[Array], **sizes: int) -> int:
    names = tuple(sorted(sizes))
    target = host_target()
    loaded = load(compile_object(emit_module(order, names, target), target))
    step = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p)(
        loaded.address("step")
    )
    table = (ctypes.c_void_p * len(arrays))(*[a.ctypes.data for a in arrays])
    values = (ctypes.c_int64 * len(names))(*[sizes[s] for s in names])
    return int(step(table, values))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_loop_goes_over_slices_in_its_order(steps: int, reverse: bool) -> None:
    rng = np.random.default_rng(0)
    xs, out = rng.uniform(0, 1, (steps, 3)), np.zeros(3)
    kept = np.full((steps, 3), np.nan)
    row = N * 8
    before = Copy(Place(1), Place(2).moved(0, row), row)
    call = Call(mixed(), (Place(0).moved(0, row), 1))
    assert run([Repeat(T, (before, call), reverse)], [xs, out, kept], n=3, t=steps) == 0
    value, rows = np.zeros(3), np.full((steps, 3), np.nan)
    for t in range(steps)[:: -1 if reverse else 1]:
        rows[t] = value
        value = 2 * value + xs[t]
    np.testing.assert_array_equal(out, value)
    np.testing.assert_array_equal(kept, rows)


def test_loops_in_loops_move_on_by_both() -> None:
    xs = np.arange(24.0).reshape(2, 4, 3)
    out = np.zeros((2, 3))
    inner = Call(mixed(), (Place(0).moved(0, N * 32).moved(1, N * 8), Place(1).moved(0, N * 8)))
    order: list[Step] = [Repeat(2, (Repeat(T * 2, (inner,), reverse=True),))]
    assert run(order, [xs, out], n=3, t=2) == 0
    want = np.zeros((2, 3))
    for a in range(2):
        for b in reversed(range(4)):
            want[a] = 2 * want[a] + xs[a, b]
    np.testing.assert_array_equal(out, want)
    assert calls_in(order) == [inner]


def test_what_leaves_a_loop_leaves_the_program() -> None:
    xs, out = np.array([[1.0], [-1.0], [1.0]]), np.zeros(1)
    call = Call(mixed(), (Place(0).moved(0, N * 8), 1))
    assert run([Repeat(T, (call,)), Call(mixed(), (1, 1))], [xs, out], n=1, t=3) == 5
    assert out == 1


@pytest.mark.parametrize(
    "size", [(T - 3) // 2 + 4, (T * T) % (N + 2), T * N - 2 * N + 5, (3 * T) // 4]
)
@pytest.mark.parametrize("t", [0, 1, 2, 9])
def test_sizes_are_those_of_python(size: Dim, t: int) -> None:
    from chainrule.ir.size import evaluate

    one, out = np.ones(1), np.zeros(1)
    count = max(0, evaluate(size, {"t": t, "n": 1}))
    assert run([Repeat(size, (Call(mixed(), (0, 1)),))], [one, out], n=1, t=t) == 0
    assert out == 2.0**count - 1
