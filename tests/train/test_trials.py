"""Whether threads share a step is measured; what the system refuses is done without."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import chainrule as cr
import chainrule.codegen.module as module
import chainrule.driver.lower as lower
import chainrule_runtime.program as program
from chainrule.codegen.host import host_target
from chainrule.codegen.team import has_threads
from chainrule.codegen.trial import PATIENCE, RECORD
from chainrule_runtime import pool, sharing

pytestmark = pytest.mark.skipif(not has_threads(host_target()), reason="no threads here")

MODE = RECORD.index("mode")


def test_runtime_and_code_agree_on_the_record() -> None:
    assert sharing.RECORD == RECORD


class Clock:
    """A clock for native code that a test turns: a step takes what is told for its way."""

    def __init__(self) -> None:
        self.now, self.running = 1000, False
        self.cost = [1, 1]  # of a step alone, and of one shared
        self.spent = [0, 0]
        self.record: Any = None
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.POINTER(ctypes.c_int64))
        self.function = kind(self.read)
        self.address = ctypes.cast(self.function, ctypes.c_void_p).value

    def read(self, which: int, to: Any) -> int:
        if self.running and self.record is not None:
            mode = self.record[len(self.record) - len(RECORD) + MODE]
            self.now += self.cost[mode]
            self.spent[mode] += self.cost[mode]
        self.running = not self.running
        to[0], to[1] = divmod(self.now, 10**9)
        return 0


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, room in (("CALL_WORK", module), ("CALL_WORK", lower), ("STEP_WORK", lower)):
        monkeypatch.setattr(room, name, 0)
    monkeypatch.setattr(program, "usable_cpus", lambda: 8)
    monkeypatch.setattr(sharing, "TRIAL", 100)
    x = cr.input("x", ("batch", 40))
    loss = cr.mean(cr.tanh(x @ cr.parameter("W", (40, 30))) ** 2)
    return cr.training_step(loss, cr.optim.SGD(1e-3), threads=2)


def test_the_faster_way_is_taken(step: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, data = Clock(), {"x": np.ones((9, 40), np.float32)}
    in_c = pool.function_in_c
    monkeypatch.setattr(program, "TEAM", pool.Team())
    monkeypatch.setattr(sharing, "TEAM", program.TEAM)
    monkeypatch.setattr(pool, "function_in_c", lambda n: clock.address if "clock" in n else in_c(n))
    step(**data)
    clock.record = step._engine._program._current.native_sizes
    for cost in ([10, 30], [30, 20], [20, 20], [10, 11], [500, 3]):
        clock.cost, clock.spent = cost, [0, 0]
        for _ in range(4000):
            step(**data)
        loser = int(cost[1] > cost[0])
        steps = clock.spent[loser] / cost[loser]
        lost = steps * (cost[loser] - cost[1 - loser])
        # trials cost 1/PATIENCE of what was gained by them; before, it may have been the other way,
        # until the while that had been thought good for it was over
        before = 0 if clock.cost == [10, 30] else 2 * PATIENCE * 100
        assert lost <= sum(clock.spent) / PATIENCE + before + 4 * max(cost) + 200, cost
    program.TEAM.dismiss()


def test_a_long_stop_is_soon_forgotten(step: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was stopped in a trial takes that way again before long."""
    clock, data = Clock(), {"x": np.ones((9, 40), np.float32)}
    in_c = pool.function_in_c
    monkeypatch.setattr(program, "TEAM", pool.Team())
    monkeypatch.setattr(sharing, "TEAM", program.TEAM)
    monkeypatch.setattr(pool, "function_in_c", lambda n: clock.address if "clock" in n else in_c(n))
    step(**data)
    clock.record = step._engine._program._current.native_sizes
    mode = len(clock.record) - len(RECORD) + MODE
    clock.cost = [20, 10]
    while clock.record[mode]:
        step(**data)
    while not clock.record[mode]:
        step(**data)
    clock.cost = [20, 10**12]
    step(**data)
    clock.cost, clock.spent = [20, 10], [0, 0]
    for _ in range(20000):
        step(**data)
    assert clock.spent[1] > clock.spent[0]
    program.TEAM.dismiss()


