"""Callbacks: what they are told, what they change, what they leave when something goes wrong."""

from __future__ import annotations

import csv
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.errors import ArtifactError, CompileError, FeedError
from chainrule.train.callbacks import (
    Callback,
    Checkpoint,
    CSVLog,
    EarlyStopping,
    JSONLog,
    LRSchedule,
    ReduceLROnPlateau,
    TensorBoard,
)

pytestmark = pytest.mark.usefixtures("compiled_once")

RNG = np.random.default_rng(3)
X = RNG.normal(size=(60, 5)).astype(np.float32)
Y = RNG.integers(0, 4, 60)


def make(lr: float = 1e-2) -> cr.Model:
    def net(x: cr.Tensor) -> cr.Tensor:
        return cr.tanh(x @ cr.parameter("w", (5, 6))) @ cr.parameter("v", (6, 4))

    return cr.Model(net, optimizer=cr.optim.Adam(lr), metrics=["accuracy"], threads=1)


class Says(Callback):
    """Stands for a validation whose loss is told beforehand."""

    def __init__(self, *values: float) -> None:
        self.values = values

    def on_epoch_end(self, epoch: int, logs: Any) -> None:
        logs["val_loss"] = self.values[epoch]


class Keeps(Callback):
    """Keeps the weights of every epoch."""

    def __init__(self) -> None:
        self.weights: list[dict[str, np.ndarray]] = []

    def on_epoch_end(self, epoch: int, logs: Any) -> None:
        self.weights.append(self.model.weights())


@pytest.mark.parametrize(
    ("options", "values", "stopped", "best"),
    [
        ({}, [3, 2, 1, 1.5, 0], 3, 2),
        ({"patience": 2}, [3, 2, 2.5, 1, 4, 5, 0], 5, 3),
        ({"patience": 1, "min_delta": 0.5}, [3, 2.8, 2.6, 0], 1, 0),
        ({"mode": "max"}, [1, 2, 1.5, 3], 2, 1),
        ({"patience": 9}, [3, 2, 1], None, 2),
    ],
)
def test_early_stopping(
    options: dict[str, Any], values: list[float], stopped: int | None, best: int
) -> None:
    stop, keeps = EarlyStopping(restore_best_weights=True, **options), Keeps()
    model = make()
    history = model.fit(X, Y, epochs=len(values), callbacks=[Says(*values), stop, keeps])
    assert stop.stopped_epoch == stopped and stop.best_epoch == best
    assert len(history.epoch) == (len(values) if stopped is None else stopped + 1)
    for name, array in model.weights().items():
        np.testing.assert_array_equal(array, keeps.weights[best][name])


def test_auto_knows_what_is_better() -> None:
    for monitor, values, best in [("val_accuracy", (1, 3, 2), 1), ("val_loss", (1, 3, 2), 0)]:
        stop = EarlyStopping(monitor, patience=9)

        class Gives(Callback):
            def on_epoch_end(self, epoch: int, logs: Any) -> None:
                logs[monitor] = values[epoch]  # noqa: B023

        make().fit(X, Y, epochs=3, callbacks=[Gives(), stop])
        assert stop.best_epoch == best


def test_it_watches_what_is_there() -> None:
    with pytest.raises(CompileError, match=r"(?s)watches 'val_loss'.*loss, accuracy"):
        make().fit(X, Y, epochs=2, callbacks=[EarlyStopping()])
    with pytest.raises(CompileError, match="mode"):
        EarlyStopping(mode="sideways")


def test_the_learning_rate_follows_a_schedule() -> None:
    rates: list[float] = []

    class Sees(Callback):
        def on_epoch_end(self, epoch: int, logs: Any) -> None:
            rates.append(self.model.step.learning_rate)

    make().fit(X, Y, epochs=3, callbacks=[LRSchedule(lambda e: 0.1 / (e + 1)), Sees()])
    assert rates == pytest.approx([0.1, 0.05, 0.1 / 3])
    make(0.4).fit(X, Y, epochs=3, callbacks=[LRSchedule(lambda e, rate: rate / 2), Sees()])
    assert rates[3:] == pytest.approx([0.2, 0.1, 0.05])


@pytest.mark.parametrize(
    "bad", [0.1, "cosine", lambda: 0.1, lambda a, b, c: 0.1, cr.schedules.cosine(0.1, steps=3)]
)
def test_what_is_no_function_of_the_epoch(bad: Any) -> None:
    with pytest.raises(cr.errors.CompileError, match="function of the epoch"):
        LRSchedule(bad)


