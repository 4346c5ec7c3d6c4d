"""Attention on a GPU, a tile of scores at a time: the bits of the CPU, whose values and derivatives
other means have told (tests/loops/test_attend.py), and no more memory than there are operands.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.loops import score_tiles
from chainrule.rewrite import attend

Array = np.ndarray[Any, Any]
#: what stands before, queries, keys, widths of a key and a value, causal, how a mask is shaped
CASES: dict[str, tuple[tuple[int, ...], int, int, int, int, bool, str]] = {
    "plain": ((2, 3), 32, 32, 16, 16, False, ""),
    "causal": ((2,), 50, 50, 16, 16, True, ""),
    "odd": ((3,), 37, 37, 5, 7, True, ""),
    "cross": ((2,), 21, 40, 8, 33, False, ""),
    "wide": ((), 17, 20, 20, 140, True, ""),
    "more queries": ((2,), 50, 18, 20, 3, True, ""),
    "more keys": ((1, 2), 17, 70, 8, 8, True, ""),
    "padding": ((2, 2), 18, 35, 8, 8, False, "keys"),
    "both": ((2, 2), 27, 27, 8, 8, True, "whole"),
    "matrices": ((), 25, 31, 4, 4, True, "shared"),
}


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few the queries: cases are small to be quick."""
    monkeypatch.setattr(attend, "MANY", {True: 1, False: 1})
    monkeypatch.setattr(score_tiles, "SIDES", {4: 1, 8: 1})
    monkeypatch.setenv("CHAINRULE_CACHE", "0")  # programs are found by what was written alone


def mask_shape(mask: str, lead: tuple[Any, ...], n: Any, m: Any) -> tuple[Any, ...]:
    ones = (1,) * (len(lead) - 1)
    return {"keys": (*lead[:1], *ones, 1, m), "whole": (*lead, n, m), "shared": (n, m)}[mask]


def draw(name: str, dtype: str) -> dict[str, Array]:
    """Operands, a cotangent, and a mask that shuts all out for one query."""
    lead, n, m, d, e, _, mask = CASES[name]
    rng = np.random.default_rng(7)
    shapes = {"q": (n, d), "k": (m, d), "v": (m, e), "ct": (n, e)}
    fed = {x: rng.standard_normal((*lead, *s)).astype(dtype) for x, s in shapes.items()}
    if mask:
        fed["mask"] = rng.random(mask_shape(mask, lead, n, m)) < 0.6
        fed["mask"][..., 0, :] = mask == "keys"
    return fed


def made(
    name: str, dtype: str, backend: str, named: bool = False, of: str = "qkv", **options: Any
) -> Any:
    """The result and the gradients by some operands, whose sizes may be names."""
    lead, n, m, d, e, causal, mask = CASES[name]
    names: tuple[Any, ...] = ("b", "h")[: len(lead)] if named else lead
    rows, keys = ("n", "m" if m != n else "n") if named else (n, m)
    shapes = {"q": (rows, d), "k": (keys, d), "v": (keys, e), "ct": (rows, e)}
    t = {x: cr.input(x, (*names, *s), dtype=dtype) for x, s in shapes.items()}
    seen = cr.input("mask", mask_shape(mask, names, rows, keys), dtype="bool") if mask else None
    out = cr.attention(t["q"], t["k"], t["v"], causal=causal, mask=seen)
    gradients = cr.grad(cr.sum(out * t["ct"]), [t[x] for x in of])
    return cr.compile([out, *gradients], backend, **options)


