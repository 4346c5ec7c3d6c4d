"""Bfloat16 in native code: every op is its float32 meaning rounded once, whatever is fused."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import chainrule as cr
from chainrule.driver.lower import PASSES
from chainrule.ir.evaluate import evaluate, meaning
from chainrule.ir.graph import Graph
from chainrule.ir.node import Node, Op, apply
from chainrule.ir.passes import run_passes
from chainrule.ir.types import TensorType, bfloat16, dtype
from chainrule.lang.tensor import Tensor, elementwise
from chainrule.ops.elementwise import TABLE
from chainrule.ops.phase import Switched
from chainrule.ops.registry import ops
from chainrule.ops.source import format_number, leaf

Array = np.ndarray[Any, Any]
BF16 = np.dtype(ml_dtypes.bfloat16)
#: every bit pattern there is
EVERY = np.arange(2**16, dtype=np.uint16).view(BF16)
#: what works on formulas, before roundings are written down
REWRITING = PASSES[: [p.name for p in PASSES].index("widen")]
with np.errstate(all="ignore"):
    REAL = EVERY.astype(np.float64)


def ulps(got: Array, want: Array) -> int:
    """The largest distance between two bfloat16 arrays, in steps from one number to the next.

    NaNs are equal, and a NaN is far from every number.
    """
    assert got.dtype == want.dtype == BF16 and got.shape == want.shape
    one, other = (_ranks(a) for a in (got, want))
    nan = np.isnan(got.astype(np.float32)), np.isnan(want.astype(np.float32))
    distance = np.where(nan[0] & nan[1], 0, np.where(nan[0] ^ nan[1], 2**17, abs(one - other)))
    return int(distance.max(initial=0))


def _ranks(a: Array) -> Array:
    """Numbers in the order of size: neighbours differ by 1, and -0 is 0."""
    bits = a.view(np.uint16).astype(np.int64)
    return np.where(bits >> 15, -(bits & 0x7FFF), bits)


def narrow(types: Sequence[TensorType]) -> list[TensorType]:
    """The types with bfloat16 where there were floats."""
    return [t.with_dtype(bfloat16) if t.dtype.is_float else t for t in types]


def _samples() -> list[Any]:
    found = []
    for entry in ops():
        for i, (op, types) in enumerate(entry.samples):
            chosen = op.draws or isinstance(op, Switched)
            if chosen or not any(t.dtype.is_float for t in types):
                continue
            try:
                apply(op, *(leaf("input", "x", t) for t in narrow(types)))
            except cr.errors.ChainruleError:
                continue
            found.append(pytest.param(op, narrow(types), id=f"{entry.name}-{i}"))
    return found


SAMPLES = _samples()


def draw(op: Op, types: Sequence[TensorType]) -> list[Array]:
    rng = np.random.default_rng(zlib.crc32(str(op.name).encode()))
    low, high = op.domain
    return [
        rng.random(t.shape) < 0.5
        if t.dtype.is_bool
        else rng.uniform(low, high, t.shape).astype(t.dtype.numpy)
        for t in types
    ]


def run(root: Node, leaves: Sequence[Node], arrays: Sequence[Array]) -> Array:
    """What native code makes of arrays."""
    names = [f"x{i}" for i in range(len(leaves))]
    return np.asarray(cr.compile(Tensor(root))(**dict(zip(names, arrays, strict=True))))


def test_most_ops_take_bfloat16() -> None:
    # what draws, is chosen by the kind of call, or has integers alone, does not
    assert len(SAMPLES) > 0.6 * sum(len(entry.samples) for entry in ops())


@pytest.mark.parametrize(("op", "types"), SAMPLES)
def test_native_is_the_reference(op: Op, types: list[TensorType]) -> None:
    """Within 1 ulp: both round one float32 once, and their float32 may differ by its last bits."""
    leaves = [leaf("input", f"x{i}", t) for i, t in enumerate(types)]
    out, arrays = apply(op, *leaves), draw(op, types)
    (want,) = evaluate([out], dict(zip(leaves, arrays, strict=True)))
    got = run(out, leaves, arrays)
    assert got.dtype == out.dtype.numpy
    if got.dtype != BF16:
        np.testing.assert_array_equal(got, want)
        return
    assert ulps(got, want) <= 1


ARITHMETIC = ("add", "sub", "mul", "div", "sqrt", "neg", "abs", "square", "maximum", "minimum")


@pytest.mark.parametrize("fn", ARITHMETIC)
def test_arithmetic_is_the_reference_to_the_last_bit(fn: str) -> None:
    op = TABLE[fn]
    rng = np.random.default_rng(5)
    arrays = [rng.permutation(EVERY) for _ in op.params]
    leaves = [leaf("input", f"x{i}", TensorType(bfloat16, (2**16,))) for i in range(len(arrays))]
    want = meaning(op, *arrays)
    with np.errstate(all="ignore"):
        assert ulps(run(apply(op, *leaves), leaves, arrays), want.astype(BF16)) == 0


UNARY = [
    fn for fn, op in TABLE.items()
    if op.params == ("x",) and op.accepts not in ("logic", "integer") and fn != "stop_gradient"
]  # fmt: skip


@pytest.mark.parametrize("fn", UNARY)
def test_every_bfloat16_has_its_exact_value(fn: str) -> None:
    """Within 1 ulp of NumPy's float64 meaning: a few float32 ulps can move a number past a tie."""
    op, x = TABLE[fn], leaf("input", "x0", TensorType(bfloat16, EVERY.shape))
    given = abs(REAL) <= 1e5 if fn in ("sin", "cos", "tan") else np.ones(EVERY.shape, bool)
    got = run(apply(op, x), [x], [EVERY])[given]
    with np.errstate(all="ignore"):
        want = op.ref(REAL[given]).astype(got.dtype)
    if got.dtype == BF16:
        assert ulps(got, want) <= 1
    else:
        np.testing.assert_array_equal(got, want)


