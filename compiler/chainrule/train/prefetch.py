"""Things made by a thread of their own, a few ahead, while the kernel is at work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any, Generic, TypeVar

from chainrule.errors import ChainruleError, user_location

T = TypeVar("T")
_AHEAD = 2
#: seconds after which a thread looks whether it is still wanted; and that its end is waited for
_LOOK, _END = 0.05, 2.0


class Prefetch(Generic[T]):
    """What `make` makes of each item of an iterator, in order; at most `limit` items are taken.

    What the iterator or `make` raises comes through where its item would stand. Start it, close it.
    """

    def __init__(
        self, items: Iterator[Any], make: Callable[[Any], T], limit: int | None, owns: bool
    ) -> None:
        self._items, self._make, self._owns = items, make, owns
        self._queue: Queue[tuple[str, Any]] = Queue(_AHEAD)
        self._unwanted = Event()
        self._over: tuple[str, Any] | None = None
        self._thread = Thread(
            target=self._fill, args=(limit,), name="chainrule-prefetch", daemon=True
        )

    def start(self) -> None:
        """Begin. By then it must lie where it will be closed: Ctrl-C may come while it begins."""
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        kind, value = self._over or self._queue.get()
        if kind == "item":
            made: T = value
            return made
        self._over = ("end", None)
        if kind == "error":
            if isinstance(value, ChainruleError) and value.where is None:
                value.where = user_location()  # the other thread has no line of the user's
            raise value
        raise StopIteration

    def _fill(self, limit: int | None) -> None:
        try:
            for item in islice(self._items, limit):
                if not self._put(("item", self._make(item))):
                    break
            else:
                self._put(("end", None))
        except BaseException as error:  # the thread that asks for it gets it
            self._put(("error", error))
        finally:
            if self._owns and hasattr(self._items, "close"):
                self._items.close()

    def _put(self, entry: tuple[str, Any]) -> bool:
        while not self._unwanted.is_set():
            try:
                self._queue.put(entry, timeout=_LOOK)
                return True
            except Full:
                continue
        return False

    def close(self) -> None:
        """End the thread. One that waits inside a foreign iterator ends when that comes back."""
        self._unwanted.set()
        while True:
            try:
                self._queue.get_nowait()
            except Empty:
                break
        with suppress(RuntimeError):  # it was not started, or not to the end
            self._thread.join(_END)
