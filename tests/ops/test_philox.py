"""Philox: the published vectors, the distributions, and what a number depends on."""

from __future__ import annotations

import math

import numpy as np
import pytest

from chainrule.errors import DTypeError, FeedError
from chainrule.ir.formula import parse_recipe
from chainrule.ir.recipe import evaluate
from chainrule.ir.types import uint32
from chainrule.ops import philox

# Random123 1.14, kat_vectors, philox4x32 10: counter, key, result
VECTORS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
     (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]  # fmt: skip


FROZEN_WORDS = [200931286, 3306219783, 2122082652, 1854514845]
FROZEN_UNIFORM = [1027579760, 1063239592]
FROZEN_NORMAL = [1050485902, 3204459372]
FROZEN_NORMAL64 = [13836123288834958954]
FROZEN_ORDER = [2, 6, 3, 4, 1, 0, 5, 7]


@pytest.mark.parametrize(("counter", "key", "want"), VECTORS)
def test_published_vectors(
    counter: tuple[int, ...], key: tuple[int, int], want: tuple[int, ...]
) -> None:
    low, high, step, draw = counter
    element = np.array([low | high << 32], np.uint64)
    assert philox.words(key[0] | key[1] << 32, step, draw, element).tolist() == [list(want)]
    names = ("e0", "e1", "step", "draw", "k0", "k1")
    args = {n: np.uint32(v) for n, v in zip(names, (*counter, *key), strict=True)}
    for i in range(4):
        assert evaluate(parse_recipe(philox.word(i)), uint32, args) == want[i]


def test_numbers_are_the_documented_functions_of_the_words() -> None:
    w = philox.words(7, 3, 2, 5000).astype(np.uint64)
    single = philox.uniform(7, 3, 2, (50, 100))
    assert single.dtype == np.float32
    assert np.array_equal(single.reshape(-1) * 2.0**24, w[:, 0] >> np.uint64(8))
    double = philox.uniform(7, 3, 2, (5000,), "float64")
    count = (w[:, 0] << np.uint64(21)) | (w[:, 1] >> np.uint64(11))
    assert np.array_equal((double * 2.0**53).astype(np.uint64), count)
    second = (w[:, 2] << np.uint64(21)) | (w[:, 3] >> np.uint64(11))
    u = (count.astype(np.float64) + 1) * 2.0**-53
    want = np.sqrt(-2 * np.log(u)) * np.cos(2 * np.pi * second * 2.0**-53)
    np.testing.assert_allclose(philox.normal(7, 3, 2, (5000,), "float64"), want, atol=1e-14)
    u1, u2 = ((w[:, 0] >> np.uint64(8)) + 1.0) * 2.0**-24, (w[:, 1] >> np.uint64(8)) * 2.0**-24
    want = np.sqrt(-2 * np.log(u1)) * np.cos(2 * np.pi * u2)
    np.testing.assert_allclose(philox.normal(7, 3, 2, (5000,)), want, rtol=4e-7, atol=1e-8)


def test_the_bits_never_change() -> None:
    """Frozen: weights that were drawn once are drawn again by every later version."""
    assert philox.words(1, 2, 3, 1).tolist() == [FROZEN_WORDS]
    assert philox.uniform(1, 2, 3, (2,)).view(np.uint32).tolist() == FROZEN_UNIFORM
    assert philox.normal(1, 2, 3, (2,)).view(np.uint32).tolist() == FROZEN_NORMAL
    assert philox.normal(1, 2, 3, (1,), "float64").view(np.uint64).tolist() == FROZEN_NORMAL64
    assert philox.permutation(1, 2, 8).tolist() == FROZEN_ORDER


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_uniform_is_uniform(dtype: str) -> None:
    n, bins = 200_000, 256
    x = philox.uniform(12345, 0, 0, (n,), dtype)
    assert x.min() >= 0
    assert x.max() < 1
    for part in (x, x * 4096 % 1):  # the leading bits, then lower ones
        counts = np.bincount((part * bins).astype(int), minlength=bins)
        chi = ((counts - n / bins) ** 2 / (n / bins)).sum()
        assert abs(chi - (bins - 1)) < 4 * math.sqrt(2 * (bins - 1))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_normal_is_normal(dtype: str) -> None:
    n = 200_000
    x = np.sort(philox.normal(12345, 0, 0, (n,), dtype).astype(np.float64))
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((x**power).mean() - moment) < 4 * math.sqrt(spread / n)
    cdf = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in x])
    distance = max((np.arange(1, n + 1) / n - cdf).max(), (cdf - np.arange(n) / n).max())
    assert distance < 1.63 / math.sqrt(n)  # Kolmogorov's bound at 1%
    assert np.isfinite(x).all()


