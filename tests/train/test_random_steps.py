"""What is random in training: other numbers in each step, the same ones whichever way it is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.ops import philox
from chainrule.train import TrainingStep, training_step

pytestmark = pytest.mark.usefixtures("compiled_once")

ROWS = 50
RNG = np.random.default_rng(0)
DATA = {
    "x": RNG.normal(size=(ROWS, 6)).astype(np.float32),
    "y": RNG.integers(0, 3, ROWS).astype(np.int32),
}


def net(rate: float = 0.4) -> tuple[cr.Tensor, cr.Tensor]:
    """Logits and the loss of a net with two dropouts."""
    x, y = cr.input("x", ("batch", 6)), cr.input("y", ("batch",), dtype="int32")
    h = cr.dropout(cr.tanh(x @ cr.parameter("W", (6, 8))), rate)
    h = cr.dropout(cr.tanh(h @ cr.parameter("V", (8, 8))), rate / 2)
    z = h @ cr.parameter("U", (8, 3))
    return z, cr.losses.cross_entropy(z, y)


def make(backend: str = "cpu", seed: int = 3, rate: float = 0.4, **options: Any) -> TrainingStep:
    z, loss = net(rate)
    options = {"outputs": {"z": z}, **options}
    return training_step(loss, cr.optim.Adam(1e-2), backend=backend, seed=seed, **options)


def noise(shape: tuple[int, ...] = (4,), **options: Any) -> TrainingStep:
    """A step whose metric is what its first draw begins with."""
    w = cr.parameter("w", (2,), init="ones")
    u = cr.random.uniform(shape)
    return training_step(
        cr.sum(w * w), cr.optim.SGD(1e-3), metrics={"u": u[0]}, outputs=u, **options
    )


def test_each_step_draws_the_documented_numbers(backend: str) -> None:
    step = noise(backend=backend, seed=2**64 - 3)
    for number in range(5):
        step()
        assert step.metrics["u"] == philox.uniform(2**64 - 3, number, 0, (1,))[0]
    step.run(epochs=4)
    want = [philox.uniform(2**64 - 3, number, 0, (1,))[0] for number in range(5, 9)]
    np.testing.assert_array_equal(step.metrics["u"], want)
    np.testing.assert_array_equal(step.predict(), philox.uniform(2**64 - 3, 0, 0, (4,)))


def test_the_epoch_loop_draws_what_single_steps_draw() -> None:
    one, other = make(), make()
    losses = one.run(**DATA, batch_size=16, epochs=2, shuffle=False)
    singles = [
        other(**{k: a[i : i + 16] for k, a in DATA.items()})
        for _ in range(2)
        for i in range(0, ROWS, 16)
    ]
    np.testing.assert_array_equal(losses, np.float32(singles))
    assert len(set(singles)) == len(singles)
    for name in one.parameters:
        np.testing.assert_array_equal(one.parameters[name], other.parameters[name])


def test_the_reference_drops_the_same() -> None:
    losses = [make(b).run(**DATA, batch_size=20, epochs=2) for b in ("cpu", "reference")]
    # the same masks; sums differ in their order
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_a_run_that_is_resumed_equals_one_that_was_not(backend: str, tmp_path: Path) -> None:
    whole = make(backend)
    losses = whole.run(**DATA, batch_size=16, epochs=3)
    first = make(backend)
    before = first.run(**DATA, batch_size=16, epochs=1)
    first.save(tmp_path / "a.safetensors")
    second = make(backend, seed=99)
    second.load(tmp_path / "a.safetensors")
    assert second.seed == 3
    after = second.run(**DATA, batch_size=16, epochs=2)
    np.testing.assert_array_equal(np.concatenate([before, after]), losses)
    state = second.state_dict()
    assert state["training.seed"].dtype == np.uint64
    for name, array in whole.state_dict().items():
        np.testing.assert_array_equal(state[name], array, name)


def test_seeds_differ() -> None:
    same = {"W": 0.1, "V": 0.2, "U": 0.3}
    found = []
    for seed in (1, 1, 2):
        step = make(seed=seed)
        for name, value in same.items():
            step.parameters[name][...] = (
                value
                * np.arange(1, 1 + step.parameters[name].size).reshape(step.parameters[name].shape)
                / 10
            )
        found.append(step(**DATA))
    assert found[0] == found[1] != found[2]


def test_the_loss_drops_and_predictions_do_not() -> None:
    step, plain = make(), make(rate=0.0)
    _, loss = net()
    before = {n: a.copy() for n, a in step.parameters.items()}
    want = plain.predict(x=DATA["x"])["z"]
    np.testing.assert_array_equal(step.predict(x=DATA["x"])["z"], want)
    first = step(**DATA)
    feeds = {**DATA, **before}
    assert cr.compile(loss, training=True, seed=3)(**feeds) == pytest.approx(first, rel=1e-6)
    inference = float(cr.compile(loss)(**feeds))
    assert inference == pytest.approx(plain(**DATA), rel=1e-6)
    assert inference != pytest.approx(first, rel=1e-3)


def test_metrics_and_updates_are_as_in_training() -> None:
    w, seen = cr.parameter("w", (200,), init="ones"), cr.state("seen", (200,))
    h = cr.dropout(w, 0.5)
    step = training_step(
        cr.sum(h * h),
        cr.optim.SGD(1e-6),
        metrics={"dropped": cr.sum((h == 0.0).astype("float32"))},
        updates={seen: h},
        outputs=h,
    )
    step()
    assert 50 < step.metrics["dropped"] < 150
    assert (step.state_dict()["seen"] == 0).sum() == step.metrics["dropped"]
    assert (step.predict() != 0).all()


def test_the_gradient_of_a_step_is_that_of_its_masks() -> None:
    """Held to central differences of the loss with the masks of the step."""
    w = cr.parameter("w", (30,), init=np.linspace(0.5, 1.5, 30), dtype="float64")
    loss = cr.sum(cr.sin(cr.dropout(w, 0.3)))
    step = training_step(loss, cr.optim.SGD(1e-3), seed=11)
    at = step.parameters["w"].copy()
    step()
    slope = (at - step.parameters["w"]) / 1e-3
    fn = cr.compile(loss, training=True, seed=11)
    h = 1e-6
    for i in range(0, 30, 7):
        move = np.eye(30)[i] * h
        measured = (fn(w=at + move) - fn(w=at - move)) / (2 * h)
        assert slope[i] == pytest.approx(measured, rel=1e-6, abs=1e-8)
    assert 0 < (slope == 0).sum() < 30


def test_a_step_that_fails_draws_again_what_it_drew() -> None:
    x, w = cr.input("x", ()), cr.parameter("w", (), init="ones")
    u = cr.random.uniform(())
    step = training_step(w * u * x, cr.optim.SGD(1e-3), metrics={"u": u})
    with pytest.raises(cr.errors.NonFiniteError):
        step(x=np.inf)
    step(x=1.0)
    assert step.metrics["u"] == philox.uniform(0, 0, 0, (1,))[0]


def test_the_loss_prints_as_it_was_written() -> None:
    step = make()
    assert "dropout(" in str(step.loss)
    assert "mask" in str(step.gradients["W"])
