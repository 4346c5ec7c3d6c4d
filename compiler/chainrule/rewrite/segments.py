"""Loops in segments: what a loop keeps for its derivative is computed again, a segment at a time.

The first loop becomes a loop of loops that keeps what it carries where segments begin, and the one
the other way round begins each segment by running it again from there. So of T steps in segments of
k some T/k + k are in memory at once. (Chen, Xu, Zhang, Guestrin, "Training deep nets with sublinear
memory cost", 2016.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field, replace

from chainrule.ir import provenance
from chainrule.ir.graph import Graph, walk
from chainrule.ir.node import Node, apply, rebuild
from chainrule.ops.body import close, label_of, local
from chainrule.ops.layout import Reshape
from chainrule.ops.scan import Scan
from chainrule.records import dataclass
from chainrule.rewrite.steps import Looped, loops_in


def in_segments(graph: Graph) -> Iterator[tuple[int, Graph]]:
    """The graph with its loops in segments of about k steps, with k, for all k that make sense."""
    lengths = {pair.length for pair in _pairs(graph)}
    for steps in sorted({k for length in lengths for k in _divisors(length)}):
        way = graph
        while pairs := _pairs(way):
            way = _cut(way, pairs[0], steps)
        yield steps, way


@dataclass(frozen=True)
class _Pair:
    """A loop, one the other way round, and the stacks of the first that only the second reads."""

    first: Looped
    back: Looped
    kept: frozenset[Node]

    @property
    def length(self) -> int:
        assert isinstance(self.first.op.length, int)
        return self.first.op.length


def _divisors(length: int) -> list[int]:
    """The lengths of segments: more than one step, in more than one segment."""
    return [k for k in range(2, length) if length % k == 0]


def _pairs(graph: Graph) -> list[_Pair]:
    """The loops that can be cut: of known length, and with no loop inside."""
    readers: dict[Node, list[Node]] = {}
    for node in graph.nodes:
        for operand in node.inputs:
            readers.setdefault(operand, []).append(node)
    found: list[_Pair] = []
    loops = [loop for loop in loops_in(graph) if not _holds_loops(loop)]
    for first in loops:
        length = first.op.length
        if not isinstance(length, int) or not _divisors(length):
            continue
        stacks = {n for n in first.members if _number(n) >= len(first.body.carries)}
        stacks -= set(graph.roots)
        for back in loops:
            if back.op.length != length or back.op.reverse == first.op.reverse:
                continue
            begin, end = _bounds(back)
            slices = set(back.inputs[begin:end]) - {*back.inputs[:begin], *back.inputs[end:]}
            mine = set(back.members)
            kept = {n for n in stacks & slices if mine.issuperset(readers[n])}
            if kept:
                found.append(_Pair(first, back, frozenset(kept)))
                break
    return found


def _holds_loops(loop: Looped) -> bool:
    return any(isinstance(n.op, Scan) for n in walk(loop.body.roots))


def _number(node: Node) -> int:
    assert isinstance(node.op, Scan)
    return node.op.output


def _bounds(loop: Looped) -> tuple[int, int]:
    """Where the stacks among a loop's operands begin and end."""
    count = len(loop.body.carries)
    return count, count + len(loop.body.slices)


def _cut(graph: Graph, pair: _Pair, steps: int) -> Graph:
    """The graph with two loops in segments of at most so many steps."""
    sizes = _divisors(pair.length)
    size = max((k for k in sizes if k <= steps), default=sizes[0])
    memo: dict[Node, Node] = {}
    made: dict[Node, Node] = {}
    begun: list[Node] = []
    for node in graph.nodes:
        with provenance.derived_from(node):
            if node in pair.first.members:
                if not begun:
                    made_now, begun = _first(pair, size, memo)
                    made |= made_now
                if node in pair.kept:
                    continue
                new = made[node]
            elif node in pair.back.members:
                if node not in made:
                    made |= _back(pair, size, memo, begun)
                new = made[node]
            else:
                new = rebuild(node, [memo[i] for i in node.inputs])
        memo[node] = provenance.inherit(new, node)
    return graph.with_roots([memo[r] for r in graph.roots])


