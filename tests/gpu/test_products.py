"""Products on a GPU: every tile has the bits of the CPU, tensor cores are as near as sums are."""

from __future__ import annotations

import re
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


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    import ml_dtypes

    return x.astype(ml_dtypes.bfloat16).astype(np.float64)


def to_tf32(x: np.ndarray) -> np.ndarray:
    """To 11 bits, to nearest, ties away from 0: what `cvt.rna.tf32` does in "PTX ISA 9.0"."""
    fraction, exponent = np.frexp(x.astype(np.float64))
    nearest = np.floor(np.abs(fraction) * 2.0**11 + 0.5) * np.sign(fraction)
    return np.ldexp(nearest, exponent - 11)


ROUNDED = {"bfloat16": to_bfloat16, "tf32": to_tf32}
FLT_MAX = float(np.finfo(np.float32).max)
PRECISIONS = pytest.mark.parametrize("precision", sorted(ROUNDED))


def near(
    ours: np.ndarray, feeds: dict[str, Any], precision: str, after: Any = lambda z: np.maximum(z, 0)
) -> None:
    """Whether a layer of rounded factors is right, from float64.

    Products of factors are exact then; a sum of n terms in float32 in any order is off by n
    roundings of its terms' magnitudes at most (Higham, "Accuracy and Stability of Numerical
    Algorithms", 2002, 4.2).
    """
    x, w = (ROUNDED[precision](feeds[n]) for n in "xw")
    exact, terms = after(x @ w + feeds["b"]), len(w) + 1
    bound = terms * 2.0**-24 * (np.abs(x) @ np.abs(w) + np.abs(feeds["b"]))
    assert (np.abs(ours - exact) <= bound).all()


def squares(kind: str, rows: int, terms: int | str, columns: int) -> tuple[Any, dict[str, Any]]:
    """A product on a GPU, and data of so many terms, 48 where the product does not know them."""
    count = 48 if isinstance(terms, str) else terms
    x, w = cr.input("x", (rows, terms)), cr.input("w", (terms, columns))
    rng = np.random.default_rng(7)
    feeds = {"x": rng.standard_normal((rows, count), np.float32),
             "w": rng.standard_normal((count, columns), np.float32)}  # fmt: skip
    return cr.compile(x @ w, backend=kind), feeds


