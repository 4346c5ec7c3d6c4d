"""Convolutions and pooling that copy no windows: lanes go along images that are wide enough, along
sums, or, where the product is turned, along the other factor's rows.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.driver.lower import passes_for
from chainrule.ir.graph import Graph
from chainrule.ir.loop import LANES, Local
from chainrule.ir.passes import run_passes
from chainrule.ir.size import evaluate
from chainrule.loops.build import build_kernels
from chainrule.loops.tiles import CHAINS
from chainrule.loops.walk import statements
from chainrule.schedule.fuse import fuse
from chainrule.target import target

SEED = 11
#: batch, channels, kernels, extents, window, padding, stride, dilation, groups
CASES = [
    (3, 2, 5, (16, 16), (3, 3), 1, 1, 1, 1),
    (2, 3, 17, (5, 32), (3, 3), 1, 1, 1, 1),
    (2, 4, 6, (14, 14), (5, 5), 2, 1, 1, 1),
    (2, 4, 6, (18, 18), (3, 3), 0, 1, 1, 2),
    (2, 3, 3, (16, 48), (3, 2), 1, 1, 2, 3),
    (2, 2, 3, (31, 29), (3, 3), 1, 2, 1, 1),
    (1, 2, 30, (13, 16), (1, 1), 0, 1, 1, 1),
    (2, 6, 4, (40,), (7,), 3, 1, 1, 1),
    (1, 1, 2, (3, 4, 28), (2, 2, 3), 1, 1, 1, 1),
    (4, 10, 2, (13, 19), (1, 1), (1, 2), (1, 2), 1, 2),  # the sum of dx has one term
    # each channel by itself: in steps, and over lines that leave most lanes without a term
    (3, 6, 6, (13, 14), (3, 3), 1, 2, 1, 6),
    (2, 4, 8, (9, 31), (5, 4), (2, 1), (2, 3), 1, 4),
    (2, 3, 3, (12, 8), (3, 2), (1, 0), (2, 1), (1, 2), 3),
    (3, 5, 5, (7, 7), (3, 3), 1, 1, 1, 5),
    (2, 3, 6, (10, 17), (3, 3), 1, 1, 1, 3),
    # turned: lanes along kernels, and for dx along channels
    (3, 4, 16, (10, 10), (5, 5), 0, 1, 1, 1),
    (2, 13, 40, (7, 7), (3, 3), 1, 1, 1, 1),
    (2, 32, 64, (9, 13), (3, 3), 1, 2, 1, 2),
    (3, 5, 33, (21,), (5,), 2, 1, 2, 1),
    (2, 3, 32, (14, 14), (3, 3), 1, 1, 1, 1),  # 14 places: on AVX2 tiles go on in the next line
    (1, 4, 24, (3, 27), (3, 3), 1, 2, 1, 1),
    (2, 3, 16, (6, 6), (4, 4), 1, 1, 1, 1),
    (2, 2, 48, (3, 5, 4), (2, 1, 3), 1, (1, 2, 1), 1, 1),
    (1, 16, 16, (28, 12), (3, 7), (1, 3), 1, 1, 1),
]
LEVELS = ["x86-64-v4", "x86-64-v3", "generic"]


def expressions(case: Any, dtype: str) -> tuple[list[cr.Tensor], dict[str, np.ndarray]]:
    """A convolution with what follows it, and both derivatives; and numbers for them."""
    n, channels, kernels, extents, window, padding, stride, dilation, groups = case
    x = cr.input("x", ("batch", channels, *extents), dtype=dtype)
    k = cr.input("k", (kernels, channels // groups, *window), dtype=dtype)
    b = cr.input("b", (kernels, *(1 for _ in window)), dtype=dtype)
    z = cr.conv(x, k, stride=stride, padding=padding, dilation=dilation, groups=groups)
    d = cr.input("d", z.shape, dtype=dtype)
    dx, dk = cr.vjp([z], [x, k], [d])
    rng = np.random.default_rng(SEED)
    shapes = {t.name: (n, *t.shape[1:]) if t.shape[0] == "batch" else t.shape for t in (x, k, b)}
    shapes |= {"x": (n, *x.shape[1:]), "d": (n, *z.shape[1:])}
    feeds = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    return [cr.relu(z + b), dx * x, dk + 0.5 * k], feeds


@pytest.mark.sampled(2)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_native_code_is_the_reference(
    case: Any, level: str, at_level: Callable[[str], None]
) -> None:
    at_level(level)
    outputs, feeds = expressions(case, "float64")
    want = cr.compile(outputs, backend="reference")(**feeds)
    for got, expected in zip(cr.compile(outputs)(**feeds), want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bits_depend_neither_on_threads_nor_on_the_level(
    case: Any, at_level: Callable[[str], None]
) -> None:
    outputs, feeds = expressions((70, *case[1:]), "float32")
    want = cr.compile(outputs, threads=1)(**feeds)

    def compare(threads: int) -> None:
        got = cr.compile(outputs, threads=threads)(**feeds)
        for array, expected in zip(got, want, strict=True):
            np.testing.assert_array_equal(array, expected)

    compare(2)
    at_level("x86-64-v3")
    compare(1)


@pytest.mark.parametrize(("window", "stride"), [(16, 8), (8, 8), (4, 4), (32, 32)])
def test_long_steps_of_single_channels_take_few_kernels(window: int, stride: int) -> None:
    """Taken apart by where windows begin, of long steps each offset would be a product of its own,
    and most of what windows of zeros have is none.
    """
    x = cr.input("x", ("batch", 4, 8 * stride, 8 * stride))
    k = cr.input("k", (4, 1, window, window))
    z = cr.conv(x, k, stride=stride, groups=4)
    d = cr.input("d", z.shape)
    slopes = cr.vjp([z], [x, k], [d])
    kernels = fuse(run_passes(Graph(tuple(s.node for s in slopes)), passes_for(None))[0])
    assert len(kernels) <= 6
    products = 2 * 16 * window**2 * int(z.shape[2]) * int(z.shape[3])
    flops = sum(evaluate(kernel.flops, {"batch": 4}) for kernel in kernels)
    assert flops <= 1.6 * 2 * products  # the images' gradient adds up what overlaps


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("extent", [8, 10, 14, 26])
def test_tiles_have_sums_enough_for_the_multiply_adds(extent: int, level: str) -> None:
    """Each waits for the one before it in its chain: on AVX2 lines of 14 were cut in tiles of two
    rows, and took twice as long.
    """
    x = cr.input("x", ("batch", 8, extent, extent))
    z = cr.conv(x, cr.input("k", (64, 8, 5, 5)), padding=2)
    kernels = fuse(run_passes(Graph((z.node,)), passes_for(None))[0])
    (built,) = build_kernels(kernels, target(level))
    sums = [s for s in statements(built.program.body) if isinstance(s, Local) and s.name == "acc"]
    registers = target(level).registers_of(4, LANES)
    assert max(prod(s.shape) for s in sums) * registers >= CHAINS


@pytest.mark.sampled(3)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("width", [2, 6, 10, 28, 32, 40, 70])
@pytest.mark.parametrize("size", [(2, 2), (1, 3), (3, 2), (2, 4)])
def test_pooling_that_tiles(
    size: tuple[int, int], width: int, level: str, at_level: Callable[[str], None]
) -> None:
    """Each element of a cotangent goes to the first of the largest in its window."""
    at_level(level)
    rng = np.random.default_rng(SEED)
    high, wide = 3 * size[0], width * size[1]
    x = cr.input("x", ("batch", 2, high, wide))
    y = cr.max_pool(x, size)
    d = cr.input("d", y.shape)
    (dx,) = cr.vjp([y], [x], [d])
    values = rng.integers(0, 3, (2, 2, high, wide)).astype(np.float32)  # many are equal
    given = rng.standard_normal((2, 2, 3, width)).astype(np.float32)
    windows = values.reshape(2, 2, 3, size[0], width, size[1]).transpose(0, 1, 2, 4, 3, 5)
    flat = windows.reshape(2, 2, 3, width, -1)
    spread = np.zeros_like(flat)
    np.put_along_axis(spread, flat.argmax(-1)[..., None], given[..., None], -1)
    want = spread.reshape(windows.shape).transpose(0, 1, 2, 4, 3, 5).reshape(values.shape)
    pooled, back = cr.compile([y, dx])(x=values, d=given)
    np.testing.assert_array_equal(pooled, flat.max(-1))
    np.testing.assert_array_equal(back, want)


@pytest.mark.parametrize("axis", [0, 2, 3])
def test_a_kernel_that_is_repeated(axis: int) -> None:
    """What an image gets back is what it gets through the same kernel written out."""
    shape, extents = (2, 1, 7, 7), (20, 17)
    x = cr.input("x", (1, 2, *extents))
    k = cr.input("k", tuple(1 if i == axis else n for i, n in enumerate(shape)))
    options: dict[str, Any] = {"stride": (1, 2), "padding": (3, 2), "dilation": (1, 2)}
    z, whole = (
        cr.conv(x, kernel, groups=2, **options)
        for kernel in (cr.broadcast_to(k, shape), cr.input("whole", shape))
    )
    d = cr.input("d", z.shape)
    rng = np.random.default_rng(SEED)
    feeds = {t.name: rng.integers(-3, 4, t.shape).astype(np.float32) for t in (k, d)}
    feeds["whole"] = np.broadcast_to(feeds["k"], shape)
    got, want = (cr.compile(cr.vjp([y], [x], [d])) for y in (z, whole))
    np.testing.assert_array_equal(
        got(k=feeds["k"], d=feeds["d"])[0], want(whole=feeds["whole"], d=feeds["d"])[0]
    )


@pytest.mark.parametrize(("size", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (2, 1, 0)])
def test_a_pool_of_a_relu_asks_its_own_result_what_was_above_0(
    size: int, stride: int, padding: int
) -> None:
    """The numbers are those of both derivatives one after the other, NaNs and windows of none too;
    what went into the pool is not read on the way back of windows that tile.
    """
    x = cr.input("x", ("batch", 2, 8, 6))
    y = cr.max_pool(cr.relu(x), size, stride=stride, padding=padding)
    d = cr.input("d", y.shape)
    (dx,) = cr.vjp([y], [x], [d])
    r = cr.input("r", x.shape)
    (dr,) = cr.vjp([cr.max_pool(r, size, stride=stride, padding=padding)], [r], [d])
    rng = np.random.default_rng(SEED)
    values = rng.integers(-4, 3, (3, 2, 8, 6)).astype(np.float32)
    values[0, 0, 2, 3:] = np.nan
    given = rng.standard_normal((3, *map(int, map(str, y.shape[1:])))).astype(np.float32)
    rectified = np.where(values <= 0, np.float32(0), values)
    (back,) = cr.compile([dr])(r=rectified, d=given)
    want = np.where(rectified <= 0, np.float32(0), back)
    np.testing.assert_array_equal(cr.compile([dx])(x=values, d=given)[0], want)
    kernels = cr.compile([y, dx]).show("kernels").split("kernel")[1:]
    readers = [k for k in kernels if "x: f32[batch, 2, 8, 6]" in k.partition("writes")[0]]
    assert len(readers) == 1 or stride != size


def test_what_is_written_and_folded_is_folded_as_what_is_not() -> None:
    """Blocks wait in workspace to be folded, in the same order where they are written too."""
    x = cr.input("x", ("batch", 3, 8, 10))
    y = cr.max_pool(x, 2)
    d = cr.input("d", y.shape)
    (dx,) = cr.vjp([y], [x], [d])
    total = cr.sum(dx, axis=(2, 3))
    both, alone = cr.compile([dx, total]), cr.compile([total])
    rng = np.random.default_rng(SEED)
    feeds = {"x": rng.standard_normal((5, 3, 8, 10)), "d": rng.standard_normal((5, 3, 4, 5))}
    given = {name: a.astype(np.float32) for name, a in feeds.items()}
    back, summed = both(**given)
    np.testing.assert_array_equal(summed, alone(**given)[0])
    # 20 numbers of about 1 that are not 0, added in another order: some 20 roundings of 2**-24
    np.testing.assert_allclose(summed, back.sum(axis=(2, 3)), rtol=0, atol=1e-5)


def test_a_value_by_another_shape_is_walked_straight_through() -> None:
    x, y = cr.input("x", ("n", 20)), cr.input("y", ("n", 4, 5))
    run = cr.compile(cr.reshape(x, ("n", 4, 5)) * y)
    assert "in 0..20*n" in run.show("loops")
    a, b = np.arange(60, dtype=np.float32).reshape(3, 20), np.ones((3, 4, 5), np.float32)
    np.testing.assert_array_equal(run(x=a, y=b), a.reshape(3, 4, 5))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "int32"])
def test_elements_a_few_apart(dtype: str, level: str, at_level: Callable[[str], None]) -> None:
    """Every number of lanes there can be, up to the last element of memory."""
    at_level(level)
    rng = np.random.default_rng(SEED)
    for apart in (2, 3, 4, 5):
        for count in (*range(1, 18), 31, 32, 33, 64, 100):
            values = (rng.standard_normal((3, (count - 1) * apart + 1)) * 50).astype(dtype)
            x = cr.input("x", values.shape, dtype=dtype)
            got = cr.compile(x[:, ::apart] + x[:, :count])(x=values)
            np.testing.assert_array_equal(got, values[:, ::apart] + values[:, :count])


@pytest.mark.parametrize("case", [*CASES[10:13], (2, 1, 6, (28, 28), (5, 5), 2, 1, 1, 1)], ids=str)
def test_parts_meet_around_a_sum_over_images_not_at_each(case: Any) -> None:
    """Each lays down and copies for itself what it reads, and goes on with the next image."""
    outputs, _ = expressions(case, "float32")
    text = cr.compile(outputs[2], threads=2).show("loops")
    over_images = [i for i, line in enumerate(text.splitlines()) if "in 0..batch:" in line]
    assert over_images
    for start in over_images:
        first, *body = text.splitlines()[start:]
        indent = len(first) - len(first.lstrip())
        for line in body:
            if len(line) - len(line.lstrip()) <= indent:
                break
            assert "barrier" not in line
