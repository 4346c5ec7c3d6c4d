"""Layer norm, RMS norm and attention beside PyTorch, to second order, and how they print."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import chainrule as cr

torch = pytest.importorskip("torch")
F = torch.nn.functional
RNG = np.random.default_rng(11)


def close(got: Any, want: Any) -> None:
    """Float64 beside float64: what is left is the order of sums."""
    np.testing.assert_allclose(got, want.detach().numpy(), rtol=1e-9, atol=1e-11)


def held(ours: Any, theirs: Any, at: dict[str, np.ndarray[Any, Any]], by: str) -> None:
    """Hold a value, its derivatives along a fixed direction, and theirs, to PyTorch's."""
    tensors = {k: cr.input(k, v.shape, dtype=str(v.dtype)) for k, v in at.items()}
    y = ours(**tensors)
    weight = np.cos(np.arange(math.prod(y.shape))).reshape(y.shape)
    wrt = [tensors[k] for k in by]
    first = cr.grad(cr.sum(cr.sin(y) * weight), wrt)
    second = cr.grad(sum((cr.sum(g * g * g) for g in first), cr.constant(0.0)), wrt)
    found = cr.compile([y, *first, *second])(**at)
    peers = {k: torch.tensor(v, requires_grad=k in by) for k, v in at.items()}
    out = theirs(**peers)
    of = [peers[k] for k in by]
    slopes = torch.autograd.grad(
        (torch.sin(out) * torch.tensor(weight)).sum(), of, create_graph=True
    )
    again = torch.autograd.grad(sum((g * g * g).sum() for g in slopes), of)
    for got, want in zip(found, [out, *slopes, *again], strict=True):
        close(got, want)


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.normal(size=shape)


@pytest.mark.parametrize("shape", [(5, 8), (2, 3, 7), (6,), (1, 1)], ids=str)
@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_layer_norm(shape: tuple[int, ...], eps: float) -> None:
    n = shape[-1]
    at = {"h": normal(*shape), "s": normal(n), "b": normal(n)}
    held(
        lambda h, s, b: cr.layer_norm(h, s, b, eps),
        lambda h, s, b: F.layer_norm(h, (n,), s, b, eps),
        at, "hsb",
    )  # fmt: skip
    held(
        lambda h, **_: cr.layer_norm(h, eps=eps),
        lambda h, **_: F.layer_norm(h, (n,), eps=eps),
        {"h": at["h"]}, "h",
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(5, 8), (2, 3, 7)], ids=str)
def test_rms_norm(shape: tuple[int, ...]) -> None:
    n = shape[-1]
    held(
        lambda h, s: cr.rms_norm(h, s, 1e-3),
        lambda h, s: F.rms_norm(h, (n,), s, 1e-3),
        {"h": normal(*shape), "s": normal(n)}, "hs",
    )  # fmt: skip


def sdpa(q: Any, k: Any, v: Any, **options: Any) -> Any:
    """PyTorch's own, in the one of its kernels that differentiates twice."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return F.scaled_dot_product_attention(q, k, v, **options)


@pytest.mark.parametrize(
    ("lead", "n", "m", "options"),
    [
        ((), 4, 4, {}),
        ((2, 3), 3, 6, {}),
        ((2, 3), 6, 3, {"causal": True}),
        ((3,), 3, 6, {"causal": True}),
        ((3,), 5, 5, {"scale": 0.3}),
    ],
    ids=str,
)
def test_attention(lead: tuple[int, ...], n: int, m: int, options: Any) -> None:
    at = {"q": normal(*lead, n, 5), "k": normal(*lead, m, 5), "v": normal(*lead, m, 2)}
    theirs = {"is_causal" if k == "causal" else k: o for k, o in options.items()}
    held(
        lambda q, k, v: cr.attention(q, k, v, **options),
        lambda q, k, v: sdpa(q, k, v, **theirs),
        at, "qkv",
    )  # fmt: skip


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_attention_to_nothing_is_0(backend: str) -> None:
    """With no keys at all, as with all of them shut out, where a softmax would divide 0 by 0."""
    q, k, v = cr.input("q", (2, 3)), cr.input("k", (0, 3)), cr.input("v", (0, 4))
    fn = cr.compile(cr.attention(q, k, v, causal=True), backend=backend)
    feeds = {"q": np.ones((2, 3), "f"), "k": np.ones((0, 3), "f"), "v": np.ones((0, 4), "f")}
    np.testing.assert_array_equal(fn(**feeds), np.zeros((2, 4)))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_attention_of_queries_without_elements_has_no_scale(backend: str) -> None:
    """1/sqrt(0) is inf, and inf times an empty sum NaN; nothing is divided by Python's 0."""
    q = cr.input("q", (2, "n"))
    v = cr.input("v", (2, 3))
    fn = cr.compile(cr.attention(q, q, v), backend=backend)
    assert np.isnan(fn(q=np.zeros((2, 0), np.float32), v=np.ones((2, 3), np.float32))).all()