def agree(name: str, dtype: str, named: bool = False, of: str = "qkv", worse: bool = True) -> None:
    """All results are those of the CPU, bit by bit, also of operands that are not finite."""
    ours, native = (made(name, dtype, backend, named, of) for backend in ("cuda", "cpu"))
    forms = [kernel.form for kernel in ours.report().kernels]
    assert forms.count("attend") == 1 + bool(of) and "contract" not in forms
    fed, rng = draw(name, dtype), np.random.default_rng(1)
    if not of:
        del fed["ct"]
    drawn = [fed]
    if worse:
        drawn.append(fed | {"k": fed["k"].copy()})
        drawn[-1]["k"][..., CASES[name][1] :, :] = np.nan  # what no query sees, under a causal mask
        # one in each of two operands: what is not finite goes wherever it goes on a CPU
        for x, y in (("q", "ct"), ("k", "v")):
            drawn.append(fed | {x: fed[x].copy(), y: fed[y].copy()})
            drawn[-1][x].flat[rng.integers(fed[x].size)] = np.nan
            drawn[-1][y].flat[rng.integers(fed[y].size)] = np.inf
    for feeds in drawn:
        for a, b in zip(ours(**feeds), native(**feeds), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", CASES)
def test_attention_has_the_bits_of_the_cpu(name: str, gpu: Any) -> None:
    agree(name, "float64" if name in ("odd", "both") else "float32", named=name != "wide")


@pytest.mark.parametrize("of", ["", "q", "k", "v", "qv"])
def test_any_of_its_derivatives_alone_has(of: str, gpu: Any) -> None:
    agree("odd", "float32", of=of, worse=False)


@pytest.mark.parametrize("name", ["odd", "both"])
def test_its_ptx_has(name: str, emulator: Any) -> None:
    agree(name, "float32", worse=False)


def test_gradients_of_parts_are_written_where_the_whole_has_them(gpu: Any) -> None:
    z = cr.input("z", ("b", 20, 48))
    parts = (cr.reshape(z[..., 16 * i : 16 * (i + 1)], (z.shape[0], 20, 2, 8)) for i in range(3))
    out = cr.attention(*(cr.permute_dims(p, (0, 2, 1, 3)) for p in parts), causal=True)
    ours, native = (cr.compile([out, cr.grad(cr.sum(out**2), z)], on) for on in ("cuda", "cpu"))
    assert "nest" not in [kernel.form for kernel in ours.report().kernels]
    fed = np.random.default_rng(7).standard_normal((3, 20, 48)).astype("float32")
    for got, want in zip(ours(z=fed), native(z=fed), strict=True):
        np.testing.assert_array_equal(got, want)


def near(name: str, precision: str) -> None:
    """On tensor cores each factor of three products is off by 2**-11 of itself at most, and what is
    made of scores by as much again: some times that of the largest number, in float64.
    """
    ours = made(name, "float32", "cuda", named=name != "wide", precision=precision)
    exact = made(name, "float64", "cpu")
    fed = draw(name, "float32")
    want = exact(**{n: a.astype("f8") if a.dtype.kind == "f" else a for n, a in fed.items()})
    for got, right in zip(ours(**fed), want, strict=True):
        assert np.abs(got - right).max() <= 16 * 2.0**-11 * np.abs(right).max()
    nan = fed | {"v": fed["v"].copy()}
    nan["v"].flat[3] = np.nan
    for got, right in zip(ours(**nan), made(name, "float32", "cpu")(**nan), strict=True):
        np.testing.assert_array_equal(np.isnan(got), np.isnan(right))


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
@pytest.mark.parametrize("name", ["odd", "cross", "more keys"])
def test_tensor_cores_are_near(name: str, precision: str, gpu: Any) -> None:
    near(name, precision)


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_tensor_cores_are_near_in_every_case(name: str, gpu: Any) -> None:
    near(name, "tf32")


def test_blocks_that_see_more_and_less_are(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CASES, "several", ((), 130, 130, 16, 16, True, ""))
    near("several", "tf32")


def test_their_ptx_is(emulator: Any) -> None:
    near("odd", "tf32")


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", CASES)
def test_large_tiles_have(name: str, gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_tiles, "SIDES", {4: 4, 8: 2})
    agree(name, "float32")


def test_heads_of_a_layer_turn_where_they_are_written(gpu: Any) -> None:
    x = cr.input("x", ("batch", 20, 12))
    layer = cr.nn.Sequential([cr.nn.MultiHeadAttention(3, causal=True)])
    loss = cr.mean(layer(x) ** 2)
    ours, native = (
        cr.training_step(loss, cr.optim.SGD(0.1), seed=3, backend=b) for b in ("cuda", "cpu")
    )
    data = np.random.default_rng(2).standard_normal((2, 20, 12)).astype(np.float32)
    for _ in range(
        2
    ):  # the loss alone is summed in an order of its own, its number of terms a name
        assert float(ours(x=data)) == pytest.approx(float(native(x=data)), rel=1e-6)
    for name, array in native.state_dict().items():
        np.testing.assert_array_equal(ours.state_dict()[name], array, err_msg=name)


def test_no_memory_grows_with_the_square_of_the_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    q, k, v, ct = (cr.input(x, (2, 4, "n", 64)) for x in ("q", "k", "v", "ct"))
    outputs = [cr.attention(q, k, v, causal=True)]
    outputs += cr.grad(cr.sum(outputs[0] * ct), [q, k, v])
    memory = cr.compile(outputs, "cuda").report().reserved(n=4096)
    # the sums of exponentials, and the products of result and cotangent: a number a query each
    assert memory["arena"] + memory["workspace"] == 2 * (4 * 2 * 4 * 4096)
