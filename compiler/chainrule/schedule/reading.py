"""What a node reads: the memory or the values that lie behind views and other cheap operations."""

from __future__ import annotations

from chainrule.ir.node import Node

#: A computed or given node, and the views it is read through, the outermost first.
Source = tuple[Node, tuple[Node, ...]]


def storage(node: Node) -> Node:
    """The node whose memory holds a node's elements: reshapes share their operand's."""
    while node.op.role == "alias":
        node = node.inputs[0]
    return node


def bases(node: Node) -> list[Source]:
    """The computed or given nodes that a node reads, operand by operand."""
    return [pair for operand in node.inputs for pair in sources(operand)]


def sources(node: Node) -> list[Source]:
    """The computed or given nodes behind a node, which is one itself or a view of some."""
    pending: list[Source] = [(node, ())]
    found: list[Source] = []
    while pending:
        n, path = pending.pop()
        if n.op.role == "alias":
            found.append((storage(n), (*path, n)))
        elif n.op.role == "view":
            pending.extend((i, (*path, n)) for i in n.inputs)
        elif n.op.role == "light":
            pending.extend((i, path) for i in n.inputs)
        else:
            found.append((n, path))
    return found
