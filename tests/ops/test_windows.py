"""Windows, their adjoint, and the composites made of them: by hand, by adjointness, natively."""

from __future__ import annotations

import itertools
import zlib
from typing import Any

import numpy as np
import pytest

from chainrule import driver
from chainrule.autodiff.reverse import differentiate
from chainrule.errors import ChainruleError, DTypeError, ShapeError
from chainrule.ir.evaluate import evaluate
from chainrule.ir.graph import Graph
from chainrule.ir.node import Node, Op, apply
from chainrule.ir.size import Size
from chainrule.ir.types import TensorType, bool_, float32, float64, int32
from chainrule.ops.axes import Sum
from chainrule.ops.build import call, formula
from chainrule.ops.convolution import Conv, ConvTranspose, Correlate
from chainrule.ops.layout import Place
from chainrule.ops.max_pooling import AtMax, MaxPool, Unpool
from chainrule.ops.pooling import AvgPool, AvgUnpool
from chainrule.ops.registry import ops
from chainrule.ops.source import leaf
from chainrule.ops.windows import OverlapAdd, Window, positions

Array = np.ndarray[Any, Any]
BATCH, WIDTH = Size.symbol("batch"), Size.symbol("width")
OURS = (Window, OverlapAdd, Place, Conv, ConvTranspose, Correlate)
POOLS = (MaxPool, AvgPool, AvgUnpool, AtMax, Unpool)
SAMPLES = [
    pytest.param(op, types, id=f"{entry.name}-{i}")
    for entry in ops()
    if entry.kind in (*OURS, *POOLS)
    for i, (op, types) in enumerate(entry.samples)
]
#: extents, sizes, strides, dilations of windows over one or two axes
SHAPES = [
    ((5,), (3,), (1,), (1,)),
    ((7,), (7,), (2,), (1,)),
    ((9,), (2,), (3,), (4,)),
    ((1,), (1,), (5,), (1,)),
    ((5, 7), (2, 3), (2, 1), (1, 2)),
    ((4, 20), (1, 3), (1, 2), (3, 1)),
]


def by_definition(x: Array, sizes: Any, strides: Any, dilations: Any) -> Array:
    """Windows over all axes of x, element by element."""
    counts = [
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(x.shape, sizes, strides, dilations, strict=True)
    ]
    out = np.empty((*sizes, *counts))
    for j in itertools.product(*map(range, sizes)):
        for p in itertools.product(*map(range, counts)):
            at = zip(p, j, strides, dilations, strict=True)
            out[(*j, *p)] = x[tuple(q * s + i * d for q, i, s, d in at)]
    return out


@pytest.mark.parametrize(("extents", "sizes", "strides", "dilations"), SHAPES)
def test_windows_are_what_they_are_defined_to_be(extents, sizes, strides, dilations) -> None:
    x = np.random.default_rng(1).standard_normal(extents)
    got = Window(0, sizes, strides, dilations).ref(x)
    np.testing.assert_array_equal(got, by_definition(x, sizes, strides, dilations))
    lead = Window(1, sizes, strides, dilations).ref(np.stack([x, 2 * x]))
    np.testing.assert_array_equal(lead, np.stack([got, 2 * got]))


@pytest.mark.parametrize(("extents", "sizes", "strides", "dilations"), SHAPES)
def test_overlap_add_is_the_adjoint(extents, sizes, strides, dilations) -> None:
    window = Window(1, sizes, strides, dilations)
    rng = np.random.default_rng(2)
    x = rng.integers(-9, 9, (2, *extents, 3)).astype(float)
    w = rng.integers(-9, 9, window.ref(x).shape).astype(float)
    back = OverlapAdd(1, sizes, strides, dilations, extents).ref(w)
    assert (window.ref(x) * w).sum() == (x * back).sum()


