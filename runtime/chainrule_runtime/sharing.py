"""How a step is shared at given sizes: by how many, which of its calls, and where they meet."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chainrule_runtime.manifest import Manifest, Stage, evaluate
from chainrule_runtime.memory import Array, address
from chainrule_runtime.pool import TEAM

#: what stands behind the sizes that native code is given, 8 bytes each (chainrule.codegen.trial
#: says what each is, and changes those from `mode` on)
RECORD = (
    "team", "parts", "worth", "waits",
    "trial", "mode", "length", "count", "spent", "alone", "shared",
)  # fmt: skip
#: nanoseconds that a way of doing steps is measured for: some slices of a busy scheduler's time
TRIAL = 10_000_000


@dataclass(frozen=True)
class Sharing:
    """So many `parts` share a step.

    Of its calls they share those with a 1 in `worth`; they meet before stages with one in `waits`.
    """

    parts: int
    worth: Array
    waits: Array

    def record(self) -> list[int]:
        """What stands behind the sizes, before the first step; it lives as long as `self`."""
        if self.parts == 1:
            return [0] * len(RECORD)
        start = [TEAM.address, self.parts, address(self.worth), address(self.waits)]
        return [*start, TRIAL, 1, TRIAL, 0, 0, 0, 0]


def share(manifest: Manifest, sizes: Mapping[str, int], threads: int) -> Sharing:
    """How at most so many threads had better share a step at these sizes."""
    work = [(evaluate(w, sizes), evaluate(n, sizes)) for w, n in manifest.shared]
    worth = [w >= manifest.call_work for w, _ in work]
    total = sum(w * n for (w, n), yes in zip(work, worth, strict=True) if yes)
    tuned = manifest.tuned
    if tuned and tuned.most and sum(w * n for w, n in work) <= tuned.work:
        threads = min(threads, tuned.most)
    if threads == 1 or total < manifest.step_work or not any(worth):
        return Sharing(1, np.zeros(0, np.uint8), np.zeros(0, np.uint8))
    waits = meetings(manifest.stages, worth)
    return Sharing(threads, np.array(worth, np.uint8), np.array(waits, np.uint8))


def shared_work(manifest: Manifest, sizes: Mapping[str, int]) -> int:
    """How much work all calls are that threads may share, whether that is worth it or not."""
    return sum(evaluate(w, sizes) * evaluate(n, sizes) for w, n in manifest.shared)


def meetings(stages: Sequence[Stage], worth: Sequence[bool]) -> list[bool]:
    """Before which stages parts must meet, if the calls in `worth` are shared.

    Stage by stage: parts that have not met since may stand anywhere in between. What is done alone
    is done by the first part, in order. So they meet where memory was written and is touched, or
    was read and is written, and not both alone. After a check they do before what it has tested or
    what stands behind it is read, anything is checked again, or what outlives a step is written.
    Parts of one stage that touch the same memory have been kept apart by whoever split it.
    """
    waits: list[bool] = []
    alone, together = _Touched(), _Touched()
    unheard: set[int] | None = None  # what depends on a check that not all have heard of
    for stage in stages:
        if stage.meeting:
            alone, together, unheard = _Touched(), _Touched(), None
            continue
        shared = stage.call is not None and worth[stage.call]
        inner = shared and stage.inner
        reads = stage.first_reads if inner else stage.reads
        writes = stage.first_writes if inner else stage.writes
        wait = together.clash(reads, writes) or (shared and alone.clash(reads, writes))
        if unheard is not None:
            outlives = any(number >= 0 for number in stage.writes)
            wait = wait or outlives or bool(stage.checked) or not unheard.isdisjoint(stage.reads)
        waits.append(bool(wait))
        if wait or inner:
            alone, together = _Touched(), _Touched()
        if wait:
            unheard = None
        (together if shared else alone).add(stage.reads, stage.writes)
        if stage.checked:
            unheard = {*stage.checked, *stage.writes}
    return waits


class _Touched:
    """Memory that was read and written since parts met."""

    def __init__(self) -> None:
        self.read: set[int] = set()
        self.written: set[int] = set()

    def add(self, reads: Sequence[int], writes: Sequence[int]) -> None:
        self.read.update(reads)
        self.written.update(writes)

    def clash(self, reads: Sequence[int], writes: Sequence[int]) -> bool:
        """Whether what was done before touches this memory in another way than to read it too."""
        return not (
            self.written.isdisjoint(reads)
            and self.written.isdisjoint(writes)
            and self.read.isdisjoint(writes)
        )


def native_sizes(sizes: Sequence[int], sharing: Sharing) -> Any:
    """What native code reads: the sizes, then the record."""
    numbers = [*sizes, *sharing.record()]
    return (ctypes.c_int64 * len(numbers))(*numbers)
