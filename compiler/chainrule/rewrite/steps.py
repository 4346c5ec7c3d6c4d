"""What two loops compute alike at each step is computed by the first and stacked for the second.

The derivative of a loop begins each step by computing what the loop itself had computed there, from
the carried values it has kept. Where a product or a sum is among that, the values which the
derivative reads are kept instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from chainrule.ir import provenance
from chainrule.ir.graph import Graph, walk
from chainrule.ir.node import Node, apply, rebuild
from chainrule.ops.assemble import Concat
from chainrule.ops.body import Body, local, substituted
from chainrule.ops.layout import Slice
from chainrule.ops.scan import Scan
from chainrule.records import dataclass

#: What costs more to compute again than to keep.
_HEAVY = ("contract", "nest", "reduce", "scan")
_FREE = ("view", "light", "alias")


def share_steps(graph: Graph) -> Graph:
    """Values that a loop has computed before another computes them anew disappear from the other;
    stacks of them appear.
    """
    done = 0
    while True:
        loops = loops_in(graph)
        if done >= len(loops):
            return graph
        graph, done = _shared(graph, loops[done], loops[done + 1 :]), done + 1


@dataclass(frozen=True)
class Looped:
    """A loop in a graph: one of its results, and all that are there."""

    op: Scan
    inputs: tuple[Node, ...]
    members: tuple[Node, ...]

    @property
    def body(self) -> Body:
        return self.op.body_of_step

    def result(self, output: int) -> Node:
        return apply(self.op.sibling(output), *self.inputs)

    def operands(self) -> Iterator[tuple[Node, Node]]:
        """The leaves of the body that are no carried values, each with what the loop is given."""
        pairs = zip(self.body.leaves, self.inputs, strict=True)
        return (pair for i, pair in enumerate(pairs) if i >= len(self.body.carries))


def loops_in(graph: Graph) -> list[Looped]:
    """The loops of a graph, in the order in which their first results stand."""
    found: dict[object, list[Node]] = {}
    for node in graph.nodes:
        if isinstance(node.op, Scan):
            found.setdefault((node.op.family, node.inputs), []).append(node)
    first = [(members[0], members) for members in found.values()]
    return [
        Looped(node.op, node.inputs, tuple(members))
        for node, members in first
        if isinstance(node.op, Scan)
    ]


def _shared(graph: Graph, first: Looped, others: Sequence[Looped]) -> Graph:
    """The graph in which others read from `first` what that has computed."""
    body = first.body
    count, end = len(body.carries), len(body.carries) + len(body.ys)
    rows = {first.result(end + i): leaf for i, leaf in enumerate(body.carries)}
    alike = {given: leaf for leaf, given in first.operands()} | rows
    alike |= {first.result(count + j): y for j, y in enumerate(body.ys)}
    known = set(walk(body.roots))
    taken: dict[Looped, dict[Node, Node]] = {}
    for loop in others:
        if loop.op.length == first.op.length and not rows.keys().isdisjoint(loop.inputs):
            twins = {leaf: alike[given] for leaf, given in loop.operands() if given in alike}
            found = _taken(loop.body, twins, known)
            if found:
                taken[loop] = found
    if not taken:
        return graph
    wanted = dict.fromkeys(twin for found in taken.values() for twin in found.values())
    added = [n for n in wanted if n not in body.ys]
    parts = _together(added, body)
    stacked = dict.fromkeys(parts[n].whole if n in parts else n for n in added)
    wide = replace(first.op, body_of_step=replace(body, ys=(*body.ys, *stacked)))
    places = {y: count + j for j, y in enumerate((*body.ys, *stacked))}
    return _rebuilt(graph, first, wide, taken, places, parts)


@dataclass(frozen=True)
class _Part:
    """A value that is stacked beside others, as a slice of what they make together."""

    whole: Node
    slice: Slice


def _together(values: Sequence[Node], body: Body) -> dict[Node, _Part]:
    """The values that, side by side, are as much as a slice that each step is given: theirs is then
    the place where that lies, where nobody reads it any more.
    """
    for given in body.slices:
        for one in values:
            same = [n for n in values if n.type == one.type]
            size, wide = (n.type.shape[-1] if n.type.rank else 0 for n in (one, given))
            if not isinstance(size, int) or not isinstance(wide, int) or not 0 < size < wide:
                continue
            many, axis = wide // size, one.type.rank - 1
            of = one.type.with_shape((*one.type.shape[:-1], many * size))
            if of == given.type and len(same) >= many:
                whole = apply(Concat(axis), *same[:many])
                lead, steps = (0,) * axis, (1,) * (axis + 1)
                return {
                    n: _Part(whole, Slice((*lead, i * size), n.type.shape, steps))
                    for i, n in enumerate(same[:many])
                }
    return {}


def _taken(body: Body, leaves: Mapping[Node, Node], known: set[Node]) -> dict[Node, Node]:
    """The nodes of a body to be read from stacks, each with the node of the other that it is."""
    twins = dict(leaves)
    heavy: set[Node] = set()
    order = walk(body.roots)
    for node in order:
        if node in twins or node.op.role == "leaf" or any(i not in twins for i in node.inputs):
            continue
        twin = apply(node.op, *[twins[i] for i in node.inputs]) if node.inputs else node
        if twin in known or not node.inputs:
            twins[node] = twin
            if node.op.role in _HEAVY or any(i in heavy for i in node.inputs):
                heavy.add(node)
    pending = [i for node in order if node not in twins for i in node.inputs]
    pending += body.roots
    found: dict[Node, Node] = {}
    while pending:
        node = pending.pop()
        if node in heavy and node.op.role in _FREE:
            pending.extend(node.inputs)
        elif node in heavy:
            found[node] = twins[node]
    return {node: found[node] for node in order if node in found}


def _rebuilt(
    graph: Graph,
    first: Looped,
    wide: Scan,
    taken: Mapping[Looped, Mapping[Node, Node]],
    places: Mapping[Node, int],
    parts: Mapping[Node, _Part],
) -> Graph:
    end = len(first.body.carries) + len(first.body.ys)
    more = len(wide.body_of_step.ys) - len(first.body.ys)
    loops = {node: loop for loop in taken for node in loop.members}
    narrow = {loop: _reading(loop.body, found, parts) for loop, found in taken.items()}
    memo: dict[Node, Node] = {}
    for node in graph.nodes:
        with provenance.derived_from(node):
            if node in first.members and isinstance(node.op, Scan):
                output = node.op.output + (more if node.op.output >= end else 0)
                new = apply(wide.sibling(output), *[memo[i] for i in node.inputs])
            elif node in loops and isinstance(node.op, Scan):
                loop = loops[node]
                given = [memo[i] for i in first.inputs]
                kept = _stacked(taken[loop].values(), parts)
                stacks = [apply(wide.sibling(places[n]), *given) for n in kept]
                at = len(loop.body.carries) + len(loop.body.slices)
                operands = [memo[i] for i in node.inputs]
                op = replace(node.op, body_of_step=narrow[loop])
                new = apply(op, *operands[:at], *stacks, *operands[at:])
            else:
                new = rebuild(node, [memo[i] for i in node.inputs])
        memo[node] = provenance.inherit(new, node)
    return graph.with_roots([memo[r] for r in graph.roots])


def _stacked(twins: Iterable[Node], parts: Mapping[Node, _Part]) -> list[Node]:
    """What is stacked of values, each or several together."""
    return list(dict.fromkeys(parts[t].whole if t in parts else t for t in twins))


def _reading(body: Body, found: Mapping[Node, Node], parts: Mapping[Node, _Part]) -> Body:
    """The body that is given slices in the place of some of its nodes."""
    first = len(body.leaves)
    names = {
        twin: provenance.name_of(n) or "kept" for n, twin in found.items() if twin not in parts
    }
    given = {
        n: local(names.get(n, "kept"), n.type, first + i)
        for i, n in enumerate(_stacked(found.values(), parts))
    }
    values = {
        n: apply(parts[t].slice, given[parts[t].whole]) if t in parts else given[t]
        for n, t in found.items()
    }
    roots = substituted(body.roots, values)
    count = len(body.nexts)
    return replace(
        body,
        slices=(*body.slices, *given.values()),
        nexts=tuple(roots[:count]),
        ys=tuple(roots[count:]),
    )