def test_each_is_the_others_derivative() -> None:
    x = leaf("input", "x", TensorType(float64, (2, 7)))
    w = apply(Window(1, (3,), (2,), (1,)), x)
    (back,) = w.op.vjp(w, w, x)
    assert back is not None
    assert back.op == OverlapAdd(1, (3,), (2,), (1,), (7,))
    (again,) = back.op.vjp(x, back, w)
    assert again is w


@pytest.mark.parametrize(
    ("n", "k", "s", "d", "p"), [(5, 3, 1, 1, 0), (7, 2, 3, 2, 1), (1, 3, 1, 1, 1)]
)
def test_positions_are_counted(n: int, k: int, s: int, d: int, p: int) -> None:
    starts = [a for a in range(-p, n + p) if a + d * (k - 1) < n + p and (a + p) % s == 0]
    assert positions(n, k, s, d, p) == len(starts)


def native(roots: list[Node], leaves: list[Node], arrays: list[Array]) -> list[Array]:
    names = [f"r{i}" for i in range(len(roots))]
    program = driver.program(Graph(tuple(roots)), leaves, names, "cpu")
    return program.call({n.op.label: a for n, a in zip(leaves, arrays, strict=True)})  # type: ignore[attr-defined]


def draw(types: list[TensorType], seed: str) -> list[Array]:
    rng = np.random.default_rng(zlib.crc32(seed.encode()))
    return [rng.standard_normal(t.shape).astype(t.dtype.numpy) for t in types]


@pytest.mark.parametrize("dtype", [float32, float64], ids=str)
@pytest.mark.parametrize(("op", "types"), SAMPLES)
def test_native_code_is_ref(op: Op, types: list[TensorType], dtype: Any) -> None:
    types = [t.with_dtype(dtype) for t in types]
    leaves = [leaf("input", f"x{i}", t) for i, t in enumerate(types)]
    arrays = draw(types, f"{op}")
    (got,) = native([apply(op, *leaves)], leaves, arrays)
    want = op.ref(*[a.astype(np.float64) for a in arrays])
    tolerance = 64 * np.finfo(dtype.numpy).eps
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


def loss_of(x: Node, k: Node) -> Node:
    """A convolution, a pool, and a square, so that the second derivative is not 0."""
    z = call("tanh", apply(Conv((2, 1), (1, 0), (1, 2), 1), x, k))
    m = apply(MaxPool((2, 2), (1, 2), (1, 0)), z)
    a = apply(AvgPool((2, 2), (2, 2), (0, 1)), z)
    parts = [apply(Sum((0, 1, 2, 3)), call("square", t)) for t in (m, a)]
    return call("add", *parts)


