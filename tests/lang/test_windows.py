"""Convolution and pooling against PyTorch: values, and derivatives to the second order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.errors import DTypeError, ShapeError

Array = np.ndarray[Any, Any]
SEED = 5
#: input, kernel, and what `conv` is told
CONVS: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((2, 3, 7), (4, 3, 3), {}),
    ((1, 2, 9), (3, 2, 4), {"stride": 3, "padding": 2}),
    ((2, 4, 11), (6, 2, 3), {"dilation": 3, "groups": 2, "padding": (1,)}),
    ((3, 1, 5), (1, 1, 5), {}),
    ((2, 3, 7, 9), (4, 3, 3, 3), {}),
    ((2, 3, 8, 8), (5, 3, 3, 3), {"padding": 1}),
    ((2, 2, 9, 7), (3, 2, 3, 2), {"stride": 2}),
    ((1, 4, 10, 11), (4, 1, 3, 3), {"groups": 4, "padding": 1, "stride": 2}),
    ((2, 6, 5, 20), (9, 2, 2, 3), {"groups": 3, "dilation": (1, 2)}),
    ((2, 2, 8, 9), (3, 2, 3, 5), {"stride": (3, 2), "padding": (0, 3), "dilation": (2, 1)}),
    ((2, 5, 4, 6), (7, 5, 1, 1), {}),
    ((2, 5, 5, 6), (3, 5, 1, 1), {"stride": 2}),
    ((0, 2, 5, 5), (3, 2, 2, 2), {}),
]
#: input, and what a pool is told
POOLS: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((2, 3, 8), {"kernel": 2}),
    ((2, 3, 7), {"kernel": 3, "stride": 2, "padding": 1}),
    ((2, 3, 8, 10), {"kernel": 2}),
    ((1, 2, 7, 9), {"kernel": (3, 2), "stride": (2, 1)}),
    ((2, 2, 7, 7), {"kernel": 3, "stride": 2, "padding": 1}),
    ((1, 1, 5, 20), {"kernel": (5, 4), "padding": (2, 0)}),
    ((0, 2, 4, 4), {"kernel": 2}),
]


def arrays(*shapes: tuple[int, ...]) -> list[Array]:
    rng = np.random.default_rng(SEED)
    return [rng.standard_normal(s) for s in shapes]


def derivatives(out: cr.Tensor, wrt: list[cr.Tensor]) -> list[cr.Tensor]:
    """A scalar of the output, its gradients, and theirs again."""
    loss = cr.sum(cr.tanh(out) * out)
    first = cr.grad(loss, wrt)
    total = cr.sum(first[0] * first[0])
    for g in first[1:]:
        total = total + cr.sum(g * g * g)
    return [out, loss, *first, *cr.grad(total, wrt)]


def theirs(out: Any, wrt: list[Any]) -> list[Array]:
    torch = pytest.importorskip("torch")
    loss = (torch.tanh(out) * out).sum()
    first = torch.autograd.grad(loss, wrt, create_graph=True)
    total = (first[0] ** 2).sum()
    for g in first[1:]:
        total = total + (g**3).sum()
    second = torch.autograd.grad(total, wrt, materialize_grads=True)
    return [t.detach().numpy() for t in (out, loss, *first, *second)]


def run(backend: str, expressions: list[cr.Tensor], feeds: dict[str, Array]) -> list[Array]:
    return list(cr.compile(expressions, backend=backend)(**feeds))


def hold(expressions: list[cr.Tensor], feeds: dict[str, Array], want: list[Array]) -> None:
    """Both backends against PyTorch."""
    for backend in ("reference", "cpu"):
        for got, expected in zip(run(backend, expressions, feeds), want, strict=True):
            scale = max(1.0, float(np.abs(expected).max(initial=0)))
            np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12 * scale)


@pytest.mark.parametrize(("shape", "kernel", "options"), CONVS)
def test_conv_is_pytorchs(shape: Any, kernel: Any, options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    a, b = arrays(shape, kernel)
    x = cr.input("x", ("batch", *shape[1:]), dtype="float64")
    k = cr.parameter("k", kernel, dtype="float64")
    out = cr.conv(x, k, **options)
    tx, tk = (torch.tensor(v, requires_grad=True) for v in (a, b))
    their = getattr(torch.nn.functional, f"conv{len(shape) - 2}d")
    hold(derivatives(out, [x, k]), {"x": a, "k": b}, theirs(their(tx, tk, **options), [tx, tk]))


@pytest.mark.parametrize("name", ["max_pool", "avg_pool"])
@pytest.mark.parametrize(("shape", "options"), POOLS)
def test_pools_are_pytorchs(shape: Any, options: dict[str, Any], name: str) -> None:
    torch = pytest.importorskip("torch")
    (a,) = arrays(shape)
    x = cr.input("x", ("batch", *shape[1:]), dtype="float64")
    out = getattr(cr, name)(x, **options)
    tx = torch.tensor(a, requires_grad=True)
    told = {"kernel_size" if k == "kernel" else k: v for k, v in options.items()}
    their = getattr(torch.nn.functional, f"{name}{len(shape) - 2}d")
    hold(derivatives(out, [x]), {"x": a}, theirs(their(tx, **told), [tx]))


@pytest.mark.parametrize("name", ["max_pool", "avg_pool"])
def test_equal_elements_are_pytorchs(name: str) -> None:
    torch = pytest.importorskip("torch")
    a = np.maximum(np.random.default_rng(SEED).integers(-3, 2, (2, 3, 8, 8)), 0).astype(float)
    x = cr.input("x", a.shape, dtype="float64")
    out = getattr(cr, name)(x, 3, stride=2, padding=1)
    tx = torch.tensor(a, requires_grad=True)
    their = getattr(torch.nn.functional, f"{name}2d")(tx, 3, stride=2, padding=1)
    hold(derivatives(out, [x]), {"x": a}, theirs(their, [tx]))


@pytest.mark.parametrize(("shape", "kernel", "options"), CONVS[1:4] + CONVS[6:10])
def test_gradients_are_central_differences(
    shape: Any, kernel: Any, options: dict[str, Any]
) -> None:
    a, b, u, v = arrays(shape, kernel, shape, kernel)
    x = cr.input("x", shape, dtype="float64")
    k = cr.input("k", kernel, dtype="float64")
    z = cr.avg_pool(cr.tanh(cr.conv(x, k, **options)), 1)
    loss = cr.sum(cr.max_pool(z, 1) * z)
    f = cr.compile([loss, *cr.grad(loss, [x, k])], backend="reference")
    _, dx, dk = f(x=a, k=b)
    h = 1e-5
    up, down = (f(x=a + s * h * u, k=b + s * h * v)[0] for s in (1, -1))
    slope = (dx * u).sum() + (dk * v).sum()
    assert (up - down) / (2 * h) == pytest.approx(slope, rel=1e-7)


def test_kernels_of_float32_promote() -> None:
    x = cr.input("x", (1, 1, 3), dtype="float64")
    k = cr.parameter("k", (1, 1, 2))
    assert cr.conv(x, k).dtype.name == "float64"
    with pytest.raises(DTypeError):
        cr.conv(x, cr.ones((1, 1, 2), dtype="int32"))


def test_they_print_as_they_are_written() -> None:
    x, k = cr.input("x", ("batch", 2, 9, 9)), cr.parameter("K", (3, 2, 3, 3))
    z = cr.conv(x, k, stride=2, padding=(1, 0))
    assert str(cr.conv(x, k)) == "conv(x, K)"
    assert str(z) == "conv(x, K, stride=2, padding=(1, 0))"
    assert str(cr.conv(x, cr.parameter("K", (2, 1, 2, 2)), dilation=2, groups=2)) == (
        "conv(x, K, dilation=2, groups=2)"
    )
    assert str(cr.max_pool(x, 3, stride=1)) == "max_pool(x, 3, stride=1)"
    assert str(cr.avg_pool(x, (2, 3), padding=1)) == "avg_pool(x, (2, 3), padding=1)"
    loss = cr.sum(cr.square(cr.conv(x, k)))
    dx, dk = cr.grad(loss, [x, k])
    assert str(dk) == "dz1 = 2 * conv(x, K)\ndK = correlate(x, dz1)"
    assert str(dx) == "dz1 = 2 * conv(x, K)\ndx = conv_transpose(dz1, K)"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda x, k: cr.conv(x, k, stride=0), "stride is at least 1, not 0"),
        (lambda x, k: cr.conv(x, k, dilation=(1, 0)), "dilation is at least 1, not 0"),
        (lambda x, k: cr.conv(x, k, padding=-1), "padding is at least 0, not -1"),
        (lambda x, k: cr.conv(x, k, dilation=3), "(5 - 3*(3 - 1) - 1)//1 + 1 = -1 positions"),
        (lambda x, k: cr.conv(x, k, groups=2), "groups don't divide"),
        (lambda x, k: cr.conv(x, k, stride=(1, 2, 3)), "stride is an int or 2 of them"),
        (lambda x, k: cr.conv(x, k, stride=1.5), "stride is an int, not 1.5"),
        (lambda x, k: cr.conv(x, k[0]), "of one rank"),
        (lambda x, k: cr.max_pool(x, 6), "a window of 6 does not fit an axis of 5"),
        (lambda x, k: cr.max_pool(x, 2, padding=2), "more than half"),
        (lambda x, k: cr.avg_pool(x[0, 0], 2), "takes (batch, channels, ...)"),
    ],
)
def test_what_does_not_fit_is_refused_where_it_is_written(make: Any, says: str) -> None:
    x, k = cr.input("x", ("batch", 3, 5, 5)), cr.parameter("k", (4, 3, 3, 3))
    with pytest.raises(ShapeError) as caught:
        make(x, k)
    assert says in str(caught.value)
    assert "test_windows.py" in str(caught.value)


def test_padding_in_words_is_refused_with_what_is_there() -> None:
    x, k = cr.input("x", ("n", 3, 8, 8)), cr.input("k", (4, 3, 3, 3))
    with pytest.raises(cr.errors.ShapeError, match="padding is an int or 2 of them") as caught:
        cr.conv(x, k, padding="same")  # type: ignore[arg-type]
    assert 'cr.nn.Conv2D(filters, size, padding="same")' in str(caught.value)
    assert "dilation*(size - 1)//2" in str(caught.value)
    assert cr.conv(x, k, padding=1 * (3 - 1) // 2).shape == (*x.shape[:1], 4, 8, 8)
    with pytest.raises(cr.errors.ShapeError, match="both ends of an axis"):
        cr.max_pool(x, 2, padding="same")  # type: ignore[arg-type]
    with pytest.raises(cr.errors.ShapeError, match="one number pads both ends"):
        cr.conv(x, k, padding=((1, 1), (1, 1)))  # type: ignore[arg-type]
    with pytest.raises(cr.errors.ShapeError, match="stride is an int") as caught:
        cr.conv(x, k, stride=((1, 1), (1, 1)))  # type: ignore[arg-type]
    assert "pads" not in str(caught.value)
