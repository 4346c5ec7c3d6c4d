"""Attention some rows at a time: values and derivatives by other means, bits, memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.loops import heads
from chainrule.rewrite import attend

SEED = 7
Array = np.ndarray[Any, Any]
#: what stands before, queries, keys, widths of a key and a value, causal, how a mask is shaped
CASES: dict[str, tuple[tuple[int, ...], int, int, int, int, bool, str]] = {
    "plain": ((2, 3), 64, 64, 16, 16, False, ""),
    "causal": ((2, 3), 64, 64, 16, 16, True, ""),
    "odd": ((3,), 37, 37, 5, 7, True, ""),
    "cross": ((2,), 41, 90, 8, 33, False, ""),
    "more queries": ((2,), 100, 30, 20, 3, True, ""),
    "more keys": ((1, 2), 33, 70, 8, 8, True, ""),
    "padding": ((2, 2), 48, 50, 8, 8, False, "keys"),
    "both": ((2, 2), 47, 47, 8, 8, True, "whole"),
    "matrices": ((), 25, 31, 4, 4, True, "shared"),
}
#: in the last place of the result's size: some tens of roundings of sums of some tens of terms
TOLERANCE = {"float32": 2e-5, "float64": 2e-13}


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few the queries: cases are small to be quick."""
    monkeypatch.setattr(attend, "MANY", {True: 1, False: 1})
    monkeypatch.setenv("CHAINRULE_CACHE", "0")  # programs are found by what was written alone


def mask_shape(mask: str, lead: tuple[Any, ...], n: Any, m: Any) -> tuple[Any, ...]:
    ones = (1,) * (len(lead) - 1)
    return {"keys": (*lead[:1], *ones, 1, m), "whole": (*lead, n, m), "shared": (n, m)}[mask]


def draw(case: tuple[Any, ...], dtype: str) -> dict[str, Array]:
    """Operands, a cotangent, and a mask that shuts all out for one query."""
    lead, n, m, d, e, _, mask = case
    rng = np.random.default_rng(SEED)
    shapes = {"q": (n, d), "k": (m, d), "v": (m, e), "ct": (n, e)}
    fed = {x: rng.standard_normal((*lead, *s)).astype(dtype) for x, s in shapes.items()}
    if mask:
        fed["mask"] = rng.random(mask_shape(mask, lead, n, m)) < 0.6
        fed["mask"][..., 0, :] = mask == "keys"
    return fed


def expected(case: tuple[Any, ...], fed: dict[str, Array]) -> dict[str, Array]:
    """Attention and its derivative in NumPy, float64, as a lecture writes them."""
    _, n, m, d, _, causal, _ = case
    q, k, v, ct = (fed[x].astype(np.float64) for x in ("q", "k", "v", "ct"))
    seen = np.tri(n, m) > 0 if causal else np.ones((n, m), bool)
    s = q @ k.swapaxes(-1, -2) / math.sqrt(d)
    p = np.where(seen & fed.get("mask", True), np.exp(s - s.max(axis=-1, keepdims=True)), 0)
    p = p / np.where(p.any(axis=-1, keepdims=True), p.sum(axis=-1, keepdims=True), 1)
    dp = ct @ v.swapaxes(-1, -2)
    ds = p * (dp - (dp * p).sum(axis=-1, keepdims=True)) / math.sqrt(d)
    crossed = ds.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ ct
    return {"out": p @ v, "dq": ds @ k, "dk": crossed[0], "dv": crossed[1]}


def outputs(case: tuple[Any, ...], dtype: str, named: bool = False) -> list[cr.Tensor]:
    """The result and the gradients by q, k and v, whose sizes may be names."""
    lead, n, m, d, e, causal, mask = case
    names = ("b", "h")[: len(lead)] if named else lead
    rows, keys = ("n", "m" if m != n else "n") if named else (n, m)
    shapes = {"q": (rows, d), "k": (keys, d), "v": (keys, e), "ct": (rows, e)}
    q, k, v, ct = (cr.input(x, (*names, *s), dtype=dtype) for x, s in shapes.items())
    seen = None
    if mask:
        seen = cr.input("mask", mask_shape(mask, names, rows, keys), dtype="bool")
    out = cr.attention(q, k, v, causal=causal, mask=seen)
    return [out, *cr.grad(cr.sum(out * ct), [q, k, v])]


def forms(f: Any) -> list[str]:
    return [kernel.form for kernel in f.report().kernels]


