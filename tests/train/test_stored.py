"""Models in files: nets of every kind come back to the bit; files that lie are refused."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.errors import ArtifactError, ChainruleError, CompileError
from chainrule.train import checkpoint
from chainrule.train.stored import TEXT

pytestmark = pytest.mark.usefixtures("compiled_once")

RNG = np.random.default_rng(2)
Y = RNG.integers(0, 3, 24)
IMAGES = RNG.normal(size=(24, 2, 8, 8)).astype(np.float32)
ROWS = RNG.normal(size=(24, 6, 4)).astype(np.float32)
WORDS = RNG.integers(0, 20, (24, 6))


def recurrent(x: cr.Tensor) -> cr.Tensor:
    w, u = cr.parameter("w", (4, 5)), cr.parameter("u", (5, 5))
    steps = cr.permute_dims(x, (1, 0, 2))
    last, _ = cr.scan(
        lambda h, row: (cr.tanh(row @ w + h @ u), h), cr.zeros((x.shape[0], 5)), steps
    )
    return cr.nn.Dense(3)(last)


def attentive(x: cr.Tensor) -> cr.Tensor:
    h = cr.nn.Embedding(20, 8)(x)
    h = h + cr.attention(cr.nn.Dense(8)(h), h, h, causal=True)
    return cr.nn.Dense(3)(cr.mean(cr.nn.LayerNorm()(h), axis=1))


def convolved() -> cr.nn.Sequential:
    return cr.nn.Sequential(
        [
            cr.nn.Conv2D(4, 3, activation="relu"),
            cr.nn.BatchNorm(axis=1),
            cr.nn.MaxPool(2),
            cr.nn.Dropout(0.4),
            cr.nn.Flatten(),
            cr.nn.Dense(3),
        ]
    )


NETS: dict[str, tuple[Callable[[], Any], np.ndarray]] = {
    "recurrent": (lambda: recurrent, ROWS),
    "attentive": (lambda: attentive, WORDS),
    "convolved": (convolved, IMAGES),
}


def state(model: cr.Model) -> dict[str, bytes]:
    return {n: a.tobytes() for n, a in model.step.state_dict().items()}


@pytest.mark.parametrize("name", NETS)
def test_a_net_comes_back_to_the_bit(name: str, tmp_path: Path) -> None:
    make, x = NETS[name]
    model = cr.Model(make(), optimizer="adamw", metrics=["accuracy"], threads=1, seed=3)
    model.fit(x, Y, epochs=2, batch_size=8)
    model.save(tmp_path / "m")
    again = cr.Model.load(tmp_path / "m", threads=1)
    np.testing.assert_array_equal(again.predict(x), model.predict(x))
    assert again.evaluate(x, Y) == model.evaluate(x, Y)
    a, b = (m.fit(x, Y, epochs=2, batch_size=8).history for m in (model, again))
    assert a == b and state(model) == state(again)
    assert str(again.loss) == str(model.loss)
    assert again.summary().parameters == model.summary().parameters


def dense(x: cr.Tensor) -> cr.Tensor:
    return cr.nn.Dense(3)(x)


X = ROWS[:, 0]


def trained(**options: Any) -> cr.Model:
    model = cr.Model(dense, **{"threads": 1, **options})
    model.fit(X, Y)
    return model


class Mine(cr.optim.Optimizer):
    def update(self, w: Any, g: Any, state: Any, lr: Any, t: Any) -> Any:
        return w - lr * cr.sign(g), {}


def test_an_optimizer_of_ones_own_is_given_again(tmp_path: Path) -> None:
    model = trained(optimizer=Mine(0.02))
    model.save(tmp_path / "m")
    bare = cr.Model.load(tmp_path / "m")
    np.testing.assert_array_equal(bare.predict(X), model.predict(X))
    assert bare.evaluate(X, Y) == model.evaluate(X, Y)
    with pytest.raises(CompileError, match="trained by Mine"):
        bare.fit(X, Y)
    with pytest.raises(CompileError, match="trained by Mine"):
        bare.partial_fit(X, Y)
    whole = cr.Model.load(tmp_path / "m", optimizer=Mine(1.0), threads=1)
    whole.fit(X, Y), model.fit(X, Y)
    assert state(whole) == state(model)


@pytest.mark.parametrize(
    "optimizer",
    [
        cr.optim.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        cr.optim.Adam(0.01, betas=(0.8, 0.99), eps=1e-6, clip_norm=1.0, ema=0.9),
        cr.optim.RMSprop(0.01),
        cr.optim.Lion(0.001),
        cr.optim.NAdam(0.01),
        cr.optim.Adagrad(0.01, clip_value=0.5),
        cr.optim.Adadelta(1.0, accumulate=2),
        cr.optim.SGD(cr.schedules.cosine(0.1, steps=9)),
        cr.optim.AdamW(lambda t: 0.01 / cr.sqrt(t.astype("float32"))),
    ],
    ids=lambda o: type(o).__name__,
)
def test_optimizers_come_back(optimizer: Any, tmp_path: Path) -> None:
    model = trained(optimizer=optimizer)
    model.save(tmp_path / "m")
    again = cr.Model.load(tmp_path / "m", threads=1)
    kept = {n: v for n, v in vars(optimizer).items() if not callable(v)}
    assert kept.items() <= vars(again.optimizer).items()
    again.fit(X, Y, epochs=2), model.fit(X, Y, epochs=2)
    assert state(again) == state(model)


def groups(rest: Any = None, bias: Any = None, members: Any = "*.bias", **common: Any) -> Any:
    rest = cr.optim.AdamW(0.01) if rest is None else rest
    bias = cr.optim.SGD(0.1, momentum=0.9) if bias is None else bias
    return cr.optim.Groups(rest, {members: bias}, **common)


PLAIN = {"backend": "reference"}  # what a file holds does not depend on it, and it begins at once


@pytest.mark.parametrize(
    "options",
    [
        {"members": ("nothing", "dense?.b[i]as"), "clip_norm": 1.0, "accumulate": 2, "ema": 0.9},
        {"rest": cr.optim.SGD(cr.schedules.cosine(0.1, steps=9)), "bias": cr.optim.Lion(0.001)},
        {"bias": cr.optim.SGD(lambda t: 0.1 / t.astype("float32"))},
    ],
    ids=["options", "schedule", "function"],
)
def test_groups_come_back(options: Any, tmp_path: Path) -> None:
    model = trained(optimizer=groups(**options), **PLAIN)
    model.save(tmp_path / "m")
    again = cr.Model.load(tmp_path / "m", **PLAIN)
    again.fit(X, Y, epochs=2), model.fit(X, Y, epochs=2)
    assert state(again) == state(model)


def test_a_group_of_a_parameter_comes_back(tmp_path: Path) -> None:
    w = cr.parameter("w[0]*", (4, 3))
    first = cr.parameter("w0", (4, 3))
    model = cr.Model(lambda x: x @ first + x @ w, optimizer=groups(members=w), **PLAIN)
    model.fit(X, Y)
    model.save(tmp_path / "m")
    again = cr.Model.load(tmp_path / "m", **PLAIN)
    again.fit(X, Y), model.fit(X, Y)
    assert state(again) == state(model)


def test_groups_with_an_optimizer_of_ones_own_are_given_again(tmp_path: Path) -> None:
    trained(optimizer=groups(bias=Mine(0.1)), **PLAIN).save(tmp_path / "m")
    with pytest.raises(CompileError, match="trained by Groups, which its file"):
        cr.Model.load(tmp_path / "m", **PLAIN).fit(X, Y)
    cr.Model.load(tmp_path / "m", optimizer=groups(bias=Mine(0.1)), **PLAIN).fit(X, Y)


def test_what_is_asked_of_a_file_is_looked_at_first() -> None:
    for bad, said in (
        ({"backend": "tpu"}, "no backend 'tpu'"),
        ({"threads": 0}, "threads is None or an int"),
        ({"optimizer": "adm"}, "no optimizer called 'adm'"),
    ):
        with pytest.raises(CompileError, match=said):
            cr.Model.load("there is no such file", **bad)  # type: ignore[arg-type]


def test_a_model_is_copied_and_pickled() -> None:
    model = trained()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(other.predict(X), model.predict(X))
        assert state(other) == state(model)
    with pytest.raises(CompileError, match="not seen data"):
        pickle.dumps(cr.Model(dense))


def test_a_step_reads_what_a_model_wrote(tmp_path: Path) -> None:
    model = trained()
    model.save(tmp_path / "m")
    other = cr.Model(dense, threads=1, seed=9).build(X, Y)
    other.step.load(tmp_path / "m")
    assert state(other) == state(model)
    other.step.save(tmp_path / "s")
    with pytest.raises(ArtifactError, match="and no model"):
        cr.Model.load(tmp_path / "s")


def test_a_python_function_is_not_saved(tmp_path: Path) -> None:
    double = cr.custom_derivative(lambda x: x * 2.0, lambda ct, out, x: ct * 2.0)
    model = cr.Model(lambda x: double(dense(x)), threads=1)
    model.fit(X, Y, callbacks=[cr.callbacks.Checkpoint(tmp_path / "c")])
    with pytest.raises(ArtifactError, match="Python function"):
        model.save(tmp_path / "m")
    assert not (tmp_path / "m").exists()
    again = cr.Model(lambda x: double(dense(x)), threads=1)
    again.fit(X, Y, epochs=2, resume=tmp_path / "c")
    model.fit(X, Y)
    assert state(again) == state(model)


def lie(path: Path, change: Callable[[dict[str, Any], dict[str, np.ndarray]], object]) -> None:
    """Change what a file says, under a digest that is right."""
    arrays = checkpoint.read(path)
    whole = json.loads(arrays[TEXT].tobytes())
    change(whole, arrays)
    if TEXT in arrays:
        arrays[TEXT] = np.frombuffer(json.dumps(whole).encode(), np.uint8)
    checkpoint.write(path, arrays)


LIES: list[Callable[[Any, Any], object]] = [
    lambda w, a: w.update(version=2),
    lambda w, a: w.update(more=1),
    lambda w, a: w.pop("loss"),
    lambda w, a: w.update(loss=10**6),
    lambda w, a: w.update(loss=None),
    lambda w, a: w.update(inputs=[0]),
    lambda w, a: w.update(inputs={"z": w["inputs"]["x"]}),
    lambda w, a: w.update(target=w["loss"]),
    lambda w, a: w.update(optimizer={"kind": "os.system", "numbers": {}}),
    lambda w, a: w.update(optimizer={"kind": "Adam", "numbers": {"lr": 1}}),
    lambda w, a: w["optimizer"]["numbers"].update(beta1=2.0),
    lambda w, a: w["optimizer"]["numbers"].update(eps="1"),
    lambda w, a: w.update(schedule={"base": 1.0}),
    lambda w, a: w.update(schedule={"base": 1.0, "t": 0, "float32": 0, "float64": 0}),
    lambda w, a: w.update(seed=-1),
    lambda w, a: w.update(seed="x"),
    lambda w, a: w.update(dtype="int32"),
    lambda w, a: w.update(trained=["nothing"]),
    lambda w, a: w.update(graph=3),
    lambda w, a: w["graph"].pop(0),
    lambda w, a: a.update({"dense1.weight": np.zeros((4, 4), np.float32)}),
    lambda w, a: a.update({"dense1.weight": a["dense1.weight"].astype(np.float64)}),
    lambda w, a: a.pop("dense1.bias"),
    lambda w, a: a.pop("optimizer.m.dense1.bias"),
    lambda w, a: a.update({"training.epoch": np.array(-1)}),
    lambda w, a: a.update({"more": np.zeros(3)}),
]


#: of the optimizer of a model that has groups
GROUP_LIES: list[Callable[[Any], object]] = [
    lambda o: o.pop("groups"),
    lambda o: o.pop("members"),
    lambda o: o["members"].pop(),
    lambda o: o.update(members=[], groups=[]),
    lambda o: o["members"][1].pop("numbers"),
    lambda o: o["members"].__setitem__(0, json.loads(json.dumps(o))),
    lambda o: o.update(groups=[["nothing"]]),
    lambda o: o.update(groups=[[3]]),
    lambda o: o["numbers"].pop("ema"),
    lambda o: o["numbers"].update(ema=2.0),
    lambda o: o["numbers"].update(accumulate=1.5),
    lambda o: o["members"][1]["numbers"].update(clip_norm=1.0),
]


@pytest.mark.parametrize("number", range(len(LIES)))
def test_files_that_lie(number: int, tmp_path: Path) -> None:
    path = tmp_path / "m"
    trained().save(path)
    lie(path, LIES[number])
    with pytest.raises(ArtifactError, match="m holds no model"):
        cr.Model.load(path)


def test_files_that_lie_about_groups(tmp_path: Path) -> None:
    trained(optimizer=groups(), **PLAIN).save(tmp_path / "m")
    true = (tmp_path / "m").read_bytes()
    for change in GROUP_LIES:
        (tmp_path / "m").write_bytes(true)
        lie(tmp_path / "m", lambda w, a, change=change: change(w["optimizer"]))
        with pytest.raises(ArtifactError, match="m holds no model"):
            cr.Model.load(tmp_path / "m", **PLAIN)


def test_text_that_is_changed_anywhere(tmp_path: Path) -> None:
    """Bytes of the text changed at random: an ArtifactError, or a model that computes."""
    path = tmp_path / "m"
    trained().save(path)
    arrays = checkpoint.read(path)
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    rng = np.random.default_rng(seed)
    refused = 0
    for _ in range(25):
        text = arrays[TEXT].copy()
        at = rng.integers(0, len(text), 2)
        text[at] = rng.choice(list(b'0123456789[]{},:"x-'), 2)
        checkpoint.write(path, {**arrays, TEXT: text})
        try:
            cr.Model.load(path, backend="reference").predict(X)
        except ArtifactError:
            refused += 1
        except ChainruleError:
            continue  # it computes something else now, which may not take this data
    assert refused > 5, f"seed {seed}"