def test_symbolic_sizes_go_through_both_derivatives() -> None:
    x = leaf("input", "x", TensorType(float64, (BATCH, 2, 6, WIDTH)))
    k = leaf("input", "k", TensorType(float64, (3, 2, 3, 2)))
    loss = loss_of(x, k)
    one = formula("1", {}, like=loss)
    dx, dk = differentiate([loss], [one], [x, k]).gradients
    assert dx is not None
    assert dk is not None
    square = apply(Sum((0, 1, 2, 3)), call("square", dk))
    ddx, ddk = differentiate([square], [one], [x, k]).gradients
    assert ddx is not None
    assert ddk is not None
    roots = [loss, dx, dk, ddx, ddk]
    program = driver.program(Graph(tuple(roots)), [x, k], list("abcde"), "cpu")
    for batch, width in ((1, 7), (3, 20)):
        arrays = draw([x.type.with_shape((batch, 2, 6, width)), k.type], f"{batch} {width}")
        want = evaluate(roots, {x: arrays[0], k: arrays[1]})
        for a, b in zip(program.call({"x": arrays[0], "k": arrays[1]}), want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


def test_symbolic_extents_demand_room() -> None:
    x = leaf("input", "x", TensorType(float64, (BATCH, 2, WIDTH)))
    k = leaf("input", "k", TensorType(float64, (3, 2, 4)))
    z = apply(Conv((1,), (1,), (1,), 1), x, k)
    assert z.shape == (BATCH, 3, WIDTH - 1)
    program = driver.program(Graph((z,)), [x, k], ["z"], "cpu")
    ok = program.call({"x": np.ones((1, 2, 2)), "k": np.ones((3, 2, 4))})
    assert ok[0].shape == (1, 3, 1)
    with pytest.raises(ChainruleError):
        program.call({"x": np.ones((1, 2, 1)), "k": np.ones((3, 2, 4))})


def test_equal_elements_give_the_first_the_derivative() -> None:
    x = leaf("input", "x", TensorType(float64, (1, 1, 2, 4)))
    pooled = apply(MaxPool((2, 2), (2, 2), (0, 0)), x)
    total = apply(Sum((0, 1, 2, 3)), pooled)
    (dx,) = differentiate([total], [formula("1", {}, like=total)], [x]).gradients
    assert dx is not None
    at = np.array([[[[1.0, 1, 0, 2], [1, 1, 3, 3]]]])
    want = np.array([[[[1.0, 0, 0, 0], [0, 0, 1, 0]]]])
    np.testing.assert_array_equal(evaluate([dx], {x: at})[0], want)
    np.testing.assert_array_equal(native([dx], [x], [at])[0], want)


def first_of(window: Any) -> Any:
    """Where the maximum of a window is taken from, as PyTorch has it, one element after another."""
    at, best = None, -np.inf
    for index in np.ndindex(window.shape):
        if at is None or window[index] > best or np.isnan(window[index]):
            at, best = index, window[index]
    return at


@pytest.mark.parametrize(
    ("sizes", "strides", "padding"),
    [
        ((2, 2), (2, 2), (0, 0)),
        ((3, 3), (2, 2), (1, 1)),
        ((2, 3), (1, 2), (1, 0)),
        ((5, 5), (5, 5), (0, 0)),
        ((5, 4), (2, 1), (2, 2)),
    ],
)
def test_nans_and_infinities_get_the_derivative_where_they_stand(sizes, strides, padding) -> None:
    """No padding is ever what is largest, not even where all else is -inf."""
    rng, op = np.random.default_rng(3), MaxPool(sizes, strides, padding)
    x = leaf("input", "x", TensorType(float64, (2, 10, 10)))
    ct = leaf("input", "ct", op.infer(x.type))
    out = apply(op, x)
    (dx,) = differentiate([out], [ct], [x]).gradients
    assert dx is not None
    for values in ([np.nan, -np.inf, 0.0, 1.0], [-np.inf, 1.0], [-np.inf], [np.nan, -np.inf]):
        at, given = rng.choice(values, (2, 10, 10)), rng.standard_normal(ct.type.shape)
        best, want = np.empty(ct.type.shape), np.zeros(x.type.shape)
        for image, *place in np.ndindex(*ct.type.shape):
            starts = [i * s - p for i, s, p in zip(place, strides, padding, strict=True)]
            low = [max(0, s) for s in starts]
            cut = [slice(b, s + k) for b, s, k in zip(low, starts, sizes, strict=True)]
            window = at[(image, *cut)]
            best[(image, *place)] = window.max()
            here = np.add(low, first_of(window))
            want[(image, *here)] += given[(image, *place)]
        for got in (
            evaluate([out, dx], {x: at, ct: given}),
            native([out, dx], [x, ct], [at, given]),
        ):
            np.testing.assert_array_equal(got[0], best)
            # of at most 12 windows that overlap, in another order
            np.testing.assert_allclose(got[1], want, rtol=0, atol=1e-14)


def test_integers_have_windows_and_maxima() -> None:
    x = leaf("input", "x", TensorType(int32, (1, 1, 5)))
    k = leaf("input", "k", TensorType(int32, (2, 1, 2)))
    roots = [apply(MaxPool((3,), (1,), (1,)), x), apply(Conv((1,), (1,), (2,), 1), x, k)]
    at = [np.array([[[-5, -7, -2, -9, -8]]], np.int32), np.array([[[1, 2]], [[0, -1]]], np.int32)]
    got = native(roots, [x, k], at)
    np.testing.assert_array_equal(got[0], [[[-5, -2, -2, -2, -8]]])
    z = np.array([[[-14, -9, -25, -18, -9], [7, 2, 9, 8, 0]]])
    np.testing.assert_array_equal(got[1], z)


F = float64
ROW = TensorType(F, (2, 5))
REFUSED: list[tuple[Op, list[TensorType], type[ChainruleError], str]] = [
    (Window(1, (6,), (1,), (1,)), [ROW], ShapeError, "(5 - 1*(6 - 1) - 1)//1 + 1 = 0"),
    (Window(1, (3,), (1,), (3,)), [ROW], ShapeError, "(5 - 3*(3 - 1) - 1)//1 + 1 = -1"),
    (Window(1, (3,), (0,), (1,)), [ROW], ShapeError, "stride is at least 1, not 0"),
    (Window(1, (3,), (1,), (0,)), [ROW], ShapeError, "dilation is at least 1, not 0"),
    (Window(1, (0,), (1,), (1,)), [ROW], ShapeError, "size is at least 1, not 0"),
    (Window(2, (1,), (1,), (1,)), [ROW], ShapeError, "do not fit"),
    (OverlapAdd(0, (3,), (1,), (1,), (5,)), [TensorType(F, (3, 4))], ShapeError, "(3, 3)"),
    (
        Conv((1,), (2,), (1,), 1),
        [TensorType(F, (1, 2, 5)), TensorType(F, (3, 2, 10))],
        ShapeError,
        "(5 + 2*2 - 1*(10 - 1) - 1)//1 + 1 = 0",
    ),
    (
        Conv((1,), (-1,), (1,), 1),
        [TensorType(F, (1, 2, 5)), TensorType(F, (3, 2, 2))],
        ShapeError,
        "padding is at least 0, not -1",
    ),
    (
        Conv((1,), (0,), (1,), 2),
        [TensorType(F, (1, 3, 5)), TensorType(F, (4, 1, 2))],
        ShapeError,
        "2 groups don't divide 3 input channels",
    ),
    (
        Conv((1,), (0,), (1,), 2),
        [TensorType(F, (1, 4, 5)), TensorType(F, (3, 2, 2))],
        ShapeError,
        "2 groups don't divide 3 output channels",
    ),
    (
        Conv((1,), (0,), (1,), 2),
        [TensorType(F, (1, 4, 5)), TensorType(F, (4, 4, 2))],
        ShapeError,
        "4 (axis 1 of the input) / 2 groups = 2 != 4",
    ),
    (
        Conv((1,), (0,), (1,), 0),
        [TensorType(F, (1, 4, 5)), TensorType(F, (4, 4, 2))],
        ShapeError,
        "groups is at least 1",
    ),
    (
        Conv((1,), (0,), (1,), 1),
        [TensorType(F, (1, 4, 5)), TensorType(float32, (4, 4, 2))],
        DTypeError,
        "one numeric element type",
    ),
    (
        Conv((1,), (0,), (1,), 1),
        [TensorType(F, (1, 4, 5)), TensorType(F, (4, 4, WIDTH))],
        ShapeError,
        "kernel of known size",
    ),
    (MaxPool((4,), (1,), (0,)), [TensorType(F, (1, 3))], ShapeError, "does not fit an axis of 3"),
    (MaxPool((2,), (1,), (2,)), [TensorType(F, (1, 3))], ShapeError, "more than half"),
    (MaxPool((2,), (1,), (0,)), [TensorType(bool_, (1, 3))], DTypeError, "numbers"),
    (AvgPool((2,), (1,), (0,)), [TensorType(int32, (1, 3))], DTypeError, "floats"),
]  # fmt: skip


@pytest.mark.parametrize(("op", "types", "error", "says"), REFUSED)
def test_what_does_not_fit_is_refused(
    op: Op, types: list[TensorType], error: type[ChainruleError], says: str
) -> None:
    with pytest.raises(error) as caught:
        op.infer(*types)
    assert says in str(caught.value)
