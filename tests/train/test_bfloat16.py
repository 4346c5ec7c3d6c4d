"""Training in bfloat16: parameters are bfloat16, optimizers work in float32."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import chainrule as cr
from chainrule.nn import optim

pytestmark = pytest.mark.usefixtures("compiled_once")

BF16 = np.dtype(ml_dtypes.bfloat16)
OPTIMIZERS = [optim.SGD(0.3, momentum=0.9), optim.Adam(0.01)]


def net() -> cr.Tensor:
    x = cr.input("x", ("batch", 6), dtype="bfloat16")
    y = cr.input("y", ("batch",), dtype="int32")
    w = cr.parameter("W", (6, 8), dtype="bfloat16", init="glorot_uniform")
    b = cr.parameter("b", (8,), dtype="bfloat16")
    v = cr.parameter("V", (8, 3), dtype="bfloat16", init="glorot_normal")
    return cr.losses.cross_entropy(cr.tanh(x @ w + b) @ v, y)


@pytest.fixture
def data() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 6))
    return {"x": x.astype(BF16), "y": x[:, :3].argmax(1).astype(np.int32)}


def make(optimizer: optim.Optimizer, backend: str = "cpu") -> cr.TrainingStep:
    return cr.training_step(net(), optimizer, backend=backend)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: type(o).__name__)
def test_a_small_net_learns(data: dict[str, np.ndarray], optimizer: optim.Optimizer) -> None:
    step = make(optimizer)
    losses = step.run(batch_size=50, epochs=40, **data)
    assert np.mean(losses[-4:]) < 0.35 * losses[0]
    assert all(a.dtype == BF16 for a in step.parameters.values())


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: type(o).__name__)
def test_native_training_is_the_references(
    data: dict[str, np.ndarray], optimizer: optim.Optimizer
) -> None:
    """Losses within 2 ulp of bfloat16 over 10 steps: products may be summed in another order."""
    both = [make(optimizer, backend) for backend in ("cpu", "reference")]
    for _ in range(10):
        native, reference = (float(step(**data)) for step in both)
        assert native == pytest.approx(reference, rel=2 * 2.0**-7)


def test_a_decay_near_1_is_not_rounded_to_1(data: dict[str, np.ndarray]) -> None:
    """0.999 in bfloat16 is 1, and Adam's second moment would never decay: what it remembers and
    computes is float32.
    """
    step = make(optim.Adam(0.01))
    step(**data)
    slots = {
        k: v for k, v in step.state_dict().items() if k.startswith(("optimizer.m", "optimizer.v"))
    }
    assert len(slots) == 6 and all(v.dtype == np.float32 for v in slots.values())
    before = np.array(slots["optimizer.v.W"])
    for _ in range(3):
        step(**data)
    assert np.isfinite(before).all() and (before > 0).any()
    assert all(np.isfinite(a.astype(np.float32)).all() for a in step.parameters.values())


def test_one_step_of_sgd_is_rounded_once() -> None:
    w = cr.parameter("w", (4, 3), dtype="bfloat16", init="normal")
    x = cr.input("x", ("n", 4), dtype="bfloat16")
    loss = cr.mean(cr.square(x @ w))
    step = cr.training_step(loss, optim.SGD(0.1))
    a, before = np.linspace(-1, 1, 20).reshape(5, 4).astype(BF16), np.array(step.parameters["w"])
    slope = cr.compile(cr.grad(loss, w))(x=a, w=before)
    step(x=a)
    exact = before.astype(np.float32) - np.float32(0.1) * slope.astype(np.float32)
    np.testing.assert_array_equal(step.parameters["w"], exact.astype(BF16))


def test_checkpoints_keep_every_bit(tmp_path: Path, data: dict[str, np.ndarray]) -> None:
    step = make(optim.Adam(0.01))
    step.run(batch_size=50, epochs=1, **data)
    path = tmp_path / "net.safetensors"
    step.save(path)
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert header["W"]["dtype"] == "BF16" and header["optimizer.m.W"]["dtype"] == "F32"
    start, end = header["W"]["data_offsets"]
    assert end - start == 6 * 8 * 2
    other = make(optim.Adam(0.01))
    other.load(path)
    for name, array in step.state_dict().items():
        assert np.asarray(array).tobytes() == np.asarray(other.state_dict()[name]).tobytes(), name
    one, two = step(**data), other(**data)
    assert float(one) == float(two)


def test_safetensors_of_others_agree(tmp_path: Path) -> None:
    numpy_files = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "net.safetensors"
    step = make(optim.SGD(0.1))
    step.save(path)
    theirs = numpy_files.load_file(path)
    assert theirs["W"].tobytes() == np.asarray(step.parameters["W"]).tobytes()


def test_a_loss_that_is_not_finite_changes_nothing(data: dict[str, np.ndarray]) -> None:
    step = make(optim.SGD(0.1))
    before = {n: np.array(a) for n, a in step.parameters.items()}
    with pytest.raises(cr.errors.NonFiniteError):
        step(x=np.full((4, 6), np.nan, BF16), y=data["y"][:4])
    assert all((step.parameters[n] == a).all() for n, a in before.items())


@pytest.mark.parametrize("init", ["zeros", "ones", "uniform", "normal", "he_uniform"])
def test_parameters_begin_as_float32_ones_rounded(init: str) -> None:
    pair = []
    for dtype in ("bfloat16", "float32"):
        w = cr.parameter("w", (5, 7), dtype=dtype, init=init)
        pair.append(cr.training_step(cr.sum(w * w), optim.SGD(0.1)).parameters["w"])
    np.testing.assert_array_equal(pair[0], pair[1].astype(BF16))


def test_gradients_are_derivatives(data: dict[str, np.ndarray]) -> None:
    """Differences are taken in float64, where nothing is rounded to bfloat16."""
    x = cr.input("x", ("n", 5), dtype="bfloat16")
    w = cr.parameter("w", (5, 4), dtype="bfloat16")
    loss = cr.mean(cr.square(cr.layer_norm(x @ w)) * cr.softmax(x @ w)) + cr.std(w)
    rng = np.random.default_rng(1)
    feeds = {"x": rng.normal(size=(6, 5)).astype(BF16), "w": rng.normal(size=(5, 4)).astype(BF16)}
    found = cr.check_gradients(loss, [w, x], feeds)
    assert found
    assert cr.grad(loss, w).dtype == cr.bfloat16
    assert cr.explain(cr.mean(cr.tanh(x @ w)), w).check()


def test_bfloat16_and_float32_meet_in_float32(data: dict[str, np.ndarray]) -> None:
    """A float32 master of a bfloat16 net, spelled out: cast for the products alone."""
    x = cr.input("x", ("batch", 6), dtype="bfloat16")
    y = cr.input("y", ("batch",), dtype="int32")
    w = cr.parameter("W", (6, 3), init="glorot_uniform")
    z = x @ w.astype("bfloat16")
    assert z.dtype == cr.bfloat16 and (z + w[0]).dtype == cr.float32
    loss = cr.losses.cross_entropy(z.astype("float32"), y)
    assert cr.grad(loss, w).dtype == cr.float32
    step = cr.training_step(loss, optim.Adam(0.05))
    losses = step.run(batch_size=50, epochs=20, **data)
    assert np.mean(losses[-4:]) < 0.5 * losses[0]
