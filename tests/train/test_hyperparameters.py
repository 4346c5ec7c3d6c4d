"""Numbers of an optimizer change between steps, as if it had been made with them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.errors import ArtifactError, CompileError, FeedError
from chainrule.nn import optim
from chainrule.train import TrainingStep, training_step

pytestmark = pytest.mark.usefixtures("compiled_once")

START, SLOPES = np.array([0.5, -1.0, 2.0]), np.random.default_rng(0).normal(size=(40, 3))


def make(optimizer: optim.Optimizer, dtype: str = "float64", **options: Any) -> TrainingStep:
    """A step whose gradient is what it is fed."""
    w = cr.parameter("w", (3,), init=START, dtype=dtype)
    return training_step(cr.sum(w * cr.input("g", (3,), dtype=dtype)), optimizer, **options)


def test_what_there_is(backend: str) -> None:
    step = make(optim.AdamW(0.1), "float32", backend=backend)
    assert dict(step.hyperparameters) == {
        "learning_rate": 0.1,
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.01,
    }
    # 0.001 to float32's last digit, which 1 - float32(0.999) is not
    assert step.state_dict()["optimizer.one_minus_beta2"] == np.float32(0.001)
    assert list(make(optim.SGD(0.1)).hyperparameters) == [
        "learning_rate",
        "momentum",
        "dampening",
        "weight_decay",
    ]
    assert repr(make(optim.SGD(0.5)).hyperparameters).startswith("{'learning_rate': 0.5, ")


def test_a_change_is_seen_by_the_next_step(backend: str) -> None:
    step = make(optim.Adam(0.1, weight_decay=0.01), backend=backend)
    w, m, v, powers = START.copy(), np.zeros(3), np.zeros(3), (0.9, 0.999)
    lr, eps, decay = 0.1, 1e-8, 0.01
    for t, g in enumerate(SLOPES, 1):
        if t == 11:
            powers, lr, eps, decay = (0.5, 0.9), 0.05, 1e-3, 0.0
            step.hyperparameters.update(
                beta1=0.5, beta2=0.9, eps=eps, weight_decay=0, learning_rate=lr
            )
            assert step.learning_rate == 0.05
        step(g=g)
        g = g + decay * w
        m, v = powers[0] * m + (1 - powers[0]) * g, powers[1] * v + (1 - powers[1]) * g * g
        m_hat, v_hat = m / (1 - powers[0] ** t), v / (1 - powers[1] ** t)
        w = w - lr * m_hat / (np.sqrt(v_hat) + eps)
        np.testing.assert_allclose(step.parameters["w"], w, rtol=1e-12)


BAD: list[tuple[str, Any]] = [
    ("beta1", 1.0),
    ("beta2", -0.1),
    ("eps", 0.0),
    ("eps", math.nan),
    ("weight_decay", -1e-9),
    ("weight_decay", 1e39),
    ("learning_rate", math.inf),
    ("learning_rate", "0.1"),
    ("beta1", True),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_what_the_optimizer_would_refuse_is_refused(name: str, value: Any) -> None:
    step = make(optim.AdamW(), "float32")
    before = dict(step.hyperparameters)
    with pytest.raises(FeedError, match=name):
        step.hyperparameters[name] = value
    assert dict(step.hyperparameters) == before


def test_names_that_are_none() -> None:
    step = make(optim.Adam())
    with pytest.raises(FeedError, match="there is beta1"):
        step.hyperparameters["beta_1"] = 0.8
    with pytest.raises(FeedError, match="there is learning_rate, beta1"):
        step.hyperparameters["quux"]
    with pytest.raises(FeedError, match="not removed"):
        del step.hyperparameters["eps"]


def test_a_term_that_was_left_out() -> None:
    step = make(optim.SGD(0.1))
    assert step.hyperparameters["momentum"] == 0.0
    assert "optimizer.m.w" not in step.state_dict()
    step.hyperparameters["momentum"] = 0
    with pytest.raises(FeedError, match="momentum was 0 when the step was made") as error:
        step.hyperparameters["momentum"] = 0.9
    assert "set to 0 afterwards" in str(error.value)
    step = make(optim.SGD(0.1, momentum=0.9))
    step.hyperparameters["momentum"] = 0.0
    for g in SLOPES[:3]:
        before = step.parameters["w"].copy()
        step(g=g)
        np.testing.assert_allclose(step.parameters["w"], before - 0.1 * g, rtol=1e-14)


def test_checkpoints_keep_them(tmp_path: Path) -> None:
    one = make(optim.RMSprop(0.1, momentum=0.5), "float32")
    one.hyperparameters["alpha"] = 0.9
    one.hyperparameters["momentum"] = 0.25
    one(g=SLOPES[0])
    one.save(tmp_path / "a.safetensors")
    other = make(optim.RMSprop(7.0, momentum=0.5), "float32")
    other.load(tmp_path / "a.safetensors")
    assert dict(other.hyperparameters) == dict(one.hyperparameters)
    assert other(g=SLOPES[1]) == one(g=SLOPES[1])
    np.testing.assert_array_equal(other.parameters["w"], one.parameters["w"])


@pytest.mark.parametrize(
    ("name", "value"), [("one_minus_beta2", 0.0), ("one_minus_beta1", 2.0), ("eps", -1.0)]
)
def test_a_state_that_no_training_leads_to(name: str, value: float) -> None:
    step = make(optim.Adam())
    state = {**step.state_dict(), f"optimizer.{name}": np.array(value)}
    with pytest.raises(ArtifactError, match=name.removeprefix("one_minus_")):
        step.load_state_dict(state)


class Ball(optim.Optimizer):
    """An optimizer of a user's, with numbers of its own."""

    hyperparameters = ("momentum", "gain")
    momentum = 0.9

    def __init__(self, lr: float, gain: float = 2.0) -> None:
        self.lr, self.gain = lr, gain

    def init(self, w: cr.Tensor) -> dict[str, cr.Tensor]:
        return {"m": cr.zeros_like(w)}

    def update(self, w: Any, g: Any, state: Any, lr: Any, t: Any) -> Any:
        m = self.momentum * state["m"] + self.gain * g
        return w - lr * m, {"m": m}


