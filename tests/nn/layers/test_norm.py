"""BatchNorm, LayerNorm, RMSNorm against NumPy and PyTorch; states that follow minibatches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.driver import leaves_of
from chainrule.errors import CompileError, DTypeError, ShapeError
from chainrule.nn import BatchNorm, Dense, LayerNorm, RMSNorm, Sequential, tracked

Array = np.ndarray[Any, Any]
SHAPES = [("n", 5), ("n", 3, 4), ("n", 3, 2, 5)]
#: float64: sums of some tens of terms; float32: the same, and what a variance cancels
TOLERANCE = {"float64": 1e-9, "float32": 3e-5}


def given(shape: tuple[Any, ...], dtype: str) -> tuple[cr.Tensor, Array]:
    rng = np.random.default_rng(3)
    size = (7, *shape[1:])
    return cr.input("x", shape, dtype=dtype), (rng.normal(size=size) * 2 + 1).astype(dtype)


def normalized(x: Array, axes: tuple[int, ...], eps: float) -> Array:
    mean, var = x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)
    return np.asarray((x - mean) / np.sqrt(var + eps))


def by_channel(row: Array, rank: int) -> Array:
    return row.reshape(1, -1, *[1] * (rank - 2))


@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm_is_its_formula(held: Any, shape: tuple[Any, ...]) -> None:
    x, v = given(shape, "float64")
    layer = BatchNorm(eps=1e-3)
    h = held(layer(x), layer, x=v)
    axes = tuple(i for i in range(v.ndim) if i != 1)
    rows = {n: by_channel(a, v.ndim) for n, a in h.values.items() if n != "x"}
    scale, shift = rows["batch_norm1.scale"], rows["batch_norm1.shift"]
    h.to_numpy(normalized(v, axes, 1e-3) * scale + shift, 1e-12, training=True)
    kept = (v - rows["batch_norm1.mean"]) / np.sqrt(rows["batch_norm1.variance"] + 1e-3)
    fn = cr.compile(h.outputs[0])
    got = fn(**{n: h.values[n] for n in fn.inputs})
    np.testing.assert_allclose(got, kept * scale + shift, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm_is_pytorchs(
    held: Any, shape: tuple[Any, ...], training: bool, dtype: str
) -> None:
    torch = pytest.importorskip("torch")
    x, v = given(shape, dtype)
    layer = BatchNorm()
    names = [f"batch_norm1.{n}" for n in ("mean", "variance", "scale", "shift")]

    def reference(t: Any) -> Any:
        return torch.nn.functional.batch_norm(t["x"], *(t[n] for n in names), training=training)

    held(layer(x), layer, x=v).to_torch(reference, TOLERANCE[dtype], training)


def test_what_is_0_by_choice_stays_0_whatever_it_is_scaled_by() -> None:
    """A row that is shut out whole, and divided by how many of it are not: 0 / 0 had come back."""
    x, mask = cr.input("x", (2, 4)), cr.input("mask", (2, 4))
    count = cr.sum(mask, axis=1, keepdims=True)
    y = cr.where(mask > 0, cr.layer_norm(x) * cr.rsqrt(count), 0)
    (slope,) = cr.grad(cr.sum(y * y * y), [x])
    given = np.array([[1, 2, 4, 3], [2, 0, 1, 5]])
    found = cr.compile(slope)(x=given, mask=[[1, 1, 0, 1], [0, 0, 0, 0]])
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[1], 0)


def steps(layer: Any, x: cr.Tensor, batches: list[Array]) -> list[dict[str, Array]]:
    """The states after each step of training on batches."""
    y = layer(x)
    step = cr.training_step(cr.mean(y * y), cr.optim.SGD(0.01))
    seen = []
    for batch in batches:
        step(x=batch)
        seen.append({n: np.array(step.state_dict()[n]) for n in layer.states})
    return seen


def batches(shape: tuple[int, ...], count: int = 4) -> list[Array]:
    rng = np.random.default_rng(5)
    return [rng.normal(size=(rows, *shape)) + rows for rows in (3, 8, 5, 8)[:count]]


@pytest.mark.parametrize("activation", [cr.relu, cr.tanh, lambda h: h])
def test_the_scale_is_a_factor_of_the_whole_derivative(activation: Any) -> None:
    """So its two sums are those that shift and scale want anyway: scale / sigma * (dy - mean(dy) -
    y * mean(dy * y)) in textbooks. Whole tensors were folded four times on the way back.
    """
    x, v = given(("n", 3, 4, 5), "float64")
    y = activation(BatchNorm()(x))
    names = ["batch_norm1.scale", "batch_norm1.shift"]
    leaves = {str(n.op.label): cr.Tensor(n) for n in leaves_of([y.node])}
    weights = [leaves[name] for name in names]
    d = cr.input("d", ("n", 3, 4, 5), dtype="float64")
    fn = cr.compile(list(cr.vjp([y], [x, *weights], [d])), training=True)
    optimized = fn.show("optimized")
    assert sum("= sum[axes=(2, 3)" in line for line in optimized.splitlines()) == 4

    rng = np.random.default_rng(4)
    scale, shift, slope = rng.normal(size=3), rng.normal(size=3), rng.normal(size=v.shape)
    feeds = {"x": v, "d": slope, names[0]: scale, names[1]: shift}
    feeds |= {f"batch_norm1.{kept}": np.ones(3) for kept in ("mean", "variance")}  # not read

    def of(fn: Any, **changed: Array) -> Any:
        return fn(**{name: (feeds | changed)[name] for name in fn.inputs})

    found = of(fn)
    wanted = cr.compile(list(cr.vjp([y], [x, *weights], [d])), training=True, backend="reference")
    for got, want in zip(found, of(wanted), strict=True):
        # float64, sums of some hundred terms about 1 large: far above their roundings
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-10)
    # by x along a direction, in central differences
    along, h = rng.normal(size=v.shape), 1e-5
    value = cr.compile(cr.sum(y * d), training=True)
    ends = [float(of(value, x=v + s * h * along)) for s in (1, -1)]
    # second differences of a kink, where there is one, are below h times the sum
    assert np.sum(found[0] * along) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-4)


@pytest.mark.parametrize("shape", [(4,), (3, 2), (2, 3, 3)])
def test_running_statistics_follow_the_batches(shape: tuple[int, ...]) -> None:
    x = cr.input("x", ("n", *shape), dtype="float64")
    data = batches(shape)
    mean, var = np.zeros(shape[0]), np.ones(shape[0])
    for batch, got in zip(data, steps(BatchNorm(0.3), x, data), strict=True):
        axes = tuple(i for i in range(batch.ndim) if i != 1)
        mean = 0.7 * mean + 0.3 * batch.mean(axis=axes)
        var = 0.7 * var + 0.3 * batch.var(axis=axes, ddof=1)
        np.testing.assert_allclose(got["batch_norm1.mean"], mean, rtol=1e-12)
        np.testing.assert_allclose(got["batch_norm1.variance"], var, rtol=1e-12)


def test_running_statistics_are_pytorchs() -> None:
    torch = pytest.importorskip("torch")
    x = cr.input("x", ("n", 2, 3, 3), dtype="float64")
    data = batches((2, 3, 3))
    theirs = torch.nn.BatchNorm2d(2, dtype=torch.float64)
    for batch, got in zip(data, steps(BatchNorm(), x, data), strict=True):
        theirs(torch.tensor(batch))
        np.testing.assert_allclose(got["batch_norm1.mean"], theirs.running_mean, rtol=1e-12)
        np.testing.assert_allclose(got["batch_norm1.variance"], theirs.running_var, rtol=1e-12)


@pytest.mark.smoke
def test_training_keeps_what_prediction_uses() -> None:
    x = cr.input("x", ("n", 3))
    net = Sequential([Dense(4), BatchNorm(), "relu", Dense(1)])
    y = net(x)
    step = cr.training_step(cr.mean(y * y), cr.optim.SGD(0.1), outputs=y)
    data = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
    alone = step.predict(x=data[:1])
    np.testing.assert_array_equal(step.predict(x=data)[:1], alone)  # rows do not see each other
    step(x=data)
    assert (step.predict(x=data[:1]) != alone).any()


def test_a_layer_used_twice_changes_its_state_twice() -> None:
    x, z = (cr.input(n, ("n", 2), dtype="float64") for n in "xz")
    layer = BatchNorm(0.5)
    first = layer(x)
    y = first + layer(z + 0.0 * first)  # after the first
    step = cr.training_step(cr.sum(y), cr.optim.SGD(0.1))
    a, b = np.array([[1.0, 2.0], [3.0, 5.0]]), np.array([[0.0, 1.0], [4.0, 1.0]])
    step(x=a, z=b)
    want = 0.5 * (0.5 * a.mean(axis=0)) + 0.5 * b.mean(axis=0)
    np.testing.assert_allclose(step.state_dict()["batch_norm1.mean"], want, rtol=1e-13)


def test_updates_go_before_what_a_layer_keeps() -> None:
    x = cr.input("x", ("n", 2))
    layer = BatchNorm()
    y = layer(x)
    mean = layer["mean"]
    step = cr.training_step(cr.sum(y), cr.optim.SGD(0.1), updates={mean: mean + 1.0})
    step(x=np.array([[1.0, 2.0], [3.0, 5.0]]))
    np.testing.assert_array_equal(step.state_dict()["batch_norm1.mean"], [1, 1])
    assert (step.state_dict()["batch_norm1.variance"] != 1).all()


def test_one_number_a_channel_has_no_variance() -> None:
    x = cr.input("x", ("n", 2), dtype="float64")
    (got,) = steps(BatchNorm(0.5), x, [np.array([[3.0, -1.0]])])
    np.testing.assert_array_equal(got["batch_norm1.mean"], [1.5, -0.5])
    np.testing.assert_array_equal(got["batch_norm1.variance"], [0.5, 0.5])


def test_a_state_of_ones_own_is_tracked() -> None:
    x = cr.input("x", ("n",), dtype="float64")
    w = cr.parameter("w", (), init="ones", dtype="float64")
    peak = cr.state("peak", (), dtype="float64")
    now = cr.max(cr.abs(x))
    scaled = w * x / tracked(now, peak, cr.maximum(peak, now))
    step = cr.training_step(cr.sum(scaled), cr.optim.SGD(0.1), outputs=scaled)
    for top in (2.0, 8.0, 4.0):
        step(x=np.array([top, 1.0]))
    assert step.state_dict()["peak"] == 8
    w_now = float(step.parameters["w"])
    np.testing.assert_allclose(step.predict(x=np.array([16.0])), [2 * w_now], rtol=1e-15)


def test_what_is_tracked_in_a_loop_is_refused() -> None:
    xs = cr.input("xs", ("t", "n", 2))
    layer = BatchNorm()

    def body(h: cr.Tensor, x: cr.Tensor) -> tuple[cr.Tensor, None]:
        return h + layer(x), None

    final, _ = cr.scan(body, cr.zeros(("n", 2)), xs)
    with pytest.raises(CompileError, match="outside of a loop"):
        cr.training_step(cr.sum(final), cr.optim.SGD(0.1))


def test_tracked_refuses_what_does_not_fit() -> None:
    s, x = cr.state("s", (2,)), cr.input("x", (2,))
    with pytest.raises(CompileError, match="in a state"):
        tracked(x, x + 1.0, x)
    with pytest.raises(ShapeError, match="one shape"):
        tracked(cr.sum(x), s, s)
    with pytest.raises(DTypeError, match="one type"):
        tracked(x.astype("float64"), s, s)
    w = cr.parameter("w", (2,))
    with pytest.raises(CompileError, match="in a state, not in"):
        cr.training_step(cr.sum(tracked(x, w, w) * w), cr.optim.SGD(0.1))


@pytest.mark.parametrize(("scale", "shift"), [(True, True), (False, True), (False, False)])
def test_layer_norm_is_its_formula(held: Any, scale: bool, shift: bool) -> None:
    x, v = given(("n", 3, 5), "float64")
    layer = LayerNorm(1e-3, scale=scale, shift=shift)
    h = held(layer(x), layer, x=v)
    want = normalized(v, (2,), 1e-3)
    want = want * h.values["layer_norm1.scale"] if scale else want
    h.to_numpy(want + h.values["layer_norm1.shift"] if shift else want, 1e-12)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_layer_norm_and_rms_norm_are_pytorchs(
    held: Any, shape: tuple[Any, ...], dtype: str
) -> None:
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    x, v = given(shape, dtype)
    layer, other = LayerNorm(), RMSNorm()
    width = shape[-1:]
    held(layer(x), layer, x=v).to_torch(
        lambda t: f.layer_norm(t["x"], width, t["layer_norm1.scale"], t["layer_norm1.shift"]),
        TOLERANCE[dtype],
    )
    held(other(x), other, x=v).to_torch(
        lambda t: f.rms_norm(t["x"], width, t["rms_norm1.scale"], 1e-5), TOLERANCE[dtype]
    )


def test_rms_norm_is_its_formula(held: Any) -> None:
    x, v = given(("n", 5), "float64")
    layer = RMSNorm(1e-3)
    h = held(layer(x), layer, x=v)
    root = np.sqrt((v**2).mean(axis=-1, keepdims=True) + 1e-3)
    h.to_numpy(v / root * h.values["rms_norm1.scale"], 1e-12)


def test_in_bfloat16_statistics_are_kept_in_float32() -> None:
    layer = BatchNorm()
    y = layer(cr.input("x", ("n", 3), dtype="bfloat16"))
    assert (y.dtype, layer["mean"].dtype) == (cr.bfloat16, cr.float32)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: BatchNorm(2.0), ShapeError, "momentum is a number from 0 to 1"),
        (lambda: BatchNorm(eps=-1.0), ShapeError, "eps is a number from 0 up"),
        (lambda: LayerNorm(eps="a"), DTypeError, "eps is a number"),  # type: ignore[arg-type]
        (lambda: BatchNorm()(cr.input("x", ("n",))), ShapeError, "BatchNorm takes a tensor"),
        (lambda: BatchNorm(axis=4)(cr.input("x", ("n", 2))), ShapeError, "no axis 4"),
        (lambda: BatchNorm()(cr.input("x", ("n", "m"))), ShapeError, "whose size is m"),
        (lambda: LayerNorm()(cr.input("x", ("n", 2), dtype="int32")), DTypeError, "floats"),
    ],
)
def test_what_does_not_fit_is_refused(make: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make()
