"""The team: threads of this process that share steps, made when first wanted, asleep in between.

All compiled programs share it. A worker is a daemon thread inside native code, without the
interpreter's lock; it is given work through a block of memory (chainrule.codegen.team writes and
reads it, by the offsets below). One caller at a time has the team: another one, meanwhile, does its
step alone, and the result is the same to the last bit.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import threading
import time
from pathlib import Path

from chainrule_runtime.memory import Lock, address, aligned

#: where fields of the block lie
SPIN, WORKERS, JOBS, CLOCK, SYSCALL = 320, 328, 344, 352, 368
BOXES, BOX, ENTERED = 512, 128, 8
#: workers there can be at most
MOST = 255
#: how often who waits looks again before it sleeps: some 30 to 60 microseconds
PATIENCE = 1500
#: seconds to wait for a thread to begin, or to end
_SOON = 2.0
_WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
_DISMISS = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)


def usable_cpus() -> int:
    """The CPUs this process may use: its affinity, and its control groups' quota rounded up."""
    return max(1, min(_affinity(), _quota(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota(listing: Path, root: Path) -> int:
    """CPUs by the quota of each control group that this process is in (cgroups(7)), rounded up."""
    least = MOST + 1
    with contextlib.suppress(OSError):
        for line in listing.read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            for top in (root,) if not controllers else (root / controllers, root / "cpu"):
                folder = top / name.lstrip("/")
                for group in (folder, *folder.parents):
                    least = min(least, _quota_of(group))
                    if group == top:
                        break
    return least


def _quota_of(group: Path) -> int:
    """The quota of one group, version 2 or 1; a large number where it has none."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (group / "cpu.max").read_text().split()
        return -(-int(quota) // int(period))
    with contextlib.suppress(OSError, ValueError):
        quota_us = int((group / "cpu.cfs_quota_us").read_text())
        period_us = int((group / "cpu.cfs_period_us").read_text())
        if quota_us > 0 and period_us > 0:
            return -(-quota_us // period_us)
    return MOST + 1


def function_in_c(name: str) -> int:
    """Where a function of the C library starts; 0 where there is none of the name."""
    try:
        return ctypes.cast(getattr(ctypes.CDLL(None), name), ctypes.c_void_p).value or 0
    except (AttributeError, OSError, TypeError):  # TypeError: Windows has no library None
        return 0


class Team:
    """The block and the threads. `address` is what native code is given."""

    def __init__(self) -> None:
        self._block = aligned(BOXES + BOX * MOST)
        self.address = address(self._block)
        self._lock = Lock()
        self._threads: list[threading.Thread] = []
        self._code: list[object] = []
        self._dismiss = 0
        atexit.register(self.dismiss)

    @property
    def workers(self) -> int:
        """How many threads there are beside the caller's."""
        return self._word(WORKERS).value

    @property
    def jobs(self) -> int:
        """How many steps were shared by now."""
        return self._word(JOBS).value

    def _word(self, offset: int) -> ctypes.c_int64:
        return ctypes.c_int64.from_address(self.address + offset)

    def want(self, parts: int, work: int, dismiss: int, code: object) -> None:
        """See to it that so many can share a step, the caller among them, or as many as may be.

        `work` and `dismiss` are where native code starts that `code` keeps alive.
        """
        if self.workers + 1 >= min(parts, MOST + 1):
            return
        with self._lock.guard:
            self._word(CLOCK).value = function_in_c("clock_gettime")
            self._word(SYSCALL).value = function_in_c("syscall")
            if not self._word(SYSCALL).value:
                return  # nobody could sleep
            self._code.append(code)
            self._dismiss = dismiss
            # who waits for one that has no CPU must not keep it from getting one
            self._word(SPIN).value = PATIENCE if parts <= _affinity() else 0
            while self.workers + 1 < min(parts, MOST + 1) and self._hire(work):
                self._word(WORKERS).value += 1

    def _hire(self, work: int) -> bool:
        """Start one more worker, or wait for one that was late; whether it has come.

        A box of the block is one thread's: who was late has the place that is the next.
        """
        number = self.workers + 1
        entered = ctypes.c_int32.from_address(self.address + BOXES + BOX * self.workers + ENTERED)
        if len(self._threads) < number:
            thread = threading.Thread(
                target=_WORK(work),
                args=(self.address, number),
                name=f"chainrule-{number}",
                daemon=True,
            )
            try:
                thread.start()
            except RuntimeError:  # the system gives no more: those there are will do
                return False
            self._threads.append(thread)
        end = time.monotonic() + _SOON
        while not entered.value and time.monotonic() < end:
            time.sleep(0)
        return bool(entered.value)

    def dismiss(self) -> None:
        """Let the threads end: none may stand in code that is about to go."""
        if not self.workers or not _DISMISS(self._dismiss)(self.address):
            return
        self._word(WORKERS).value = 0
        for thread in self._threads:
            thread.join(_SOON)
        self._threads = []

    def forget(self) -> None:
        """Begin anew in a forked process, where there are no threads but the one that forked."""
        self._block[:] = 0
        self._threads = []


TEAM = Team()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=TEAM.forget)
