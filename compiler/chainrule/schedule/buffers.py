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
    """Slots for every value that a kernel writes; those in `kept` have memory already."""
    given = set(kept)
    last = {node: time for time, kernel in enumerate(kernels) for node in kernel.reads}
    slot: dict[Node, int] = {}
    arena = _Arena()
    for time, kernel in enumerate(kernels):
        dying = [n for n in kernel.reads if n in slot and last[n] == time]
        for node, target in kernel.writes.items():
            if target is not node or node in given:
                continue
            slot[node] = arena.take(bytes_of(node))
            if node not in last:
                dying.append(node)
        arena.free += [slot[n] for n in dying]
    return Plan(slot, tuple(map(tuple, arena.slots)))


class _Arena:
    """Slots by number: the sizes of what each holds, how large it typically is, which are free."""

    def __init__(self) -> None:
        self.slots: list[dict[Dim, None]] = []
        self.typical: list[int] = []
        self.free: list[int] = []

    def take(self, size: Dim) -> int:
        """The free slot that fits best, grown where none is large enough, else a new one."""
        want = typical(size)
        best = min(self.free, key=lambda i: _misfit(self.typical[i], want), default=None)
        if best is None:
            best = len(self.slots)
            self.slots.append({})
            self.typical.append(0)
        else:
            self.free.remove(best)
        self.slots[best][size] = None
        self.typical[best] = max(self.typical[best], want)
        return best


def _misfit(room: int, want: int) -> tuple[bool, int]:
    """How badly a slot fits: too small comes after too large, and either by how much."""
    return room < want, abs(room - want)


def typical(size: Dim) -> int:
    """The number a size is where each symbol is TYPICAL."""
    return evaluate(size, dict.fromkeys(symbols_of(size), TYPICAL))
