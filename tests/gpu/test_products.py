"""Products on a GPU: every tile has the bits of the CPU, tensor cores are as near as sums are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.loops import tiled
from chainrule.loops.tensor import WarpTiles

SIZES = {"a": 3, "b": 5, "c": 2, "d": 17, "e": 4, "f": 33}
#: rows, columns and sums of several letters, in any order; groups first, last and in between
SPECS = [
    "abd,bdf->af", "abc,acf->bf", "dab,fadb->df", "abcd,cbfd->af", "abde,abf->def", "acb,bacf->f",
    "abdf,ae->bdfe", "abf,bcf->acf", "acbd,bced->aed", "ab,bd->da",
]  # fmt: skip


def factors(spec: str) -> tuple[list[cr.Tensor], dict[str, np.ndarray]]:
    rng = np.random.default_rng(3)
    operands = spec.partition("->")[0].split(",")
    tensors = [cr.input(n, [SIZES[c] for c in t]) for n, t in zip("xy", operands, strict=True)]
    return tensors, {t.name: rng.standard_normal(t.shape).astype(np.float32) for t in tensors}


@pytest.mark.parametrize("spec", SPECS)
def test_any_product_has_the_bits_of_the_cpu(spec: str, gpu: Any) -> None:
    (x, y), feeds = factors(spec)
    outputs = [cr.einsum(spec, x, y), cr.tanh(cr.einsum(spec, cr.flip(x), y) + 1)]
    ours, native = (cr.compile(outputs, backend=b)(**feeds) for b in ("cuda", "cpu"))
    for a, b in zip(ours, native, strict=True):
        np.testing.assert_array_equal(a, b)


def layer(rows: int | str, precision: str | None = None, terms: int = 19) -> Any:
    """A layer on both, and data of 70 rows for it."""
    x, w, b = cr.input("x", (rows, terms)), cr.input("w", (terms, 75)), cr.input("b", (75,))
    rng = np.random.default_rng(5)
    feeds = {
        "x": rng.standard_normal((70, terms), np.float32),
        "w": rng.standard_normal((terms, 75), np.float32),
        "b": rng.standard_normal(75, np.float32),
    }
    made = [
        cr.compile(cr.relu(x @ w + b), backend=name, precision=precision)
        for name in ("cuda", "cpu")
    ]
    return [fn(**feeds) for fn in made], feeds


@pytest.mark.parametrize(("side", "rows"), [(8, "batch"), (4, 70), (2, "batch"), (1, 70)])
def test_no_tile_shows_in_the_bits(
    side: int, rows: int | str, gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiled.Tiles, "sides", (side,))
    (ours, native), _ = layer(rows)
    np.testing.assert_array_equal(ours, native)


def test_nor_in_its_ptx(emulator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiled.Tiles, "sides", (4,))
    (ours, native), _ = layer(70)
    np.testing.assert_array_equal(ours, native)


def near(ours: np.ndarray, feeds: dict[str, np.ndarray]) -> None:
    """Whether a layer of bfloat16 factors is right, from float64.

    Factors are exact then; a sum of n terms in float32 in any order is off by n roundings of its
    terms' magnitudes at most (Higham, "Accuracy and Stability of Numerical Algorithms", 2002, 4.2).
    """
    import ml_dtypes

    x, w = (feeds[n].astype(ml_dtypes.bfloat16).astype(np.float64) for n in "xw")
    exact, terms = np.maximum(x @ w + feeds["b"], 0), len(w) + 1
    bound = terms * 2.0**-24 * (np.abs(x) @ np.abs(w) + np.abs(feeds["b"]))
    assert (np.abs(ours - exact) <= bound).all()


@pytest.mark.parametrize(("side", "terms"), [(4, 33), (2, 1), (2, 64), (1, 33), (1, 16)])
def test_tensor_cores_add_what_they_should(
    side: int, terms: int, gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WarpTiles, "sides", (side,))
    (ours, _), feeds = layer("batch" if terms == 33 else 70, "bfloat16", terms)
    near(ours, feeds)


def test_so_does_their_ptx(emulator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WarpTiles, "sides", (2,))
    (ours, _), feeds = layer(70, "bfloat16")
    near(ours, feeds)


def test_a_gpu_without_them_has_the_ordinary_units(emulator: Any) -> None:
    emulator.capability = (7, 5)
    x = cr.input("x", (20, 20))
    old = cr.compile(x @ x, backend="cuda", precision="bfloat16")
    assert "mma.sync" not in old.show("ptx")
    emulator.capability = (8, 0)
    assert "mma.sync" in cr.compile(x @ x, backend="cuda", precision="bfloat16").show("ptx")
    feeds = {"x": np.random.default_rng(0).standard_normal((20, 20), np.float32)}
    np.testing.assert_allclose(
        old(**feeds), cr.compile(x @ x, precision="bfloat16")(**feeds), rtol=1e-5, atol=1e-5
    )
