"""`run`: the same bits as single steps, resumable, and interruptible at a step's end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import chainrule as cr
from chainrule.errors import ArtifactError, CompileError, FeedError, NonFiniteError
from chainrule.nn import losses, optim
from chainrule.ops.philox import permutation
from chainrule.train import TrainingStep, training_step

pytestmark = pytest.mark.usefixtures("compiled_once")

Make = Callable[..., TrainingStep]
Data = dict[str, np.ndarray]
ROOT = Path(__file__).parents[2]


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(a[n].tobytes() == b[n].tobytes() for n in a)


def alone(program: str) -> subprocess.CompletedProcess[str]:
    """A program run in a process of its own."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'compiler'}:{ROOT / 'runtime'}"}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batch_size", [1, 7, 16, 50, 1000])
def test_run_is_the_single_steps(
    make: Make, data: Data, backend: str, batch_size: int, shuffle: bool
) -> None:
    one, other = make(backend=backend, seed=5), make(backend=backend, seed=5)
    losses_of_run = one.run(**data, batch_size=batch_size, epochs=2, shuffle=shuffle)
    found, accuracy = [], []
    for epoch in range(2):
        order = permutation(5, epoch, 50) if shuffle else np.arange(50)
        for start in range(0, 50, batch_size):
            rows = order[start : start + batch_size]
            found.append(other(**{k: v[rows] for k, v in data.items()}))
            accuracy.append(other.metrics["accuracy"])
    assert losses_of_run.tolist() == found and losses_of_run.dtype == np.float32
    assert one.metrics["accuracy"].tolist() == accuracy
    assert len(found) == 2 * -(-50 // batch_size)
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.pop("training.epoch") == 2 and theirs.pop("training.epoch") == 0
    assert same(ours, theirs)


def test_a_prefix_of_the_data_is_no_other_data(make: Make, data: Data) -> None:
    """Feeds that have to be converted run as those that fit already."""
    one, other = make(), make()
    a = one.run(**data, batch_size=8)
    b = other.run(
        x=data["x"].astype(np.float64)[:, ::-1][:, ::-1], y=data["y"].tolist(), batch_size=8
    )
    np.testing.assert_array_equal(a, b)


def test_many_epochs_go_in_several_calls(
    make: Make, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = make(), make()
    a = one.run(**data, batch_size=16, epochs=7)
    monkeypatch.setattr("chainrule.train.epochs._ROW_LIMIT", 150)
    b = other.run(**data, batch_size=16, epochs=7)
    np.testing.assert_array_equal(a, b)
    assert same(one.state_dict(), other.state_dict())


def test_runs_of_changing_form(make: Make, data: Data) -> None:
    """What a run keeps for the next one never shows: each is as that of a step that ran nothing."""
    one = make(seed=5)
    for rows, batch_size, shuffle in [
        (50, 16, True),
        (50, 16, False),
        (50, 16, True),
        (20, 16, True),
        (20, 7, True),
        (50, 16, False),
    ]:
        part = {name: a[-rows:].copy() for name, a in data.items()}
        other = make(seed=5)
        other.load_state_dict(one.state_dict())
        options = {"batch_size": batch_size, "shuffle": shuffle, "epochs": 2}
        np.testing.assert_array_equal(one.run(**part, **options), other.run(**part, **options))
        assert one(**part) == other(**part)
        assert one.metrics == other.metrics
        assert same(one.state_dict(), other.state_dict())


def test_a_run_keeps_no_hold_of_its_data(make: Make, data: Data) -> None:
    step, own = make(), {name: a.copy() for name, a in data.items()}
    alive = [weakref.ref(a) for a in own.values()]
    step.run(**own)
    del own
    assert [a() for a in alive] == [None, None]


def test_nothing_to_run(make: Make, data: Data, backend: str) -> None:
    step = make(backend=backend)
    before = step.state_dict()
    assert step.run(**data, epochs=0).shape == (0,)
    assert step.metrics["accuracy"].shape == (0,)
    for options, text in [
        ({"batch_size": 0}, "batch_size is an int from 1 on, not 0"),
        ({"batch_size": -1}, "batch_size"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"batch_size": True}, "batch_size"),
        ({"epochs": -1}, "epochs"),
        ({"epochs": 1.0}, "epochs"),
        ({"shuffle": "no"}, "shuffle is True or False, not 'no'"),
        ({"shuffle": np.array([1, 2])}, "shuffle"),
    ]:
        with pytest.raises(FeedError, match=text):
            step.run(**data, **options)
    with pytest.raises(FeedError, match="0 rows"):
        step.run(x=data["x"][:0], y=data["y"][:0])
    with pytest.raises(FeedError, match="x has 50, y has 49"):
        step.run(x=data["x"], y=data["y"][:49])
    with pytest.raises(FeedError, match="not 6"):
        step.run(x=data["x"][:, :5], y=data["y"])
    with pytest.raises(FeedError, match="axes"):
        step.run(x=np.float32(1), y=data["y"])
    assert same(step.state_dict(), before)


def test_inputs_without_rows_are_whole(data: Data, backend: str) -> None:
    x, scale = cr.input("x", ("batch", 6)), cr.input("scale", (6,))
    w = cr.parameter("w", (6,))
    loss = cr.mean(((x * scale) @ w - 1.0) ** 2)
    one, other = (training_step(loss, optim.SGD(0.1), backend=backend) for _ in range(2))
    half = np.full(6, 0.5, np.float32)
    a = one.run(x=data["x"], scale=half, batch_size=20, shuffle=False)
    b = [other(x=data["x"][i : i + 20], scale=half) for i in (0, 20, 40)]
    assert a.tolist() == b


def test_no_input_has_rows(backend: str) -> None:
    x, w = cr.input("x", (3,)), cr.parameter("w", (3,))
    step = training_step(cr.sum((w - x) ** 2), optim.SGD(0.1), backend=backend)
    assert step.run(x=np.ones(3), epochs=4).shape == (4,) and step.steps == 4
    lone = training_step(cr.sum(w**2), optim.SGD(0.1), backend=backend)
    assert len(lone.run(epochs=3)) == 3


def test_an_input_called_like_an_option() -> None:
    x, w = cr.input("epochs", ("n", 3)), cr.parameter("w", (3,))
    step = training_step(cr.mean(x @ w), optim.SGD(0.1))
    step(epochs=np.ones((2, 3)))
    with pytest.raises(CompileError, match="'epochs'"):
        step.run(epochs=1)


def test_data_without_names_is_refused_as_in_a_single_step(make: Make, data: Data) -> None:
    step = make()
    for train in (step, step.run, step.predict):
        with pytest.raises(FeedError, match="2 inputs are given without their names"):
            train(*data.values())


def test_saved_and_resumed_is_uninterrupted(
    make: Make, data: Data, backend: str, tmp_path: Path
) -> None:
    whole, first, second = (
        make(backend=backend),
        make(backend=backend),
        make(backend=backend, seed=9),
    )
    path = tmp_path / "step.safetensors"
    a = whole.run(**data, batch_size=16, epochs=4)
    b = first.run(**data, batch_size=16, epochs=2)
    first.learning_rate = 1e-2
    first.save(path)
    second.learning_rate = 7.0
    second.load(path)
    c = second.run(**data, batch_size=16, epochs=2)
    np.testing.assert_array_equal(a, np.concatenate([b, c]))
    assert same(whole.state_dict(), second.state_dict())
    assert second.steps == 16 and second.learning_rate == 1e-2 and second.seed == whole.seed
    assert os.listdir(tmp_path) == ["step.safetensors"]


def test_a_failing_step_keeps_what_came_before(make: Make, data: Data, backend: str) -> None:
    one, other = make(backend=backend), make(backend=backend)
    x = data["x"].copy()
    x[33, 0] = np.nan
    with pytest.raises(NonFiniteError, match="loss is nan in step 5, counted from 1"):
        one.run(x=x, y=data["y"], batch_size=8, epochs=3, shuffle=False)
    other.run(x=x[:32], y=data["y"][:32], batch_size=8, shuffle=False)
    assert same(one.state_dict(), other.state_dict())


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_labels_under_another_shape_are_tested_first(order: tuple[int, int], backend: str) -> None:
    """As those that are fed just so: before the first step, naming the value and its place."""
    x, y = cr.input("x", ("batch", 3, 4)), cr.input("y", ("batch", 3), dtype="int32")
    z = cr.permute_dims(x @ cr.parameter("W", (4, 5)), (*order, 2))
    labels = cr.reshape(cr.permute_dims(y, order), (-1,))
    loss = cr.losses.cross_entropy(cr.reshape(z, (-1, 5)), labels)
    step = training_step(loss, cr.optim.SGD(0.1), backend=backend)
    before = step.parameters["W"].copy()
    data = {"x": np.ones((6, 3, 4), np.float32), "y": np.zeros((6, 3), np.int32)}
    data["y"][4, 1] = 7
    for train in (step, partial(step.run, batch_size=2)):
        with pytest.raises(FeedError, match=r"(?s)y holds 7, .*only 0 to 4.*at \[4, 1\]"):
            train(**data)
        np.testing.assert_array_equal(step.parameters["W"], before)


def test_positions_that_are_computed(backend: str) -> None:
    rows, w = cr.input("rows", ("n",), dtype="int32"), cr.parameter("w", (10, 2))
    step = training_step(
        cr.mean(cr.take(w, rows + 1, axis=0) ** 2), optim.SGD(0.1), backend=backend
    )
    step(rows=[0, 8])
    before = step.state_dict()
    with pytest.raises(FeedError, match="10"):
        step(rows=[0, 9])
    with pytest.raises(FeedError):
        step.run(rows=[0, 1, 2, -12], batch_size=4)
    assert same(step.state_dict(), before)


def test_run_outside_the_main_thread(make: Make, data: Data) -> None:
    one, other = make(), make()
    found: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: found.append(one.run(**data, epochs=3)))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(found[0], other.run(**data, epochs=3))


