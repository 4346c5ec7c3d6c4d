"""Products in reduced precision: `precision="bfloat16"` and `"bfloat16x3"`.

What is expected comes from NumPy: factors rounded by ml_dtypes, sums in float64. A sum of k terms
in float32 errs by its roundings, at most one a term, each 2**-24 of what has been added up: so by
k * 2**-24 of the sum of absolute products.
"""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import chainrule as cr
from chainrule.codegen.host import host_target
from chainrule.driver import narrowed
from chainrule.ir.graph import Graph
from chainrule.lang.tensor import Tensor
from chainrule.target import LEVEL_FEATURES, TARGETS

Array = np.ndarray[Any, Any]
ULP = 2.0**-24
#: two bfloat16 for a factor: see split_products
SPLIT = 2.0**-16
FUSED = [level for level in LEVEL_FEATURES if TARGETS[level].fma]
#: rows, columns, terms: less than a panel, more, odd, several stretches of a sum
SIZES = [
    (8, 8, 8),
    (9, 17, 33),
    (16, 10, 256),
    (37, 50, 301),
    (64, 112, 784),
    (5, 40, 64),
    (40, 3, 9),
]


def rounded(a: Array) -> Array:
    """What a product takes of a factor, as float64."""
    with np.errstate(all="ignore"):
        return np.asarray(a.astype(ml_dtypes.bfloat16).astype(np.float64))


def product(at: bool, bt: bool, m: Any, n: int, k: int) -> Tensor:
    x, w = cr.input("x", (k, m) if at else (m, k)), cr.input("w", (n, k) if bt else (k, n))
    return (x.T if at else x) @ (w.T if bt else w)


def draw(m: int, n: int, k: int, at: bool = False, bt: bool = False, seed: int = 1) -> Any:
    rng = np.random.default_rng([seed, m, n, k])
    x, w = (rng.standard_normal(s).astype(np.float32) for s in ((m, k), (k, n)))
    return x, w, {"x": x.T.copy() if at else x, "w": w.T.copy() if bt else w}


def scale(x: Array, w: Array) -> Array:
    """|A| @ |B|, which errors are measured by."""
    return np.asarray(np.abs(x).astype(np.float64) @ np.abs(w).astype(np.float64))


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("m", "n", "k"), SIZES)
@pytest.mark.parametrize("rows", ["known", "symbolic"])
@pytest.mark.parametrize(("at", "bt"), [(False, False), (True, False), (False, True), (True, True)])
def test_factors_are_rounded_and_sums_are_not(
    m: int, n: int, k: int, rows: str, at: bool, bt: bool
) -> None:
    z = product(at, bt, m if rows == "known" else "m", n, k)
    x, w, feeds = draw(m, n, k, at, bt)
    want = rounded(x) @ rounded(w)
    for backend in ("cpu", "reference"):
        got = cr.compile(z, backend=backend, precision="bfloat16")(**feeds)
        assert got.dtype == np.float32
        assert (np.abs(got - want) <= k * ULP * scale(rounded(x), rounded(w))).all()


@pytest.mark.parametrize(("m", "n", "k"), SIZES)
@pytest.mark.parametrize(("at", "bt"), [(False, False), (True, True)])
def test_two_parts_are_near_float32(m: int, n: int, k: int, at: bool, bt: bool) -> None:
    x, w, feeds = draw(m, n, k, at, bt)
    want = x.astype(np.float64) @ w.astype(np.float64)
    for backend in ("cpu", "reference"):
        z = product(at, bt, "m", n, k)
        got = cr.compile(z, backend=backend, precision="bfloat16x3")(**feeds)
        assert (np.abs(got - want) <= SPLIT * scale(x, w)).all()


