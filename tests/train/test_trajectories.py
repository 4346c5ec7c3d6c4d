"""Two hundred steps of each optimizer beside PyTorch, and beside its formula written in NumPy."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.nn import losses, optim
from chainrule.train import TrainingStep, training_step

_SPEC = importlib.util.spec_from_file_location("rules", Path(__file__).with_name("rules.py"))
assert _SPEC and _SPEC.loader
_MODULE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_MODULE)
RULES = _MODULE.RULES

STEPS, ROWS, WIDTH = 200, 16, 5
CASES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.1, "dampening": 0.3}),
    ("Adagrad", {"lr": 0.1}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.01, "weight_decay": 0.1, "eps": 1e-3}),
    ("Adagrad", {"lr": 0.1, "initial_accumulator_value": 0.5}),
    ("Adadelta", {"lr": 1.0}),
    ("Adadelta", {"lr": 0.5, "rho": 0.8, "eps": 1e-4, "weight_decay": 0.1}),
    ("RMSprop", {"lr": 0.01}),
    ("RMSprop", {"lr": 0.01, "alpha": 0.9, "eps": 1e-4, "weight_decay": 0.1, "momentum": 0.8}),
    ("RMSprop", {"lr": 0.01, "centered": True, "eps": 1e-3}),
    ("Adam", {"lr": 0.01}),
    ("Adam", {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-3}),
    ("Adam", {"lr": 0.01, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.01, "betas": (0.0, 0.9)}),
    ("AdamW", {"lr": 0.01}),
    ("AdamW", {"lr": 0.01, "weight_decay": 0.3}),
    ("NAdam", {"lr": 0.01}),
    ("NAdam", {"lr": 0.01, "betas": (0.8, 0.95), "momentum_decay": 0.1, "weight_decay": 0.1}),
    ("NAdam", {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("Lion", {"lr": 1e-3}),
    ("Lion", {"lr": 1e-3, "betas": (0.8, 0.95), "weight_decay": 0.1}),
]
NAMES = [f"{name} {options}" for name, options in CASES]


def made(name: str, options: dict[str, Any]) -> optim.Optimizer:
    optimizer: optim.Optimizer = getattr(optim, name)(**options)
    return optimizer


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
    optimizer: optim.Optimizer, dtype: str, backend: str = "cpu", steps: int = STEPS
) -> Iterator[tuple[float, dict[str, np.ndarray]]]:
    """Loss before and parameters after each step."""
    p = problem()
    x, y = cr.input("x", ("n", WIDTH), dtype=dtype), cr.input("y", ("n", 1), dtype=dtype)
    w, b, v = (cr.parameter(n, p[n].shape, init=p[n], dtype=dtype) for n in "WbV")
    step = training_step(losses.mse(cr.tanh(x @ w + b) @ v, y), optimizer, backend=backend)
    for i in range(steps):
        loss = step(x=p["x"][i], y=p["y"][i])
        yield loss, {n: a.copy() for n, a in step.parameters.items()}


def gradients(p: dict[str, np.ndarray], w: dict[str, np.ndarray], i: int) -> dict[str, np.ndarray]:
    """The gradient of step i at parameters w, by hand."""
    x, y = p["x"][i], p["y"][i]
    h = np.tanh(x @ w["W"] + w["b"])
    dp = 2 * (h @ w["V"] - y) / y.size
    dz = dp @ w["V"].T * (1 - h * h)
    return {"W": x.T @ dz, "b": dz.sum(0), "V": h.T @ dp}


def theirs(name: str, options: dict[str, Any], dtype: str) -> Iterator[dict[str, np.ndarray]]:
    """Parameters after each of PyTorch's steps."""
    import torch

    p, kind = problem(), getattr(torch, dtype)
    torch.set_default_dtype(kind)  # NAdam keeps a product in this type
    try:
        parameters = [torch.tensor(p[n], dtype=kind, requires_grad=True) for n in "WbV"]
        optimizer = getattr(torch.optim, name)(parameters, **options)
        for i in range(STEPS):
            x, y = (torch.tensor(p[n][i], dtype=kind) for n in "xy")
            optimizer.zero_grad()
            w, b, v = parameters
            torch.nn.functional.mse_loss(torch.tanh(x @ w + b) @ v, y).backward()
            optimizer.step()
            yield {n: t.detach().numpy() for n, t in zip("WbV", parameters, strict=True)}
    finally:
        torch.set_default_dtype(torch.float32)


# What 200 steps of rounding in float64 add up to; momentum multiplies it.
WIDE = {"rtol": 1e-9, "atol": 1e-11}


@pytest.mark.parametrize(("name", "options"), CASES, ids=NAMES)
def test_against_torch(name: str, options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    if not hasattr(torch.optim, name):
        pytest.skip(f"PyTorch has no {name}")
    optimizer = made(name, options)
    errors = []
    steps = zip(
        ours(optimizer, "float64"),
        theirs(name, options, "float64"),
        strict=True,
    )
    exact = []
    for (_, values), expected in steps:
        exact.append({n: expected[n].copy() for n in "WbV"})
        for n in "WbV":
            np.testing.assert_allclose(values[n], expected[n], **WIDE)
    for narrow in (
        (values for _, values in ours(optimizer, "float32")),
        theirs(name, options, "float32"),
    ):
        away = [
            max(abs(values[n] - right[n]).max() for n in "WbV")
            for values, right in zip(narrow, exact, strict=True)
        ]
        errors.append(max(away))
    # In float32 both leave the float64 trajectory, as far as it is unstable; rounding differs, so
    # that either may be a few times as far away as the other.
    assert errors[0] < 8 * errors[1] + 1e-6


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("dtype", "backend", "steps"),
    [("float64", "cpu", STEPS), ("float64", "reference", 10), ("float32", "cpu", 20)],
)
@pytest.mark.parametrize(("name", "options"), CASES, ids=NAMES)
def test_against_numpy(
    name: str, options: dict[str, Any], dtype: str, backend: str, steps: int
) -> None:
    p, rule = problem(), RULES[name]
    # float32: 20 roundings of 6e-8, in a root of squares and its inverse, times momentum
    tolerance = WIDE if dtype == "float64" else {"rtol": 1e-4, "atol": 1e-5}
    weights = {n: p[n] for n in "WbV"}
    slots: dict[str, dict[str, Any]] = {n: {} for n in "WbV"}
    for i, (_, values) in enumerate(ours(made(name, options), dtype, backend, steps)):
        slopes = gradients(p, weights, i)
        weights = {n: rule(weights[n], slopes[n], slots[n], i + 1, options) for n in "WbV"}
        for n in "WbV":
            np.testing.assert_allclose(values[n], weights[n], **tolerance)


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