def _first(
    pair: _Pair, size: int, memo: Mapping[Node, Node]
) -> tuple[dict[Node, Node], list[Node]]:
    """What stands for the results of the first loop, and what it carries as segments begin."""
    loop = pair.first
    begin, end = _bounds(loop)
    given = [memo[n] for n in loop.inputs]
    carries = [local(label_of(n), n.type) for n in loop.body.carries]
    slices = [_segment(n, size) for n in given[begin:end]]
    inner = _inner(loop, size, (*carries, *slices, *given[end:]))
    outer = _Outer(loop, size, carries, dict(zip(slices, given[begin:end], strict=True)))
    wanted = [n for n in loop.members if n not in pair.kept]
    return outer.results(wanted, inner, given, given[end:])


def _back(
    pair: _Pair, size: int, memo: Mapping[Node, Node], begun: Sequence[Node]
) -> dict[Node, Node]:
    """What stands for the results of the loop back."""
    first, loop = pair.first, pair.back
    begin, end = _bounds(loop)
    first_begin, first_end = _bounds(first)
    given = {n: memo[n] for n in (*loop.inputs, *first.inputs) if n not in pair.kept}
    carries = [local(label_of(n), n.type) for n in loop.body.carries]
    starts = [local(label_of(n), n.type) for n in first.body.carries]
    stacked = [*first.inputs[first_begin:first_end], *loop.inputs[begin:end]]
    segments = {n: _segment(given[n], size) for n in stacked if n not in pair.kept}
    constants = [given[n] for n in (*first.inputs[first_end:], *loop.inputs[end:])]
    again = _inner(
        first,
        size,
        (
            *starts,
            *(segments[n] for n in first.inputs[first_begin:first_end]),
            *(given[n] for n in first.inputs[first_end:]),
        ),
    )
    rows = [again(_number(n)) if n in pair.kept else segments[n] for n in loop.inputs[begin:end]]
    inner = _inner(loop, size, (*carries, *rows, *(given[n] for n in loop.inputs[end:])))
    stacks = {segments[n]: given[n] for n in segments}
    outer = _Outer(loop, size, carries, stacks, dict(zip(starts, begun, strict=True)))
    operands = [given[n] for n in loop.inputs[:begin]]
    return outer.results(loop.members, inner, operands, constants)[0]


def _segment(stack: Node, size: int) -> Node:
    """What a loop of loops is given of a stack at each step."""
    name = provenance.name_of(stack) or "x"
    return local(name, stack.type.with_shape((size, *stack.type.shape[1:])))


def _inner(loop: Looped, size: int, operands: Sequence[Node]) -> Callable[[int], Node]:
    """The results of a loop over one segment."""
    short = replace(loop.op, length=size)
    return lambda output: apply(short.sibling(output), *operands)


@dataclass(frozen=True)
class _Outer:
    """A loop over segments: what it carries, its segments of stacks, and its slices of others."""

    loop: Looped
    size: int
    carries: Sequence[Node]
    segments: Mapping[Node, Node]
    rows: Mapping[Node, Node] = field(default_factory=dict)

    def results(
        self,
        wanted: Sequence[Node],
        inner: Callable[[int], Node],
        given: Sequence[Node],
        constants: Sequence[Node],
    ) -> tuple[dict[Node, Node], list[Node]]:
        """What stands for each of a loop's results, and what is carried as each segment begins."""
        op, count = self.loop.op, len(self.carries)
        stacks = [n for n in wanted if _number(n) >= count]
        nexts, ys = [inner(i) for i in range(count)], [inner(_number(n)) for n in stacks]
        slices = [*self.segments, *self.rows]
        body, more = close(self.carries, slices, nexts, ys, constants)
        assert isinstance(op.length, int)
        parts = op.length // self.size
        cut = [
            apply(Reshape((parts, self.size, *n.type.shape[1:])), n) for n in self.segments.values()
        ]
        operands = (*given[:count], *cut, *self.rows.values(), *more)
        outer = Scan(body, parts, op.reverse, 0)
        made = [apply(outer.sibling(i), *operands) for i in range(2 * count + len(ys))]
        found = {n: made[_number(n)] for n in wanted if _number(n) < count}
        for n, stack in zip(stacks, made[count:], strict=False):
            found[n] = apply(Reshape(n.type.shape), stack)
        return found, made[count + len(ys) :]
