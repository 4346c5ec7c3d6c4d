"""Training that was killed at any instant goes on to the bits of one that never was."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.errors import ArtifactError
from chainrule.train.callbacks import Callback, Checkpoint, EarlyStopping, ReduceLROnPlateau

pytestmark = pytest.mark.usefixtures("compiled_once")

ROOT = Path(__file__).parents[2]
RNG = np.random.default_rng(11)
X = RNG.normal(size=(90, 5)).astype(np.float32)
Y = RNG.integers(0, 4, 90)
VX, VY = X[70:], Y[70:]


def net() -> cr.nn.Sequential:
    return cr.nn.Sequential(
        [cr.nn.Dense(8, "tanh"), cr.nn.BatchNorm(), cr.nn.Dropout(0.3), cr.nn.Dense(4)]
    )


def make(seed: int = 5) -> cr.Model:
    return cr.Model(net(), optimizer="adam", metrics=["accuracy"], threads=1, seed=seed)


def state(model: cr.Model) -> dict[str, bytes]:
    return {n: a.tobytes() for n, a in model.step.state_dict().items()}


class Enough(Exception):
    pass


class Ends(Callback):
    """Ends training as a crash does, after some steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_batch_end(self, batch: int, logs: Any) -> None:
        if self.model.step.steps >= self.step:
            raise Enough


def minibatches() -> list[tuple[Any, ...]]:
    return [(X[i : i + 16], Y[i : i + 16]) for i in range(0, 90, 16)]


class Stream:
    """An iterator that is the same whenever it is made anew."""

    def __init__(self) -> None:
        self.at = 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self.at += 1
        rows = np.random.default_rng(self.at).integers(0, 90, 16)
        return X[rows], Y[rows]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("form", ["arrays", "minibatches", "stream", "file"])
@pytest.mark.parametrize("crash", [4, 6, 9, 13])
def test_resumed_anywhere(form: str, crash: int, tmp_path: Path) -> None:
    """Six steps an epoch, a checkpoint every two: some fall within an epoch, some on its end."""
    np.save(tmp_path / "x.npy", X.astype(np.float64))

    def fit(model: cr.Model, hooks: list[Callback], **options: Any) -> cr.Model:
        hooks = [*hooks, EarlyStopping(patience=9, restore_best_weights=True, monitor="accuracy")]
        given: Any = {"x": X, "y": Y, "batch_size": 16}
        if form == "minibatches":
            given = {"x": minibatches()}
        if form == "stream":
            given = {"x": Stream(), "steps_per_epoch": 6}
        if form == "file":
            mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
            given = {"x": mapped, "y": Y, "batch_size": 16}
        model.history = model.fit(epochs=4, callbacks=hooks, **given, **options)  # type: ignore[attr-defined]
        return model

    path = tmp_path / "c"
    whole = fit(make(), [])
    with pytest.raises(Enough):
        fit(make(), [Checkpoint(path, steps=2), Ends(crash)])
    again = fit(make(seed=77), [], resume=path)
    assert state(again) == state(whole)
    assert again.history.history == whole.history.history  # type: ignore[attr-defined]
    assert again.history.epoch == whole.history.epoch  # type: ignore[attr-defined]


def test_callbacks_go_on_where_they_were(tmp_path: Path) -> None:
    path = tmp_path / "c"

    def fit(model: cr.Model, *more: Callback, **options: Any) -> list[Any]:
        stop = EarlyStopping(patience=6, restore_best_weights=True)
        slow = ReduceLROnPlateau(patience=1, factor=0.5, min_delta=0.05)
        history = model.fit(
            X[:70], Y[:70], epochs=25, validation_data=(VX, VY),
            callbacks=[stop, slow, *more], **options,
        )  # fmt: skip
        return [history.history, stop.stopped_epoch, stop.best_epoch, state(model)]

    wanted = fit(make())
    for crash in (4, 10, 13):
        with pytest.raises(Enough):
            fit(make(), Checkpoint(path), Ends(crash))
        assert fit(make(), resume=path) == wanted
        assert fit(make(), Checkpoint(path, resume=True)) == wanted
    # what has stopped does not go on
    assert fit(make(), resume=path)[0] == wanted[0]


def test_it_begins_where_there_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    one, other = make(), make()
    one.fit(X, Y, epochs=2, callbacks=[Checkpoint(tmp_path / "c", resume=True)])
    other.fit(X, Y, epochs=2)
    assert state(one) == state(other)
    with pytest.raises(ArtifactError, match="can't read"):
        make().fit(X, Y, resume=tmp_path / "d")