def _torch_functions() -> dict[str, Callable[..., Any]]:
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    named = {
        "asin": torch.asin, "acos": torch.acos, "atan": torch.atan, "pow": torch.pow,
        "maximum": torch.maximum, "minimum": torch.minimum, "softplus": functional.softplus,
        "relu": torch.relu, "relu6": functional.relu6, "log_sigmoid": functional.logsigmoid,
        "atan2": torch.atan2, "hypot": torch.hypot, "xlogy": torch.special.xlogy,
    }  # fmt: skip
    return {name: named.get(name) or getattr(torch, name, None) for name in TABLE}


#: (arguments, why): where PyTorch and we differ by more than a rounding
LEFT_OUT: dict[str, tuple[Callable[[Array], Array], str]] = {
    "sin": (lambda x: abs(x) > 1e5, "the angle's error is documented, not bounded"),
    "cos": (lambda x: abs(x) > 1e5, "the angle's error is documented, not bounded"),
    "tan": (lambda x: abs(x) > 1e5, "the angle's error is documented, not bounded"),
    "softplus": (lambda x: x > 20, "PyTorch gives x itself"),
    "sign": (np.isnan, "PyTorch gives 0"),
    "sigmoid": (lambda x: x < -88, "PyTorch has no denormals here"),
    "sinh": (lambda x: abs(x) == 89, "PyTorch overflows too early"),
    "cosh": (lambda x: abs(x) == 89, "PyTorch overflows too early"),
    "erf": (lambda x: abs(x) < 2.0**-14, "PyTorch loses digits of small arguments"),
}


@pytest.mark.parametrize("fn", UNARY)
def test_every_bfloat16_has_pytorchs_value(fn: str) -> None:
    """Within 1 ulp: each rounds once what float32 gives, with a few float32 ulps between them."""
    theirs, op = _torch_functions()[fn], TABLE[fn]
    if theirs is None:
        pytest.skip("PyTorch has no function of this name")
    torch = pytest.importorskip("torch")
    x = leaf("input", "x0", TensorType(bfloat16, EVERY.shape))
    got = run(apply(op, x), [x], [EVERY])
    given = torch.from_numpy(EVERY.view(np.int16).copy()).view(torch.bfloat16)
    want = theirs(given)
    if got.dtype != BF16:
        np.testing.assert_array_equal(got, want.numpy())
        return
    kept = np.ones(EVERY.shape, bool)
    if fn in LEFT_OUT:
        kept = ~LEFT_OUT[fn][0](REAL)
    assert ulps(got[kept], want.view(torch.int16).numpy().view(BF16)[kept]) <= 1


