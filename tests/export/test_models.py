"""Kernels of nets with all that a step can have: several sizes, states, float64, averages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chainrule as cr
import chainrule_runtime

Made = tuple[cr.TrainingStep, dict[str, Any]]
SEED = 17


def attention() -> Made:
    """Two symbolic sizes, positions as inputs, outputs by name."""
    random = np.random.default_rng(SEED)
    t, y = (
        cr.input("t", ("batch", "time"), dtype="int32"),
        cr.input("y", ("batch",), dtype="int32"),
    )
    h = cr.nn.TransformerBlock(2)(cr.nn.Embedding(11, 8)(t))
    z = cr.nn.Dense(3)(cr.mean(h, axis=1))
    step = cr.training_step(
        cr.losses.cross_entropy(z, y), cr.optim.AdamW(1e-3), outputs={"scores": z, "hidden": h}
    )
    return step, {"t": random.integers(0, 11, (4, 7)), "y": [0, 1, 2, 1]}


def images() -> Made:
    """Batch norm, whose running statistics are states."""
    random = np.random.default_rng(SEED)
    x, y = cr.input("x", ("batch", 3, 6, 6)), cr.input("y", ("batch",), dtype="int32")
    layers = [cr.nn.Conv2D(4, 3), cr.nn.BatchNorm(), cr.nn.Flatten(), cr.nn.Dense(5)]
    z = cr.nn.Sequential(layers)(x)
    step = cr.training_step(cr.losses.cross_entropy(z, y), cr.optim.RMSprop(1e-3), outputs=z)
    return step, {"x": random.standard_normal((4, 3, 6, 6)).astype(np.float32), "y": [0, 1, 2, 3]}


def averages() -> Made:
    """float64, a schedule, clipping, a moving average of parameters, a number of a state."""
    random = np.random.default_rng(SEED)
    x, y = (cr.input(n, s, dtype="float64") for n, s in (("x", ("batch", 3)), ("y", ("batch",))))
    w = cr.parameter("w", (3,), dtype="float64", init="normal")
    seen = cr.state("seen", (), init="zeros")
    rule = cr.optim.Adam(cr.schedules.cosine(1e-2, 100), ema=0.9, clip_norm=1.0)
    step = cr.training_step(
        cr.losses.mse(x @ w, y), rule, outputs=x @ w, updates={seen: seen + 1.0}
    )
    return step, {"x": random.standard_normal((5, 3)), "y": random.standard_normal(5)}


def fixed() -> Made:
    """No symbolic size, and nothing to predict."""
    random = np.random.default_rng(SEED)
    x, w = cr.input("x", (4, 3)), cr.parameter("w", (3,))
    step = cr.training_step(cr.mean((x @ w - 1) ** 2), cr.optim.SGD(0.1), seed=2**64 - 1)
    return step, {"x": random.standard_normal((4, 3)).astype(np.float32)}


@pytest.mark.parametrize("make", [attention, images, averages, fixed], ids=lambda f: f.__name__)
def test_kernels_of_all_kinds(make: Callable[[], Made], linker: None, tmp_path: Path) -> None:
    step, feeds = make()
    sizes = {"time": 9} if make is attention else {}
    art = step.export(tmp_path, name="net", formats=("so", "json"), max_batch=8, max_sizes=sizes)
    assert art.certificate["largest_frame"] < 4096
    kernel = chainrule_runtime.load(art.files["net.so"])
    kernel.selftest()
    kernel.init(step.seed)
    for i in range(20):
        assert kernel.step(**feeds) == step(**feeds), f"step {i}"
    for name in kernel.tensors:
        assert kernel.get(name).tobytes() == step.state_dict()[name].tobytes(), name
    if make is fixed:
        with pytest.raises(chainrule_runtime.RuntimeFault, match="predicts nothing"):
            kernel.predict(**feeds)
        return
    inputs = {n: v for n, v in feeds.items() if n != "y"}
    ours, theirs = kernel.predict(**inputs), step.predict(**inputs)
    if make is not attention:
        ours, theirs = {"": ours}, {"": theirs}
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[n], theirs[n]) for n in ours)


def test_a_size_that_nothing_bounds(tmp_path: Path) -> None:
    with pytest.raises(cr.errors.CompileError, match="nothing bounds the size time"):
        attention()[0].export(tmp_path)


def test_models_are_exported(linker: None, tmp_path: Path) -> None:
    random = np.random.default_rng(SEED)
    x = random.standard_normal((32, 5)).astype(np.float32)
    model = cr.Model(cr.nn.Dense(3), "cross_entropy", cr.optim.Adam(1e-3))
    model.build(x, random.integers(0, 3, 32))
    art = model.export(tmp_path, "model", formats=("so", "json", "state"))
    kernel = chainrule_runtime.load(art.files["model.so"])
    kernel.load(art.files["model.state"])
    assert np.array_equal(kernel.predict(x=x), model.predict(x))


def test_an_ensemble_is_refused(tmp_path: Path) -> None:
    x = cr.input("x", (4, 3))
    loss = cr.mean((x @ cr.parameter("w", (3,)) - 1) ** 2)
    step = cr.training_step(loss, cr.optim.SGD(0.1), ensemble=2)
    with pytest.raises(cr.errors.CompileError, match="ensemble"):
        step.export(tmp_path)
