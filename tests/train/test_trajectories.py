"""Fifty steps of each optimizer beside PyTorch, and beside its formula written in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.nn import losses, optim
from chainrule.train import TrainingStep, training_step

STEPS, ROWS, WIDTH = 50, 16, 5
CASES: list[tuple[Any, str, dict[str, Any]]] = [
    (optim.SGD, "SGD", {"lr": 0.1}),
    (optim.SGD, "SGD", {"lr": 0.1, "momentum": 0.9}),
    (optim.SGD, "SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    (optim.SGD, "SGD", {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.1}),
    (optim.Adam, "Adam", {"lr": 0.01}),
    (optim.Adam, "Adam", {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-3}),
    (optim.Adam, "Adam", {"lr": 0.01, "weight_decay": 0.1}),
    (optim.Adam, "Adam", {"lr": 0.01, "betas": (0.0, 0.9)}),
    (optim.AdamW, "AdamW", {"lr": 0.01}),
    (optim.AdamW, "AdamW", {"lr": 0.01, "weight_decay": 0.3}),
]
NAMES = [f"{name} {options}" for _, name, options in CASES]


def problem() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "x": rng.normal(size=(STEPS, ROWS, WIDTH)),
        "y": rng.normal(size=(STEPS, ROWS, 1)),
        "W": rng.normal(size=(WIDTH, 4)) / 2,
        "b": rng.normal(size=4) / 2,
        "V": rng.normal(size=(4, 1)) / 2,
    }


def ours(
    optimizer: optim.Optimizer, dtype: str, backend: str
) -> Iterator[tuple[float, dict[str, np.ndarray]]]:
    p = problem()
    x, y = cr.input("x", ("n", WIDTH), dtype=dtype), cr.input("y", ("n", 1), dtype=dtype)
    w, b, v = (cr.parameter(n, p[n].shape, init=p[n], dtype=dtype) for n in "WbV")
    step = training_step(losses.mse(cr.tanh(x @ w + b) @ v, y), optimizer, backend=backend)
    for i in range(STEPS):
        loss = step(x=p["x"][i], y=p["y"][i])
        yield loss, {n: a.copy() for n, a in step.parameters.items()}


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(("kind", "name", "options"), CASES, ids=NAMES)
def test_against_torch(kind: Any, name: str, options: dict[str, Any], backend: str) -> None:
    torch = pytest.importorskip("torch")
    p = problem()
    for dtype, rtol in (("float64", 1e-9), ("float32", 2e-4)):
        theirs = [
            torch.tensor(p[n], dtype=getattr(torch, dtype), requires_grad=True) for n in "WbV"
        ]
        optimizer = getattr(torch.optim, name)(theirs, **options)
        for i, (loss, values) in enumerate(ours(kind(**options), dtype, backend)):
            x, y = (torch.tensor(p[n][i], dtype=getattr(torch, dtype)) for n in "xy")
            optimizer.zero_grad()
            w, b, v = theirs
            expected = torch.nn.functional.mse_loss(torch.tanh(x @ w + b) @ v, y)
            expected.backward()
            optimizer.step()
            assert loss == pytest.approx(expected.item(), rel=rtol)
            for n, t in zip("WbV", theirs, strict=True):
                np.testing.assert_allclose(values[n], t.detach().numpy(), rtol=rtol, atol=rtol / 10)


def adam(w: np.ndarray, g: np.ndarray, s: dict[str, np.ndarray], t: int) -> np.ndarray:
    s["m"] = 0.9 * s["m"] + 0.1 * g
    s["v"] = 0.999 * s["v"] + 0.001 * g * g
    m, v = s["m"] / (1 - 0.9**t), s["v"] / (1 - 0.999**t)
    return w - 0.01 * m / (np.sqrt(v) + 1e-8)


def nesterov(w: np.ndarray, g: np.ndarray, s: dict[str, np.ndarray], t: int) -> np.ndarray:
    s["m"] = 0.9 * s["m"] + g
    return w - 0.1 * (g + 0.9 * s["m"])


@pytest.mark.parametrize(
    ("optimizer", "rule"), [(optim.Adam(0.01), adam), (optim.SGD(0.1, 0.9, True), nesterov)]
)
def test_against_numpy(optimizer: optim.Optimizer, rule: Callable[..., np.ndarray]) -> None:
    p = problem()
    weights = {n: p[n] for n in "WbV"}
    slots = {n: {"m": np.zeros_like(p[n]), "v": np.zeros_like(p[n])} for n in "WbV"}
    for i, (_, values) in enumerate(ours(optimizer, "float64", "cpu")):
        x, y = p["x"][i], p["y"][i]
        h = np.tanh(x @ weights["W"] + weights["b"])
        dp = 2 * (h @ weights["V"] - y) / y.size
        dz = dp @ weights["V"].T * (1 - h * h)
        gradients = {"W": x.T @ dz, "b": dz.sum(0), "V": h.T @ dp}
        weights = {n: rule(weights[n], gradients[n], slots[n], i + 1) for n in "WbV"}
        for n in "WbV":
            np.testing.assert_allclose(values[n], weights[n], rtol=1e-9, atol=1e-12)


class HeavyBall(optim.Optimizer):
    """The optimizer of the docs, written by a user."""

    def init(self, w: cr.Tensor) -> dict[str, cr.Tensor]:
        return {"m": cr.zeros_like(w)}

    def update(self, w: Any, g: Any, state: Any, lr: Any, t: Any) -> Any:
        m = 0.9 * state["m"] + g
        return w - lr * m, {"m": m}


def test_an_optimizer_of_ones_own() -> None:
    pairs = zip(
        ours(HeavyBall(0.1), "float64", "cpu"),
        ours(optim.SGD(0.1, 0.9), "float64", "cpu"),
        strict=True,
    )
    for (a, _), (b, _) in pairs:
        assert a == pytest.approx(b, rel=1e-12)


def test_a_step_of_mixed_types(data: dict[str, np.ndarray]) -> None:
    x = cr.input("x", ("n", 6))
    w, v = cr.parameter("w", (6,)), cr.parameter("v", (), init=1.0, dtype="float64")
    loss = cr.mean((x @ w).astype("float64") * v - 1.0) ** 2 + cr.sum(w.astype("float64") ** 2)
    step: TrainingStep = training_step(loss, optim.Adam(0.1))
    first = step(x=data["x"])
    for _ in range(20):
        last = step(x=data["x"])
    assert last < first and step.parameters["v"].dtype == np.float64