@pytest.mark.parametrize(
    ("kind", "side", "rows", "terms", "columns"),
    [
        ("gpu", 1, 20, 150, 24), ("emulator", 2, 33, "k", 7),
        *(pytest.param(*case, marks=pytest.mark.long) for case in (
            ("emulator", 1, 20, 150, 24), ("emulator", 8, 70, 33, 132), ("gpu", 2, 33, "k", 7),
            ("gpu", 4, 70, 48, 68), ("emulator", 4, 70, 48, 68),
        )),
    ],
)  # fmt: skip
def test_panels_that_come_by_themselves_change_no_bit(
    kind: str, side: int, rows: int, terms: int | str, columns: int,
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    request.getfixturevalue(kind)
    monkeypatch.setattr(tiled.Tiles, "sides", (side,))
    ours, feeds = squares("cuda", rows, terms, columns)
    native, _ = squares("cpu", rows, terms, columns)
    assert "fetch" in ours.show("loops")
    np.testing.assert_array_equal(ours(**feeds), native(**feeds))
    for count in (1, 31, 32, 65) if terms == "k" else ():  # no panel, one, and more, and a part
        few = {"x": feeds["x"][:, :1].repeat(count, 1), "w": feeds["w"][:1].repeat(count, 0)}
        np.testing.assert_array_equal(ours(**few), native(**few))


@pytest.mark.parametrize(
    ("rows", "columns", "bytes_"),
    [
        (33, 32, {"4", "16"}),
        pytest.param(64, 128, {"16"}, marks=pytest.mark.long),
        pytest.param(34, 34, {"4"}, marks=pytest.mark.long),
    ],
)
def test_neighbours_are_fetched_together_where_they_are_such(
    rows: int, columns: int, bytes_: set[str], emulator: Any
) -> None:
    """Four rows of a factor that is turned, four columns of the other one."""
    plain, feeds = squares("cuda", rows, 130, columns)
    x, w = cr.input("x", (130, rows)), cr.input("w", (130, columns))
    turned = cr.compile(cr.matrix_transpose(x) @ w, backend="cuda")
    text = turned.show("ptx")
    assert set(re.findall(r"cp\.async\.c[ag]\.shared\.global[^;]*, (\d+);", text)) == bytes_
    found = turned(x=np.ascontiguousarray(feeds["x"].T), w=feeds["w"])
    np.testing.assert_array_equal(found, plain(**feeds))


@pytest.mark.parametrize("kind", ["gpu", "emulator"])
@pytest.mark.parametrize(
    ("terms", "turned", "bytes_"),
    [
        (96, True, {"16"}),
        (98, True, {"4"}),
        pytest.param(96, False, {"16"}, marks=pytest.mark.long),
        pytest.param(97, True, set(), marks=pytest.mark.long),
    ],
)
def test_words_of_two_terms_are_fetched_where_they_are_such(
    terms: int, turned: bool, bytes_: set[str], kind: str,
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The right factor's terms are neighbours if it is turned; of an odd number of them every
    other line begins in the middle of a word.
    """
    request.getfixturevalue(kind)
    monkeypatch.setattr(WarpTiles, "sides", (2,))
    rng = np.random.default_rng(2)
    given = {"x": rng.standard_normal((33, terms)), "w": rng.standard_normal((24, terms))}
    x, w = cr.input("x", (33, terms)), cr.input("w", (24, terms) if turned else (terms, 24))
    product = x @ (cr.matrix_transpose(w) if turned else w)
    fn = cr.compile(product, backend="cuda", precision="bfloat16")
    if kind == "emulator":
        text = fn.show("ptx")
        assert set(re.findall(r"cp\.async\.c[ag]\.shared\.global[^;]*, (\d+);", text)) == bytes_
    feeds = {n: a.astype(np.float32) for n, a in given.items()}
    found = fn(x=feeds["x"], w=feeds["w"] if turned else np.ascontiguousarray(feeds["w"].T))
    near(found, {"x": feeds["x"], "w": feeds["w"].T, "b": np.float32(0)}, "bfloat16", np.asarray)


def test_a_factor_that_is_computed_is_not_fetched(gpu: Any) -> None:
    x, w = cr.input("x", (40, 192)), cr.input("w", (192, 40))
    image, kernel = cr.input("image", (1, 24, 6, 6)), cr.input("kernel", (8, 24, 3, 3))
    padded = cr.conv(image, kernel, padding=1)
    for z, fetches in ((x @ w, 2), (cr.flip(x) @ w, 2), (padded, 1)):
        loops = cr.compile(z, backend="cuda").show("loops")
        assert len(set(re.findall(r"fetch (\w+)\[", loops))) == fetches
    rng = np.random.default_rng(0)
    feeds = {t.name: rng.standard_normal(t.shape).astype(np.float32) for t in (image, kernel)}
    ours, native = (cr.compile(padded, backend=kind)(**feeds) for kind in ("cuda", "cpu"))
    np.testing.assert_array_equal(ours, native)


#: everyday ones, and others
TILES = [(4, 33), (2, 1), (1, 33)], [(2, 64), (1, 16)]


@pytest.mark.parametrize(
    ("precision", "side", "terms"),
    [(p, *case) for p in ROUNDED for case in TILES[0]]
    + [pytest.param(p, *c, marks=pytest.mark.long) for p in ROUNDED for c in TILES[1]],
)
def test_tensor_cores_add_what_they_should(
    side: int, terms: int, precision: str, gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WarpTiles, "sides", (side,))
    (ours, _), feeds = layer("batch" if terms == 33 else 70, precision, terms)
    near(ours, feeds, precision)


@PRECISIONS
def test_so_does_their_ptx(precision: str, emulator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WarpTiles, "sides", (2,))
    (ours, _), feeds = layer(70, precision, 49)  # whole panels and a part of one
    near(ours, feeds, precision)


def test_tf32_is_float32_elsewhere(emulator: Any) -> None:
    """On a CPU, and on a GPU without tensor cores, to the bit; the report says which it is."""
    emulator.capability = (7, 5)
    (old, native), _ = layer(70, "tf32")
    (plain, _), _ = layer(70)
    np.testing.assert_array_equal(old, plain)
    np.testing.assert_array_equal(native, plain)
    x, w = cr.input("x", ("batch", 19)), cr.input("w", (19, 75))
    for capability, factors in (((7, 5), ""), ((8, 0), "TF32 on tensor cores")):
        emulator.capability = capability
        report = cr.compile(x @ w, backend="cuda", precision="tf32").report()
        assert report.kernels[0].factors == factors


def test_numbers_that_tf32_has_no_room_for(gpu: Any) -> None:
    """Infinity and NaN stay what they are, the largest numbers become infinite, small ones stay."""
    x, w = cr.input("x", ("n", 1)), cr.input("w", (1, 8))
    given = np.array([[np.inf], [np.nan], [FLT_MAX], [2.0**-126], [1 + 2.0**-11]], np.float32)
    found = cr.compile(x @ w, backend="cuda", precision="tf32")(x=given, w=np.ones((1, 8), "f4"))
    wanted = np.array([np.inf, np.nan, np.inf, 2.0**-126, 1 + 2.0**-10], np.float32)
    np.testing.assert_array_equal(found, np.repeat(wanted[:, None], 8, axis=1))


def test_gradients_are_products_in_tf32_too(gpu: Any) -> None:
    x, w, g = cr.input("x", (24, 40)), cr.input("w", (40, 16)), cr.input("g", (24, 16))
    fn = cr.compile(cr.grad(cr.sum(x @ w * g), w), backend="cuda", precision="tf32")
    rng = np.random.default_rng(0)
    feeds = {n: rng.standard_normal((24, k), np.float32) for n, k in (("x", 40), ("g", 16))}
    left, right = to_tf32(feeds["x"]).T, to_tf32(feeds["g"])
    bound = 24 * 2.0**-24 * (np.abs(left) @ np.abs(right))  # see near
    assert (np.abs(fn(**feeds) - left @ right) <= bound).all()


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