@pytest.mark.parametrize(
    "fn", ["add", "sub", "mul", "div", "maximum", "minimum", "atan2", "hypot", "lt", "eq", "xlogy"]
)
def test_pairs_have_pytorchs_value(fn: str) -> None:
    """Within 1 ulp, as of one argument."""
    torch, theirs = pytest.importorskip("torch"), _torch_functions()[fn]
    rng = np.random.default_rng(6)
    arrays = [rng.permutation(EVERY) for _ in range(2)]
    leaves = [leaf("input", f"x{i}", TensorType(bfloat16, (2**16,))) for i in range(2)]
    got = run(apply(TABLE[fn], *leaves), leaves, arrays)
    given = [torch.from_numpy(a.view(np.int16).copy()).view(torch.bfloat16) for a in arrays]
    want = theirs(*given)
    if got.dtype != BF16:
        np.testing.assert_array_equal(got, want.numpy())
        return
    assert ulps(got, want.view(torch.int16).numpy().view(BF16)) <= 1


FOLDS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Any], Any]]] = {
    "sum": (lambda x: cr.sum(x, axis=1), lambda x: x.sum(1)),
    "sum of columns": (lambda x: cr.sum(x, axis=0), lambda x: x.sum(0)),
    "mean": (lambda x: cr.mean(x, axis=1), lambda x: x.mean(1)),
    "var": (lambda x: cr.var(x, axis=1), lambda x: x.var(1, correction=0)),
    "max": (lambda x: cr.max(x, axis=1), lambda x: x.amax(1)),
    "softmax": (lambda x: cr.softmax(x, axis=1), lambda x: x.softmax(1)),
    "log_softmax": (lambda x: cr.log_softmax(x, axis=1), lambda x: x.log_softmax(1)),
    "cumulative_sum": (lambda x: cr.cumulative_sum(x, axis=1), lambda x: x.cumsum(1)),
}


@pytest.mark.parametrize("name", FOLDS)
def test_folds_are_rounded_once(name: str) -> None:
    """Of 777 numbers above 0, whose sums in bfloat16 steps would be wrong in the first digit.

    Within 1 ulp of the float64 fold of the same numbers, as float32 folds of them are exact to
    2**-20; PyTorch's is held to 2, since it rounds some of them twice.
    """
    torch = pytest.importorskip("torch")
    ours, theirs = FOLDS[name]
    a = np.random.default_rng(8).uniform(0, 1, (20, 777)).astype(BF16)
    x = cr.input("x", ("n", 777), dtype="bfloat16")
    got = cr.compile(ours(x))(x=a)
    given = torch.from_numpy(a.view(np.int16).copy()).view(torch.bfloat16)
    exact = theirs(given.to(torch.float64)).numpy().astype(BF16)
    assert ulps(got, exact) <= 1
    if name != "cumulative_sum":
        assert ulps(got, theirs(given).view(torch.int16).numpy().view(BF16)) <= 2


@pytest.mark.parametrize("shape", [(1, 40, 3), (17, 300, 33), (64, 64, 64)])
def test_a_product_is_rounded_once(shape: tuple[int, int, int]) -> None:
    """Within 1 ulp of the exact product: products of bfloat16 are exact in float32."""
    m, k, n = shape
    rng = np.random.default_rng(9)
    a, b = rng.uniform(0, 1, (m, k)).astype(BF16), rng.uniform(0, 1, (k, n)).astype(BF16)
    x = cr.input("x", ("m", k), dtype="bfloat16")
    got = cr.compile(x @ cr.constant(b))(x=a)
    assert ulps(got, (a.astype(np.float64) @ b.astype(np.float64)).astype(BF16)) <= 1


@pytest.mark.parametrize("extent", [1, 7, 16, 17, 37, 300])
def test_fusing_leaves_no_rounding_out(extent: int) -> None:
    """One kernel of five ops has the bits of five kernels of one."""
    rng = np.random.default_rng(extent)
    a, b = (rng.standard_normal(extent).astype(BF16) for _ in range(2))
    x, y = (cr.input(n, (extent,), dtype="bfloat16") for n in "xy")
    whole, alone = x, a
    for fn in ("mul", "add", "div", "sub", "hypot"):
        whole = elementwise(fn, whole, y)
        alone = cr.compile(elementwise(fn, x, y))(x=alone, y=b)
    np.testing.assert_array_equal(cr.compile(whole)(x=a, y=b), alone)


KINDS = ("float32", "float64", "int8", "int32", "int64", "uint8", "uint64", "bool")