def test_what_is_no_callback_and_what_has_no_name() -> None:
    for bad in (3, "csv", [3], EarlyStopping):
        with pytest.raises(cr.errors.CompileError, match="a callback is an object"):
            make().fit(X, Y, callbacks=bad)  # type: ignore[arg-type]
    with pytest.raises(cr.errors.CompileError, match="monitor is the name of a number"):
        EarlyStopping(3)  # type: ignore[arg-type]
    with pytest.raises(cr.errors.CompileError, match="mode is"):
        EarlyStopping(mode=np.array(["min", "max"]))  # type: ignore[arg-type]


def test_a_rate_that_is_none_and_errors_of_a_schedule_itself() -> None:
    def wrong(epoch: int) -> float:
        return epoch + "1"  # type: ignore[operator]

    model = make()
    with pytest.raises(TypeError, match="unsupported operand"):
        model.fit(X, Y, callbacks=[LRSchedule(wrong)])
    for bad in (None, "0.1", float("nan"), -1.0, np.ones(2), True):
        with pytest.raises(cr.errors.FeedError, match="LRSchedule gave for epoch 0"):
            model.fit(X, Y, callbacks=[LRSchedule(lambda e, bad=bad: bad)])


@pytest.mark.parametrize(
    ("options", "values", "rates"),
    [
        ({"patience": 1}, [3, 3, 3, 1, 1], [1, 0.1, 0.01, 0.01, 0.001]),
        ({"patience": 2, "factor": 0.5}, [3, 3, 3, 3, 3], [1, 1, 0.5, 0.5, 0.25]),
        ({"patience": 1, "cooldown": 2}, [3, 3, 3, 3, 3, 3], [1, 0.1, 0.1, 0.01, 0.01, 0.001]),
        ({"patience": 1, "min_lr": 0.05}, [3, 3, 3], [1, 0.1, 0.05]),
        ({"patience": 1, "min_delta": 0.5}, [3, 2.9, 2], [1, 0.1, 0.1]),
    ],
)
def test_reduce_on_plateau(
    options: dict[str, Any], values: list[float], rates: list[float]
) -> None:
    """By hand from Keras' rules: in the cool-down nothing is counted, in its last epoch it is."""
    found: list[float] = []

    class Sees(Callback):
        def on_epoch_end(self, epoch: int, logs: Any) -> None:
            found.append(self.model.step.learning_rate)

    hooks = [Says(*values), ReduceLROnPlateau(**options), Sees()]
    make(1.0).fit(X, Y, epochs=len(values), callbacks=hooks)
    assert found == pytest.approx(rates)


def test_logs(tmp_path: Path) -> None:
    table, lines = tmp_path / "log.csv", tmp_path / "log.jsonl"
    hooks = [CSVLog(table), JSONLog(lines, steps=2)]
    history = make().fit(X, Y, epochs=2, batch_size=16, callbacks=hooks)
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(r["loss"]) for r in rows] == history.history["loss"]
    assert list(rows[0]) == ["epoch", "loss", "accuracy"]
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [r.get("step") for r in records] == [2, 4, None, 6, 8, None]
    assert [r["loss"] for r in records if "step" not in r] == history.history["loss"]
    make().fit(X, Y, epochs=1, callbacks=[CSVLog(table, append=True)])
    assert len(table.read_text().splitlines()) == 4
    make().fit(X, Y, epochs=1, callbacks=[CSVLog(table)])
    assert len(table.read_text().splitlines()) == 2


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = make().fit(X, Y, epochs=3, callbacks=[TensorBoard(tmp_path, histograms=True)])
    found = EventAccumulator(str(tmp_path), {"histograms": 0})
    found.Reload()
    events = found.Scalars("loss")
    assert [e.step for e in events] == [0, 1, 2]
    # kept as float32
    np.testing.assert_allclose([e.value for e in events], history.history["loss"], rtol=1e-6)
    (first, *_) = found.Histograms("w")
    assert first.histogram_value.num == 30