def _worst(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """The numbers whose second part leaves most: just below a tie of it, 1.5 * 2**-16 off."""
    return np.full(shape, 1 + 2.0**-8 - 1.498 * 2.0**-16, np.float32)


def _wide(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    exponents = rng.integers(-30, 31, shape)
    return np.ldexp(rng.uniform(1, 2, shape), exponents).astype(np.float32)


def _equal(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return np.full(shape, np.float32(rng.uniform(1, 2)))


def _cancelling(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    a = rng.standard_normal(shape).astype(np.float32)
    a[..., 1::2] = -a[..., : a.shape[-1] // 2 * 2 : 2]
    return a


@pytest.mark.parametrize("kind", [_worst, _wide, _equal, _cancelling])
@pytest.mark.parametrize("k", [1, 8, 64, 513, 4096])
def test_two_parts_keep_their_bound_where_it_is_hardest(kind: Any, k: int) -> None:
    rng = np.random.default_rng(k)
    for x, w in ((kind(rng, (8, k)), kind(rng, (k, 16))), (kind(rng, (1, k)), kind(rng, (k, 1)))):
        z = product(False, False, len(x), w.shape[1], k)
        got = cr.compile(z, precision="bfloat16x3")(x=x, w=w)
        want = x.astype(np.float64) @ w.astype(np.float64)
        # the bound, and the last roundings of a float32: of the parts' sum and of the result; or of
        # each term, where a sum is float32's
        roundings = 2 if host_target().blocks and k > 32 else max(2, k)
        assert (np.abs(got - want) <= (SPLIT + roundings * ULP) * scale(x, w)).all()


@pytest.mark.parametrize("precision", ["bfloat16", "bfloat16x3"])
def test_what_is_no_number_shows_where_it_belongs(precision: str) -> None:
    x, w, _ = draw(20, 30, 40)
    x[3, 5], x[4, 6], x[5, 7], w[8, 9] = np.inf, -np.inf, np.nan, np.inf
    x[6, 1], x[6, 2], w[1, :], w[2, :] = np.inf, np.inf, 1, -1
    x[7, 8] = 0
    with np.errstate(all="ignore"):
        want = x.astype(np.float64) @ w.astype(np.float64)
    for backend in ("cpu", "reference"):
        got = cr.compile(product(False, False, "m", 30, 40), backend, precision=precision)(x=x, w=w)
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
        np.testing.assert_array_equal(got[np.isinf(want)], want[np.isinf(want)])
        assert np.isfinite(got[np.isfinite(want)]).all()


@pytest.mark.parametrize("precision", ["bfloat16", "bfloat16x3"])
def test_levels_without_blocks_have_the_same_bits(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In two parts there they are those of float32. AMX sums up in an order of its own."""
    feeds = draw(45, 70, 515)[2]
    z = product(False, False, "m", 70, 515)
    found = {}
    for level in FUSED:
        monkeypatch.setenv("CHAINRULE_TARGET", level)
        try:
            found[level] = cr.compile(z, precision=precision)(**feeds)
        except cr.errors.CompileError:
            continue  # not on this machine
    first = found[FUSED[0]]
    for level, got in found.items():
        assert np.array_equal(got, first) != TARGETS[level].blocks
    if precision == "bfloat16x3":
        monkeypatch.setenv("CHAINRULE_TARGET", FUSED[0])
        np.testing.assert_array_equal(first, cr.compile(z)(**feeds))


@pytest.mark.parametrize("level", ["x86-64-v2", "generic"])
def test_levels_without_fused_multiply_add(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, w, feeds = draw(45, 70, 515)
    monkeypatch.setenv("CHAINRULE_TARGET", level)
    got = cr.compile(product(False, False, "m", 70, 515), precision="bfloat16")(**feeds)
    # products of bfloat16 are exact, so there is one rounding a term as well
    assert (np.abs(got - rounded(x) @ rounded(w)) <= 515 * ULP * scale(x, w)).all()


#: the instructions by which a level multiplies bfloat16
INSTRUCTIONS = {"x86-64-v4+amx": "tdpbf16ps", "x86-64-v4+bf16": "vdpbf16ps"}


@pytest.mark.parametrize("level", FUSED)
def test_levels_use_the_instructions_that_they_have(
    level: str, at_level: Callable[[str], None]
) -> None:
    at_level(level)
    z = product(False, False, "m", 70, 64)
    for precision in (None, "bfloat16", "bfloat16x3"):
        fn = cr.compile(z, precision=precision)
        narrow = precision and (precision == "bfloat16" or TARGETS[level].blocks)
        wanted = [INSTRUCTIONS[level]] if narrow and level in INSTRUCTIONS else []
        code = fn.show("asm")
        assert [word for word in INSTRUCTIONS.values() if f"\t{word}\t" in code] == wanted
        assert code.count("\ttilerelease") == code.count("\tldtilecfg")
        figures = [k.factors for k in fn.report().kernels if k.form == "contract"]
        assert figures == [
            "" if not narrow else "bfloat16 in pairs" if not TARGETS[level].blocks
            else f"{'two ' if precision == 'bfloat16x3' else ''}bfloat16 in blocks (AMX)"
        ]  # fmt: skip
        assert bool(fn.report().tiles) == (precision is not None)


def test_where_the_system_refuses_tiles_all_else_is_used() -> None:
    """Asked for a feature that no processor has, Linux refuses as it does for tiles."""
    lines = (
        "import numpy as np, chainrule as cr, chainrule.codegen.host as host",
        "host.ASK = (*host.ASK[:2], 63)",
        "x, w = cr.input('x', ('m', 64)), cr.input('w', (64, 70))",
        "fn = cr.compile(x @ w, precision='bfloat16')",
        "ones = {'x': np.ones((40, 64), 'f4'), 'w': np.ones((64, 70), 'f4')}",
        "assert (fn(**ones) == 64).all()",
        "print(fn.report().target, '|', fn.report().tiles)",
    )
    run = [sys.executable, "-c", "\n".join(lines)]
    said = subprocess.run(run, capture_output=True, text=True, check=True).stdout.split(" | ")
    assert not said[0].endswith("+amx")
    if host_target().blocks:
        assert said[0] == "x86-64-v4+bf16" and "refuses" in said[1]


@pytest.mark.parametrize("precision", ["bfloat16", "bfloat16x3"])
def test_threads_have_the_same_bits(precision: str) -> None:
    x, _, feeds = draw(130, 200, 300)
    z = cr.relu(product(True, False, "m", 200, 300)) * 2
    feeds["x"] = x.T.copy()
    one, two, four = (cr.compile(z, threads=t, precision=precision)(**feeds) for t in (1, 2, 4))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one, four)


def test_one_program_serves_every_batch() -> None:
    """And a row is the same number whatever stands beside it."""
    x, w, _ = draw(70, 33, 47)
    fn = cr.compile(product(False, False, "m", 33, 47), precision="bfloat16")
    whole = fn(x=x, w=w)
    for m in [*range(20), 31, 48, 69]:
        np.testing.assert_array_equal(fn(x=x[:m], w=w), whole[:m])


def test_a_sum_over_the_batch() -> None:
    """As in a weight's gradient: how many terms there are is known when called only."""
    fn = cr.compile(_over_rows(), precision="bfloat16")
    for k in [*range(20), 255, 256, 257, 1000]:
        rng = np.random.default_rng(k)
        a, b = (rng.standard_normal((k, n)).astype(np.float32) for n in (24, 40))
        want = rounded(a).T @ rounded(b)
        bound = k * ULP * scale(rounded(a).T, rounded(b))
        assert (np.abs(fn(a=a, b=b) - want) <= bound).all(), k


def _over_rows() -> Tensor:
    return cr.input("a", ("k", 24)).T @ cr.input("b", ("k", 40))


def _views() -> dict[str, tuple[Tensor, Any]]:
    x, w = cr.input("x", ("b", 3, 20, 24)), cr.input("w", (24, 32))
    stacked = cr.input("s", ("b", 3, 24, 9))
    return {
        "stacks": (x @ stacked, lambda x, w, s: x @ s),
        "slices": (x[:, 1, ::2, 4:] @ w[4:, 1:], lambda x, w, s: x[:, 1, ::2, 4:] @ w[4:, 1:]),
        "flipped": (cr.flip(x, axis=2) @ w, lambda x, w, s: x[:, :, ::-1] @ w),
        "flat": (cr.reshape(x, (-1, 24)) @ w, lambda x, w, s: x.reshape(-1, 24) @ w),
        "one row": (x[0, 0, 0] @ w, lambda x, w, s: x[0, 0, 0] @ w),
        "dot": (cr.sum(x[0, 0, 0] @ w[:, 0]), lambda x, w, s: x[0, 0, 0] @ w[:, 0]),
        "outer": (
            cr.einsum("i,j->ij", x[0, 0, 0], w[0]),
            lambda x, w, s: np.multiply.outer(x[0, 0, 0], w[0]),
        ),
        "two sums": (
            cr.einsum("bcij,bcjk->ik", x, stacked),
            lambda x, w, s: np.einsum("bcij,bcjk->ik", x, s),
        ),
        "broadcast": (x @ stacked[:1], lambda x, w, s: x @ s[:1]),
    }


@pytest.mark.parametrize("name", _views())
def test_views_and_stacks(name: str) -> None:
    z, formula = _views()[name]
    rng = np.random.default_rng(2)
    sizes = {"x": (2, 3, 20, 24), "w": (24, 32), "s": (2, 3, 24, 9)}
    arrays = {n: rng.standard_normal(s).astype(np.float32) for n, s in sizes.items()}
    narrow, plain = [rounded(a) for a in arrays.values()], [*map(np.float64, arrays.values())]
    for precision, given, bound in (("bfloat16", narrow, 150 * ULP), ("bfloat16x3", plain, SPLIT)):
        fn = cr.compile(z, precision=precision)
        got = fn(**{n: arrays[n] for n in fn.inputs})
        size = formula(*map(np.abs, given))
        assert (np.abs(got - formula(*given)) <= bound * size).all()


def _convolution() -> tuple[Tensor, dict[str, tuple[int, ...]]]:
    image, kernel = cr.input("x", ("b", 3, 12, 12)), cr.input("w", (16, 3, 3, 3))
    return cr.conv(image, kernel, padding=1), {"x": (4, 3, 12, 12), "w": (16, 3, 3, 3)}


def _attention() -> tuple[Tensor, dict[str, tuple[int, ...]]]:
    q, k, v = (cr.input(n, ("b", 2, 24, 16)) for n in "xwv")
    return cr.attention(q, k, v), {n: (3, 2, 24, 16) for n in "xwv"}


def _attention_by_rows() -> tuple[Tensor, dict[str, tuple[int, ...]]]:
    q, k, v = (cr.input(n, ("b", 2, 112, 16)) for n in "xwv")
    return cr.attention(q, k, v), {n: (3, 2, 112, 16) for n in "xwv"}


def _loop() -> tuple[Tensor, dict[str, tuple[int, ...]]]:
    steps, w, h = cr.input("x", (6, "b", 16)), cr.input("w", (16, 16)), cr.input("h", ("b", 16))
    _, ys = cr.scan(lambda h, x: (cr.tanh((h + x) @ w),) * 2, h, steps)
    return ys, {"x": (6, 9, 16), "w": (16, 16), "h": (9, 16)}


@pytest.mark.parametrize("make", [_convolution, _attention, _attention_by_rows, _loop])
@pytest.mark.parametrize("precision", ["bfloat16", "bfloat16x3"])
def test_products_inside_others(make: Any, precision: str) -> None:
    """Convolution, attention and loops are products too: native as the reference, and not float32.
    Attention of enough queries for rows in registers is float32 in both.

    A rounded factor that has passed through float32 may lie on the other side of a tie: 2**-8 of
    one factor, which few others share, so the mean tells more than the largest difference.
    """
    z, shapes = make()
    rng = np.random.default_rng(3)
    feeds = {n: 0.3 * rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    got, want = (cr.compile(z, b, precision=precision)(**feeds) for b in ("cpu", "reference"))
    exact = cr.compile(z)(**feeds)
    size = np.abs(exact).mean()
    # of two parts the reference, which is float32, knows nothing: each of up to 6 steps errs
    assert np.abs(got - want).max() < (2e-2 if precision == "bfloat16" else 6 * SPLIT) * size
    off = np.abs(got - exact).mean() / size
    rounded = precision == "bfloat16" and make is not _attention_by_rows
    assert 1e-4 < off < 1e-2 if rounded else off < 1e-5


def test_only_products_of_float32_change() -> None:
    x = cr.input("x", ("n", 32), dtype="float64")
    for z in (x @ x.T, cr.exp(x) * x + cr.sum(x)):
        a = np.random.default_rng(4).standard_normal((9, 32))
        for precision in ("bfloat16", "bfloat16x3"):
            np.testing.assert_array_equal(
                cr.compile(z, precision=precision)(x=a), cr.compile(z)(x=a)
            )


def test_what_is_bfloat16_already_is_not_split_further() -> None:
    x, w = cr.input("x", ("m", 40), dtype="bfloat16"), cr.input("w", (40, 24))
    graph = Graph(((x.astype("float32") @ w).node,))
    for precision in ("bfloat16", "bfloat16x3"):
        (product,) = (n for n in narrowed(graph, precision).nodes if n.op.name == "contract")
        assert product.op.parts == 2 - (precision == "bfloat16")
    graph = Graph(((x.astype("float32") @ w.astype("bfloat16").astype("float32")).node,))
    (product,) = (n for n in narrowed(graph, "bfloat16x3").nodes if n.op.name == "contract")
    assert product.op.parts == 1


@pytest.mark.parametrize("precision", ["float16", "bf16", 16, True, ["bfloat16"]])
def test_unknown_precisions(precision: Any) -> None:
    with pytest.raises(cr.errors.CompileError, match="there is no precision"):
        cr.compile(cr.input("x", (2,)) * 2, precision=precision)


def _net(precision: str | None, **options: Any) -> Any:
    x, y = cr.input("x", ("batch", 64)), cr.input("y", ("batch",), dtype="int32")
    net = cr.nn.Sequential([cr.nn.Dense(64, "relu"), cr.nn.Dense(10)])
    z = net(x)
    loss = cr.losses.cross_entropy(z, y)
    return cr.training_step(
        loss, cr.optim.Adam(3e-3), outputs=z, precision=precision, seed=3, **options
    )


@pytest.mark.parametrize("precision", ["bfloat16", "bfloat16x3"])
def test_training_converges_as_in_float32(precision: str) -> None:
    data = cr.datasets.digits()
    curves = {}
    for kind in (None, precision):
        step = _net(kind)
        curves[kind] = step.run(x=data.x_train, y=data.y_train, batch_size=32, epochs=8)
        assert all(a.dtype == np.float32 for a in step.parameters.values())
        right = np.argmax(step.predict(x=data.x_test), axis=1) == data.y_test
        assert right.mean() > 0.93
    plain, narrow = curves[None], curves[precision]
    # each step errs by a few 2**-9 of its gradient, at random: what is learned is the same
    assert abs(narrow[-45:].mean() - plain[-45:].mean()) < 0.02
    # the first loss has seen no update: it tells the products' own error
    assert abs(narrow[0] - plain[0]) < (1e-2 if precision == "bfloat16" else 1e-5)


def test_the_reference_trains_alike() -> None:
    data = cr.datasets.digits()
    feeds = {"x": data.x_train[:40], "y": data.y_train[:40]}
    native, reference = (_net("bfloat16", backend=b) for b in ("cpu", "reference"))
    for _ in range(5):
        assert abs(native(**feeds) - reference(**feeds)) < 1e-3


def test_threads_train_the_same_bits() -> None:
    data = cr.datasets.digits()
    one, two = (_net("bfloat16", threads=t) for t in (1, 2))
    for step in (one, two):
        step.run(x=data.x_train[:640], y=data.y_train[:640], batch_size=320, epochs=2)
    for name, a in one.parameters.items():
        np.testing.assert_array_equal(a, two.parameters[name])


def test_the_page_prints_what_it_says() -> None:
    page = (Path(__file__).parents[2] / "docs/precision.md").read_text(encoding="utf-8")
    code, said = re.findall(r"```(?:python|text)\n(.*?)```", page, re.DOTALL)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "precision.md", "exec"), {})
    assert printed.getvalue() == said
