"""The template for pairs of bfloat16: native code and the interpreter, at every level."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from chainrule.ir.loop import Apply, Buffer, Load, Loop, Program, Store, Value
from chainrule.ir.size import Dim, Size, evaluate
from chainrule.ir.types import bfloat16, float32, int32
from chainrule.loops.interpret import interpret
from chainrule.loops.pairs import STRETCH, pair_loops, sums_size, word_sizes
from chainrule.loops.tiles import Contraction
from chainrule.target import TARGETS, Target

Array = np.ndarray[Any, Any]
M, N, K = Size.symbol("m"), Size.symbol("n"), Size.symbol("k")
#: less than a panel and more, odd and even, one stretch and several
SIZES = [(1, 1, 1), (3, 17, 5), (8, 16, 16), (21, 50, 19), (16, 64, 2), (5, 9, 2 * STRETCH + 5)]


def matmul(
    m: Dim,
    n: Dim,
    k: Dim,
    target: Target,
    a_t: bool = False,
    b_t: bool = False,
    split: bool = False,
) -> Program:
    """out = a @ b, any of the three sizes symbolic, factors as stored or transposed."""
    a, b = Buffer("a", bfloat16, m * k), Buffer("b", bfloat16, k * n)
    out = Buffer("out", float32, m * n)

    def at(buffer: Buffer, offset: Dim) -> Value:
        return Apply("cast", (Load(buffer, offset),), float32)

    c = Contraction(
        (),
        m,
        n,
        k,
        lambda i, q: at(a, q * m + i if a_t else i * k + q),
        lambda q, j: at(b, j * k + q if b_t else q * n + j),
        float32,
        lambda i, j, total: (Store(out, i * n + j, total),),
    )
    sizes = word_sizes(c)
    words = Buffer("x", int32, sizes[0]), Buffer("y", int32, sizes[1])
    sums = Buffer("sums", float32, sums_size(target), True)
    names = sorted({s for d in (m, n, k) if isinstance(d, Size) for s in d.symbols()})
    body = pair_loops(c, target, words, sums, split)
    return Program("matmul", (a, b, out, *words, sums), tuple(names), body)


def arrays_for(program: Program, sizes: dict[str, int]) -> dict[str, Array]:
    rng = np.random.default_rng([*sizes.values()])
    made = {}
    for b in program.buffers:
        size = evaluate(b.size, sizes)
        if b.name in "ab":
            made[b.name] = rng.standard_normal(size).astype(ml_dtypes.bfloat16)
        else:  # what was there before must not matter
            made[b.name] = np.full(size, np.nan if b.dtype.is_float else -1, b.dtype.numpy)
    return made


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("m", "n", "k"), SIZES)
@pytest.mark.parametrize("symbolic", ["", "m", "k", "mnk"])
@pytest.mark.parametrize(("a_t", "b_t"), [(False, False), (True, True)])
def test_native_is_the_interpreter(
    native: Callable[..., int],
    target: Target,
    m: int,
    n: int,
    k: int,
    symbolic: str,
    a_t: bool,
    b_t: bool,
) -> None:
    dims = [s if name in symbolic else v for name, s, v in (("m", M, m), ("n", N, n), ("k", K, k))]
    program = matmul(*dims, target, a_t=a_t, b_t=b_t)
    sizes = {"m": m, "n": n, "k": k}
    ours = arrays_for(program, sizes)
    meant = {name: a.copy() for name, a in ours.items()}
    assert native(program, ours, sizes, target) == 0
    assert interpret(program, meant, sizes, fma=target.fma) == 0
    np.testing.assert_array_equal(ours["out"], meant["out"])
    a, b = (ours[name].astype(np.float64) for name in "ab")
    a, b = a.reshape((k, m)).T if a_t else a.reshape((m, k)), b.reshape((n, k) if b_t else (k, n))
    want = a @ (b.T if b_t else b)
    bound = k * 2.0**-24 * (np.abs(a) @ np.abs(b.T if b_t else b))  # a rounding a term
    assert (np.abs(ours["out"].reshape(m, n) - want) <= bound).all()


@pytest.mark.parametrize(("rows", "columns"), [(13, 40), (70, 40), (13, 50), (13, 64)])
def test_the_order_of_shared_loops_does_not_matter(rows: int, columns: int) -> None:
    for level in ("x86-64-v4+bf16", "generic"):
        program = matmul(rows, columns, 37, TARGETS[level], split=True)
        one = arrays_for(program, {"m": rows, "n": columns, "k": 37})
        two = {name: a.copy() for name, a in one.items()}
        interpret(program, one, {})
        interpret(program, two, {}, backward=True)
        np.testing.assert_array_equal(one["out"], two["out"])


def test_tiles_do_not_change_bits() -> None:
    """Levels have tiles of other heights and widths; where they fuse, one order of sums."""
    found = []
    for target in TARGETS.values():
        program = matmul(9, 33, 2 * STRETCH + 3, target)
        arrays = arrays_for(program, {"m": 9, "n": 33, "k": 2 * STRETCH + 3})
        interpret(program, arrays, {}, fma=True)
        found.append(arrays["out"])
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


@pytest.mark.smoke
def test_the_upper_half_comes_first() -> None:
    """The instruction's order: of 1 + 2**24 float32 keeps 2**24, of 1 - 2**24 all."""
    x, y, out = (Buffer(n, t, 16) for n, t in (("x", int32), ("y", int32), ("out", float32)))
    i = Size.symbol("i")
    dot = Apply("dot2", (Load(x, i), Load(y, i), Load(out, i)), float32)
    program = Program("dot", (x, y, out), (), (Loop("i", 16, (Store(out, i, dot),), "vector"),))
    ones = np.ones((16, 2), ml_dtypes.bfloat16).view(np.int32)[:, 0]
    for lower, upper, left in ((-(2.0**24), 2.0**24, 0), (2.0**24, -(2.0**24), 1)):
        halves = np.tile(np.array([lower, upper], ml_dtypes.bfloat16), (16, 1))
        arrays = {"x": halves.view(np.int32)[:, 0], "y": ones, "out": np.ones(16, np.float32)}
        interpret(program, arrays, {})
        assert (arrays["out"] == left).all()


def test_the_instruction_rounds_as_two_multiply_adds(
    target: Target, check: Callable[..., dict[str, Array]]
) -> None:
    """Numbers of many sizes, infinities and NaN; none is subnormal, nor are their products."""
    rng = np.random.default_rng(9)
    count = 16 * 400
    pairs = np.ldexp(rng.standard_normal((2, count, 2)), rng.integers(-30, 31, (2, count, 2)))
    pairs[rng.random(pairs.shape) < 0.02] = np.inf
    pairs[rng.random(pairs.shape) < 0.02] = -np.inf
    pairs[rng.random(pairs.shape) < 0.02] = np.nan
    words = pairs.astype(ml_dtypes.bfloat16).view(np.int32)[..., 0]
    sums = np.ldexp(rng.standard_normal(count), rng.integers(-30, 31, count)).astype(np.float32)
    x, y, out = (Buffer(n, t, count) for n, t in (("x", int32), ("y", int32), ("out", float32)))
    i = Size.symbol("i")
    dot = Apply("dot2", (Load(x, i), Load(y, i), Load(out, i)), float32)
    program = Program("dot", (x, y, out), (), (Loop("i", count, (Store(out, i, dot),), "vector"),))
    check(program, {"x": words[0].copy(), "y": words[1].copy(), "out": sums})
