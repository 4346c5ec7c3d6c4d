"""Where training stops when numbers end: the op, the layer, the line, and the last good state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.errors import NonFiniteError

RNG = np.random.default_rng(1)
X = RNG.normal(size=(64, 4)).astype(np.float32)
Y = RNG.integers(0, 3, 64)


def weights(model: cr.Model) -> dict[str, bytes]:
    return {n: a.tobytes() for n, a in model.weights().items()}


def test_the_op_and_its_layer_are_named() -> None:
    def net(x: cr.Tensor) -> cr.Tensor:
        h = cr.nn.Dense(8, name="first")(x)
        h = cr.exp(60.0 * cr.nn.Dense(5, name="second")(h)).named("powers")  # overflows
        return cr.nn.Dense(3, name="third")(h)

    model = cr.Model(net, threads=1)
    with pytest.raises(NonFiniteError) as caught:
        model.fit(X, Y)
    said = str(caught.value)
    assert "the first is inf of exp, powers, of type f32[batch, 5]" in said
    assert "in the layer of second." in said
    assert "test_diverged.py" in said and "# overflows" in said
    assert model.step.steps == 0 and all(np.isfinite(a).all() for a in model.weights().values())


class Looks(cr.callbacks.Callback):
    """Looks at every epoch, so that each is a call of its own."""

    def on_epoch_end(self, epoch: int, logs: Any) -> None:
        pass


@pytest.mark.parametrize("hooks", [[], [Looks()]])
@pytest.mark.parametrize("form", ["epochs", "one by one"])
def test_the_last_finite_step_stays(form: str, hooks: Any) -> None:
    def net(x: cr.Tensor) -> cr.Tensor:
        return x @ cr.parameter("w", (4, 1))

    def make() -> cr.Model:
        return cr.Model(net, "mse", cr.optim.SGD(8.0), threads=1)

    target = np.ones((64, 1), np.float32)
    model = make()
    batches = [(X[i : i + 16], target[i : i + 16]) for i in range(0, 64, 16)]
    given: Any = {"x": batches}
    if form == "epochs":
        given = {"x": X, "y": target, "batch_size": 16, "shuffle": False}
    with pytest.raises(NonFiniteError, match="the first is inf of square"):
        model.fit(epochs=99, callbacks=hooks, **given)
    other = make()
    for step in range(model.step.steps):
        other.partial_fit(*batches[step % 4])
    assert model.step.steps > 8 and weights(other) == weights(model)
    model.step.parameters["w"][...] = 0
    model.step.learning_rate = 0.01
    model.fit(X, target)  # and training can go on


@pytest.mark.parametrize("hooks", [[], [Looks()]])
def test_an_update_that_overflows_is_taken_back(hooks: Any) -> None:
    """The loss is linear, each step moves w by 1.5e37 exactly: after 22 it is beyond float32."""

    def net(x: cr.Tensor) -> cr.Tensor:
        return x @ cr.parameter("w", (1, 1), init="zeros")

    model = cr.Model(net, lambda p, y: cr.max(p) * 0.05, cr.optim.SGD(3e38), threads=1)
    ones = np.ones((64, 1), np.float32)
    with pytest.raises(NonFiniteError, match="in the layer of w"):
        model.fit(ones, ones, epochs=99, batch_size=16, callbacks=hooks)
    assert model.step.steps == 22
    # 22 roundings of a sum in float32
    assert model.weights()["w"][0, 0] == pytest.approx(-22 * 1.5e37, rel=1e-6)


def test_what_is_stable_is_not_blamed() -> None:
    """log(1 + exp(x)) is computed as softplus, whatever exp(x) would be."""

    def net(x: cr.Tensor) -> cr.Tensor:
        h = cr.log(1.0 + cr.exp(1e3 * x)).named("soft")
        return cr.sqrt(h @ cr.parameter("w", (4, 3), init="ones") - 1e6).named("root")

    with pytest.raises(NonFiniteError, match="the first is nan of sqrt, root"):
        cr.Model(net, threads=1).fit(X, Y)