def test_attention_with_a_mask() -> None:
    at = {"q": normal(2, 3, 4, 5), "k": normal(2, 3, 6, 5), "v": normal(2, 3, 6, 2)}
    mask = RNG.random((2, 1, 4, 6)) < 0.6
    mask[..., 0] = True
    held(
        lambda q, k, v: cr.attention(q, k, v, mask=cr.constant(mask)),
        lambda q, k, v: sdpa(q, k, v, attn_mask=torch.tensor(mask)),
        at, "qkv",
    )  # fmt: skip
    both = mask & (np.tri(4, 6) > 0)
    held(
        lambda q, k, v: cr.attention(q, k, v, causal=True, mask=cr.constant(mask)),
        lambda q, k, v: sdpa(q, k, v, attn_mask=torch.tensor(both)),
        at, "qkv",
    )  # fmt: skip


def test_keys_and_values_are_shared_by_broadcasting() -> None:
    at = {"q": normal(2, 3, 4, 5), "k": normal(2, 1, 6, 5), "v": normal(6, 2)}
    held(cr.attention, sdpa, at, "qkv")


def test_a_query_that_sees_nothing_gives_zeros() -> None:
    q, k, v = (cr.input(n, (3, 2)) for n in "qkv")
    m = cr.input("m", (3, 3), dtype="bool")
    out = cr.attention(q, k, v, mask=m)
    fn = cr.compile([out, *cr.grad(cr.sum(out * out), [q, k, v])])
    mask = np.array([[True, False, True], [False] * 3, [False, False, True]])
    at = {n: normal(3, 2).astype("f4") for n in "qkv"}
    values, *slopes = fn(m=mask, **at)
    assert (values[1] == 0).all()
    np.testing.assert_allclose(values[2], at["v"][2], rtol=1e-6)
    assert all(np.isfinite(s).all() for s in slopes)
    assert (slopes[0][1] == 0).all()


def test_scores_far_out_and_large_inputs_stay_finite() -> None:
    q, k, v = (cr.input(n, (3, 4)) for n in "qkv")
    out = cr.attention(q, k, v, causal=True)
    at = {n: (normal(3, 4) * 1e4).astype("f4") for n in "qkv"}
    for found in cr.compile([out, *cr.grad(cr.sum(out), [q, k, v])])(**at):
        assert np.isfinite(found).all()
    h = cr.input("h", (2, 64))
    fn = cr.compile([cr.layer_norm(h), cr.grad(cr.sum(cr.sin(cr.layer_norm(h))), h)])
    far = (1e4 + normal(2, 64)).astype("f4")
    got, slope = fn(h=far)
    exact = far.astype("f8") - far.astype("f8").mean(axis=1, keepdims=True)
    exact /= np.sqrt(np.square(exact).mean(axis=1, keepdims=True) + 1e-5)
    # a mean near 1e4 is known to half of 2^-10, beside a deviation of 1
    np.testing.assert_allclose(got, exact, atol=2e-3)
    assert np.isfinite(slope).all()
    assert np.isfinite(fn(h=np.full((2, 64), 7.0, "f4"))[1]).all()


