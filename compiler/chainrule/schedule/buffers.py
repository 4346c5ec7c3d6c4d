"""Where values lie: one arena, whose slots are shared by values that are never alive together.

A value that a kernel reads only where it writes, for the last time, gives its slot to what the
kernel writes. Sizes may be symbolic, so a slot is as large as the largest of its values, whichever
that is when the sizes are known; the runtime works out the offsets once for each larger batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from chainrule.ir.node import Node
from chainrule.ir.size import Dim, evaluate, product, symbols_of
from chainrule.ir.types import TensorType
from chainrule.schedule.kernel import Kernel
from chainrule.schedule.order import reads_at_its_index

#: The size that symbols are taken to have when slots are chosen; any choice is correct.
TYPICAL = 64
#: A kernel, and a value that it computes: one that is computed twice lies in two places.
Made = tuple[Kernel, Node]


@dataclass(frozen=True)
class Life:
    """A value in the arena: when it is written and when read for the last time, by the numbers of
    kernels.
    """

    made: Made
    born: int
    last: int


@dataclass(frozen=True)
class Plan:
    """`slot[kernel, node]` is the number of the arena slot that holds a value as that kernel
    computes it; `slots[i]` lists the bytes of each value that slot i holds in turn.
    """

    slot: Mapping[Made, int]
    slots: tuple[tuple[Dim, ...], ...]


def bytes_of(node: Node) -> Dim:
    """The bytes of a node's elements."""
    return _bytes(node.type)


@lru_cache(maxsize=1 << 12)
def _bytes(of: TensorType) -> Dim:
    return product(of.shape) * of.dtype.itemsize


def typical(size: Dim) -> int:
    """The number a size is where each symbol is TYPICAL."""
    return evaluate(size, dict.fromkeys(symbols_of(size), TYPICAL))


def lives(kernels: Sequence[Kernel], kept: Sequence[Node]) -> list[Life]:
    """The values that lie in the arena, in the order they are written; those in `kept` have memory
    already.
    """
    given = set(kept)
    born: dict[Made, int] = {}
    last: dict[Made, int] = {}
    now: dict[Node, Made] = {}
    for time, kernel in enumerate(kernels):
        last.update((now[node], time) for node in kernel.reads if node in now)
        for node, target in kernel.writes.items():
            if target is node and node not in given:
                now[node] = kernel, node
                born[now[node]] = time
    return [Life(made, at, last.get(made, at)) for made, at in born.items()]


def plan_buffers(
    kernels: Sequence[Kernel],
    kept: Sequence[Node],
    number: Callable[[Dim], int] = typical,
) -> Plan:
    """Slots for every value that a kernel writes; those in `kept` have memory already.

    `number` is what a size is taken to be when slots are chosen; any choice is correct.
    """
    ends: dict[int, list[Life]] = {}
    starts: dict[int, list[Life]] = {}
    for life in lives(kernels, kept):
        starts.setdefault(life.born, []).append(life)
        ends.setdefault(life.last, []).append(life)
    arena = _Arena(number)
    slot: dict[Made, int] = {}
    for time, kernel in enumerate(kernels):
        dying = ends.get(time, [])
        for life in starts.get(time, ()):
            giver = next((old for old in dying if _gives(kernel, old, life)), None)
            if giver is None:
                slot[life.made] = arena.take(bytes_of(life.made[1]))
            else:
                slot[life.made] = slot[giver.made]
                dying.remove(giver)
        arena.free += [slot[life.made] for life in dying]
    return Plan(slot, tuple(map(tuple, arena.slots)))


def _gives(kernel: Kernel, old: Life, new: Life) -> bool:
    """Whether a kernel that reads a value for the last time may write another in its place."""
    (_, gone), (_, value) = old.made, new.made
    fits = gone.type.shape == value.type.shape and (
        gone.type.dtype.itemsize == value.type.dtype.itemsize
    )
    return fits and old.born < new.born and reads_at_its_index(kernel, gone)


class _Arena:
    """Slots by number: the sizes of what each holds, how large it typically is, which are free."""

    def __init__(self, number: Callable[[Dim], int]) -> None:
        self.number = number
        self.slots: list[dict[Dim, None]] = []
        self.typical: list[int] = []
        self.free: list[int] = []

    def take(self, size: Dim) -> int:
        """The free slot that fits best, grown where none is large enough, else a new one."""
        want = self.number(size)
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
