"""A small net on made-up data, and steps that train it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.nn import losses, optim
from chainrule.train import TrainingStep, training_step

ROWS, WIDTH, CLASSES = 50, 6, 3


def net(dtype: str = "float32", depth: int = 1) -> tuple[cr.Tensor, cr.Tensor, cr.Tensor]:
    """Logits, loss and accuracy of a net of tanh layers."""
    x = cr.input("x", ("batch", WIDTH), dtype=dtype)
    y = cr.input("y", ("batch",), dtype="int32")
    h, size = x, WIDTH
    for i in range(depth):
        w = cr.parameter(f"W{i}", (size, 8), dtype=dtype)
        h = cr.tanh(h @ w + cr.parameter(f"b{i}", (8,), dtype=dtype))
        size = 8
    z = h @ cr.parameter("V", (size, CLASSES), dtype=dtype)
    # the share of rows whose own class has the largest logit
    accuracy = cr.mean(cr.where(cr.pick(z, y) == cr.max(z, axis=-1), 1.0, 0.0).astype(dtype))
    return z, losses.cross_entropy(z, y), accuracy


@pytest.fixture
def data() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
    return {"x": x, "y": (x[:, :CLASSES].argmax(1)).astype(np.int32)}


@pytest.fixture(params=["cpu", "reference"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make() -> Callable[..., TrainingStep]:
    """A step of the net, by default with Adam."""

    def build(optimizer: optim.Optimizer | None = None, **options: Any) -> TrainingStep:
        dtype = options.pop("dtype", "float32")
        z, loss, accuracy = net(dtype)
        options = {"metrics": {"accuracy": accuracy}, "outputs": {"logits": z}, **options}
        return training_step(loss, optimizer or optim.Adam(1e-2), **options)

    return build
