"""Where values lie: one arena, whose slots are shared by values that are never alive together.

A value that a kernel reads only where it writes, for the last time, gives its slot to what the
kernel writes. Sizes may be symbolic, so a slot is as large as the largest of its values, whichever
that is when the sizes are known; the runtime works out the offsets once for each larger batch.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence

from chainrule.ir.node import Node
from chainrule.ir.size import Dim, typical
from chainrule.ops.scan import Scan
from chainrule.records import dataclass
from chainrule.schedule.kernel import Kernel, bytes_of
from chainrule.schedule.order import reads_at_its_index, writes_behind
from chainrule.schedule.reading import storage

#: So many slots are looked at for a value, of those that fit best: there may be one a layer.
LOOKED_AT = 256
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
    computes it; `slots[i]` lists the bytes of each value that slot i holds in turn. Of a chain all
    stacks lie in one slot, and so `start[kernel, node]` bytes from where it starts.
    """

    slot: Mapping[Made, int]
    slots: tuple[tuple[Dim, ...], ...]
    start: Mapping[Made, Dim]


def lives(kernels: Sequence[Kernel], kept: Sequence[Node]) -> list[Life]:
    """The values that lie in the arena, in the order they are written; those in `kept` have memory
    already. A chain is one, called by its first stack.
    """
    given = set(kept)
    born: dict[Made, int] = {}
    last: dict[Made, int] = {}
    now: dict[Node, Made] = {}
    for time, kernel in enumerate(kernels):
        last.update((now[node], time) for node in kernel.reads if node in now)
        for node, target in kernel.writes.items():
            if target is node and node not in given:
                chain = kernel.chain_of(node)
                now[node] = kernel, chain.stacks[0] if chain else node
                born.setdefault(now[node], time)
    return [Life(made, at, last.get(made, at)) for made, at in born.items()]


def plan_buffers(
    kernels: Sequence[Kernel],
    kept: Sequence[Node],
    number: Callable[[Dim], int] = typical,
) -> Plan:
    """Slots for every value that a kernel writes; those in `kept` have memory already.

    The largest come first, and each takes the smallest slot that is free for as long as it lives
    (Pisarchyk, Lee, "Efficient memory management for deep neural net inference", 2020, greedy by
    size). `number` is what a size is taken to be when slots are chosen; any choice is correct.
    """
    blocks = _blocks(kernels, kept)
    size = {id(block): number(room_of(block[0].made)) for block in blocks}
    slots: list[_Slot] = []
    slot: dict[Made, int] = {}
    for block in sorted(blocks, key=lambda block: -size[id(block)]):
        born, last = block[0].born, block[-1].last
        near = range(len(slots) - 1, max(-1, len(slots) - 1 - LOOKED_AT), -1)
        at = next((i for i in near if slots[i].is_free(born, last)), len(slots))
        if at == len(slots):
            slots.append(_Slot())
        slots[at].take(born, last, room_of(block[0].made))
        slot.update((life.made, at) for life in block)
    start: dict[Made, Dim] = {}
    for kernel in dict.fromkeys(kernel for kernel, _ in slot):
        for chain in kernel.chains:
            for stack in chain.stacks:
                slot[kernel, stack] = slot[kernel, chain.stacks[0]]
                start[kernel, stack] = chain.start(stack is chain.after)
    return Plan(slot, tuple(tuple(held.sizes) for held in slots), start)


@dataclass(frozen=True)
class LoopPlan:
    """Where a loop keeps what has no place outside, in slots that loops share: carried values by
    number, and what a step computes, in those from `first` on by its own plan.
    """

    carried: Mapping[int, int]
    first: int
    plan: Plan


def plan_loops(
    kernels: Sequence[Kernel],
) -> tuple[dict[Kernel, LoopPlan], tuple[tuple[Dim, ...], ...]]:
    """The plans of all loops, and the bytes that each of their slots holds in turn: one after
    another they use the same slots, one inside another those behind the other's.
    """
    slots: list[dict[Dim, None]] = []
    found: dict[Kernel, LoopPlan] = {}

    def hold(slot: int, sizes: Sequence[Dim]) -> None:
        slots.extend({} for _ in range(slot + 1 - len(slots)))
        slots[slot].update(dict.fromkeys(sizes))

    pending = [(kernel, 0) for kernel in kernels]
    while pending:
        kernel, used = pending.pop()
        op = kernel.anchor.op
        if not isinstance(op, Scan):
            continue
        body = op.body_of_step
        outside = {n.op.output for n in kernel.writes if isinstance(n.op, Scan)}
        chained = {chain.carry for chain in kernel.chains}
        apart = [i for i in range(len(body.carries)) if i not in outside | chained]
        carried = {i: used + place for place, i in enumerate(apart)}
        first = used + len(apart)
        kept = [y for j, y in enumerate(body.ys, len(body.carries)) if j in outside]
        kept += [body.nexts[i] for i in chained]
        plan = plan_buffers(kernel.inside, list(map(storage, kept)))
        for i, slot in carried.items():
            hold(slot, [bytes_of(body.carries[i])])
        for i, sizes in enumerate(plan.slots):
            hold(first + i, sizes)
        found[kernel] = LoopPlan(carried, first, plan)
        pending += [(inner, first + len(plan.slots)) for inner in kernel.inside]
    return found, tuple(map(tuple, slots))


def room_of(made: Made) -> Dim:
    """The bytes that a value takes, a chain for all its stacks."""
    kernel, node = made
    chain = kernel.chain_of(node)
    return bytes_of(node) + (chain.row if chain else 0)


def _blocks(kernels: Sequence[Kernel], kept: Sequence[Node]) -> list[list[Life]]:
    """The values that lie in the arena; in one list those of which each is written in the place of
    the one before.
    """
    ends: dict[int, list[Life]] = {}
    blocks: list[list[Life]] = []
    of: dict[Made, list[Life]] = {}
    found = lives(kernels, kept)
    for life in found:
        ends.setdefault(life.last, []).append(life)
    for life in found:
        dying = ends.get(life.born, [])
        giver = next((old for old in dying if _gives(kernels[life.born], old, life)), None)
        if giver is None:
            blocks.append([])
        else:
            dying.remove(giver)
        of[life.made] = of[giver.made] if giver else blocks[-1]
        of[life.made].append(life)
    return blocks


def _gives(kernel: Kernel, old: Life, new: Life) -> bool:
    """Whether a kernel that reads a value for the last time may write another in its place."""
    (maker, gone), (_, value) = old.made, new.made
    if old.born >= new.born or maker.chain_of(gone) is not None:
        return False
    fits = gone.type.shape == value.type.shape and (
        gone.type.dtype.itemsize == value.type.dtype.itemsize
    )
    return (fits and reads_at_its_index(kernel, gone)) or writes_behind(kernel, gone, value)


class _Slot:
    """When a slot is taken, from one kernel to another, and the sizes of what it then holds."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.sizes: dict[Dim, None] = {}

    def is_free(self, born: int, last: int) -> bool:
        """Whether it is, from one time to another."""
        before = bisect_right(self.starts, last)
        return before == 0 or self.ends[before - 1] < born

    def take(self, born: int, last: int, size: Dim) -> None:
        """Hold something of a size meanwhile."""
        at = bisect_right(self.starts, born)
        self.starts.insert(at, born)
        self.ends.insert(at, last)
        self.sizes[size] = None
