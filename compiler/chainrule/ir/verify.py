"""What must hold of every graph: types that follow from the operands, updates that fit."""

from __future__ import annotations

from chainrule.errors import ChainruleError, CompileError
from chainrule.ir import provenance
from chainrule.ir.graph import Graph
from chainrule.ir.node import Node


def verify(
    graph: Graph, after: str, before: Graph | None = None, checked: set[Node] | None = None
) -> None:
    """Check a graph; with `before`, also that a pass kept what is computed and what is changed.

    Nodes in `checked` are known to be right, as nodes don't change; those found right are added.
    Raises CompileError, which names the pass, `after`, and the node.
    """
    known = set() if checked is None else checked
    for node in graph.nodes:
        if node not in known:
            _check_type(node, after)
            known.add(node)
            for body in node.op.bodies():
                verify(body, after, None, known)
    leaves = [leaf for leaf, _ in graph.updates]
    if len(set(leaves)) < len(leaves):
        raise CompileError(f"after {after}: a leaf is updated twice")
    for leaf, value in graph.updates:
        if leaf.inputs:
            raise CompileError(f"after {after}: {leaf!r} is updated and no leaf")
        if leaf.type != value.type:
            raise _wrong(value, after, f"updates {leaf!r}: their types differ")
    if before is None:
        return
    if len(graph.outputs) != len(before.outputs):
        raise CompileError(f"after {after}: {len(graph.outputs)} outputs of {len(before.outputs)}")
    for old, new in zip(before.outputs, graph.outputs, strict=True):
        if old.type != new.type:
            raise _wrong(new, after, f"stands for an output of type {old.type}")
    for leaf in set(leaves) - {leaf for leaf, _ in before.updates}:
        raise CompileError(f"after {after}: {leaf!r} is updated and was not before")


def _check_type(node: Node, after: str) -> None:
    try:
        inferred = node.op.infer(*[i.type for i in node.inputs])
    except ChainruleError as error:
        raise _wrong(node, after, error.what) from error
    if inferred != node.type:
        raise _wrong(node, after, f"its operands make it {inferred}")


def _wrong(node: Node, after: str, why: str) -> CompileError:
    return CompileError(f"after {after}: {node!r}", why, where=provenance.line_of(node))