def test_numbers_of_ones_own(backend: str) -> None:
    step = make(Ball(0.1, 3.0), backend=backend)
    assert dict(step.hyperparameters) == {"learning_rate": 0.1, "momentum": 0.9, "gain": 3.0}
    w, m = START.copy(), np.zeros(3)
    for t, g in enumerate(SLOPES[:10]):
        if t == 5:
            step.hyperparameters["gain"] = -1.0
        step(g=g)
        m = 0.9 * m + (3.0 if t < 5 else -1.0) * g
        w -= 0.1 * m
        np.testing.assert_allclose(step.parameters["w"], w, rtol=1e-12)
    assert make(Ball(0.1, 3.0)).hyperparameters["gain"] == 3.0  # the optimizer itself stays


def test_a_number_without_a_value() -> None:
    class Lost(optim.SGD):
        hyperparameters = ("nowhere",)  # type: ignore[assignment]

    with pytest.raises(CompileError, match="'nowhere' without a value"):
        make(Lost(0.1))

    class Odd(optim.SGD):
        hyperparameters = ("word",)  # type: ignore[assignment]
        word = "text"

    with pytest.raises(FeedError, match="word is a number, finite, not 'text'"):
        make(Odd(0.1))


def test_a_decay_keeps_its_digits() -> None:
    """In float32, 1 - 0.999 is 0.001 to a part in 10^4, what the decay was made of to the last."""

    class Mean(optim.Optimizer):
        hyperparameters = {"beta": optim.DECAY}  # noqa: RUF012
        beta = 0.999

        def update(self, w: Any, g: Any, state: Any, lr: Any, t: Any) -> Any:
            return w + (1 - self.beta) * g, {}

    w = cr.parameter("w", (), init=0.0)
    step = training_step(w * 1.0, Mean(0.1))
    step()
    assert step.parameters["w"] == np.float32(0.001)


def test_kinds_of_numbers_beside_each_other() -> None:
    """Numbers are kept in the widest type; each parameter sees them in its own."""
    w, v = cr.parameter("w", (3,), init="ones"), cr.parameter("v", (), init=1.0, dtype="float64")
    b = cr.parameter("b", (2,), init="ones", dtype="bfloat16")
    loss = cr.sum(w).astype("float64") + v * v + cr.sum(b.astype("float32")).astype("float64")
    step = training_step(loss, optim.Adam(0.1))
    assert step.state_dict()["optimizer.one_minus_beta2"].dtype == np.float64
    step()
    np.testing.assert_allclose(step.parameters["w"], np.float32(0.9), rtol=1e-6)
    assert step.parameters["v"] == pytest.approx(0.9, rel=1e-7)


KINDS: list[optim.Optimizer] = [
    optim.SGD(0.1),
    optim.SGD(0.1, 0.9, True, 0.1),
    optim.SGD(0.1, 0.9, weight_decay=0.1, dampening=0.1),
    optim.Adagrad(lr_decay=0.1, weight_decay=0.1),
    optim.Adadelta(weight_decay=0.1),
    optim.RMSprop(centered=True, momentum=0.9, weight_decay=0.1),
    optim.Adam(),
    optim.Adam(weight_decay=0.1, clip_value=1.0),
    optim.AdamW(cr.schedules.cosine(1e-3, 100)),
    optim.NAdam(weight_decay=0.1),
    optim.Lion(weight_decay=0.1),
]


@pytest.mark.parametrize("optimizer", KINDS, ids=[type(o).__name__ for o in KINDS])
def test_an_update_takes_no_kernel_of_its_own(optimizer: optim.Optimizer) -> None:
    """Each is part of the kernel that computes the gradient; one more makes the scalars of all."""
    x, y = cr.input("x", ("n", 6)), cr.input("y", ("n",), dtype="int32")
    w, v = cr.parameter("w", (6, 8)), cr.parameter("v", (8, 3))
    loss = cr.losses.cross_entropy(cr.tanh(x @ w) @ v, y)
    plain, step = (training_step(loss, o) for o in (optim.SGD(0.1), optimizer))
    assert len(step.report().kernels) == len(plain.report().kernels)
    assert not [k for k in step.report().kernels if k.form == "map" and {"w", "v"} & {*k.writes}]


def test_numbers_are_in_range_in_the_type_that_holds_them(backend: str) -> None:
    """1e-50 is a float64; in float32, whose smallest number is 1.4e-45, it is 0."""
    assert make(optim.SGD(1e-50), backend=backend).learning_rate == 1e-50
    with pytest.raises(FeedError, match=r"learning_rate 1e-50 is 0 as float32"):
        make(optim.SGD(1e-50), "float32", backend=backend)
    with pytest.raises(FeedError, match=r"momentum 0\.9999999999 is 1\.0 as float32"):
        make(optim.SGD(0.1, 0.9999999999), "float32", backend=backend)
    # kept as what it lacks of 1, which float32 can hold
    assert make(optim.Adam(betas=(0.9, 0.9999999999)), "float32", backend=backend)
    step = make(optim.SGD(0.1), "float32", backend=backend, ensemble=2)
    step.learning_rate = [0.1, 1e-50]  # who lowers it step by step may come to 0
    np.testing.assert_array_equal(step.learning_rate, [0.1, 0.0])
