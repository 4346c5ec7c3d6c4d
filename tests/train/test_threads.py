"""Steps shared among threads: the same bits for every number of them, and no harm from sharing."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import chainrule as cr
import chainrule.codegen.module as module
import chainrule.driver.lower as lower
import chainrule_runtime.program as program
from chainrule.codegen.host import host_target
from chainrule.codegen.team import BOX, BOX_FIELDS, BOXES, FIELDS, has_threads
from chainrule_runtime import pool, sharing

pytestmark = [
    pytest.mark.skipif(not has_threads(host_target()), reason="no threads here"),
    pytest.mark.usefixtures("compiled_once"),
]

Step = Callable[[], Any]
NEVER = 1 << 60  # nanoseconds: the first trial, which shares, does not end


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that can be is shared, on however few CPUs."""
    monkeypatch.setenv("CHAINRULE_CACHE", os.environ["CHAINRULE_CACHE"] + "/eager")
    monkeypatch.setattr(module, "CALL_WORK", 0)
    monkeypatch.setattr(lower, "CALL_WORK", 0)
    monkeypatch.setattr(lower, "STEP_WORK", 0)
    monkeypatch.setattr(program, "usable_cpus", lambda: 8)
    monkeypatch.setattr(sharing, "TRIAL", NEVER)


def data(seed: int, batch: int, *shape: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "x": random.standard_normal((batch, *shape)).astype(np.float32),
        "t": random.integers(0, 5, batch).astype(np.int32),
    }


def mlp() -> tuple[cr.Tensor, tuple[int, ...]]:
    x = cr.input("x", ("batch", 70))
    h = cr.relu(x @ cr.parameter("W1", (70, 150)) + cr.parameter("b1", (150,)))
    return h @ cr.parameter("W2", (150, 5)) + cr.parameter("b2", (5,)), (70,)


def layer_norm() -> tuple[cr.Tensor, tuple[int, ...]]:
    x = cr.input("x", ("batch", 40))
    h = cr.layer_norm(
        cr.tanh(x @ cr.parameter("W1", (40, 33))),
        scale=cr.parameter("g", (33,)),
        shift=cr.parameter("c", (33,)),
    )
    return cr.softmax(h) @ cr.parameter("W2", (33, 5)), (40,)


def convolution() -> tuple[cr.Tensor, tuple[int, ...]]:
    x = cr.input("x", ("batch", 2, 9, 9))
    h = cr.relu(cr.conv(x, cr.parameter("K", (6, 2, 3, 3))))
    return cr.reshape(h, ("batch", 6 * 7 * 7)) @ cr.parameter("W", (6 * 7 * 7, 5)), (2, 9, 9)


def attention() -> tuple[cr.Tensor, tuple[int, ...]]:
    x = cr.input("x", ("batch", 12, 16))
    q, k, v = (x @ cr.parameter(n, (16, 16)) for n in "qkv")
    weights = cr.softmax(cr.einsum("bij,bkj->bik", q, k) / 4.0)
    return cr.mean(weights @ v, axis=1) @ cr.parameter("W", (16, 5)), (12, 16)


NETS = {f.__name__: f for f in (mlp, layer_norm, convolution, attention)}


def make(net: str, threads: int | None) -> tuple[Any, tuple[int, ...]]:
    logits, shape = NETS[net]()
    loss = cr.losses.cross_entropy(logits, cr.input("t", ("batch",), dtype="int32"))
    return cr.training_step(loss, cr.optim.Adam(1e-2), outputs=logits, threads=threads), shape


def weights(step: Any) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in step.parameters.items()}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("level", ["x86-64-v2", "x86-64-v3", "x86-64-v4", ""])
@pytest.mark.parametrize("net", NETS)
def test_weights_have_the_same_bits(
    net: str, level: str, eager: None, at_level: Callable[[str], None]
) -> None:
    at_level(level)
    found = {}
    for threads in (1, 2, 3, 5, 8) if not level else (1, 3):
        step, shape = make(net, threads)
        jobs = pool.TEAM.jobs
        for i in range(20):
            step(**data(i, (37, 5, 1)[i % 3], *shape))
        assert (pool.TEAM.jobs - jobs == 20) == (threads > 1)
        predicted = step.predict(x=data(0, 9, *shape)["x"])
        found[threads] = {**weights(step), "": predicted.tobytes()}
    assert all(bits == found[1] for bits in found.values())


@pytest.mark.parametrize("net", NETS)
def test_an_epoch_has_the_same_bits(net: str, eager: None) -> None:
    found = []
    for threads in (1, 3):
        step, shape = make(net, threads)
        history = step.run(**data(1, 50, *shape), epochs=2, batch_size=16)
        found.append((weights(step), history.tobytes()))
    assert found[0] == found[1]


def test_bad_input_ends_the_step_for_all(eager: None) -> None:
    steps = [make("mlp", threads)[0] for threads in (1, 3)]
    for step in steps:
        good = data(0, 20, 70)
        step(**good)
        before = weights(step)
        with pytest.raises(cr.errors.FeedError, match="t holds 9"):
            step(x=good["x"], t=np.full(20, 9, np.int32))
        with pytest.raises(cr.errors.NonFiniteError):
            step(x=np.full((20, 70), np.inf, np.float32), t=good["t"])
        assert weights(step) == before
        step(**good)
    assert weights(steps[0]) == weights(steps[1])


