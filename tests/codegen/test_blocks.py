"""The template for blocks of bfloat16: the interpreter everywhere, native code where AMX is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from chainrule.codegen.host import host_target
from chainrule.ir.loop import (
    LANES,
    Apply,
    Barrier,
    Blocks,
    Buffer,
    Load,
    Loop,
    Panels,
    Program,
    Store,
    Value,
)
from chainrule.ir.size import Dim, Size, evaluate
from chainrule.ir.types import bfloat16, float32, int32
from chainrule.loops.blocks import block_loops, room_for
from chainrule.loops.interpret import interpret
from chainrule.loops.tiles import Contraction
from chainrule.loops.walk import loaded_buffers, statements
from chainrule.target import TARGETS

Array = np.ndarray[Any, Any]
AMX = TARGETS["x86-64-v4+amx"]
M, N, K = Size.symbol("m"), Size.symbol("n"), Size.symbol("k")
#: less than a block and more, odd and even, of several shapes: wide, tall; one stretch and several
SIZES = [(1, 1, 1), (3, 17, 5), (33, 16, 32), (40, 50, 67), (20, 70, 31), (18, 35, 550)]

tiles = pytest.mark.skipif(not host_target().blocks, reason="this machine has no AMX tiles")


def matmul(
    m: Dim,
    n: Dim,
    k: Dim,
    a_t: bool = False,
    b_t: bool = False,
    parts: int = 1,
    split: bool = False,
) -> Program:
    """out = a @ b, any of the three sizes symbolic, factors as stored or transposed."""
    of = bfloat16 if parts == 1 else float32
    a, b, out = Buffer("a", of, m * k), Buffer("b", of, k * n), Buffer("out", float32, m * n)

    def at(buffer: Buffer, offset: Dim) -> Value:
        load = Load(buffer, offset)
        return load if parts > 1 else Apply("cast", (load,), float32)

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
    room = room_for(c, parts)
    x, y = Buffer("x", int32, room.left, room.own[0]), Buffer("y", int32, room.right, room.own[1])
    sums = Buffer("sums", float32, room.sums, room.own[2])
    turned = Buffer("turned", int32, room.turned, True)
    body = block_loops(c, (x, y), sums, turned, split, parts)
    names = sorted({s for d in (m, n, k) if isinstance(d, Size) for s in d.symbols()})
    return Program("matmul", (a, b, out, x, y, sums, turned), tuple(names), body)


def arrays_for(program: Program, sizes: dict[str, int], seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng([seed, *sizes.values()])
    made = {}
    for b in program.buffers:
        size = evaluate(b.size, sizes)
        if b.name in "ab":
            made[b.name] = rng.standard_normal(size).astype(b.dtype.numpy)
        else:  # what was there before must not matter
            made[b.name] = np.full(size, np.nan if b.dtype.is_float else -1, b.dtype.numpy)
    return made


def exact(arrays: dict[str, Array], m: int, n: int, k: int, a_t: bool, b_t: bool) -> Any:
    a, b = (arrays[name].astype(np.float64) for name in "ab")
    a, b = a.reshape((k, m)).T if a_t else a.reshape((m, k)), b.reshape((n, k) if b_t else (k, n))
    b = b.T if b_t else b
    return a @ b, np.abs(a) @ np.abs(b)


def bound(k: int, parts: int) -> float:
    """Roundings of a sum: in a chain of 16, where two and where steps meet, for each product; of
    two parts, besides, what is left of both factors.
    """
    sums = (LANES + 1 + parts**2 * -(-k // (2 * LANES))) * 2.0**-24
    return sums if parts == 1 else sums + 2.0**-16


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("m", "n", "k"), SIZES)
@pytest.mark.parametrize(
    ("symbolic", "a_t", "b_t"),
    [("", True, False), ("m", False, False), ("k", True, False), ("mnk", False, True)],
)
@pytest.mark.parametrize("parts", [1, 2])
def test_the_meaning_is_the_product(
    native: Callable[..., int],
    m: int,
    n: int,
    k: int,
    symbolic: str,
    a_t: bool,
    b_t: bool,
    parts: int,
) -> None:
    """Of native code, and, for a share of the cases, as it is slow, of the interpreter's."""
    dims = [s if name in symbolic else v for name, s, v in (("m", M, m), ("n", N, n), ("k", K, k))]
    program, sizes = matmul(*dims, a_t=a_t, b_t=b_t, parts=parts), {"m": m, "n": n, "k": k}
    found = []
    if host_target().blocks:
        found.append(arrays_for(program, sizes))
        assert native(program, found[0], sizes, AMX) == 0
    if k < 60 and symbolic in ("", "mnk"):
        found.append(arrays_for(program, sizes))
        assert interpret(program, found[-1], sizes) == 0
    for arrays in found:
        want, scale = exact(arrays, m, n, k, a_t, b_t)
        assert (np.abs(arrays["out"].reshape(m, n) - want) <= bound(k, parts) * scale).all()
        np.testing.assert_array_equal(arrays["out"], found[0]["out"])


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(("m", "n", "k"), [(70, 20, 37), (20, 70, 37), (18, 35, 550)])
def test_the_order_of_shared_loops_does_not_matter(m: int, n: int, k: int, parts: int) -> None:
    program = matmul(m, n, k, a_t=True, parts=parts, split=True)
    assert any(isinstance(s, Barrier) for s in statements(program.body))
    one = arrays_for(program, {})
    two = {name: a.copy() for name, a in one.items()}
    interpret(program, one, {})
    interpret(program, two, {}, backward=True)
    np.testing.assert_array_equal(one["out"], two["out"])


