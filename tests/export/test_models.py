"""Kernels of nets with all that a step can have: several sizes, states, float64, averages."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
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


def recurrent() -> Made:
    """Scans of two kinds over a symbolic batch, a fold over classes that are more than lanes."""
    random = np.random.default_rng(SEED)
    x, y = cr.input("x", ("batch", 5, 3)), cr.input("y", ("batch",), dtype="int32")
    h = cr.nn.GRU(6, return_sequences=True)(x)
    z = cr.nn.Dense(37)(cr.nn.LSTM(7)(h))
    loss = cr.losses.cross_entropy(z, y, label_smoothing=0.1)
    step = cr.training_step(loss, cr.optim.SGD(0.1, momentum=0.9, nesterov=True), outputs=z)
    return step, {
        "x": random.standard_normal((6, 5, 3)).astype(np.float32),
        "y": [0, 36, 2, 3, 4, 5],
    }


KINDS = [attention, images, averages, fixed, recurrent]


@pytest.mark.parametrize("optimize", ["speed", "size"])
@pytest.mark.parametrize("make", KINDS, ids=lambda f: f.__name__)
def test_kernels_of_all_kinds(
    make: Callable[[], Made], optimize: str, linker: None, tmp_path: Path
) -> None:
    step, feeds = make()
    sizes = {"time": 9} if make is attention else {}
    most: dict[str, Any] = {} if make is fixed else {"max_batch": 8, "max_sizes": sizes}
    art = step.export(tmp_path, name="net", formats=("so", "json"), optimize=optimize, **most)
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


def many(count: int | None, seed: int = 5) -> cr.TrainingStep:
    """A net with beginnings of every kind, dropout, a state and Adam; as an ensemble of so many."""
    x, y = cr.input("x", ("batch", 6)), cr.input("y", ("batch",), dtype="int32")
    start = np.array([0.5, -0.25, 0.125], np.float32)
    w = cr.parameter("W", (6, 5), init=cr.init.orthogonal(1.5))
    v = cr.parameter("V", (5, 3), init=cr.init.truncated_normal(0.0, 0.4))
    h = cr.dropout(cr.tanh(x @ w + cr.parameter("b", (5,), init="normal")), 0.2)
    z = (h @ v + cr.parameter("c", (3,), init=start)).named("z")
    hit = cr.mean(cr.astype(cr.equal(cr.argmax(z, axis=1), y), "float32"))
    return cr.training_step(
        cr.losses.cross_entropy(z, y),
        cr.optim.Adam(1e-2),
        metrics={"hit": hit},
        outputs=z,
        ensemble=count,
        seed=seed,
    )


def rows(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.standard_normal((count, 6)).astype(np.float32)
    return {"x": x, "y": random.integers(0, 3, count).astype(np.int32)}


LATER = [pytest.param(*given, marks=pytest.mark.long) for given in ((3, "size"), (1, "speed"))]


@pytest.mark.parametrize(("count", "optimize"), [(3, "speed"), *LATER])
def test_an_ensemble_is_exported(count: int, optimize: str, linker: None, tmp_path: Path) -> None:
    """The bits of the step of all members: beginnings, rates of their own, epochs, predictions."""
    step, names = many(count), ("so", "h", "json", "state", "safetensors")
    art = step.export(tmp_path, "many", formats=names, optimize=optimize, max_batch=16)
    kernel = chainrule_runtime.load(art.files["many.so"])
    kernel.selftest()
    kernel.init(5)
    for name in kernel.tensors:
        assert kernel.get(name).tobytes() == step.state_dict()[name].tobytes(), name
    rates = [0.01 * (i + 1) for i in range(count)]
    kernel.learning_rate = step.learning_rate = rates
    np.testing.assert_array_equal(kernel.learning_rate, step.learning_rate)
    for i in range(4):
        batch = rows(7 + i, seed=i)
        np.testing.assert_array_equal(kernel.step(**batch), step(**batch))
        np.testing.assert_array_equal(kernel.metrics["hit"], step.metrics["hit"])
    losses = kernel.run(**rows(37), batch_size=8, epochs=2)
    np.testing.assert_array_equal(losses, step.run(**rows(37), batch_size=8, epochs=2))
    x = rows(9)["x"]
    np.testing.assert_array_equal(kernel.predict(x=x), step.predict(x=x))
    theirs = step.state_dict()
    for name in kernel.tensors:
        assert kernel.get(name).tobytes() == theirs[name].tobytes(), name
    kernel.load(art.files["many.state"])
    kernel.set("c", kernel.get("c") + 1)
    assert kernel.parameters["W"].shape == (count, 6, 5)
    for wrong in ([0.1] * (count + 1), [-1.0] * count):
        with pytest.raises(chainrule_runtime.FeedError):
            kernel.learning_rate = wrong


def test_what_an_ensemble_has_not(tmp_path: Path) -> None:
    for options in ({"formats": ("rs",)}, {"examples": ("c",), "formats": ("o",)}):
        with pytest.raises(cr.errors.CompileError, match="ensemble"):
            many(2).export(tmp_path, **options)


@pytest.mark.parametrize("make", KINDS, ids=lambda f: f.__name__)
@pytest.mark.skipif(shutil.which("node") is None, reason="no node")
@pytest.mark.skipif(not (find_spec("ziglang") or shutil.which("wasm-ld")), reason="no linker")
def test_little_code_where_addresses_have_32_bits(make: Callable[[], Made], tmp_path: Path) -> None:
    """Numbers on the way to an address fit too: attention's ends of blocks are quotients."""
    sizes = {"time": 9} if make is attention else {}
    most: dict[str, Any] = {} if make is fixed else {"max_batch": 8, "max_sizes": sizes}
    options: dict[str, Any] = {"optimize": "size", "examples": ("js",), **most}
    make()[0].export(tmp_path, "net", target="wasm32", **options)
    subprocess.run(["node", tmp_path / "net_selftest.mjs"], check=True)


def test_hyper_parameters_are_held_to_the_ranges_of_the_step(linker: None, tmp_path: Path) -> None:
    w = cr.parameter("w", (2,), init="ones")
    rule = cr.optim.AdamW(1e-3, weight_decay=0.1, ema=0.9, clip_norm=1.0, clip_value=1.0)
    step = cr.training_step(cr.mean(w**2), rule)
    art = step.export(tmp_path, "net", formats=("so", "json"))
    kernel = chainrule_runtime.load(art.files["net.so"])
    kernel.init()
    numbers = [number["name"] for number in kernel.about["numbers"]]
    assert {"ema", "beta1", "clip_norm", "weight_decay"} <= {*numbers}
    for name in numbers:
        for value in (-np.inf, -1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 1.5, 2.0, np.inf, np.nan):
            taken = []
            for change in (step.hyperparameters.__setitem__, kernel.set_number):
                try:
                    change(name, value)
                except ValueError:  # FeedError is one
                    taken.append(False)
                else:
                    taken.append(True)
            assert taken[0] == taken[1], (name, value, taken)