def test_a_signal_that_raises(make: Make, data: Data) -> None:
    """What any handler raises comes through at the end of a step, long before that of the run."""

    class Alarm(Exception):
        pass

    def ring(*_: object) -> None:
        raise Alarm

    step = make()
    before = signal.signal(signal.SIGALRM, ring)
    try:
        for delay in (0.0005, 0.01, 0.1):
            with pytest.raises(Alarm):  # noqa: PT012 (it may be raised anywhere from here on)
                signal.setitimer(signal.ITIMER_REAL, delay)
                start = time.perf_counter()
                step.run(**data, batch_size=1, epochs=10**9, shuffle=False)
            assert time.perf_counter() - start < 10, "days, if it went on to its end"
            assert step.steps == step.state_dict()["optimizer.step"]
            step.run(**data)
    finally:
        signal.signal(signal.SIGALRM, before)


INTERRUPTED = """
    import os, signal, sys, threading, time
    import numpy as np
    import chainrule as cr
    from chainrule.nn import losses, optim
    from chainrule.train import training_step

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
    x, y = cr.input("x", ("n", 8)), cr.input("y", ("n",), dtype="int32")
    w = cr.parameter("w", (8, 4))
    step = training_step(losses.cross_entropy(x @ w, y), optim.Adam(1e-3))
    other = training_step(losses.cross_entropy(x @ w, y), optim.Adam(1e-3))
    X, Y = np.ones((64, 8), np.float32), np.zeros(64, np.int32)
    sent = []

    def interrupt():
        time.sleep(0.5)
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    try:
        step.run(x=X, y=Y, batch_size=8, epochs=10**7, shuffle=False)
        sys.exit("it ended by itself")
    except KeyboardInterrupt:
        late = time.perf_counter() - sent[0]
    other.run(x=X, y=Y, batch_size=8, epochs=step.steps // 8, shuffle=False)
    for _ in range(step.steps % 8):
        other(x=X[:8], y=Y[:8])
    same = all((step.parameters[n] == other.parameters[n]).all() for n in step.parameters)
    print(late < 10, same, step.steps > 100, len(step.run(x=X, y=Y)))
"""