def test_normal_at_the_ends_of_the_words() -> None:
    ends = np.array([0, 255, 256, 2**31, 2**32 - 1], np.uint32)
    w0, w1 = (a.ravel() for a in np.meshgrid(ends, ends))
    args = {"w0": w0, "w1": w1, "w2": w1, "w3": w1}
    for dtype in ("float32", "float64"):
        kind = philox.dtype_of(dtype)
        x = evaluate(parse_recipe(philox.NORMAL[dtype]), kind, args, philox.RECIPES)
        assert np.isfinite(x).all()
        assert np.abs(x).max() < 8.6


def test_a_number_depends_on_its_element_alone() -> None:
    whole = philox.words(9, 4, 1, 1000)
    parts = [philox.words(9, 4, 1, np.arange(i, i + 125)) for i in range(0, 1000, 125)]
    assert np.array_equal(np.concatenate(parts), whole)
    assert np.array_equal(philox.normal(9, 4, 1, (8, 5)), philox.normal(9, 4, 1, (100, 5))[:8])
    others = [(8, 4, 1), (9 + 2**32, 4, 1), (9, 5, 1), (9, 4, 2)]
    for seed, step, draw in others:
        assert (philox.words(seed, step, draw, 1000) == whole).mean() < 0.01


def test_permutation() -> None:
    for n in (0, 1, 2, 7, 1000):
        order = philox.permutation(3, 1, n)
        assert order.dtype == np.int64
        assert np.array_equal(np.sort(order), np.arange(n))
    assert not np.array_equal(philox.permutation(3, 1, 100), philox.permutation(3, 2, 100))
    trials = 6000
    counts: dict[tuple[int, ...], int] = {}
    for epoch in range(trials):
        order = tuple(philox.permutation(5, epoch, 3).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    chi = sum((c - trials / 6) ** 2 / (trials / 6) for c in counts.values())
    assert chi < 20.5  # 5 degrees of freedom, 0.1%


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, True, "1", None])
def test_seeds_out_of_range(seed: object) -> None:
    with pytest.raises(FeedError, match=r"integer|less than 2\*\*64"):
        philox.words(seed, 0, 0, 1)  # type: ignore[arg-type]


def test_what_else_is_refused() -> None:
    assert philox.check_seed(np.uint64(2**64 - 1)) == 2**64 - 1
    with pytest.raises(FeedError):
        philox.words(0, 2**32, 0, 1)
    with pytest.raises(FeedError):
        philox.words(0, 0, -1, 1)
    with pytest.raises(DTypeError):
        philox.uniform(0, 0, 0, (3,), "int32")


@pytest.mark.parametrize("n", [0, 1, 2, 31, 1000])
def test_many_permutations_are_the_single_ones(n: int) -> None:
    seed, first = 2**63 + 5, 2**32 - 4
    many = philox.permutations(seed, first, 4, n)
    assert many.shape == (4, n)
    assert many.dtype == np.int64
    for e in range(4):
        w = philox.words(seed, first + e, philox.SHUFFLE_DRAW, n).astype(np.uint64)
        rank = sorted(range(n), key=lambda i: (int(w[i, 0]), int(w[i, 1]), i))
        assert many[e].tolist() == rank == philox.permutation(seed, first + e, n).tolist()
    assert philox.permutations(seed, 0, 0, n).shape == (0, n)
    with pytest.raises(FeedError, match="epoch"):
        philox.permutations(seed, first, 5, n)
