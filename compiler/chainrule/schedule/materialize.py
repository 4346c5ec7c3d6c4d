"""The graph as kernels can be made of it: what has to lie in memory is computed into it."""

from __future__ import annotations

from chainrule.ir import provenance
from chainrule.ir.graph import Graph
from chainrule.ir.node import Node, apply, rebuild
from chainrule.ops.build import copy
from chainrule.ops.cast import widens
from chainrule.ops.padding import Padded
from chainrule.ops.windows import Window
from chainrule.schedule.reading import storage

#: Views and cheap operations that may be worked out again at each place that reads them.
MAX_RECOMPUTED = 16


def materialize(graph: Graph) -> Graph:
    """Copies appear: of operands that an op reads from memory where they have none, of views and
    cheap operations that are too many to be worked out again, of updates that compute nothing, and
    of outputs that are leaves, which an update is to change.
    """
    memo: dict[Node, Node] = {}
    recomputed: dict[Node, int] = {}
    for node in graph.nodes:
        with provenance.derived_from(node):
            given = [_padded(node, memo[n]) for n in node.inputs]
            new = rebuild(node, [_operand(node, i, n) for i, n in enumerate(given)])
            cheap = new.op.role in ("view", "light")
            count = 1 + sum(recomputed.get(i, 0) for i in new.inputs) if cheap else 0
            memo[node] = copy(new) if count > MAX_RECOMPUTED else new
        recomputed[memo[node]] = 0 if count > MAX_RECOMPUTED else count
        provenance.inherit(memo[node], node)
    updates = tuple((leaf, _update(memo[value])) for leaf, value in graph.updates)
    changed = {leaf for leaf, _ in graph.updates}
    return Graph(tuple(_output(memo[n], changed) for n in graph.outputs), updates)


def _padded(reader: Node, node: Node) -> Node:
    """An operand; windows of a padded one, which a product lays down itself, as such."""
    windows = node.op
    if reader.op.role != "contract" or not isinstance(windows, Window) or not node.dtype.is_float:
        return node
    padded = Padded.of(node.inputs[0])
    if padded is None or not padded.begins_at(windows.axis):
        return node
    (x,) = node.inputs[0].inputs
    base = _behind(x)
    if base.op.role == "light" or (base.op.indexed and base.inputs):
        x = copy(x)
    return rebuild(node, [apply(padded, x)])


def _behind(node: Node) -> Node:
    while _is_read_through(node):
        node = node.inputs[0]
    return node


def _operand(reader: Node, number: int, node: Node) -> Node:
    """An operand, or a copy of it where the reader needs memory and there is none behind it."""
    if reader.op.role == "scan":
        return copy(node) if storage(node).op.role in ("view", "light") else node
    by_index = number in reader.op.buffered
    if not by_index and reader.op.role not in ("contract", "nest"):
        return node
    base = _behind(node)
    if base.op.indexed and isinstance(base.op, Padded):
        return node  # laid down by the product, see _padded
    if by_index:
        return copy(node) if base.op.role in ("view", "light") else node
    # one number everywhere, or an index, is as well written into the loops
    return copy(node) if base.op.role == "light" or (base.op.indexed and base.inputs) else node


def _is_read_through(node: Node) -> bool:
    """Whether a node is one operand's elements elsewhere, or bfloat16 ones as float32."""
    moved = node.op.role == "view" and len(node.inputs) == 1 and not node.op.indexed
    return moved or (node.op.role == "light" and widens(node))


def _output(node: Node, changed: set[Node]) -> Node:
    with provenance.derived_from(node):
        return provenance.inherit(copy(node), node) if storage(node) in changed else node


def _update(value: Node) -> Node:
    with provenance.derived_from(value):
        return copy(value) if storage(value).op.role in ("leaf", "view", "light") else value
