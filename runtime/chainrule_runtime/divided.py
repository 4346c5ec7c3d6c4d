"""Calls of a kernel whose work threads of this process share: the `parallel_for` it asks for.

What a kernel calls back into never runs in the thread that asked: a signal's handler may raise
there, between any two parts, and what is left out would be missing in the result.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import queue
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from chainrule_runtime.errors import FeedError, RuntimeFault
from chainrule_runtime.pool import usable_cpus

_BODY = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int32)
_EACH = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)


def parts_for(threads: int | None, most: int) -> int:
    """Into how many parts calls are divided: one a thread, of a kernel that can be divided in
    `most`. Raises FeedError and RuntimeFault.
    """
    if threads is None:
        return min(usable_cpus(), most)
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise FeedError(f"threads is an int from 1 on, or None for a CPU each, not {threads!r}")
    if threads > most:
        raise RuntimeFault(
            f"this kernel is divided in {most} parts at most, not in {threads}"
            if most > 1
            else "this kernel was exported for one thread",
            f"export it with max_parts={threads}",
        )
    return threads


class _Job:
    """Something that is done once, by whichever thread comes to it first."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call
        self.by: dict[int, object] = {}
        self.done = threading.Event()
        self.result: Any = None
        self.failure: BaseException | None = None

    def __call__(self) -> None:
        mine = object()
        if self.by.setdefault(0, mine) is not mine:
            return
        try:
            self.result = self.call()
        except BaseException as error:
            self.failure = error
        finally:
            self.done.set()


_Queue = queue.SimpleQueue["_Job | None"]


def _work(jobs: _Queue) -> None:
    """Do what comes, until None does, which is left for the others."""
    while (job := jobs.get()) is not None:
        job()
    jobs.put(None)


class Division:
    """Divides the calls of one kernel, of which one is made at a time."""

    def __init__(self, parts: int) -> None:
        self.parts = parts
        self._each = _EACH(self._divide)
        self._jobs: _Queue = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._process = 0

    def __call__(self, function: Any, arguments: Sequence[Any]) -> int:
        """What the function returns; it is given how it is divided after its arguments.

        Where a signal's handler raises meanwhile, that is raised when the function has returned.
        """
        if not self._begun():
            code: int = function(*arguments, _EACH(), None, ctypes.c_int32(1))
            return code
        given = (*arguments, self._each, None, ctypes.c_int32(self.parts))
        job = _Job(lambda: function(*given))
        raised: BaseException | None = None
        while not job.done.is_set():
            try:
                self._jobs.put(job)  # once more does no harm
                job.done.wait()
            except BaseException as error:
                raised = error
        failure = raised or job.failure
        if failure is not None:
            raise failure
        code = job.result
        return code

    def _begun(self) -> bool:
        """Begin the threads, those of this process: a forked one has none of its parent's."""
        if self._process != os.getpid():
            self._jobs, self._threads = queue.SimpleQueue(), []
            weakref.finalize(self, self._jobs.put, None)
            self._process = os.getpid()
        with contextlib.suppress(RuntimeError):  # no more can be begun: fewer do it too
            while len(self._threads) < self.parts:
                number = len(self._threads)
                thread = threading.Thread(
                    target=_work, args=(self._jobs,), name=f"chainrule_{number}", daemon=True
                )
                thread.start()
                self._threads.append(thread)
        return bool(self._threads)

    def _divide(self, _: Any, body: int, argument: int, parts: int) -> None:
        """Make one call for each part, here those that no other thread has come to."""
        call = _BODY(body)
        jobs = [_Job(functools.partial(call, argument, part)) for part in range(parts)]
        for job in jobs[1:]:
            self._jobs.put(job)
        for job in jobs:
            job()
        for job in jobs:
            job.done.wait()
