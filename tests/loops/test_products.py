"""Products of views, and sums over axes that don't lie together: the template takes them all."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

import chainrule as cr

SIZES = {"a": 3, "b": 5, "c": 2, "d": 17, "e": 4, "f": 33}
SEED = 3
#: products whose sums are one run, two runs, runs in another order; rows and columns likewise
SPECS = [
    "abd,bdf->af",
    "abc,acf->bf",
    "dab,fadb->df",
    "eabc,abfc->ef",
    "abcd,cbfd->af",
    "abde,abf->def",
    "cad,caf->dcf",
    "acb,bacf->f",
    "fabd,ba->df",
    "abdf,ae->bdfe",
    # the last axis is one of both factors and of the result, which lanes then go along
    "abf,bcf->acf",
    "eabd,ebad->ead",
    "daf,cdaf->caf",
    "abf,bf->af",
    "acbd,bced->aed",
]


def view(x: cr.Tensor, kind: str, letters: str) -> cr.Tensor:
    """x, which is two larger along each axis where a view is asked for, cut down to its sizes."""
    if kind == "whole":
        return x
    inner = x[tuple(slice(1, SIZES[c] + 1) for c in letters)]
    return cr.flip(inner) if kind == "flipped" else inner


@pytest.mark.parametrize("kind", ["whole", "sliced", "flipped"])
@pytest.mark.parametrize("spec", SPECS)
def test_native_code_is_the_reference(spec: str, kind: str) -> None:
    a, b, out = spec.replace("->", ",").split(",")
    more = 0 if kind == "whole" else 2
    shape = [SIZES[c] + more for c in a]
    x = cr.input("x", shape, dtype="float64")
    y = cr.input("y", [SIZES[c] for c in b], dtype="float64")
    shifts = [
        cr.input(f"s{i}", [SIZES[c] if c in kept else 1 for c in out], dtype="float64")
        for i, kept in enumerate((out[-1:], out[:1]))
    ]
    z = cr.einsum(spec, view(x, kind, a), y)
    outputs = [z, cr.tanh(z + shifts[0]), z * cr.reshape(shifts[1], shifts[1].shape)]
    rng = np.random.default_rng(SEED)
    leaves = {t.name: t.shape for t in (x, y, *shifts)}
    feeds = {name: rng.standard_normal(s) for name, s in leaves.items()}
    want = cr.compile(outputs, backend="reference")(**feeds)
    for got, expected in zip(cr.compile(outputs)(**feeds), want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("spec", SPECS)
def test_symbolic_sizes_have_the_same_bits(spec: str) -> None:
    """Each element is one chain of multiply-adds, however the sums are cut into steps."""
    a, b, _ = spec.replace("->", ",").split(",")
    rng = np.random.default_rng(SEED)
    feeds = {n: rng.standard_normal([SIZES[c] for c in ls]) for n, ls in (("x", a), ("y", b))}
    results = []
    for name in (SIZES.__getitem__, lambda c: f"size_{c}"):
        x = cr.input("x", [name(c) for c in a], dtype="float64")  # type: ignore[operator]
        y = cr.input("y", [name(c) for c in b], dtype="float64")  # type: ignore[operator]
        results.append(cr.compile(cr.einsum(spec, x, y))(**feeds))
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("rows", ["rows", 40])
@pytest.mark.parametrize(
    "spec", ["ba,bc->ac", "ba,cb->ac", "ab,bc->ac", "bad,bc->adc", "ba,bc->ca"]
)
def test_a_single_column_has_the_bits_of_one_of_many(spec: str, rows: str | int) -> None:
    """Whichever factor vectors go along, an element is the same chain of multiply-adds."""
    sizes = {"a": 30, "b": 40, "d": 3, "c": 20}
    a, b, _ = spec.replace("->", ",").split(",")
    rng = np.random.default_rng(SEED)
    feeds = {
        name: rng.standard_normal([sizes[c] for c in letters]).astype(np.float32)
        for name, letters in (("x", a), ("y", b))
    }

    def product(width: int) -> Callable[..., np.ndarray]:
        known = sizes | {"c": width, "b": rows}
        x, y = (cr.input(n, [known[c] for c in ls]) for n, ls in (("x", a), ("y", b)))
        return cr.compile(cr.einsum(spec, x, y))

    wide = product(20)(**feeds)
    column = np.take(feeds["y"], [7], axis=b.index("c"))
    compiled = product(1)
    one = compiled(x=feeds["x"], y=column)
    axis = spec.split("->")[1].index("c")
    np.testing.assert_array_equal(one, np.take(wide, [7], axis=axis))


def test_vectors_go_along_the_gradient_of_a_single_column() -> None:
    """A weight's gradient with one column is a row of the data's columns."""
    x, y = cr.input("x", ("batch", 32)), cr.input("y", ("batch", 1))
    loops = cr.compile(cr.matrix_transpose(x) @ y).show("loops")
    assert "for j' in 0..16" in loops and "for j' in 0..1:" not in loops


@pytest.mark.parametrize("level", ["x86-64-v4", "x86-64-v3", "generic"])
@pytest.mark.parametrize("terms", ["terms", 2500, 1025])
def test_long_sums_are_the_same_chains(
    level: str, terms: str | int, at_level: Callable[[str], None]
) -> None:
    """Sums cut into stretches, of copied blocks of a factor, have the bits of short products: each
    element is one chain, so it does not matter which others are computed beside it.
    """
    at_level(level)
    rng = np.random.default_rng(SEED)
    count = 2500 if terms == "terms" else int(terms)
    a = rng.standard_normal((count, 150), dtype=np.float32)
    b = rng.standard_normal((count, 130), dtype=np.float32)
    bias = rng.standard_normal(130, dtype=np.float32)

    def gradient(columns: int, threads: int) -> np.ndarray:
        x, d = cr.input("x", (terms, 150)), cr.input("d", (terms, columns))
        z = cr.tanh(0.02 * (x.T @ d) + cr.input("bias", (columns,)))
        fn = cr.compile(z, threads=threads)
        result: np.ndarray = fn(x=a, d=np.ascontiguousarray(b[:, :columns]), bias=bias[:columns])
        return result

    whole, few = gradient(130, 1), gradient(16, 1)
    np.testing.assert_array_equal(whole[:, :16], few)
    np.testing.assert_array_equal(whole, gradient(130, 2))
    want = np.tanh(0.02 * (a.T.astype(np.float64) @ b) + bias)
    # a sum of 2,500 products of size 1 is off by some 2500 ulp of its largest partial sum, at most
    np.testing.assert_allclose(whole, want, rtol=0, atol=2e-4)


@pytest.mark.parametrize("rows", ["rows", 21, 18])  # 18 are two tiles of nine, where nine may be
def test_rows_a_page_apart_are_few_to_a_tile(rows: str | int) -> None:
    """They lie in one set of the nearest cache, which holds eight lines on many processors. A row
    alone, which shares nothing, has the same bits.
    """
    rng = np.random.default_rng(SEED)
    a = rng.standard_normal((18 if rows == 18 else 21, 1024), dtype=np.float32)
    b = rng.standard_normal((1024, 70), dtype=np.float32)

    def compiled(count: str | int) -> cr.CompiledFunction:
        return cr.compile(cr.input("a", (count, 1024)) @ cr.input("b", b.shape))

    fn = compiled(rows)
    tall = [int(n) for n in re.findall(r"unroll for i' in 0\.\.(\d+):\n\s+unroll for v'",
                                       fn.show("loops"))]  # fmt: skip
    assert tall and max(tall) <= 8
    alone = compiled(1)
    got = fn(a=a, b=b)
    for i, row in enumerate(a):
        np.testing.assert_array_equal(got[i : i + 1], alone(a=row[None], b=b))


@pytest.mark.parametrize("level", ["x86-64-v4", "x86-64-v3", "generic"])
@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize(("terms", "columns"), [(16, 16), (40, 37), (7, 50), (64, 128), (1024, 48)])
def test_few_rows_by_a_transposed_factor(
    level: str, kind: str, terms: int, columns: int, at_level: Callable[[str], None]
) -> None:
    """Blocks turned in registers give the chains that a copy of the factor gives many rows, and on
    two threads the same.
    """
    at_level(level)
    rng = np.random.default_rng(SEED)
    a, w, bias = (rng.standard_normal(s).astype(kind) for s in ((9, terms), (columns, terms),
                                                               (columns,)))  # fmt: skip

    def layer(rows: int, threads: int = 1) -> np.ndarray:
        x, y = (cr.input(n, s, dtype=kind) for n, s in (("x", (rows, terms)), ("w", w.shape)))
        z = cr.tanh(x @ y.T + cr.input("bias", bias.shape, dtype=kind))
        result: np.ndarray = cr.compile(z, threads=threads)(x=a[:rows], w=w, bias=bias)
        return result

    many = layer(9)
    exact = np.tanh(a.astype(np.float64) @ w.T.astype(np.float64) + bias)
    np.testing.assert_allclose(many, exact, rtol=0, atol=1e-5)
    for rows in (1, 2, 3):
        np.testing.assert_array_equal(layer(rows), many[:rows])
    np.testing.assert_array_equal(layer(2, threads=2), many[:2])


@pytest.mark.parametrize(
    ("terms", "paged"), [(1024, True), (2048, True), (512, False), (1040, False)]
)
def test_lines_a_page_apart_are_read_once(terms: int, paged: bool) -> None:
    """Sixteen rows of a block that lie in one set of the nearest cache, which holds eight lines:
    a line of which a quarter is read would be fetched four times.
    """
    for rows in (1, 3):
        x, w = cr.input("x", (rows, terms)), cr.input("w", (32, terms))
        text = cr.compile(x @ w.T).show("llvm")
        assert ("load <4 x float>" in text) != paged


def test_a_transposed_factor_of_one_row_is_not_copied() -> None:
    x, w = cr.input("x", (1, 64)), cr.input("w", (48, 64))
    fn = cr.compile(x @ w.T)
    assert fn.report().reserved()["workspace"] == 0
    assert cr.compile(cr.input("x", (4, 64)) @ w.T).report().reserved()["workspace"] > 0


def narrow_update(threads: int) -> tuple[cr.CompiledFunction, list[np.ndarray]]:
    """An update of a weight of ten columns, as an optimizer makes it of the gradient, and the
    values of Python's own.
    """
    rng = np.random.default_rng(SEED)
    shapes = {"x": (23, 37), "d": (23, 10), "w": (37, 10), "v": (37, 10)}
    feeds = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    feeds["v"] = np.abs(feeds["v"])
    x, d, w, v = (cr.input(n, a.shape) for n, a in feeds.items())
    g = x.T @ d
    v2 = 0.9 * v + 0.1 * g * g
    outputs = [v2, w - 0.01 * (0.5 * g + 0.1 * w) / (cr.sqrt(v2) + 1e-3)]
    fn = cr.compile(outputs, threads=threads)
    grad = feeds["x"].T.astype(np.float64) @ feeds["d"]
    second = 0.9 * feeds["v"].astype(np.float64) + 0.1 * grad * grad
    step = 0.01 * (0.5 * grad + 0.1 * feeds["w"]) / (np.sqrt(second) + 1e-3)
    got = fn(**feeds)
    for one, want in zip(got, (second, feeds["w"] - step), strict=True):
        np.testing.assert_allclose(one, want, rtol=2e-5, atol=1e-6)
    return fn, [*got]


def test_a_long_epilogue_of_narrow_rows_goes_along_the_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Eight rows as one line, and the five that are left; bits as row by row."""
    fn, got = narrow_update(1)
    assert "vector for n' in 0..80" in fn.show("loops")
    _, shared = narrow_update(2)
    monkeypatch.setattr("chainrule.loops.flat.LONG", 10**6)
    row_by_row, want = narrow_update(1)
    assert "vector for n' in 0..80" not in row_by_row.show("loops")
    for results in (got, shared):
        for one, expected in zip(results, want, strict=True):
            np.testing.assert_array_equal(one, expected)


def test_an_epilogue_that_asks_for_the_column_is_no_line() -> None:
    """A bias is read by the column alone, and so is not where the line is."""
    x, d = cr.input("x", (23, 37)), cr.input("d", (23, 10))
    bias, scale = cr.input("bias", (10,)), cr.input("scale", (37, 1))
    for other in (bias, scale):
        z = x.T @ d + other
        fn = cr.compile(cr.tanh(z) * cr.exp(z) / (1 + z * z))
        assert "vector for n' in 0..80" not in fn.show("loops")
