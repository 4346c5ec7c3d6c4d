"""Memory that kernels use for themselves, in turn: how much, and which share it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count
from typing import NamedTuple

from chainrule.ir.size import Dim, Size
from chainrule.loops.build import Built
from chainrule_runtime.manifest import PARTS


class Workspace(NamedTuple):
    """Sizes in bytes that slots hold in turn, those that each of the built uses, in its order, and
    those of which each thread has a stretch of its own.
    """

    slots: tuple[tuple[Dim, ...], ...]
    used: list[list[int]]
    private: frozenset[int]


def workspace_of(built: Sequence[Built], several: bool) -> Workspace:
    """What kernels use in turn: their i-th scratch buffers share one slot; lasting ones, which
    follow, share none.

    With `several` threads each has a private buffer of its own, of a multiple of 64 bytes, and only
    those of one size share a slot: so a thread's stretch of it is the same for all of them.
    """
    number: dict[object, int] = {}
    slots: list[dict[Dim, None]] = []
    private: set[int] = set()

    def slot(key: object, size: Dim) -> int:
        at = number.setdefault(key, len(slots))
        slots.extend({} for _ in range(at + 1 - len(slots)))
        slots[at][size] = None
        return at

    def one(b: Built) -> Iterator[int]:
        common, own = count(), Counter[Dim]()
        for buffer in b.scratch:
            size = buffer.size * buffer.dtype.itemsize
            if several and buffer.private:
                each = (size + 63) // 64 * 64
                own[each] += 1
                at = slot((each, own[each]), each * Size.symbol(PARTS))
                private.add(at)
            else:
                at = slot(next(common), size)
            yield at
        for buffer in b.lasting:
            yield slot(object(), buffer.size * buffer.dtype.itemsize)

    used = [list(one(b)) for b in built]
    return Workspace(tuple(map(tuple, slots)), used, frozenset(private))