def test_they_print_as_papers_print_them() -> None:
    h, w = cr.input("h", ("batch", 8)), cr.input("w", ("batch", 8))
    s, b = cr.parameter("s", (8,)), cr.parameter("b", (8,))
    assert str(cr.layer_norm(h, s, b)) == "layer_norm(h) ⊙ s + b"
    assert str(cr.rms_norm(h, eps=1e-6)) == "rms_norm(h, eps=1e-06)"
    n = cr.layer_norm(h).named("n")
    slope = str(cr.grad(cr.sum(n * w), h))
    assert "mean(w, axis=1) - n ⊙ mean(w ⊙ n, axis=1)" in slope
    assert "sqrt(var(h, axis=1) + 1e-05)" in slope
    q, k, v = (cr.input(x, ("T", 4)) for x in "qkv")
    o = cr.attention(q, k, v)
    assert str(o) == "attention(q, k, v)"
    assert str(cr.attention(q, k, v, causal=True, scale=1)) == (
        "attention(q, k, v, causal=True, scale=1.0)"
    )
    do = cr.input("do", ("T", 4))
    dq, dk, dv = (str(g) for g in cr.vjp(o, [q, k, v], do))
    assert "softmax" in dv and dv.endswith("ᵀ @ do")
    assert "p1 ⊙ (dp1 - sum(dp1 ⊙ p1, axis=1))" in dq
    assert "(p1 ⊙ (dp1 - sum(dp1 ⊙ p1, axis=1)))ᵀ @ q" in dk


def test_a_norm_is_one_kernel_and_its_gradient_one_or_two() -> None:
    h, s, b = cr.input("h", ("batch", 64)), cr.parameter("s", (64,)), cr.parameter("b", (64,))
    assert cr.compile(cr.layer_norm(h, s, b)).show("kernels").count("kernel") == 1
    w = cr.input("w", ("batch", 64))
    slope = cr.grad(cr.sum(cr.layer_norm(h, s, b) * w), h)
    assert cr.compile(slope).show("kernels").count("kernel") <= 2


REFUSED: list[tuple[str, Any]] = [
    ("ShapeError", lambda h, i: cr.layer_norm(h, cr.input("s", (3,)))),
    ("ShapeError", lambda h, i: cr.layer_norm(cr.sum(h))),
    ("DTypeError", lambda h, i: cr.layer_norm(i)),
    ("DTypeError", lambda h, i: cr.layer_norm(h, eps=-1.0)),
    ("DTypeError", lambda h, i: cr.rms_norm(h, eps=True)),
    ("ShapeError", lambda h, i: cr.attention(h, h, cr.sum(h, axis=0))),
    ("ShapeError", lambda h, i: cr.attention(h, cr.input("k", (4, 7)), h)),
    ("ShapeError", lambda h, i: cr.attention(h, h, cr.input("v", (5, 8)))),
    ("DTypeError", lambda h, i: cr.attention(h, h, h, mask=h @ h.T)),
    ("ShapeError", lambda h, i: cr.attention(h, h, h, mask=h > 0)),
    ("DTypeError", lambda h, i: cr.attention(i, i, i)),
    ("DTypeError", lambda h, i: cr.attention(h, h, h, scale=float("nan"))),
]


@pytest.mark.parametrize(("error", "use"), REFUSED)
def test_what_does_not_fit_is_refused_with_its_line(error: str, use: Any) -> None:
    h, i = cr.input("h", (4, 8)), cr.input("i", (4, 8), dtype="int32")
    with pytest.raises(getattr(cr.errors, error)) as caught:
        use(h, i)
    assert "test_normalization.py" in str(caught.value)