@pytest.mark.parametrize("kind", KINDS)
def test_casts_are_those_of_numpy(kind: str) -> None:
    """Both ways, on every bfloat16 that the other type can hold."""
    of = dtype(kind)
    x = cr.input("x", ("n",), dtype="bfloat16")
    fits = np.ones(EVERY.shape, bool)
    if of.is_integer:
        low, high = of.bounds
        fits = np.isfinite(REAL) & (np.trunc(REAL) >= low) & (np.trunc(REAL) < high + 1.0)
    with np.errstate(all="ignore"):
        want = EVERY[fits].astype(of.numpy)
    got = cr.compile(x.astype(kind))(x=EVERY[fits])
    assert got.dtype == of.numpy
    np.testing.assert_array_equal(got, want)
    y = cr.input("y", ("n",), dtype=kind)
    again = cr.compile(y.astype("bfloat16"))(y=want)
    with np.errstate(all="ignore"):
        assert ulps(again, want.astype(BF16)) == 0


@pytest.mark.parametrize("kind", ["float32", "float64", "int64", "uint64", "int32"])
def test_rounding_is_to_nearest_even(kind: str) -> None:
    """Ties, what lies just beside them, overflow, denormals: bits as ml_dtypes makes them.

    A float64 or a wide integer becomes a float32 first, there as here.
    """
    rng = np.random.default_rng(10)
    if kind.startswith("float"):
        bits = rng.integers(0, 2**32, 20_000, np.uint32)
        bits[:8000] = bits[:8000] & 0xFFFF0000 | rng.choice([0, 0x7FFF, 0x8000, 0x8001], 8000)
        with np.errstate(all="ignore"):
            a = bits.view(np.float32).astype(kind)
        if kind == "float64":
            a[:4000] *= 1 + rng.choice([-1, 0, 1], 4000) * 2.0**-50
    else:
        a = rng.integers(np.iinfo(kind).min, np.iinfo(kind).max, 20_000, kind, endpoint=True)
        a[:10_000] >>= rng.integers(0, 8 * a.itemsize - 1, 10_000).astype(kind)
    y = cr.input("y", ("n",), dtype=kind)
    got = cr.compile(y.astype("bfloat16"))(y=a)
    with np.errstate(all="ignore"):
        want = a.astype(BF16)
    np.testing.assert_array_equal(got.view(np.uint16), want.view(np.uint16))


def test_a_nan_stays_one_and_keeps_its_sign() -> None:
    bits = np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000], np.uint32)
    y = cr.input("y", ("n",))
    got = cr.compile(y.astype("bfloat16"))(y=bits.view(np.float32))
    np.testing.assert_array_equal(got.view(np.uint16), 0x7FC0 | bits >> 16 & 0x8000)