def test_what_a_callback_raises_comes_through(tmp_path: Path) -> None:
    class Breaks(Callback):
        closed = False

        def on_batch_end(self, batch: int, logs: Any) -> None:
            if batch == 2:
                raise KeyError("mine")

        def close(self) -> None:
            self.closed = True

    model, other, breaks = make(), make(), Breaks()
    with pytest.raises(KeyError) as caught:
        model.fit(X, Y, batch_size=10, shuffle=False, callbacks=[breaks])
    assert "in step 3 of training, epoch 0" in "".join(caught.value.__notes__)
    assert breaks.closed and model.step.steps == 3
    other.fit(X[:30], Y[:30], batch_size=10, shuffle=False)
    for name, array in model.weights().items():
        np.testing.assert_array_equal(array, other.weights()[name])


def test_stopped_from_outside() -> None:
    class Stops(Callback):
        def on_epoch_end(self, epoch: int, logs: Any) -> None:
            self.model.stop_training = epoch == 1

    assert make().fit(X, Y, epochs=9, callbacks=[Stops()]).epoch == [0, 1]


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize("form", ["arrays", "minibatches"])
def test_ctrl_c_comes_through_at_the_end_of_a_step(form: str) -> None:
    model = make()
    model.fit(X, Y)
    given: Any = (X, Y) if form == "arrays" else ([(X, Y)] * 1000,)
    sent: list[float] = []

    def interrupt() -> None:
        time.sleep(0.3)
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may ignore it
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            model.fit(*given, epochs=10**6)
    finally:
        signal.signal(signal.SIGINT, before)
    late = time.monotonic() - sent[0]
    thread.join()
    assert late < 10  # 0.2 s on a machine that has nothing else to do; hours to its end
    assert model.step.steps > 0 and all(np.isfinite(a).all() for a in model.weights().values())
    assert not [t for t in threading.enumerate() if t.name == "chainrule-prefetch"]
    model.fit(X, Y)


def test_checkpoints_are_kept_as_told(tmp_path: Path) -> None:
    model = make()
    path = str(tmp_path / "{epoch:02d}-{loss:.1f}.safetensors")
    model.fit(X, Y, epochs=5, callbacks=[Checkpoint(path, keep=2)])
    assert [p.name[:2] for p in sorted(tmp_path.iterdir())] == ["04", "05"]
    best = tmp_path / "best"
    hooks = [Says(3, 1, 2, 1, 0.5), Checkpoint(best, save_best_only=True), Keeps()]
    model = make()
    model.fit(X, Y, epochs=3, callbacks=hooks)
    kept = hooks[2].weights[1]  # type: ignore[union-attr]
    for name, array in cr.Model.load(best).weights().items():
        np.testing.assert_array_equal(array, kept[name])
    steps = str(tmp_path / "s{step}")
    make().fit(X, Y, epochs=2, batch_size=20, callbacks=[Checkpoint(steps, steps=2)])
    assert sorted(p.name for p in tmp_path.glob("s*")) == ["s2", "s4", "s6"]
    for options, error, text in [
        ({"steps": 0}, FeedError, "steps"),
        ({"keep": 1.5}, FeedError, "keep"),
        ({"resume": True}, FeedError, "one file"),
    ]:
        with pytest.raises(error, match=text):
            Checkpoint(steps, **options)
    for made in (Checkpoint, CSVLog, JSONLog, TensorBoard):
        with pytest.raises(FeedError, match="is a path, not 3"):
            made(3)
    with pytest.raises(ArtifactError, match="can't be filled in"):
        make().fit(X, Y, callbacks=[Checkpoint(str(tmp_path / "{nothing}"))])
    with pytest.raises(ArtifactError, match="can't write"):
        make().fit(X, Y, callbacks=[Checkpoint(tmp_path / "no" / "such")])


@pytest.mark.parametrize(
    ("make_one", "name"),
    [
        (lambda: EarlyStopping(patience=-1), "patience"),
        (lambda: EarlyStopping(patience=1.5), "patience"),
        (lambda: EarlyStopping(min_delta="a"), "min_delta"),
        (lambda: ReduceLROnPlateau(patience=None), "patience"),
        (lambda: ReduceLROnPlateau(factor="a"), "factor"),
        (lambda: ReduceLROnPlateau(factor=1.0), "factor"),
        (lambda: ReduceLROnPlateau(cooldown=-1), "cooldown"),
        (lambda: ReduceLROnPlateau(min_lr=-1.0), "min_lr"),
    ],
)
def test_numbers_of_callbacks_are_checked(make_one: Any, name: str) -> None:
    with pytest.raises(FeedError, match=f"^{name} is"):
        make_one()
