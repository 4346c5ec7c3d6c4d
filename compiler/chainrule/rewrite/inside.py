"""Rows that are looked up for a loop are looked up by its steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from chainrule.ir import provenance
from chainrule.ir.graph import Graph, users
from chainrule.ir.node import Node, apply, rebuild
from chainrule.ops.body import label_of, local, substituted
from chainrule.ops.index import Take
from chainrule.ops.scan import Scan


def look_up_inside(graph: Graph) -> Graph:
    """Stacks of rows that are looked up, and that loops alone read, disappear: each step looks up
    its own, which are as fast read where they stand as from a stack.
    """
    stacks = _stacks(graph)
    if not stacks:
        return graph
    memo: dict[Node, Node] = {}
    for node in graph.nodes:
        if node in stacks:
            continue
        with provenance.derived_from(node):
            if isinstance(node.op, Scan) and not stacks.isdisjoint(node.inputs):
                new = _looking_up(node, node.op, stacks, memo)
            else:
                new = rebuild(node, [memo[i] for i in node.inputs])
        memo[node] = provenance.inherit(new, node)
    return graph.with_roots([memo[r] for r in graph.roots])


def _stacks(graph: Graph) -> set[Node]:
    """The rows looked up that are read by loops alone, a slice at each step."""
    readers, roots = users(graph.nodes), set(graph.roots)
    found: set[Node] = set()
    for node in graph.nodes:
        op = node.op
        rows = isinstance(op, Take) and op.axis == 0 and op.index_rank > 0 and node not in roots
        if rows and all(node in _slices(r) and node not in _others(r) for r in readers[node]):
            found.add(node)
    return found


def _slices(loop: Node) -> Sequence[Node]:
    """The stacks of which a loop is given slices; none of another node."""
    if not isinstance(loop.op, Scan):
        return ()
    body = loop.op.body_of_step
    return loop.inputs[len(body.carries) :][: len(body.slices)]


def _others(loop: Node) -> Sequence[Node]:
    """All else that a loop is given."""
    assert isinstance(loop.op, Scan)
    body = loop.op.body_of_step
    count, end = len(body.carries), len(body.carries) + len(body.slices)
    return (*loop.inputs[:count], *loop.inputs[end:])


def _looking_up(node: Node, op: Scan, stacks: set[Node], memo: dict[Node, Node]) -> Node:
    """A loop that is given positions in the place of stacks, and the tables."""
    body = op.body_of_step
    count, number = len(body.carries), len(body.leaves)
    inputs = [n if n in stacks else memo[n] for n in node.inputs]
    slices, tables = list(body.slices), []
    values = {leaf: leaf for leaf in body.leaves}
    for i, leaf in enumerate(body.slices):
        rows = node.inputs[count + i]
        if rows not in stacks:
            continue
        take, (table, at) = rows.op, (memo[n] for n in rows.inputs)
        assert isinstance(take, Take)
        name = label_of(leaf)
        slices[i] = local(name, at.type.with_shape(at.type.shape[1:]), number)
        tables.append(local(f"{name}_rows", table.type, number + 1))
        number += 2
        look = replace(take, index_rank=take.index_rank - 1)
        values[leaf] = apply(look, tables[-1], slices[i])
        inputs[count + i] = at
        inputs.append(table)
    roots, end = substituted(body.roots, values), len(body.nexts)
    wide = replace(
        body,
        slices=tuple(slices),
        constants=(*body.constants, *tables),
        nexts=tuple(roots[:end]),
        ys=tuple(roots[end:]),
    )
    return apply(replace(op, body_of_step=wide), *inputs)
