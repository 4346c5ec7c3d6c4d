"""Convolutions of images whose lines don't fill vectors: lanes go along images, 16 together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

import chainrule as cr

SEED = 5
#: channels, kernels, extents, window, padding; by images are dx of the first four, z of the others
CASES = [
    (6, 16, (14, 14), (5, 5), 0),
    (7, 3, (9, 18), (4, 3), 1),
    (8, 5, (6, 5), (3, 5), (0, 2)),
    (20, 3, (20,), (9,), 0),
    (5, 6, (7, 9), (3, 3), 1),
    (1, 7, (3, 4, 5), (2, 3, 2), 1),
    (3, 9, (4, 2), (3, 2), (2, 0)),
    (4, 6, (2,), (5,), 4),
]
LEVELS = ["x86-64-v4", "x86-64-v3", "generic"]


def expressions(
    case: Any, batch: int, dtype: str, fixed: bool = False
) -> tuple[list[cr.Tensor], dict[str, np.ndarray]]:
    """A convolution and its derivative by images, each with something that follows it; and numbers
    for so many images, of which the expressions may know how many there are.
    """
    channels, kernels, extents, window, padding = case
    x = cr.input("x", (batch if fixed else "batch", channels, *extents), dtype=dtype)
    k = cr.input("k", (kernels, channels, *window), dtype=dtype)
    z = cr.conv(x, k, padding=padding)
    d = cr.input("d", z.shape, dtype=dtype)
    (dx,) = cr.vjp([z], [x], [d])
    rng = np.random.default_rng(SEED)
    shapes = {"x": (batch, *x.shape[1:]), "k": k.shape, "d": (batch, *z.shape[1:])}
    ints = {name: tuple(map(int, map(str, shape))) for name, shape in shapes.items()}
    feeds = {name: rng.standard_normal(shape).astype(dtype) for name, shape in ints.items()}
    return [cr.relu(z + cr.mean(k)), dx * x], feeds


def by_images(outputs: list[cr.Tensor]) -> int:
    """How many products go along images."""
    return cr.compile(outputs).show("loops").count("for r' in")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_lanes_go_along_images_where_lines_are_short(
    case: Any, at_level: Callable[[str], None]
) -> None:
    at_level("x86-64-v4")
    assert by_images(expressions(case, 16, "float32")[0]) == 1


@pytest.mark.parametrize(
    "case",
    [
        (6, 1, (28, 28), (5, 5), 2),  # z: turning takes longer than what lines waste
        (3, 8, (16, 16), (1, 1), 0),  # lines fill vectors
        (1, 3, (6, 6), (3, 3), 1),  # too few rows
        (64, 6, (48, 48), (3, 3), 0),  # images are large
    ],
    ids=str,
)
def test_others_stay_as_they_are(case: Any, at_level: Callable[[str], None]) -> None:
    at_level("x86-64-v4")
    assert by_images(expressions(case, 16, "float32")[0]) == 0
    assert by_images(expressions(CASES[0], 15, "float32", True)[0]) == 0  # too few images


@pytest.mark.sampled(2)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("batch", [1, 16, 37])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_native_code_is_the_reference(
    case: Any, batch: int, level: str, at_level: Callable[[str], None]
) -> None:
    at_level(level)
    outputs, feeds = expressions(case, batch, "float64")
    want = cr.compile(outputs, backend="reference")(**feeds)
    for got, expected in zip(cr.compile(outputs)(**feeds), want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_image_has_the_same_bits_in_every_batch(
    case: Any, at_level: Callable[[str], None]
) -> None:
    """Alone, among others, where their number is known, and whoever shares the work."""
    outputs, feeds = expressions(case, 37, "float32")
    run = cr.compile(outputs, threads=1)
    want = [a.view(np.int32) for a in run(**feeds)]
    shared = cr.compile(outputs, threads=2)(**feeds)
    fixed = cr.compile(expressions(case, 37, "float32", True)[0], threads=1)(**feeds)

    def compare(got: Any, rows: slice) -> None:
        for array, expected in zip(got, want, strict=True):
            np.testing.assert_array_equal(array.view(np.int32), expected[rows])

    compare(shared, slice(None))
    compare(fixed, slice(None))
    for i in (0, 20, 36):
        one = {n: a if n == "k" else a[i : i + 1] for n, a in feeds.items()}
        compare(run(**one), slice(i, i + 1))
    at_level("x86-64-v3")
    compare(cr.compile(outputs, threads=1)(**feeds), slice(None))


@pytest.mark.parametrize("batch", [16, 19])
def test_padding_with_another_number_is_laid_down(batch: int) -> None:
    rng = np.random.default_rng(SEED)
    feeds = {"x": rng.standard_normal((batch, 6, 5, 5)), "k": rng.standard_normal((8, 6, 3, 3))}
    x, k = (cr.input(name, a.shape, dtype="float64") for name, a in feeds.items())
    text = f"conv(full(({batch}, 6, 7, 7), 1.5)[:, :, 1:6, 1:6].set(x), k)"
    around = np.pad(feeds["x"], [(0, 0), (0, 0), (1, 1), (1, 1)], constant_values=1.5)
    windows = sliding_window_view(around, (3, 3), axis=(2, 3))
    want = np.einsum("bchwrs,ocrs->bohw", windows, feeds["k"])
    got = cr.compile(cr.parse(text, [x, k]))(**feeds)
    # sums of some tens of terms about 1 large, in float64: far above their roundings
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("batch", [16, 19, "batch"])
def test_kernels_may_be_windows_of_something_padded(
    batch: int | str, at_level: Callable[[str], None]
) -> None:
    """Such are laid down before images are turned."""
    at_level("x86-64-v4")
    rng = np.random.default_rng(SEED)
    feeds = {"x": rng.standard_normal((19, 6, 5)), "v": rng.standard_normal((8, 6))}
    feeds["x"] = feeds["x"][: batch if isinstance(batch, int) else None]
    x = cr.input("x", (batch, 6, 5), dtype="float64")
    v = cr.input("v", (8, 6), dtype="float64")
    z = cr.parse("t1 = zeros((8, 8))[:, 1:7].set(v)\nconv(x, windows(t1, 6), padding=1)", [x, v])
    around = np.pad(feeds["x"], [(0, 0), (0, 0), (1, 1)])
    k = sliding_window_view(np.pad(feeds["v"], [(0, 0), (1, 1)]), 6, axis=1).transpose(0, 2, 1)
    want = np.einsum("bclr,ocr->bol", sliding_window_view(around, 3, axis=2), k)
    assert by_images([z]) == 1
    # sums of some tens of terms about 1 large, in float64: far above their roundings
    np.testing.assert_allclose(cr.compile(z)(**feeds), want, rtol=1e-10, atol=1e-11)


def test_what_follows_may_be_much_code(at_level: Callable[[str], None]) -> None:
    """Turned blocks wait in workspace then; one result beside another, both read elsewhere."""
    at_level("x86-64-v4")
    x = cr.input("x", ("batch", 5, 7, 9), dtype="float64")
    k = cr.input("k", (6, 5, 3, 3), dtype="float64")
    z = cr.conv(x, k, padding=1)
    outputs = [z, cr.tanh(z) * cr.gelu(z) + cr.sin(z)]
    assert by_images(outputs) == 1
    rng = np.random.default_rng(SEED)
    feeds = {"x": rng.standard_normal((21, 5, 7, 9)), "k": rng.standard_normal((6, 5, 3, 3))}
    want = cr.compile(outputs, backend="reference")(**feeds)
    for got, expected in zip(cr.compile(outputs)(**feeds), want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("view", ["flipped", "sliced", "turned"])
@pytest.mark.parametrize("batch", ["batch", 33])
def test_images_that_are_views(batch: int | str, view: str) -> None:
    """Their elements are no run of places."""
    shape = {"flipped": (24, 7, 6), "sliced": (26, 9, 8), "turned": (6, 7, 24)}[view]
    x, k = cr.input("x", (batch, *shape)), cr.input("k", (15, 24, 3, 3))
    inner = (slice(None), *(slice(1, -1) for _ in shape))
    images = {
        "flipped": cr.flip(x, axis=2),
        "sliced": x[inner],
        "turned": cr.permute_dims(x, (0, 3, 2, 1)),
    }
    z = cr.conv(images[view], k, padding=1)
    rng = np.random.default_rng(7)
    feeds = {
        "x": rng.integers(-3, 4, (33, *shape)).astype(np.float32),
        "k": rng.integers(-3, 4, (15, 24, 3, 3)).astype(np.float32),
    }
    want = cr.compile(z, backend="reference")(**feeds)
    np.testing.assert_array_equal(cr.compile(z)(**feeds), want)
