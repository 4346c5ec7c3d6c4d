"""Who touches which memory between meetings: what two threads do in no order is found here."""

from __future__ import annotations

from dataclasses import field
from typing import Any

import numpy as np

from chainrule.errors import CompileError
from chainrule.loops.launch import Launch
from chainrule.records import dataclass

Array = np.ndarray[Any, Any]


class Race(CompileError):
    """What two threads do depends on which is first."""


@dataclass
class Log:
    """Who touched which address, and how often lanes had met by then."""

    part: Array
    meetings: Array = field(init=False)
    seen: list[tuple[Array, Array, Array, bool]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.meetings = np.zeros(len(self.part), np.int64)

    def meet(self, active: Array) -> None:
        """These threads have waited for each other."""
        self.meetings[active] += 1

    def note(self, address: Array, thread: Array, writes: bool) -> None:
        """Threads touch addresses now."""
        if len(address):
            self.seen.append((address, thread, self.meetings[thread], writes))

    def judge(self, launch: Launch) -> None:
        """Raise Race where an address that one thread writes is touched by another of another
        part, or of its own with no meeting between.
        """
        if not self.seen:
            return
        address, thread, time = (np.concatenate([row[i] for row in self.seen]) for i in range(3))
        writes = np.repeat([row[3] for row in self.seen], [len(row[0]) for row in self.seen])
        _, place = np.unique(address, return_inverse=True)
        part = self.part[thread]
        moment = (place * (part.max() + 1) + part) * (time.max() + 1) + time
        for group, who in ((place, part), (moment, thread)):
            bad = _contested(group, who, writes)
            if len(bad):
                several = sorted({int(t) for t in thread[bad]})[:4]
                raise Race(
                    f"{launch.program.name}: threads {several} touch one element, and one writes it"
                )


def _contested(group: Array, who: Array, writes: Array) -> Array:
    """The rows of a group that several share, one of which writes; none where there is none."""
    _, number = np.unique(group, return_inverse=True)
    count = number.max() + 1
    least, most = np.full(count, who.max()), np.zeros(count, who.dtype)
    written = np.zeros(count, bool)
    np.minimum.at(least, number, who)
    np.maximum.at(most, number, who)
    written[number[writes]] = True
    bad = np.flatnonzero(written & (least != most))
    return np.flatnonzero(number == bad[0]) if len(bad) else bad
