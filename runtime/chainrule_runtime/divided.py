"""Calls of a kernel whose work threads of this process share: the `parallel_for` it asks for.

What a kernel calls back into never runs in the thread that asked: a signal's handler may raise
there, between any two parts, and what is left out would be missing in the result.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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


class Division:
    """Divides the calls of one kernel, of which one is made at a time."""

    def __init__(self, parts: int) -> None:
        self.parts = parts
        self._each = _EACH(self._divide)
        self._pool: ThreadPoolExecutor | None = None
        self._process = 0

    def __call__(self, function: Any, arguments: Sequence[Any]) -> int:
        """What the function returns; it is given how it is divided after its arguments."""
        given = (*arguments, self._each, None, ctypes.c_int32(self.parts))
        future: Future[int] = self._threads().submit(function, *given)
        interrupted: BaseException | None = None
        while True:  # its buffers are in use until it has returned, whatever comes meanwhile
            try:
                code = future.result()
                break
            except BaseException as error:
                if future.done() and future.exception() is error:
                    raise
                interrupted = error
        if interrupted is not None:
            raise interrupted
        return code

    def _threads(self) -> ThreadPoolExecutor:
        """The threads: those of a process that was forked are the parent's alone."""
        if self._pool is None or self._process != os.getpid():
            self._pool = ThreadPoolExecutor(self.parts, "chainrule")
            self._process = os.getpid()
        return self._pool

    def _divide(self, _: Any, body: int, argument: int, parts: int) -> None:
        """Make one call for each part, the first one here."""
        call, left = _BODY(body), range(1, parts)
        begun: list[Future[None]] = []
        try:
            for part in left:
                begun.append(self._threads().submit(call, argument, part))
        except RuntimeError:  # no thread can be begun, or the interpreter ends
            pass
        call(argument, 0)
        for part in left[len(begun) :]:
            call(argument, part)
        for future in begun:
            future.result()