def test_many_programs_and_callers(eager: None) -> None:
    """Callers of several programs at once: one has the team, the others do without."""
    wanted: dict[str, dict[str, bytes]] = {}

    def train(net: str, threads: int) -> dict[str, bytes]:
        step, shape = make(net, threads)
        for i in range(30):
            step(**data(i, 23, *shape))
        return weights(step)

    for net in NETS:
        wanted[net] = train(net, 1)
    found: dict[str, dict[str, bytes]] = {}

    def work(net: str) -> None:
        found[net] = train(net, 3)

    callers = [threading.Thread(target=work, args=(net,)) for net in NETS]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert found == wanted


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_computes_the_same(eager: None) -> None:
    step, shape = make("mlp", 3)
    alone, _ = make("mlp", 1)
    for s in (step, alone):
        s(**data(0, 30, *shape))
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            jobs = pool.TEAM.jobs
            for i in range(5):
                step(**data(i, 30, *shape))
            same = pool.TEAM.jobs - jobs == 5
            os.write(write, bytes([same]) + step.parameters["W1"].tobytes()[:64])
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    told = os.read(read, 100)
    os.close(read), os.close(write)
    for s in (step, alone):
        for i in range(5):
            s(**data(i, 30, *shape))
    assert weights(step) == weights(alone)
    assert told == b"\x01" + alone.parameters["W1"].tobytes()[:64]


def test_refused_threads(eager: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    team = pool.Team()
    monkeypatch.setattr(program, "TEAM", team)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    steps = [make("mlp", threads)[0] for threads in (1, 3)]
    for step in steps:
        step(**data(0, 20, 70))
    assert team.workers == team.jobs == 0
    assert weights(steps[0]) == weights(steps[1])


def test_a_worker_that_is_late_is_waited_for_and_not_replaced(
    eager: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    team, started = pool.Team(), []
    begin = threading.Thread.start

    def start(self: threading.Thread) -> None:  # it comes when nobody waits for it any more
        started.append(self)

    monkeypatch.setattr(program, "TEAM", team)
    monkeypatch.setattr(sharing, "TEAM", team)
    monkeypatch.setattr(threading.Thread, "start", start)
    monkeypatch.setattr(pool, "_SOON", 0.0)
    step, alone = make("mlp", 3)[0], make("mlp", 1)[0]
    step(**data(0, 20, 70))
    assert (team.workers, team.jobs, len(started)) == (0, 0, 1)
    monkeypatch.setattr(threading.Thread, "start", begin)
    monkeypatch.setattr(pool, "_SOON", 600.0)
    begin(started[0])
    other = make("mlp", 3)[0]
    other(**data(0, 20, 70))
    assert team.workers == len(team._threads) == 2 and team._threads[0] is started[0]
    assert team.jobs == 1
    alone(**data(0, 20, 70))
    assert weights(step) == weights(other) == weights(alone)
    team.dismiss()


def test_small_steps_wake_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "usable_cpus", lambda: 4)
    monkeypatch.setattr(pool, "_SOON", 600.0)  # however busy the machine is, workers come
    step, shape = make("mlp", None)
    jobs = pool.TEAM.jobs
    for i in range(20):
        step(**data(i, 4, *shape))
    assert pool.TEAM.jobs == jobs
    step(**data(0, 4000, *shape))
    assert pool.TEAM.jobs == jobs + 1


def test_the_report_says_what_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "usable_cpus", lambda: 4)
    for threads, wanted in ((1, 1), (3, 3), (10**6, 4), (None, 4)):
        report = make("mlp", threads)[0].report()
        assert report.threads == report.as_dict()["threads"] == wanted
        assert any(k.shared for k in report.kernels) == (wanted > 1)
        assert f"threads {wanted}" in str(report)


def test_runtime_and_code_agree_on_the_block() -> None:
    assert tuple(FIELDS[name] for name in ("spin", "workers", "jobs")) == (
        pool.SPIN,
        pool.WORKERS,
        pool.JOBS,
    )
    assert (BOXES, BOX, BOX_FIELDS["entered"]) == (pool.BOXES, pool.BOX, pool.ENTERED)
    assert all(offset + 8 <= BOXES for offset in FIELDS.values())


SCRIPT = """
import threading, numpy as np, chainrule as cr, chainrule_runtime.program as p
p.usable_cpus = lambda: 4
x = cr.input("x", ("batch", 256))
loss = cr.mean(cr.relu(x @ cr.parameter("W", (256, 256))) ** 2)
step = cr.training_step(loss, cr.optim.SGD(1e-3))
data = np.ones((512, 256), np.float32)
step(x=data)
def forever():
    while True:
        step(x=data)
if {busy}:
    threading.Thread(target=forever, daemon=True).start()
    import time; time.sleep(0.2)
"""


@pytest.mark.parametrize("busy", [False, True])
def test_the_interpreter_ends(busy: bool) -> None:
    """With workers asleep, and with a step at work in a daemon thread."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(busy=busy)],
        capture_output=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"self": "0::/a/b\n", "a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}, 2),
        ({"self": "0::/\n", "cpu.max": "50000 100000"}, 1),
        ({"self": "4:cpu,cpuacct:/job\n", "cpu/job/cpu.cfs_quota_us": "300000",
          "cpu/job/cpu.cfs_period_us": "100000"}, 3),
        ({"self": "4:memory:/job\n", "memory/job/cpu.max": "100000 100000"}, pool.MOST + 1),
        ({}, pool.MOST + 1),
    ],
)  # fmt: skip
def test_quotas_of_control_groups(files: dict[str, str], cpus: int, tmp_path: Any) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert pool._quota(tmp_path / "self", tmp_path) == cpus
