"""What the stability rules found in an expression, as text with the user's lines."""

from __future__ import annotations

from collections.abc import Sequence

from chainrule.errors import Location
from chainrule.ir import provenance
from chainrule.ir.node import Node
from chainrule.records import dataclass
from chainrule.rewrite.findings import Finding, find_unstable
from chainrule.show.lines import write
from chainrule.show.page import arrange, seen


@dataclass(frozen=True)
class Remark:
    """An unstable form at a line: the rule's name, the form, and what it becomes."""

    rule: str
    before: str
    after: str
    line: Location | None

    def __str__(self) -> str:
        where = f"\n  at {self.line}" if self.line else ""
        return f"{self.rule}: {self.before} -> {self.after}{where}"


@dataclass(frozen=True)
class Lint:
    """The remarks on an expression, operands first; true where there are none."""

    remarks: tuple[Remark, ...]

    def __bool__(self) -> bool:
        return not self.remarks

    def __len__(self) -> int:
        return len(self.remarks)

    def __str__(self) -> str:
        return "\n".join(map(str, self.remarks)) or "no unstable form found"


def lint(roots: Sequence[Node]) -> Lint:
    """The unstable forms in some expressions that the rules know, and what was done about each."""
    return Lint(tuple(map(_remark, find_unstable(roots))))


def _remark(found: Finding) -> Remark:
    return Remark(found.rule.name, _text(found.before), _text(found.after), found.line)


def _text(node: Node) -> str:
    """A form as its last line; before it what it reads twice, unless the user has named that."""
    *bound, last = write(arrange([node]))
    read = [n for n in bound if n.node in _read(node) and provenance.user_name_of(n.node) is None]
    return "; ".join([*(f"{n.name} = {n.expression}" for n in read), last.expression])


def _read(node: Node) -> set[Node]:
    """What a form reads: its operands and theirs, as they are seen."""
    parts = {seen(i) for i in node.inputs}
    return parts | {seen(i) for p in parts for i in p.inputs if p.op.role == "reduce"}