def test_ctrl_c() -> None:
    done = alone(INTERRUPTED)
    assert done.stdout.split() == ["True", "True", "True", "2"], done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_trains_to_the_same_bits(make: Make, data: Data, tmp_path: Path) -> None:
    step = make()
    step.run(**data)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        step.run(**data)
        step.save(tmp_path / "child.safetensors")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    step.run(**data)
    theirs = make()
    theirs.load(tmp_path / "child.safetensors")
    assert same(step.state_dict(), theirs.state_dict())


def test_one_compilation_serves_every_batch(data: Data) -> None:
    x, w = cr.input("x", ("batch", 6)), cr.parameter("w", (6,))
    loss = losses.mse(x @ w, cr.broadcast_to(cr.constant(np.float32(1)), (x.shape[0],)))
    native = training_step(loss, optim.SGD(0.1))
    reference = training_step(loss, optim.SGD(0.1), backend="reference")
    rng = np.random.default_rng(3)
    for n in (1, 2, 3, 8, 31, 64, 4096, 5):
        batch = rng.normal(size=(n, 6))
        assert native(x=batch) == pytest.approx(reference(x=batch), rel=1e-5)


def test_errors_name_the_file(make: Make, tmp_path: Path) -> None:
    step = make()
    with pytest.raises(ArtifactError, match=r"none\.safetensors"):
        step.load(tmp_path / "none.safetensors")
    with pytest.raises(ArtifactError, match="no file"):
        step.load(tmp_path)
    with pytest.raises(ArtifactError, match="untouched"):
        step.save(tmp_path / "no" / "such" / "folder")


