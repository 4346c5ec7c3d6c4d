"""The direct call: the same step as the ordinary way, and never taken where that must decide."""

import gc
import os
import platform
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import chainrule as cr
from chainrule.errors import ChainruleError, FeedError, NonFiniteError
from chainrule_runtime.direct import headers_are_known

ROWS, WIDTH, CLASSES = 8, 4, 3
pytestmark = pytest.mark.skipif(
    platform.python_implementation() != "CPython", reason="headers are read where CPython has them"
)


def made():
    x, y = cr.input("x", ("batch", WIDTH)), cr.input("y", ("batch",), dtype="int32")
    w, b = cr.parameter("w", (WIDTH, CLASSES)), cr.parameter("b", (CLASSES,))
    logits = x @ w + b
    loss = cr.losses.cross_entropy(logits, y)
    return cr.training_step(loss, cr.optim.SGD(0.1), metrics={"largest": cr.max(logits)}, seed=1)


def data(rows=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, WIDTH)).astype(np.float32)
    return {"x": x, "y": rng.integers(0, CLASSES, rows).astype(np.int32)}


@pytest.fixture
def step(monkeypatch):
    """A step that has been called once, and counts how often the ordinary way was taken after."""
    one = made()
    one(**data())
    assert one._engine.direct is not None
    one._slow = 0
    ordinary = one._checked_call

    def counted(feeds):
        one._slow += 1
        return ordinary(feeds)

    monkeypatch.setattr(one, "_checked_call", counted)
    return one


def test_headers_are_known_here():
    assert headers_are_known()


def test_the_same_losses_metrics_and_parameters_as_the_ordinary_way(step):
    other = made()
    other(**data())
    for i in range(5):
        feeds = data(seed=i)
        losses = step(**feeds), other._checked_call(feeds)
        assert losses[0] == losses[1]
        assert step.metrics == other.metrics
    assert step._slow == 0
    assert step.steps == other.steps == 6
    for name, array in step.parameters.items():
        np.testing.assert_array_equal(array, other.parameters[name])


def strided(a):
    wide = np.zeros((len(a), 2 * WIDTH), a.dtype)
    wide[:, ::2] = a
    return wide[:, ::2]


def unaligned(a):
    raw = np.zeros(a.nbytes + 1, np.uint8)[1:]
    raw[:] = np.frombuffer(a.tobytes(), np.uint8)
    return raw.view(a.dtype).reshape(a.shape)


class Mine(np.ndarray):
    """Another type of array."""


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.astype(np.float64),
        lambda x: x.astype(">f4"),
        lambda x: x.tolist(),
        lambda x: np.asfortranarray(x),
        strided,
        unaligned,
        lambda x: x.view(Mine),
    ],
)
def test_what_needs_a_conversion_takes_the_ordinary_way(step, change):
    feeds = data(seed=3)
    wanted = made()
    wanted(**data())
    assert step(x=change(feeds["x"]), y=feeds["y"]) == wanted(**feeds)
    assert step._slow == 1


def test_another_number_of_rows(step):
    wanted = made()
    wanted(**data())
    for rows in (3, 3, ROWS, ROWS):
        assert step(**data(rows, rows)) == wanted._checked_call(data(rows, rows))
    assert step._slow == 2


@pytest.mark.parametrize(
    "feeds",
    [
        {},
        {"x": data()["x"]},
        {**data(), "z": data()["x"]},
        {"x": data()["x"], "z": data()["y"]},
        {"x": None, "y": data()["y"]},
        {"x": data()["x"][:, :3], "y": data()["y"]},
        {"x": data()["x"][0], "y": data()["y"]},
        {"x": data()["x"], "y": data()["y"].astype(np.float32)},
        {"x": data()["x"], "y": data()["y"] + 7},
    ],
)
def test_bad_feeds_are_errors_and_change_nothing(step, feeds):
    before = step.state_dict()
    with pytest.raises(FeedError):
        step(**feeds)
    for name, array in step.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_a_loss_that_is_no_number_is_an_error(step):
    feeds = data()
    feeds["x"][0, 0] = np.nan
    with pytest.raises(NonFiniteError, match="in step 2"):
        step(**feeds)
    assert step.steps == 1
    assert np.isfinite(step(**data()))