def test_what_was_faster_for_long_is_tried_again_soon(
    step: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long while in which other processes came is a loss that no later trial has."""
    clock, data = Clock(), {"x": np.ones((9, 40), np.float32)}
    in_c = pool.function_in_c
    monkeypatch.setattr(program, "TEAM", pool.Team())
    monkeypatch.setattr(sharing, "TEAM", program.TEAM)
    monkeypatch.setattr(pool, "function_in_c", lambda n: clock.address if "clock" in n else in_c(n))
    step(**data)
    clock.record = step._engine._program._current.native_sizes
    mode = len(clock.record) - len(RECORD) + MODE
    clock.cost = [20, 10]
    for shared in (1, 0, 1, 0):  # the last is a trial, before a long while of what is faster
        while clock.record[mode] == shared:
            step(**data)
    clock.cost = [20, 40]
    while clock.record[mode]:
        step(**data)
    clock.cost, steps = [20, 10], 0
    while not clock.record[mode]:
        step(**data)
        steps += 1
    in_trial = 100 // 40 + 1  # steps that a trial of the slower way takes
    assert steps <= PATIENCE * in_trial * (40 - 20) // 20 + 1
    program.TEAM.dismiss()


SCRIPT = """
import os, signal, sys, threading
import numpy as np
import chainrule as cr, chainrule.codegen.module as module
import chainrule_runtime.program as program
from chainrule_runtime import pool, sharing
import chainrule.driver.lower as lower
module.CALL_WORK = lower.CALL_WORK = lower.STEP_WORK = 0
sharing.TRIAL = 1 << 60
usable = program.usable_cpus()
program.usable_cpus = lambda: 8
def make(threads):
    x = cr.input("x", ("batch", 40))
    loss = cr.mean(cr.tanh(x @ cr.parameter("W", (40, 30))) ** 2)
    return cr.training_step(loss, cr.optim.SGD(1e-3), threads=threads)
step, alone = make(3), make(1)
data = np.random.default_rng(0).standard_normal((64, 40)).astype(np.float32)
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT + script],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "CHAINRULE_CACHE": "off"},
        check=False,
    )


def test_threads_that_the_system_refuses() -> None:
    """RLIMIT_NPROC leaves none for this user: one thread does it all, with the same bits."""
    done = run("""
import resource
if os.geteuid() == 0:
    import sysconfig
    sysconfig.get_config_vars()  # read now: another user may not
    os.setgid(65534), os.setuid(65534)  # root has no limit
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
try:
    threading.Thread(target=print).start()
    print("not refused")
except RuntimeError:
    for _ in range(3):
        assert step(x=data) == alone(x=data)
    assert step.parameters["W"].tobytes() == alone.parameters["W"].tobytes()
    assert pool.TEAM.workers == pool.TEAM.jobs == 0
    print("refused")
""")
    assert done.returncode == 0, done.stderr
    if "not refused" in done.stdout:
        pytest.skip("this system starts threads beyond RLIMIT_NPROC")


def test_an_interrupt_ends_a_shared_run() -> None:
    done = run("""
signal.signal(signal.SIGINT, signal.default_int_handler)
step(x=data)
threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    step.run(x=data, epochs=10**9, batch_size=8)
except KeyboardInterrupt:
    print("interrupted")
jobs = pool.TEAM.jobs
step(x=data)
assert pool.TEAM.jobs == jobs + 1 and pool.TEAM.workers == 2
""")
    assert done.returncode == 0 and done.stdout.strip() == "interrupted", done.stderr


def test_affinity_is_obeyed() -> None:
    done = run("""
first = min(os.sched_getaffinity(0))
os.sched_setaffinity(0, {first})
assert pool.usable_cpus() == 1
program.usable_cpus = pool.usable_cpus
assert make(4).report().threads == make(None).report().threads == 1
print(usable)
""")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 1


def test_signals_do_not_end_threads() -> None:
    """A handler that Python runs between calls finds the team as it was."""
    done = run("""
seen = []
signal.signal(signal.SIGALRM, lambda *_: seen.append(pool.TEAM.workers))
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
for _ in range(300):
    step(x=data)
signal.setitimer(signal.ITIMER_REAL, 0)
for _ in range(300):
    alone(x=data)
assert seen and step.parameters["W"].tobytes() == alone.parameters["W"].tobytes()
""")
    assert done.returncode == 0, done.stderr
