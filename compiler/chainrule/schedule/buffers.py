"""Where values lie: one arena, whose slots are shared by values that are never alive together.

Sizes may be symbolic, so a slot is as large as the largest of its values, whichever that is when
the sizes are known; the runtime works out the offsets once for each larger batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from chainrule.ir.node import Node
from chainrule.ir.size import Dim, evaluate, product, symbols_of
from chainrule.schedule.kernel import Kernel

#: The size that symbols are taken to have when slots are chosen; any choice is correct.
TYPICAL = 64


@dataclass(frozen=True)
class Plan:
    """`slot[node]` is the number of the arena slot that holds a value; `slots[i]` lists the bytes
    of each value that slot i holds in turn.
    """

    slot: Mapping[Node, int]
    slots: tuple[tuple[Dim, ...], ...]


def bytes_of(node: Node) -> Dim:
    """The bytes of a node's elements."""
    return product(node.type.shape) * node.type.dtype.itemsize


def plan_buffers(kernels: Sequence[Kernel], kept: Sequence[Node]) -> Plan:
    """Slots for every value that a kernel writes, except those in `kept`, which have memory already."""
    given = set(kept)
    last = {node: time for time, kernel in enumerate(kernels) for node in kernel.reads}
    slot: dict[Node, int] = {}
    slots: list[list[Dim]] = []
    free: list[int] = []
    for time, kernel in enumerate(kernels):
        dying = [n for n in kernel.reads if n in slot and last[n] == time]
        for node, target in kernel.writes.items():
            if target is not node or node in given:
                continue
            slot[node] = _choose(bytes_of(node), slots, free)
            if node not in last:
                dying.append(node)
        free += [slot[n] for n in dying]
    return Plan(slot, tuple(tuple(s) for s in slots))


def _choose(size: Dim, slots: list[list[Dim]], free: list[int]) -> int:
    """The free slot that fits best, else a new one."""
    want = _typical(size)
    best = min(free, key=lambda i: abs(max(map(_typical, slots[i])) - want), default=None)
    if best is None or not want // 2 <= max(map(_typical, slots[best])) <= 4 * want + 64:
        slots.append([size])
        return len(slots) - 1
    free.remove(best)
    if size not in slots[best]:
        slots[best].append(size)
    return best


def _typical(size: Dim) -> int:
    return evaluate(size, dict.fromkeys(symbols_of(size), TYPICAL))