def test_counts_of_any_integer_type(make: Make, data: Data, backend: str) -> None:
    """A NumPy integer has a width, and sizes in bytes are no numbers of that width."""
    one, other = make(backend=backend), make(backend=backend)
    a = one.run(**data, batch_size=np.int8(16), epochs=np.uint8(2), shuffle=np.True_)
    np.testing.assert_array_equal(a, other.run(**data, batch_size=16, epochs=2))


def test_epochs_without_end_can_be_interrupted(make: Make, data: Data) -> None:
    """The room for losses grows with the steps made, not with those asked for."""

    class Alarm(Exception):
        pass

    def ring(*_: object) -> None:
        raise Alarm

    step = make()
    before = signal.signal(signal.SIGALRM, ring)
    try:
        for shuffle in (True, False):
            with pytest.raises(Alarm):  # noqa: PT012
                signal.setitimer(signal.ITIMER_REAL, 0.05)
                step.run(**data, epochs=10**30, shuffle=shuffle)
            assert np.isfinite(step(**data))
    finally:
        signal.signal(signal.SIGALRM, before)


def test_single_steps_after_any_interruption(make: Make, data: Data) -> None:
    """Ctrl-C in a loop of single steps leaves a step that works, whenever it came."""

    class Alarm(Exception):
        pass

    armed = False

    def ring(*_: object) -> None:
        if armed:
            raise Alarm

    def train(seconds: float) -> None:
        nonlocal armed
        try:
            armed = True
            # again and again: an exception in a weak reference's callback goes no further
            signal.setitimer(signal.ITIMER_REAL, seconds, 0.05)
            while True:
                step(**data)
        finally:
            armed = False

    step = make()
    before = signal.signal(signal.SIGALRM, ring)
    try:
        for i in range(300):
            with pytest.raises(Alarm):
                train(5e-5 + i * 1e-6)
            done = threading.Event()
            other = threading.Thread(target=lambda: (step(**data), done.set()), daemon=True)  # noqa: B023
            other.start()
            assert done.wait(5), i
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


STORM = """
    import signal
    import numpy as np
    import chainrule as cr

    x, y = cr.input("x", ("n", 8)), cr.input("y", ("n",), dtype="int32")
    w = cr.parameter("w", (8, 4))
    step = cr.training_step(cr.losses.cross_entropy(x @ w, y), cr.optim.Adam(1e-3))
    data = {"x": np.ones((7, 8), np.float32), "y": np.zeros(7, np.int32)}
    raising = False

    class Alarm(Exception):
        pass

    def ring(*_):
        if raising:
            raise Alarm

    def train():
        global raising
        try:
            raising = True
            while True:
                step.run(**data, batch_size=3, epochs=50)
        finally:
            raising = False

    signal.signal(signal.SIGALRM, ring)
    for i in range(200):
        signal.setitimer(signal.ITIMER_REAL, 1e-4 + i * 1e-6, 5e-5)
        try:
            train()
        except Alarm:
            pass
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert np.isfinite(step(**data))
    print("whole")
"""


def test_signals_without_end() -> None:
    """Ctrl-C while the first one is handled: no lock is left held.

    In a process of its own: an exception may arise anywhere, in pytest's hooks too.
    """
    done = alone(STORM)
    assert done.stdout.strip() == "whole", done.stderr[-2000:]


def test_run_is_refused_to_the_handler_of_a_call(make: Make, data: Data) -> None:
    """It would work on what the call works on that the handler has interrupted."""
    step = make()
    with step._storage.lock.guard, pytest.raises(CompileError, match="handler"):
        step.run(**data)
    assert step.run(**data).size


def test_a_handler_that_uses_the_step(make: Make, data: Data) -> None:
    """It saves between calls and is refused within a step or a run: no deadlock."""
    step, told = make(), []

    def look(*_: object) -> None:
        try:
            told.append(int(step.state_dict()["optimizer.step"]))
        except CompileError:  # test_a_handler_is_refused_what_its_thread_holds
            told.append(-1)

    before = signal.signal(signal.SIGALRM, look)
    try:
        for i in range(100):
            signal.setitimer(signal.ITIMER_REAL, 1e-5 + i * 1e-6)
            while len(told) <= i:
                step(**data)
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        while len(told) <= 100:
            step.run(**data, batch_size=1, epochs=1000)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert max(told) > 0
