"""Which unstable forms an expression holds: the stability rules, watched at work."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from chainrule.errors import Location
from chainrule.ir import provenance
from chainrule.ir.graph import Graph
from chainrule.ir.node import Node
from chainrule.records import dataclass
from chainrule.rewrite.canonical import CANONICAL
from chainrule.rewrite.rule import AnyRule, Rewriter, Rules
from chainrule.rewrite.stability import STABILITY


@dataclass(frozen=True)
class Finding:
    """One unstable form: the rule that knows it, what was there and what takes its place."""

    rule: AnyRule
    before: Node
    after: Node
    line: Location | None


def find_unstable(roots: Sequence[Node], opaque: Collection[Node] = ()) -> list[Finding]:
    """The unstable forms in some expressions, operands first, with what becomes of each."""
    watched = _Watched(CANONICAL + STABILITY, opaque)
    watched.run(Graph(tuple(roots)))
    return watched.findings


class _Watched(Rewriter):
    """A rewriter that keeps what the stability rules do."""

    def __init__(self, rules: Rules, opaque: Collection[Node]) -> None:
        super().__init__(rules, opaque)
        self.findings: list[Finding] = []

    def used(self, rule: AnyRule, node: Node, new: Node) -> None:
        if rule in STABILITY.all:
            line = provenance.line_of(node) or provenance.line_of(new)
            self.findings.append(Finding(rule, node, new, line))
