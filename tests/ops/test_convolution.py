"""Convolutions and pooling of odd sizes, held to NumPy in float64 and, where there is one, PyTorch.

What is drawn reaches every way there is to compute them: channels and images that fill vectors and
that don't, windows with and without padding, strides, dilations, groups.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
import pytest

import chainrule as cr

Array = np.ndarray[Any, Any]
SEED, COUNT = 20, 36


class Case(NamedTuple):
    """A convolution of `n` images; `c` and `o` are channels and kernels of all `groups`."""

    n: int
    c: int
    o: int
    extents: tuple[int, ...]
    window: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def drawn() -> list[Case]:
    rng = np.random.default_rng(SEED)

    def pick(*values: int, rank: int = 1) -> tuple[int, ...]:
        return tuple(int(v) for v in rng.choice(values, rank))

    cases = []
    for number in range(COUNT):
        rank = (2, 2, 1)[number % 3]
        (groups,) = pick(1, 1, 1, 2, 3)
        (n,), (c,), (o,) = pick(1, 2, 3), pick(1, 2, 3, 6, 16), pick(1, 3, 6, 13, 16, 30, 40)
        window, dilation = pick(1, 2, 3, 3, 5, rank=rank), pick(1, 1, 2, rank=rank)
        reach = [d * (k - 1) + 1 for k, d in zip(window, dilation, strict=True)]
        extents = tuple(int(rng.integers(r, r + 30)) for r in reach)
        stride, padding = pick(1, 1, 1, 2, 3, rank=rank), pick(0, 0, 1, 2, 3, rank=rank)
        if number % 2:
            stride = (1,) * rank
        sizes = extents, window, stride, padding, dilation
        cases.append(Case(n, c * groups, o * groups, *sizes, groups))
    return cases


def numbers(case: Case) -> dict[str, Array]:
    rng = np.random.default_rng(SEED)
    along = zip(case.extents, case.window, case.stride, case.padding, case.dilation, strict=True)
    places = tuple((e + 2 * p - d * (k - 1) - 1) // s + 1 for e, k, s, p, d in along)
    shapes = {
        "x": (case.n, case.c, *case.extents),
        "k": (case.o, case.c // case.groups, *case.window),
        "d": (case.n, case.o, *places),
    }
    return {name: rng.standard_normal(s).astype(np.float32) for name, s in shapes.items()}


def by_hand(case: Case, x: Array, k: Array, d: Array) -> tuple[Array, Array, Array]:
    """z, and what d sends back to x and to k: an offset of the window after the other."""
    x, k, d = (a.astype(np.float64) for a in (x, k, d))
    x = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in case.padding)])
    z, dx, dk = np.zeros(d.shape), np.zeros(x.shape), np.zeros(k.shape)
    inward, outward = case.c // case.groups, case.o // case.groups
    for g in range(case.groups):
        mine, made = slice(g * inward, (g + 1) * inward), slice(g * outward, (g + 1) * outward)
        for offset in itertools.product(*map(range, case.window)):
            along = zip(offset, case.dilation, case.stride, d.shape[2:], strict=True)
            at = tuple(slice(j * b, j * b + s * (p - 1) + 1, s) for j, b, s, p in along)
            part = (made, slice(None), *offset)
            z[:, made] += np.einsum("nc...,oc->no...", x[:, mine][(..., *at)], k[part])
            dx[:, mine][(..., *at)] += np.einsum("no...,oc->nc...", d[:, made], k[part])
            flat = [a.reshape(*a.shape[:2], -1) for a in (x[:, mine][(..., *at)], d[:, made])]
            dk[part] = np.einsum("ncp,nop->oc", *flat)
    inner = tuple(slice(p, p + e) for p, e in zip(case.padding, case.extents, strict=True))
    return z, dx[(..., *inner)], dk


def close(got: Array, want: Array, terms: int) -> None:
    """Equal up to what rounding each step of a sum of so many normal terms may come to."""
    # the largest partial sum is some 4 * sqrt(terms), and each step rounds it by half an ulp
    bound = 4 * np.sqrt(terms) * terms * np.finfo(np.float32).eps / 2
    np.testing.assert_allclose(got, want, rtol=0, atol=max(bound, 1e-6))


def compiled(case: Case) -> cr.Function:
    x = cr.input("x", ("batch", case.c, *case.extents))
    k = cr.input("k", (case.o, case.c // case.groups, *case.window))
    z = cr.conv(x, k, case.stride, case.padding, case.dilation, case.groups)
    d = cr.input("d", z.shape)
    return cr.compile([z, *cr.vjp([z], [x, k], [d])])


@pytest.mark.parametrize("case", drawn(), ids=lambda c: "-".join(map(str, c)).replace(" ", ""))
def test_a_convolution_and_its_derivatives(case: Case) -> None:
    feeds = numbers(case)
    found = compiled(case)(**feeds)
    taps = int(np.prod(case.window))
    terms = (
        case.c // case.groups * taps,
        case.o // case.groups * taps,
        case.n * int(np.prod(feeds["d"].shape[2:])),
    )
    for got, want, count in zip(found, by_hand(case, **feeds), terms, strict=True):
        close(got, want, count)


@pytest.mark.parametrize("case", drawn()[::3], ids=lambda c: "-".join(map(str, c)).replace(" ", ""))
def test_a_convolution_is_that_of_pytorch(case: Case) -> None:
    torch = pytest.importorskip("torch")
    feeds = numbers(case)
    x, k, d = (torch.from_numpy(feeds[name].astype(np.float64)) for name in "xkd")
    x.requires_grad_(), k.requires_grad_()
    conv = torch.nn.functional.conv1d if len(case.extents) == 1 else torch.nn.functional.conv2d
    z = conv(x, k, None, case.stride, case.padding, case.dilation, case.groups)
    z.backward(d)
    for ours, theirs in zip(
        by_hand(case, **feeds), (z.detach(), x.grad, k.grad), strict=True
    ):  # so what our convolutions are held to above is what PyTorch means
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-9, atol=1e-9)


POOLS = [
    ((2, 2), (2, 2), (0, 0)),
    ((3, 3), (2, 2), (1, 1)),
    ((3, 2), (1, 3), (0, 1)),
    ((4, 4), (4, 4), (2, 0)),
    ((5, 4), (2, 2), (0, 0)),  # of more elements than are compared where they stand
]


@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_the_first_of_the_largest_is_pooled(pool: Any, dtype: str) -> None:
    size, stride, padding = pool
    rng = np.random.default_rng(SEED)
    values = rng.integers(-2, 2, (3, 2, 16, 20)).astype(dtype)  # many are equal
    x = cr.input("x", ("batch", *values.shape[1:]), dtype=dtype)
    z = cr.max_pool(x, size, stride, padding)
    low = -np.inf if dtype == "float32" else np.iinfo(dtype).min
    around = [(0, 0), (0, 0), *((p, p) for p in padding)]
    padded = np.pad(values, around, constant_values=low)
    windows = np.lib.stride_tricks.sliding_window_view(padded, size, (2, 3))
    windows = windows[:, :, :: stride[0], :: stride[1]]
    largest = windows.max((-2, -1))
    if dtype == "int32":
        np.testing.assert_array_equal(cr.compile(z)(x=values), largest)
        return
    d = cr.input("d", z.shape)
    given = rng.integers(-9, 9, largest.shape).astype(dtype)
    back = np.zeros_like(padded)
    for place in np.ndindex(largest.shape):
        first = np.unravel_index(windows[place].argmax(), size)
        at = tuple(p * s + f for p, s, f in zip(place[2:], stride, first, strict=True))
        back[(*place[:2], *at)] += given[place]
    inner = tuple(slice(p, p + n) for p, n in zip(padding, values.shape[2:], strict=True))
    pooled, found = cr.compile([z, *cr.vjp([z], [x], [d])])(x=values, d=given)
    np.testing.assert_array_equal(pooled, largest)
    np.testing.assert_array_equal(found, back[(..., *inner)])  # sums of small integers are exact


@pytest.mark.parametrize("precision", ["bfloat16", "bfloat16x3"])
def test_padding_is_laid_down_for_narrow_factors_too(precision: str) -> None:
    x, k = cr.input("x", (3, 8, 9, 9)), cr.input("k", (24, 8, 3, 3))
    y = cr.conv(x, k, stride=(1, 3), padding=(0, 1))
    rng = np.random.default_rng(0)
    given = {n: rng.standard_normal(t.shape).astype(np.float32) for n, t in (("x", x), ("k", k))}
    want = cr.compile(y, backend="reference")(**given)
    # 72 products of factors that are rounded to 2**-9
    np.testing.assert_allclose(cr.compile(y, precision=precision)(**given), want, atol=0.3)
