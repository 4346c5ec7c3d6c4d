"""Memory that programs work in: blocks that begin at a multiple of 64 bytes."""

from __future__ import annotations

import ctypes
import math
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from chainrule_runtime.errors import RuntimeFault

Array = np.ndarray[Any, Any]
ALIGN = 64
_FIRST: Callable[[Any], Any] = ctypes.c_char.from_buffer


def address(array: Array) -> int:
    """Where the first element of a contiguous array lies."""
    if array.flags.writeable and array.nbytes:  # through the buffer protocol: twice as fast
        try:
            return ctypes.addressof(_FIRST(array))
        except ValueError:  # which has no word for bfloat16
            pass
    return int(array.__array_interface__["data"][0])


def aligned(size: int) -> Array:
    """`size` bytes, zero, the first at a multiple of ALIGN. Raises RuntimeFault for too many."""
    try:
        block = np.zeros(size + ALIGN, np.uint8)
    except (MemoryError, ValueError):  # ValueError: more than an address can tell
        raise RuntimeFault(f"there is no room for {size} bytes in memory") from None
    start = -address(block) % ALIGN
    return block[start : start + size]


def round_up(size: int) -> int:
    """The next multiple of ALIGN."""
    return -(-size // ALIGN) * ALIGN


class Lock:
    """A mutual exclusion that a forked child finds open, whoever held it in the parent."""

    def __init__(self) -> None:
        self.renew()
        _locks.add(self)

    def renew(self) -> None:
        """Open it, for a process in which nobody can hold it."""
        self._mutex: Any = threading.RLock()

    def is_mine(self) -> bool:
        """Whether this thread holds it."""
        mine: bool = self._mutex._is_owned()  # what threading.Condition asks, too
        return mine

    @property
    def guard(self) -> AbstractContextManager[object]:
        """What `with` takes: CPython's own lock, which no signal can part from its release.

        Raises RuntimeFault in a thread that holds it already: a handler of a signal that came
        meanwhile would wait for the very call that it interrupts.
        """
        if self.is_mine():
            raise RuntimeFault(
                "a call is at work, and a signal's handler can't use what it works on",
                "let the handler raise, or set a flag that is looked at after the call",
            )
        guard: AbstractContextManager[object] = self._mutex
        return guard


_locks: weakref.WeakSet[Lock] = weakref.WeakSet()


def _renew_locks() -> None:
    for lock in _locks:
        lock.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


class Storage:
    """Named arrays that live between calls, zero at first, and the lock for whoever uses them.

    `tensors` are (name, dtype, shape). Those that `lent` holds are arrays of another storage, whose
    `lock` is then to be given too.
    """

    def __init__(
        self,
        tensors: Iterable[tuple[str, np.dtype[Any], tuple[int, ...]]],
        lent: Mapping[str, Array] | None = None,
        lock: Lock | None = None,
    ) -> None:
        self.lock = lock or Lock()
        self.arrays: dict[str, Array] = dict(lent or {})
        own = [t for t in tensors if t[0] not in self.arrays]
        sizes = [dtype.itemsize * math.prod(shape) for _, dtype, shape in own]
        block, start = aligned(sum(map(round_up, sizes))), 0
        for (name, dtype, shape), size in zip(own, sizes, strict=True):
            self.arrays[name] = block[start : start + size].view(dtype).reshape(shape)
            start += round_up(size)


class Arena:
    """Working memory that grows when more is asked for, and only then."""

    def __init__(self) -> None:
        self._block = aligned(0)
        self.start = address(self._block)

    def reserve(self, size: int) -> int:
        """The address of at least `size` bytes; what was in them may be lost."""
        if size > self._block.nbytes:
            self._block = aligned(size)
            self.start = address(self._block)
        return self.start


def spans(arrays: Iterable[Array]) -> list[tuple[int, int]]:
    """The stretches of memory that arrays lie in: (first byte, one past the last), merged."""
    out: list[tuple[int, int]] = []
    for start, end in sorted((address(a), address(a) + a.nbytes) for a in arrays):
        if out and start - out[-1][1] <= ALIGN:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((start, end))
    return out