@pytest.mark.parametrize("named", [False, True], ids=["sizes", "names"])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(always: None, name: str, named: bool) -> None:
    dtype = "float64" if name in ("odd", "both") else "float32"
    case = CASES[name]
    fed = draw(case, dtype)
    f = cr.compile(outputs(case, dtype, named), threads=1)
    assert forms(f).count("attend") == 2 and "contract" not in forms(f)
    found = f(**fed)
    for (what, want), got in zip(expected(case, fed).items(), found, strict=True):
        scale = np.abs(want).max()
        np.testing.assert_allclose(
            got, want, atol=TOLERANCE[dtype] * scale, rtol=0, err_msg=f"{what}, seed {SEED}"
        )
    rng = np.random.default_rng(SEED)
    whole = cr.compile(outputs(case, dtype, named), "reference")
    for operand, bad in [*((x, np.nan) for x in ("q", "k", "v", "ct")), ("v", np.inf)]:
        worse = fed | {operand: fed[operand].copy()}
        worse[operand].flat[rng.integers(worse[operand].size)] = bad
        # it goes wherever it goes where all scores are kept: 0 * NaN is NaN, and so is 0 * inf
        for got, want in zip(f(**worse), whole(**worse), strict=True):
            np.testing.assert_allclose(
                got, want, atol=TOLERANCE[dtype] * 10, rtol=0, err_msg=f"{bad} in {operand}"
            )


@pytest.mark.parametrize("named", [False, True], ids=["sizes", "names"])
def test_what_no_query_sees_goes_nowhere_but_to_queries(always: None, named: bool) -> None:
    """Not by way of the rows that fill the last block either, which would see these keys."""
    case = CASES["more keys"]
    fed = draw(case, "float32")
    fed["k"][..., case[1] :, :] = np.nan
    ours, whole = (
        cr.compile(outputs(case, "float32", named), backend)(**fed)
        for backend in ("cpu", "reference")
    )
    for got, want in zip(ours, whole, strict=True):
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    assert np.isfinite(ours[3]).all()


@pytest.mark.parametrize("name", CASES)
def test_pytorch_says_the_same(always: None, name: str) -> None:
    torch = pytest.importorskip("torch")
    case = CASES[name]
    fed = draw(case, "float32")
    if "mask" in fed:
        fed["mask"][..., 0] = True  # of a query that sees no key PyTorch has no result
    q, k, v = (torch.tensor(fed[x], requires_grad=True) for x in ("q", "k", "v"))
    seen = torch.tensor(np.tri(case[1], case[2]) > 0) if case[5] else None
    if "mask" in fed:
        mask = torch.tensor(fed["mask"])
        seen = mask if seen is None else mask & seen
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    out.backward(torch.tensor(fed["ct"]))
    found = cr.compile(outputs(case, "float32"), threads=1)(**fed)
    for got, want in zip(found, (out, q.grad, k.grad, v.grad), strict=True):
        tolerance = TOLERANCE["float32"] * float(want.abs().max())
        np.testing.assert_allclose(got, want.detach().numpy(), atol=tolerance, rtol=0)


def bits(name: str, threads: int = 1) -> list[bytes]:
    case = CASES[name]
    f = cr.compile(outputs(case, "float32", named=True), threads=threads)
    return [x.tobytes() for x in f(**draw(case, "float32"))]


@pytest.mark.parametrize("name", ["causal", "both"])
def test_bits_do_not_show_blocks(
    always: None, name: str, monkeypatch: pytest.MonkeyPatch, at_level: Callable[[str], None]
) -> None:
    """Nor threads, nor the width of vectors."""
    want = bits(name)
    assert bits(name, threads=3) == want
    monkeypatch.setattr(heads, "ROWS", 16)
    assert bits(name) == want
    at_level("x86-64-v3")
    assert bits(name) == want


def test_a_target_without_fused_multiply_add(always: None, at_level: Callable[[str], None]) -> None:
    at_level("x86-64-v2")
    case = CASES["causal"]
    fed = draw(case, "float32")
    (out, *_), want = cr.compile(outputs(case, "float32"))(**fed), expected(case, fed)["out"]
    np.testing.assert_allclose(out, want, atol=TOLERANCE["float32"], rtol=0)


def test_no_row_waits_for_denormal_numbers(always: None) -> None:
    """Weights below the least normal number are 0, not what takes a hundred times as long."""
    q, k, v = (cr.input(x, (32, 4)) for x in "qkv")
    f = cr.compile(cr.attention(q, k, v, scale=1.0), threads=1)
    keys = np.zeros((32, 4), "float32")
    keys[1:, 0] = -95.0
    values = np.eye(32, 4, dtype="float32")
    out = f(q=np.ones((32, 4), "float32"), k=keys, v=values)
    np.testing.assert_array_equal(out, np.tile(values[0], (32, 1)))