def test_no_lane_is_rounded_by_what_another_holds() -> None:
    """Subnormal numbers and NaNs are rounded another way than what lies beside them."""
    rng = np.random.default_rng(12)
    apart = np.array([0x00000001, 0x80018000, 0x007FFFFF, 0x7F800001, 0xFFC12345], np.uint32)
    bits = rng.standard_normal((len(apart), 37, 37)).astype(np.float32).view(np.uint32)
    bits[:, np.arange(37), np.arange(37)] = apart[:, None]
    a = bits.view(np.float32)
    x, y = cr.input("x", ("n", 37)), cr.input("y", ("n", 37))
    rounded, other = cr.compile([x.astype("bfloat16"), (x * y).astype("bfloat16")])(
        x=a.reshape(-1, 37), y=np.ones((a.size // 37, 37), np.float32)
    )
    with np.errstate(all="ignore"):
        want = a.reshape(-1, 37).astype(BF16)
    np.testing.assert_array_equal(rounded.view(np.uint16), want.view(np.uint16))
    assert ulps(other, want) == 0


def test_moving_keeps_every_bit() -> None:
    """Payloads of NaNs too: nothing is computed."""
    x = cr.input("x", (256, 256), dtype="bfloat16")
    a = EVERY.reshape(256, 256)
    at = np.arange(255, -1, -1)
    moved = cr.concat([x.T, cr.flip(x, axis=0)], axis=0)
    picked = cr.take(x, cr.input("at", (256,), dtype="int64"), axis=0)
    both = cr.compile([moved, picked])(x=a, at=at)
    want = [np.concatenate([a.T, a[::-1]]), a[::-1]]
    for got, expected in zip(both, want, strict=True):
        np.testing.assert_array_equal(got.view(np.uint16), expected.view(np.uint16))


@pytest.mark.parametrize("level", ["x86-64-v2", "x86-64-v3", "x86-64-v4", "x86-64-v4+bf16"])
def test_every_level_rounds_alike(level: str, at_level: Callable[[str], None]) -> None:
    at_level(level)
    a = np.random.default_rng(11).integers(0, 2**32, (37, 21), np.uint32).view(np.float32)
    x = cr.input("x", ("n", 21))
    low = x.astype("bfloat16")
    rounded, again, product = cr.compile([low, low.astype("float32"), low * low])(x=a)
    with np.errstate(all="ignore"):
        want = a.astype(BF16)
        np.testing.assert_array_equal(rounded.view(np.uint16), want.view(np.uint16))
        np.testing.assert_array_equal(again, want.astype(np.float32))
        assert ulps(product, np.square(want.astype(np.float32)).astype(BF16)) == 0


def test_one_program_serves_every_length() -> None:
    """Whole vectors, one masked one, a single lane: nothing is written beyond the end."""
    x = cr.input("x", ("n",), dtype="bfloat16")
    fn = cr.compile([x * 2 + 1, cr.sum(x)])
    for n in range(36):
        a = np.arange(n).astype(BF16)
        line, total = fn(x=a)
        np.testing.assert_array_equal(line, (2 * np.arange(n) + 1).astype(BF16))
        assert float(total) == float(BF16.type(n * (n - 1) / 2))


def test_levels_print() -> None:
    x = cr.input("x", ("n", 4), dtype="bfloat16")
    f = cr.compile(cr.relu(x * 2))
    assert "bf16[n, 4]" in f.show("graph") and "bf16[n, 4]" in f.show("kernels")
    assert "cast:f32(b0[" in f.show("loops")
    typed = [line for line in f.show("llvm").splitlines() if "bfloat" in line]
    for line in typed:  # memory is i16, arithmetic float; an instruction may round
        assert "avx512bf16" in line or "bitcast" in line


def test_numbers_print_as_short_as_tells_them_apart() -> None:
    x = cr.input("x", (3,), dtype="bfloat16")
    assert [str(x * c) for c in (0.1, 1e-3, 100.0, 256.0)] == [
        "0.1 * x", "0.001 * x", "100 * x", "256 * x",
    ]  # fmt: skip
    for value in EVERY[np.isfinite(REAL)][::37]:
        with np.errstate(all="ignore"):
            assert BF16.type(float(format_number(float(value), bfloat16))) == value


def _random_graph(seed: int) -> tuple[list[Node], list[Node]]:
    """Leaves, and values of random arithmetic, moves and folds that keep the shape."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(3, 40))
    kind = TensorType(bfloat16, (size, size))
    leaves = [leaf("input", f"x{i}", kind) for i in range(2)]
    values = [Tensor(n) for n in leaves]
    for _ in range(12):
        x, y = (values[i] for i in rng.integers(len(values), size=2))
        steps: list[Callable[[], Tensor]] = [
            lambda x=x, y=y: x + y, lambda x=x, y=y: x - y, lambda x=x, y=y: x * y,
            lambda x=x, y=y: x / (cr.abs(y) + 0.5), lambda x=x, y=y: cr.maximum(x, y),
            lambda x=x, y=y: cr.where(x < y, x, y), lambda x=x: cr.sqrt(cr.abs(x)),
            lambda x=x: x.T, lambda x=x: cr.flip(x, axis=0), lambda x=x: cr.relu(x) * 0.3,
            lambda x=x, y=y: x - cr.max(y, axis=1, keepdims=True),
            lambda x=x, y=y: x * cr.min(y, axis=0, keepdims=True),
        ]  # fmt: skip
        values.append(steps[rng.integers(len(steps))]())
    return leaves, [v.node for v in values[-4:]]


@pytest.mark.parametrize("seed", range(25))
def test_random_graphs_have_the_references_bits(seed: int) -> None:
    """Of ops whose float32 is the same everywhere, whatever kernels they end up in."""
    leaves, roots = _random_graph(seed)
    graph, _ = run_passes(Graph(tuple(roots)), REWRITING)
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(n.shape).astype(BF16) for n in leaves]
    want = evaluate(graph.outputs, dict(zip(leaves, arrays, strict=True)))
    used = {f"x{i}": a for i, a in enumerate(arrays) if leaves[i] in set(graph.nodes)}
    got = cr.compile([Tensor(n) for n in roots])(**used)
    for ours, theirs in zip(got, want, strict=True):
        assert ulps(ours, theirs) == 0, f"seed {seed}"
