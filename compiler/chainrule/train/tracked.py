"""States that follow what a loss computes of each minibatch, such as batch norm's statistics."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from chainrule.errors import CompileError
from chainrule.ir import provenance
from chainrule.ir.graph import replace, walk
from chainrule.ir.node import Node
from chainrule.ops.phase import Tracked
from chainrule.ops.source import Leaf


def tracked_changes(values: Sequence[Node], named: Collection[Node]) -> list[tuple[Node, Node]]:
    """Each state that `values` track and its next value, but for those that are `named` otherwise.

    What tracks one state at several places changes it at each in turn, operands before what uses
    them. Raises CompileError for what is tracked in a loop, or is no state.
    """
    nexts: dict[Node, Node] = {}
    for node in walk(values):
        for body in node.op.bodies():
            _refuse(body.roots)
        if isinstance(node.op, Tracked):
            _, kept, after = node.inputs
            if not (isinstance(kept.op, Leaf) and kept.op.kind == "state"):
                raise CompileError(
                    f"what is tracked is kept in a state, not in {kept!r}",
                    where=provenance.line_of(node),
                )
            if kept not in named:
                before = {kept: nexts[kept]} if kept in nexts else {}
                (nexts[kept],) = replace([after], before)
    return list(nexts.items())


def _refuse(roots: Sequence[Node]) -> None:
    """Raise CompileError where a loop's step tracks something: its states would be many."""
    pending = list(roots)
    while pending:
        for node in walk([pending.pop()]):
            pending += [root for body in node.op.bodies() for root in body.roots]
            if isinstance(node.op, Tracked):
                raise CompileError(
                    "the step of a loop tracks a state, which changes once a training step",
                    "keep batch norm outside of a loop; layer norm keeps no state",
                    where=provenance.line_of(node),
                )