def test_a_parameter_that_is_fed_is_read_as_it_was():
    """The input lies in memory that the step writes to: it is copied first, by the ordinary way."""
    v, w = cr.input("v", (2, 3)), cr.parameter("w", (2, 3), init=np.ones((2, 3)))
    one = cr.training_step(cr.sum((w - v) ** 2) + cr.sum(v), cr.optim.SGD(0.5))
    ones = np.ones((2, 3), np.float32)
    assert [one(v=0 * ones), one(v=ones)] == [6.0, 12.0]  # now w is v
    assert one(v=one.parameters["w"]) == 6.0
    one.parameters["w"][...] = 2.0
    assert one(v=one.parameters["w"]) == 12.0


def test_the_last_axis_of_rank_zero_and_no_inputs():
    scale, w = cr.input("scale", ()), cr.parameter("w", (2,), init=np.ones(2))
    one = cr.training_step(cr.sum(scale * w * w), cr.optim.SGD(0.25))
    losses = [one(scale=np.float32(1.0)) for _ in range(2)]
    losses += [one(scale=np.array(1.0, np.float32)) for _ in range(2)]
    assert losses == [2.0, 0.5, 0.125, 0.03125]
    alone = cr.training_step(
        cr.sum(cr.parameter("p", (1,), init=np.ones(1)) ** 2), cr.optim.SGD(0.25)
    )
    assert [alone() for _ in range(3)] == [1.0, 0.25, 0.0625]


def test_float64_losses():
    w = cr.parameter("w", (2,), dtype="float64", init=np.full(2, 0.1))
    one = cr.training_step(cr.sum(w * w), cr.optim.SGD(0.25))
    other = cr.training_step(cr.sum(w * w), cr.optim.SGD(0.25))
    for _ in range(4):
        assert one() == other._checked_call({})


def test_after_a_run_and_a_load(step):
    wanted = made()
    wanted(**data())
    for one in (step, wanted):
        one.run(**data(20), batch_size=5, shuffle=False)
    assert step(**data()) == wanted._checked_call(data())
    assert step(**data()) == wanted._checked_call(data())
    state = step.state_dict()
    assert step(**data()) == wanted._checked_call(data())
    step.load_state_dict(state)
    wanted.load_state_dict(state)
    assert step(**data()) == wanted._checked_call(data())


def test_threads_take_turns(step):
    found = []

    def work():
        found.extend(step(**data()) for _ in range(500))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    alone = made()
    alone(**data())
    assert sorted(found) == sorted(alone(**data()) for _ in range(2000))


def test_nothing_is_kept_alive_or_lost(step):
    feeds = data()
    before = [sys.getrefcount(a) for a in feeds.values()]
    for _ in range(1000):
        step(**feeds)
    gc.collect()
    assert [sys.getrefcount(a) for a in feeds.values()] == before
    assert step._slow == 0


def test_a_forked_child_goes_on():
    if not hasattr(os, "fork"):
        pytest.skip("no fork here")
    script = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); import test_direct as t\n"
        "one = t.made(); one(**t.data()); one(**t.data())\n"
        "child = os.fork()\n"
        "loss = one(**t.data())\n"
        "if child: assert os.waitpid(child, 0)[1] == 0\n"
        "print(loss)\n"
    )
    root = Path(__file__).parents[2]
    roots = os.pathsep.join(str(root / r) for r in ("compiler", "runtime"))
    done = subprocess.run(
        [sys.executable, "-c", script, str(Path(__file__).parent)],
        env={**os.environ, "PYTHONPATH": roots},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    first, second = done.stdout.split()
    assert first == second


def test_errors_are_ours(step):
    for junk in (
        object(),
        "text",
        3,
        [1, [2]],
        {"a": 1},
        np.array(["a"]),
        np.ma.masked_array([1.0]),
    ):
        with pytest.raises(ChainruleError):
            step(x=junk, y=data()["y"])
