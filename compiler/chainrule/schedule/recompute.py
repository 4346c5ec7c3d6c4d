"""What is computed again instead of being kept, so that a program fits a budget of memory.

A node stands for its value, so nothing becomes of the graph: a kernel is run twice, the second time
for those of its values that are needed then, and gives the same bits. The time at which most is
alive, the end of the forward pass, parts those who write from those who read later. The kernels
before it are cut into segments; what crosses a cut is kept, what only lives inside is computed
again, a segment at a time, when the first kernel behind asks for it. With n equal layers in about
sqrt(2 n) segments, each shorter than the one before, some sqrt(2 n) values are alive at once
(Chen, Xu, Zhang, Guestrin, "Training deep nets with sublinear memory cost", 2016, algorithm 3, has
equal ones).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import accumulate

from chainrule.errors import CompileError
from chainrule.ir import provenance
from chainrule.ir.node import Node
from chainrule.ir.size import Dim, evaluate
from chainrule.records import dataclass
from chainrule.schedule.budget import Budget
from chainrule.schedule.buffers import Plan, lives, plan_buffers, plan_loops
from chainrule.schedule.kernel import Form, Kernel, bytes_of
from chainrule.schedule.order import copy_into
from chainrule.schedule.reading import bases

#: Slots begin at multiples of so many bytes.
ALIGN = 64
#: How many ways of cutting are tried at most, and how often it is tried to keep some more.
MAX_SEGMENTS, MAX_TRIES = 48, 48
#: A value that is less than this part of all is not worth another kernel.
SMALL = 1000


@dataclass(frozen=True)
class Fitted:
    """Kernels and their plan within a budget: the arena's bytes before and after, and what is
    computed again. Loops may run again too, `steps` at a time, which takes `looped` operations.
    """

    budget: Budget
    kernels: tuple[Kernel, ...]
    plan: Plan
    before: int
    after: int
    steps: int = 0
    looped: Dim = 0

    @property
    def again(self) -> tuple[Node, ...]:
        """The values that are computed twice."""
        return tuple(node for kernel in self.kernels if kernel.again for node in kernel.writes)

    @property
    def flops(self) -> Dim:
        """The operations that it takes to compute them again."""
        total = self.looped
        for kernel in self.kernels:
            total = total + (kernel.flops if kernel.again else 0)
        return total


def fit(
    kernels: Sequence[Kernel], kept: Sequence[Node], budget: Budget, before: int | None = None
) -> Fitted:
    """The kernels with as little computed again as is found for the arena to fit the budget.

    Products are computed again only where nothing else suffices. Raises OverBudget where the budget
    can't be met. `before` is the arena that there would be otherwise, if not that of the kernels.
    """
    search = _Search(kernels, kept, budget)
    begin = search.whole
    before = begin.arena if before is None else before
    if begin.arena <= budget.bytes:
        return Fitted(budget, tuple(kernels), begin.plan, before, begin.arena)
    search = _Search(_beside(kernels), kept, budget)
    found = search.best()
    if found.arena > budget.bytes:
        raise _too_much(before, min(begin, found, key=lambda attempt: attempt.arena), search)
    return Fitted(budget, tuple(found.kernels), found.plan, before, found.arena)


class OverBudget(CompileError):
    """A budget that can't be met: the arena with nothing computed again, and the least found."""

    before: int
    least: int


def arena_of(kernels: Sequence[Kernel], kept: Sequence[Node], budget: Budget) -> int:
    """The arena's bytes with nothing computed again."""
    return _Search(kernels, kept, budget).whole.arena


@dataclass(frozen=True)
class _Attempt:
    """Kernels in an order, where their values lie, and what that takes: bytes and operations."""

    kernels: Sequence[Kernel]
    plan: Plan
    arena: int
    flops: int