def test_what_is_no_checkpoint_of_this_model(tmp_path: Path) -> None:
    path, model = tmp_path / "c", make()
    model.fit(X, Y, epochs=1, callbacks=[Checkpoint(path)])
    other = cr.Model(lambda x: cr.nn.Dense(4)(x), optimizer="adam", threads=1).build(X, Y)
    before = state(other)
    with pytest.raises(ArtifactError) as caught:
        other.fit(X, Y, resume=path)
    assert "batch_norm1.scale" in str(caught.value) and "dense2.weight" in str(caught.value)
    assert state(other) == before
    model.save(path)
    with pytest.raises(ArtifactError, match="not where its training stood"):
        make().fit(X, Y, resume=path)
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[: len(whole) // 2], b"", whole[:-9] + b"?" + whole[-8:]):
        path.write_bytes(damaged)
        for load in (lambda: cr.Model.load(path), lambda: make().fit(X, Y, resume=path)):
            with pytest.raises(ArtifactError, match="can be trusted"):
                load()


PROGRAM = """
import sys, time
import numpy as np
import chainrule as cr

rng = np.random.default_rng(11)
X, Y = rng.normal(size=(90, 5)).astype(np.float32), rng.integers(0, 4, 90)

class Slow(cr.callbacks.Callback):
    def on_batch_end(self, batch, logs):
        print(self.model.step.steps, flush=True)
        time.sleep(0.002)

net = cr.nn.Sequential(
    [cr.nn.Dense(8, "tanh"), cr.nn.BatchNorm(), cr.nn.Dropout(0.3), cr.nn.Dense(4)]
)
model = cr.Model(net, optimizer="adam", metrics=["accuracy"], threads=1, seed=5)
path, out = sys.argv[1:]
hooks = [cr.callbacks.Checkpoint(path, steps=3, resume=True), Slow()]
history = model.fit(X, Y, epochs=30, batch_size=16, callbacks=hooks)
model.save(out)
np.save(out + ".npy", history.history["loss"])
"""


def killed_and_killed_again(tmp_path: Path, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    out = tmp_path / "out"
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'compiler'}:{ROOT / 'runtime'}"}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "c"), str(out)]
    left, reached = kills, 0
    while not out.exists():
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        if left:
            reached = min(180 - 6, reached + chance.randrange(1, 2 + 2 * 180 // kills))
            for line in process.stdout:
                if int(line) >= reached:
                    break
            time.sleep(chance.random() * 0.004)
            process.send_signal(signal.SIGKILL)
            left -= 1
        else:
            process.stdout.read()
        process.stdout.close()
        process.wait(120)
    model = make()
    history = model.fit(X, Y, epochs=30, batch_size=16)
    assert state(cr.Model.load(out)) == state(model), f"seed {seed}"
    assert np.load(f"{out}.npy").tolist() == history.history["loss"]


def test_killed(tmp_path: Path) -> None:
    killed_and_killed_again(tmp_path, 4, seed=int.from_bytes(os.urandom(3), "big"))


@pytest.mark.long
def test_killed_very_often(tmp_path: Path) -> None:
    for i in range(8):
        folder = tmp_path / str(i)
        folder.mkdir()
        killed_and_killed_again(folder, 25, seed=i)


@pytest.mark.parametrize("make_net", [net, lambda: lambda x: cr.nn.Dense(4)(x)])
def test_a_loaded_model_goes_on(make_net: Callable[[], Any], tmp_path: Path) -> None:
    model = cr.Model(make_net(), optimizer=cr.optim.SGD(0.1, momentum=0.9), threads=1)
    model.fit(X, Y, epochs=2)
    model.step.learning_rate = 0.05
    model.save(tmp_path / "m")
    again = cr.Model.load(tmp_path / "m", threads=1)
    np.testing.assert_array_equal(again.predict(X), model.predict(X))
    assert again.evaluate(X, Y) == model.evaluate(X, Y)
    assert again.fit(X, Y, epochs=2).history == model.fit(X, Y, epochs=2).history
    assert state(again) == state(model) and again.step.learning_rate == 0.05
    weights = np.linspace(0, 2, 90)
    a, b = (m.fit(X, Y, sample_weight=weights).history for m in (again, model))
    assert a == b and state(again) == state(model)


def test_other_callbacks_than_before(tmp_path: Path) -> None:
    """State goes by a callback's kind, not by its place in the list."""
    path = tmp_path / "c"
    before, after = EarlyStopping("loss"), EarlyStopping("loss")
    make().fit(X, Y, epochs=2, callbacks=[Checkpoint(path), before])
    again, whole = make(), make()
    again.fit(X, Y, epochs=4, resume=path, callbacks=[ReduceLROnPlateau("accuracy")])
    whole.fit(X, Y, epochs=4)
    assert again.step.steps == whole.step.steps
    make().fit(X, Y, epochs=2, resume=path, callbacks=[ReduceLROnPlateau("loss"), after])
    assert after.state_dict() == before.state_dict() and after.best < 1e9


def test_a_file_can_not_have_other_files_deleted(tmp_path: Path) -> None:
    """What `keep` deletes is named in the checkpoint, which may be anybody's."""
    for folder in ("runs", "elsewhere"):
        (tmp_path / folder).mkdir()
    theirs = [tmp_path / "elsewhere" / "e1.st", tmp_path / "e9.st", tmp_path / "runs" / "notes"]
    own = tmp_path / "runs" / "e1.st"
    for file in (*theirs, own):
        file.write_text("precious")
    keep = Checkpoint(tmp_path / "runs" / "e{epoch}.st", keep=1)
    above = f"{tmp_path}/runs/e/../../e9.st"
    named = "\0".join([*map(str, theirs), above, str(own)]).encode()
    keep.load_state_dict(
        {"best": np.array(0.0), "wait": np.array(0), "written": np.frombuffer(named, np.uint8)}
    )
    make().fit(X, Y, epochs=1, callbacks=[keep])
    assert all(file.read_text() == "precious" for file in theirs)
    make().fit(X, Y, epochs=2, callbacks=[keep])
    assert [p.name for p in sorted((tmp_path / "runs").iterdir())] == ["e2.st", "notes"]