@pytest.mark.parametrize("threads", [1, 2])
def test_memory_grows_with_the_number_of_keys(threads: int) -> None:
    q, k, v = (cr.input(x, ("b", "n", 16)) for x in "qkv")
    out = cr.attention(q, k, v, causal=True)
    f = cr.compile(cr.grad(cr.sum(out * out), [q, k, v]), threads=threads)
    report = f.report()
    assert "n**2" not in str(report) and "n*n" not in " ".join(map(str, report.memory.values()))
    sizes = {n: report.reserved(b=2, n=n) for n in (512, 1024, 2048)}
    taken = {n: s["arena"] + s["workspace"] for n, s in sizes.items()}
    assert taken[1024] - taken[512] == (taken[2048] - taken[1024]) / 2
    assert taken[2048] < 2 * 2048 * 2048 * 4


# what is found


def test_what_is_spelled_by_hand_is_found(always: None) -> None:
    q, k, v = (cr.input(x, (2, 40, 9)) for x in "qkv")
    later = cr.triu(cr.ones((40, 40), dtype="bool"), k=1)
    scores = cr.where(later, -math.inf, q @ k.mT / 3.0)
    out = cr.softmax(scores) @ v
    f = cr.compile([out, *cr.grad(cr.sum(out**2), [q, k, v])], threads=1)
    assert forms(f).count("attend") == 2 and "contract" not in forms(f)


def test_heads_are_read_and_written_where_they_lie(always: None) -> None:
    """One matrix of queries, keys and values, and the layer that follows: no copy in between."""
    x, w, out = (
        cr.input("x", ("b", 32, 24)),
        cr.parameter("w", (24, 72)),
        cr.parameter("o", (24, 5)),
    )
    z = x @ w
    parts = [z[..., 24 * i : 24 * (i + 1)] for i in range(3)]
    q, k, v = (cr.permute_dims(cr.reshape(p, (x.shape[0], 32, 3, 8)), (0, 2, 1, 3)) for p in parts)
    h = cr.permute_dims(cr.attention(q, k, v, causal=True), (0, 2, 1, 3))
    f = cr.compile(cr.reshape(h, (x.shape[0], 32, 24)) @ out, threads=1)
    assert forms(f) == ["contract", "attend", "contract"]


def projected(asked: bool, causal: bool = True) -> list[cr.Tensor]:
    """The result, and the gradient by one tensor of all operands, and by values where asked for."""
    z, ct = cr.input("z", ("b", 32, 72)), cr.input("ct", ("b", 32, 3, 8))
    parts = [cr.reshape(z[..., 24 * i : 24 * (i + 1)], (z.shape[0], 32, 3, 8)) for i in range(3)]
    q, k, v = (cr.permute_dims(p, (0, 2, 1, 3)) for p in parts)
    out = cr.permute_dims(cr.attention(q, k, v, causal=causal), (0, 2, 1, 3))
    slopes = cr.grad(cr.sum(out * ct), [z, parts[2]])
    return [out, *slopes[: 1 + asked]]


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
def test_gradients_of_parts_are_written_where_the_whole_has_them(
    always: None, threads: int, asked: bool
) -> None:
    """Unless something else reads a part, too."""
    f = cr.compile(projected(asked), threads=threads)
    assert forms(f) == ["attend", "attend", *(["nest"] if asked else [])]
    rng = np.random.default_rng(SEED)
    z = rng.standard_normal((2, 32, 72)).astype("float32")
    ct = rng.standard_normal((2, 32, 3, 8)).astype("float32")
    q, k, v = (z.reshape(2, 32, 3, 3, 8).transpose(2, 0, 3, 1, 4)[i] for i in range(3))
    fed = {"q": q, "k": k, "v": v, "ct": ct.swapaxes(1, 2)}
    want = expected(((2, 3), 32, 32, 8, 8, True, ""), fed)
    whole = np.stack([want[x].swapaxes(1, 2) for x in ("dq", "dk", "dv")], axis=2)
    tolerance = TOLERANCE["float32"] * np.abs(whole).max()
    for got, of in zip(f(z=z, ct=ct)[1:], (whole.reshape(2, 32, 72), whole[:, :, 2]), strict=False):
        np.testing.assert_allclose(got, of, atol=tolerance, rtol=0)