class _Search:
    """Ways to compute values again; `turn` is the time at which most is alive."""

    def __init__(self, kernels: Sequence[Kernel], kept: Sequence[Node], budget: Budget) -> None:
        self.kernels, self.kept, self.budget = kernels, kept, budget
        self.number = cache(lambda size: evaluate(size, budget.sizes))
        self.parts: dict[Hashable, tuple[Kernel, int]] = {}
        self.loops = self.bytes_in(plan_loops(kernels)[1])
        self.whole = self.tried(kernels, 0)
        alive = self.alive(kernels)
        self.turn = max(range(len(alive)), key=alive.__getitem__, default=0)
        self.early = {v.made[1]: v for v in lives(kernels, kept) if v.born <= self.turn}
        self.size = {n: self.number(bytes_of(n)) for n in self.early}
        self.late = [n for n, life in self.early.items() if life.last > self.turn]
        self.overwritten = {
            leaf: time
            for time, kernel in enumerate(kernels)
            for value, leaf in kernel.writes.items()
            if leaf is not value
        }
        # the last kernel before the turn that reads a value: what crosses a cut is read behind it
        self.read = {
            node: time
            for time, kernel in enumerate(kernels[: self.turn + 1])
            for node in kernel.reads
            if node in self.early
        }
        # when a value may be read for the last time, by what computes others again too
        self.wanted = {n: life.last for n, life in self.early.items()}
        small = sum(self.size.values()) // SMALL
        self.fixed = {n for n in self.early if self.size[n] <= small}
        self.settle()
        self.costly = {n for n in self.early if self.is_costly(n)}

    def tried(self, kernels: Sequence[Kernel], flops: int) -> _Attempt:
        """Kernels with the plan of their buffers, and the bytes of that as it is laid out."""
        plan = plan_buffers(kernels, self.kept, self.number)
        return _Attempt(kernels, plan, self.bytes_in(plan.slots) + self.loops, flops)

    def bytes_in(self, slots: Sequence[Sequence[Dim]]) -> int:
        """The bytes of slots as they are laid out."""
        largest = (max(map(self.number, slot)) for slot in slots)
        return sum(-(-size // ALIGN) * ALIGN for size in largest)

    def alive(self, kernels: Sequence[Kernel]) -> list[int]:
        """The bytes alive while each kernel runs."""
        change = [0] * (len(kernels) + 1)
        for life in lives(kernels, self.kept):
            size = self.number(bytes_of(life.made[1]))
            change[life.born] += size
            change[life.last + 1] -= size
        return list(accumulate(change[:-1]))

    def settle(self) -> None:
        """Find until when values are wanted, and what is kept in any case, from the turn back: who
        is never computed again asks for nothing then.
        """
        for kernel in reversed(self.kernels[: self.turn + 1]):
            mine = [n for n in kernel.writes if n in self.early]
            self.fixed.update(n for n in mine if not self.can_again(n))
            last = max((self.wanted[n] for n in mine if n not in self.fixed), default=-1)
            for node in kernel.reads:
                if node in self.early:
                    self.wanted[node] = max(self.wanted[node], last)

    def can_again(self, node: Node) -> bool:
        """Whether a value's kernel may run a second time: no loop, and all its leaves unchanged."""
        kernel, _ = self.early[node].made
        never = len(self.kernels)
        changed = min((self.overwritten.get(n, never) for n in kernel.reads), default=never)
        return kernel.form is not Form.SCAN and changed >= self.wanted[node]

    def is_costly(self, node: Node) -> bool:
        """Whether a product or an op's own loops are to run for a value, others being kept."""
        kernel, _ = self.early[node].made
        heavy = kernel.form in (Form.CONTRACT, Form.NEST, Form.ATTEND)
        return heavy and kernel.anchor in _needed(kernel, [node], kernel.writes)

    def best(self) -> _Attempt:
        """What fits with the fewest operations; if nothing does, what takes the least memory."""
        least: _Attempt | None = None
        for always in ({*self.fixed, *self.costly}, self.fixed):
            tried = [(self.attempt(keep), keep) for keep in self.ways(always)]
            fitting = [(a, keep) for a, keep in tried if a.arena <= self.budget.bytes]
            if fitting:
                found, keep = min(fitting, key=lambda pair: (pair[0].flops, pair[0].arena))
                return self.keep_more(found, keep)
            smallest = min((a for a, _ in tried), key=lambda a: a.arena)
            least = smallest if least is None or smallest.arena < least.arena else least
        assert least is not None
        return least

    def ways(self, always: Collection[Node]) -> Iterator[frozenset[Node]]:
        """The values to keep: all that cross the cuts, for some numbers of segments."""
        total = sum(self.size[n] for n in self.late if n not in always)
        seen: set[frozenset[Node]] = set()
        for count in _counts(min(self.turn + 1, MAX_SEGMENTS)):
            for weights in ([1] * count, list(range(count, 0, -1))):
                ends = [total * w / sum(weights) for w in accumulate(weights)]
                keep = self.crossing(ends[:-1], total / count, always)
                if keep not in seen:
                    seen.add(keep)
                    yield keep

    def crossing(
        self, ends: Sequence[float], each: float, always: Collection[Node]
    ) -> frozenset[Node]:
        """What to keep where segments end when so many bytes have come together: what is read
        across each cut, which is made where that is least, and all of the last segment.
        """
        come, behind = self.profile(always)
        cuts: list[int] = []
        for end in ends:
            near = [t for t, sum_ in enumerate(come) if abs(sum_ - end) <= each / 4]
            near = near or [min(range(len(come)), key=lambda t: abs(come[t] - end))]
            cuts.append(min(near, key=lambda t: (behind[t], abs(come[t] - end))))
        last = max(cuts, default=-1) if ends else self.turn
        keep = {*always, *(n for n, life in self.early.items() if life.born > last)}
        for node, life in self.early.items():
            if any(life.born <= cut < self.read.get(node, -1) for cut in cuts):
                keep.add(node)
        return frozenset(keep)

    def profile(self, always: Collection[Node]) -> tuple[list[int], list[int]]:
        """By time: the bytes that have come together, and those read across a cut behind it."""
        come, behind = [0] * (self.turn + 1), [0] * (self.turn + 2)
        late = set(self.late)
        for node, life in self.early.items():
            if node in late and node not in always:
                come[life.born] += self.size[node]
            end = self.read.get(node, life.born)
            behind[life.born] += self.size[node]
            behind[end] -= self.size[node]
        return list(accumulate(come)), list(accumulate(behind))

    def attempt(self, keep: Collection[Node]) -> _Attempt:
        """The kernels, each preceded after the turn by those that compute again what it reads."""
        out = list(self.kernels[: self.turn + 1])
        there, flops = set(keep), 0
        for time in range(self.turn + 1, len(self.kernels)):
            flops += self.supply(self.kernels[time].reads, time, there, out)
            out.append(self.kernels[time])
        return self.tried(out, flops)

    def supply(self, wanted: Sequence[Node], time: int, there: set[Node], out: list[Kernel]) -> int:
        """Compute again what is wanted and not there, and before it whatever that needs."""
        flops = 0
        pending: list[Node | Kernel] = list(reversed(wanted))
        while pending:
            item = pending.pop()
            if isinstance(item, Kernel):
                out.append(item)
            elif item in self.early and item not in there:
                kernel, more = self.again(item, time, there)
                there.update(kernel.writes)
                flops += more
                pending += [kernel, *reversed(kernel.reads)]
        return flops

    def again(self, node: Node, time: int, there: Collection[Node]) -> tuple[Kernel, int]:
        """The kernel that computes a value a second time, with what else of it is still wanted, and
        its operations.
        """
        first, _ = self.early[node].made
        have = frozenset(n for n in first.writes if n in there or n not in self.early)
        wanted = tuple(
            n for n in first.writes
            if n is node or (n not in have and self.early[n].last >= time)
        )  # fmt: skip
        key = first, wanted, have
        if key not in self.parts:
            part = _part(first, wanted, have)
            self.parts[key] = part, self.number(part.flops)
        return self.parts[key]

    def keep_more(self, found: _Attempt, keep: frozenset[Node]) -> _Attempt:
        """The same with values kept after all where there is room: the dearest of a byte first."""
        cost: dict[Node, float] = {}
        for kernel in found.kernels:
            if kernel.again:
                flops = self.number(kernel.flops) / len(kernel.writes)
                cost.update((n, flops / max(1, self.size[n])) for n in kernel.writes)
        pending = [sorted(cost, key=cost.__getitem__)]  # the last half is tried first
        for _ in range(MAX_TRIES):
            if not pending:
                break
            more = pending.pop()
            tried = self.attempt(keep | set(more))
            if tried.arena <= self.budget.bytes:
                found, keep = tried, keep | set(more)
            elif len(more) > 1:
                half = len(more) // 2
                pending += [more[:half], more[half:]]
        return found


def _counts(most: int) -> Iterator[int]:
    """Numbers of segments to try: all small ones, then fewer and fewer."""
    count = 1
    while count <= most:
        yield count
        count += 1 + count // 8


def _needed(kernel: Kernel, wanted: Sequence[Node], there: Collection[Node]) -> list[Node]:
    """The nodes of a kernel that it takes to compute some of them, others being in memory."""
    mine, found = set(kernel.nodes), set(wanted)
    pending = list(wanted)
    while pending:
        for base, _ in bases(pending.pop()):
            if base in mine and base not in there and base not in found:
                found.add(base)
                pending.append(base)
    return [n for n in kernel.nodes if n in found]


def _part(kernel: Kernel, wanted: Sequence[Node], there: Collection[Node]) -> Kernel:
    """A kernel that computes again what is wanted of another, and no more than that takes."""
    nodes = _needed(kernel, wanted, there)
    read = dict.fromkeys(base for node in nodes for base, _ in bases(node))
    mine = set(nodes)
    part = replace(
        kernel,
        nodes=nodes,
        reads=tuple(base for base in read if base not in mine),
        writes={n: n for n in nodes if n in set(wanted)},
        again=True,
    )
    shape = nodes[0].type.shape
    built = (Form.CONTRACT, Form.COLUMNS, Form.NEST)
    around = kernel.form is Form.ATTEND or (kernel.form in built and kernel.anchor in mine)
    folds = kernel.form is Form.ROWS and any(n.op.role == "reduce" for n in nodes)
    if not around and not folds and all(n.type.shape == shape for n in nodes):
        part.form, part.space, part.inner = Form.MAP, shape, 0
    return part


def _beside(kernels: Sequence[Kernel]) -> list[Kernel]:
    """Kernels that update a few bytes where others read the old ones, such as the number of the
    step, which random draws read, do it at the end: what has read them can then run again.
    """
    readers = Counter(node for kernel in kernels for node in kernel.reads)
    out: list[Kernel] = []
    copies: list[Kernel] = []
    for kernel in kernels:
        writes = dict(kernel.writes)
        for value, leaf in kernel.writes.items():
            if kernel.form is Form.COPY or leaf is value:
                continue
            size, others = bytes_of(leaf), readers[leaf] - (leaf in kernel.reads)
            if others and isinstance(size, int) and size <= ALIGN:
                writes[value] = value
                copies.append(copy_into(leaf, value))
        out.append(replace(kernel, writes=writes) if writes != kernel.writes else kernel)
    return [*out, *copies]


def _too_much(before: int, found: _Attempt, search: _Search) -> OverBudget:
    budget, bytes_at = search.budget, search.alive(found.kernels)
    time = max(range(len(bytes_at)), key=bytes_at.__getitem__)
    alive = [v.made[1] for v in lives(found.kernels, search.kept) if v.born <= time <= v.last]
    alive.sort(key=lambda node: -search.number(bytes_of(node)))
    largest = [f"{_named(n)}, {search.number(bytes_of(n)):,} bytes" for n in alive[:3]]
    loops = any(k.form is Form.SCAN for k in search.kernels)
    error = OverBudget(
        f"a memory budget of {budget} can't be met: the least found is {found.arena:,} bytes",
        f"without recomputing anything it is {before:,} bytes",
        f"alive together there, the largest: {'; '.join(largest)}",
        *(["a scan runs again in equal segments, so its length must have a divisor"] * loops),
        "allow so many bytes, or state smaller sizes: memory_budget=(bytes, {size: number})",
        where=provenance.line_of(alive[0]),
    )
    error.before, error.least = before, found.arena
    return error


def _named(node: Node) -> str:
    return f"{provenance.name_of(node) or node.op.name}: {node.type}"