@tiles
@pytest.mark.parametrize("parts", [1, 2])
def test_what_else_is_computed_does_not_change_bits(native: Callable[..., int], parts: int) -> None:
    """An element is the same in a product of any shape: tiles, stretches and strips differ."""
    k, rng = 600, np.random.default_rng(3)
    a = rng.standard_normal((150, k)).astype(np.float32).astype(ml_dtypes.bfloat16)
    b = rng.standard_normal((k, 150)).astype(np.float32).astype(ml_dtypes.bfloat16)
    kept = []
    for m, n, a_t in ((150, 150, True), (150, 9, False), (9, 150, True), (9, 9, False)):
        program = matmul(m, n, k, a_t=a_t, parts=parts)
        arrays = arrays_for(program, {})
        left = a[:m].T if a_t else a[:m]
        arrays["a"][:] = left.reshape(-1).astype(arrays["a"].dtype)
        arrays["b"][:] = b[:, :n].reshape(-1).astype(arrays["b"].dtype)
        assert native(program, arrays, {}, AMX) == 0
        kept.append(arrays["out"].reshape(m, n)[:9, :9])
    for other in kept[1:]:
        np.testing.assert_array_equal(other, kept[0])


def one_step(more: bool) -> Program:
    x, y, out = (Buffer(n, t, LANES**2) for n, t in (("x", int32), ("y", int32), ("out", float32)))
    blocks = Blocks(out, 0, Panels(x, 0, 0), Panels(y, 0, 0), 1, 1, 1, more=more)
    return Program("step", (x, y, out), (), (Loop("i'", 1, (blocks,)),))


@pytest.mark.smoke
def test_halves_are_summed_by_themselves(native: Callable[..., int]) -> None:
    """Of (2**24 + 1) + (1 - 2**24), halves first, float32 keeps 1, and one chain would 0 or 2."""
    words = np.zeros((LANES, LANES, 2), ml_dtypes.bfloat16)
    words[:, 0], words[:, 1] = (2.0**24, 1), (1, -(2.0**24))  # pair by pair: lower, upper half
    ones = np.ones((LANES, LANES, 2), ml_dtypes.bfloat16).view(np.int32).reshape(-1)
    for more in (False, True):
        program = one_step(more)
        arrays = {"x": words.view(np.int32).reshape(-1), "y": ones}
        meant = arrays | {"out": np.full(LANES**2, 5, np.float32)}
        assert interpret(program, meant, {}) == 0
        assert (meant["out"] == (6 if more else 1)).all()
        if host_target().blocks:
            ours = arrays | {"out": np.full(LANES**2, 5, np.float32)}
            assert native(program, ours, {}, AMX) == 0
            np.testing.assert_array_equal(ours["out"], meant["out"])


@tiles
def test_the_instruction_does_what_is_said(native: Callable[..., int]) -> None:
    """Numbers of many sizes, infinities and NaN; none is subnormal, nor are their products."""
    rng = np.random.default_rng(9)
    shape = (2, LANES, LANES, 2)
    for share in (0.0, 0.002):
        numbers = np.ldexp(rng.standard_normal(shape), rng.integers(-30, 31, shape))
        for special in (np.inf, -np.inf, np.nan):
            numbers[rng.random(shape) < share] = special
        words = numbers.astype(ml_dtypes.bfloat16).view(np.int32).reshape(2, -1)
        sums = np.ldexp(rng.standard_normal(LANES**2), rng.integers(-30, 31, LANES**2))
        ours, meant = (
            {"x": words[0].copy(), "y": words[1].copy(), "out": sums.astype(np.float32)}
            for _ in range(2)
        )
        program = one_step(True)
        assert native(program, ours, {}, AMX) == interpret(program, meant, {}) == 0
        np.testing.assert_array_equal(ours["out"], meant["out"])
        assert np.isfinite(meant["out"]).all() == (share == 0)


def test_what_blocks_read_is_what_threads_wait_for() -> None:
    program = matmul(20, 70, 31, split=True)
    read = {b.name for b in loaded_buffers(program.body)}
    assert read == {"a", "b", "x", "y", "sums"}