def weights_too(q: cr.Tensor, k: cr.Tensor, v: cr.Tensor) -> list[cr.Tensor]:
    p = cr.softmax(q @ k.mT / 2.0)
    return [p @ v, cr.max(p)]


def test_weights_that_something_else_reads_are_kept(always: None) -> None:
    q, k, v = (cr.input(x, (40, 4)) for x in "qkv")
    out, top = weights_too(q, k, v)
    f = cr.compile([*cr.grad(cr.sum(out**2) + top, [q, k, v])], threads=1)
    assert "attend" not in forms(f)


@pytest.mark.parametrize("causal", [False, True])
def test_few_queries_are_computed_whole(causal: bool) -> None:
    """By shape alone; of a number of queries that is not known, some rows at a time."""
    many = attend.MANY[causal]
    found = []
    for n in (many - 1, many, "n"):
        q, k, v = (cr.input(x, ("b", n, 4)) for x in "qkv")
        found.append("attend" in forms(cr.compile(cr.attention(q, k, v, causal), threads=1)))
    assert found == [False, True, True]


def test_derivatives_of_the_derivative(always: None) -> None:
    """They read the weights, which are then kept: the composite's own second derivative."""
    q, k, v = (cr.input(x, (26, 3), dtype="float64") for x in "qkv")
    out = cr.attention(q, k, v, causal=True)
    slope = cr.grad(cr.sum(out**2), q)
    outputs = [slope, *cr.grad(cr.sum(slope**2), [q, k, v])]
    rng = np.random.default_rng(SEED)
    fed = {x: rng.standard_normal((26, 3)) for x in "qkv"}
    found, want = (
        f(**fed) for f in (cr.compile(outputs, threads=1), cr.compile(outputs, backend="reference"))
    )
    for got, of in zip(found, want, strict=True):
        np.testing.assert_allclose(got, of, atol=1e-12 * np.abs(of).max(), rtol=0)


def test_many_nets_at_once_train_as_one_does(always: None) -> None:
    x, y = cr.input("x", ("batch", 25, 4)), cr.input("y", ("batch", 25, 4))
    loss = cr.losses.mse(cr.nn.MultiHeadAttention(2, causal=True)(x), y)
    rng = np.random.default_rng(SEED)
    fed = {name: rng.standard_normal((4, 25, 4)).astype("float32") for name in ("x", "y")}
    one, many = (
        cr.training_step(loss, cr.optim.SGD(0.1), threads=1, seed=5, **options)
        for options in ({}, {"ensemble": 3})
    )
    assert "attend" in forms(many)
    alone, together = (s.run(batch_size=2, shuffle=False, **fed) for s in (one, many))
    np.testing.assert_array_equal(np.asarray(together)[:, 0], alone)


def test_a_scale_is_what_it_is_in_float64() -> None:
    q = cr.input("q", (100, 16), dtype="float64")
    y = cr.attention(q, q, q, scale=0.25 * (1 + 9e-7))
    given = {"q": 4 * np.random.default_rng(0).standard_normal((100, 16))}
    want = cr.compile(y, backend="reference")(**given)
    np.testing.assert_allclose(cr.compile(y)(**given), want, atol=1e-12)  # roundings of float64


def test_values_of_two_widths_share_weights_that_alone_are_differentiated() -> None:
    q, k = cr.input("q", (100, 16)), cr.input("k", (100, 16))
    values = [cr.input(f"v{e}", (100, e)) for e in (16, 24)]
    loss = sum((cr.sum(cr.attention(q, k, v) ** 2) for v in values), cr.constant(0.0))
    slopes = cr.grad(loss, values)
    rng = np.random.default_rng(1)
    given = {
        n.node.op.label: rng.standard_normal(n.shape).astype(np.float32) for n in (q, k, *values)
    }
    want = cr.compile(slopes, backend="reference")(**given)
    for got, expected in zip(cr.compile(slopes)(**given), want, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4)  # a hundred sums of float32


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_attention_of_no_queries_and_of_no_keys(backend: str) -> None:
    q, k = cr.input("q", ("n", 4)), cr.input("k", ("m", 4))
    f = cr.compile(cr.attention(q, k, k), backend)
    none, some = np.zeros((0, 4), "float32"), np.ones((2, 4), "float32")
    assert f(q=none, k=some).shape == (0, 4)
    with pytest.raises(cr.errors.FeedError, match="the size m is 0"):
        f(q=some, k=none)


def test_attention_of_no_heads() -> None:
    x = cr.input("x", (0, 100, 16))
    assert cr.compile(cr.attention(x, x, x))(x=np.zeros((0, 100, 16), np.float32)).size == 0
