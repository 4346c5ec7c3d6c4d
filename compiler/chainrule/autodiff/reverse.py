"""The chain rule, once: reverse mode over a graph, each step recorded.

The cotangent of a node is the derivative of the result by it, contracted with the cotangent asked
for. Walking from the result to the leaves, each op turns the cotangent of its result into
contributions to its operands; what reaches a node by several paths is added up. (Griewank and
Walther, Evaluating Derivatives, 2nd ed. 2008, chapter 3.)
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import field

from chainrule.errors import GradientError
from chainrule.ir import provenance
from chainrule.ir.graph import walk
from chainrule.ir.node import Node, Op, apply
from chainrule.ops.elementwise import TABLE
from chainrule.records import dataclass


@dataclass(frozen=True)
class Step:
    """One use of the chain rule: `cotangent` of `node` gives `contribution` to its `operand`.

    Of a loop with several results, `others` are further results with their cotangents, to which the
    contribution is due as well.
    """

    node: Node
    operand: int
    cotangent: Node
    contribution: Node
    others: tuple[tuple[Node, Node], ...] = ()


@dataclass(frozen=True)
class Derivation:
    """A derivative with its proof: the steps in order, and the cotangent of every node passed."""

    result: Node
    wrt: tuple[Node, ...]
    gradients: tuple[Node | None, ...]
    steps: tuple[Step, ...] = field(repr=False)
    cotangents: Mapping[Node, Node] = field(repr=False)


def differentiate(
    results: Sequence[Node], seeds: Sequence[Node], wrt: Sequence[Node], *, note: bool = True
) -> Derivation:
    """The cotangents of `wrt`, given `seeds` as the cotangents of `results`.

    Derivatives are total: where one of `wrt` depends on another, the paths through it count. Where
    no path leads to one, its gradient is None. Dependence is structural: a derivative that is 0
    everywhere is a zero, not a missing path. Without `note` no cotangent is named after what it is
    of.
    """
    targets = set(wrt)
    order = walk(results)
    active = _reaching(order, targets)
    parts: dict[Node, list[Node]] = {}
    for result, seed in zip(results, seeds, strict=True):
        if result in active:
            parts.setdefault(result, []).append(seed)
    for node in order if note else ():
        provenance.set_cotangent(node, None)
    steps: list[Step] = []
    cotangents: dict[Node, Node] = {}
    families = _Families(order)
    for node in reversed(order):
        if node not in parts and node not in families.first:
            continue
        with provenance.derived_from(node):
            if node in parts:
                ct = cotangents[node] = _total(parts.pop(node))
                if ct.inputs and note:
                    provenance.set_cotangent(ct, node)
            known = families.known(node, cotangents)
            wanted = [any(_leads(n, i, active) for n in known) for i in range(len(node.inputs))]
            if not any(wanted):
                continue
            (member, ct), *others = known.items()
            for operand, contribution in enumerate(_contributions(known, wanted)):
                if contribution is not None and wanted[operand]:
                    steps.append(Step(member, operand, ct, contribution, tuple(others)))
                    parts.setdefault(node.inputs[operand], []).append(contribution)
    gradients = tuple(cotangents.get(w) for w in wrt)
    return Derivation(results[0], tuple(wrt), gradients, tuple(steps), cotangents)


def _reaching(order: Sequence[Node], targets: set[Node]) -> set[Node]:
    """The nodes through which a result depends differentiably on a target, targets among them."""
    active: set[Node] = set()
    for node in order:
        if node in targets or any(_leads(node, i, active) for i in range(len(node.inputs))):
            active.add(node)
    return active


def _leads(node: Node, operand: int, active: set[Node]) -> bool:
    source = node.inputs[operand]
    floats = node.type.dtype.is_float and source.type.dtype.is_float
    return floats and source in active and node.op.reaches(operand)


class _Families:
    """Which nodes are results of one op, and so are differentiated together: at the first of them,
    when the cotangents of all are known.
    """

    def __init__(self, order: Sequence[Node]) -> None:
        self.first: dict[Node, list[Node]] = {}
        self.later: set[Node] = set()
        begun: dict[Hashable, list[Node]] = {}
        for node in order:
            if node.op.family is None:
                continue
            members = begun.setdefault((node.op.family, node.inputs), [])
            members.append(node)
            if len(members) == 1:
                self.first[node] = members
            else:
                self.later.add(node)

    def known(self, node: Node, cotangents: Mapping[Node, Node]) -> dict[Node, Node]:
        """The nodes to be differentiated when `node` is reached, with their cotangents."""
        if node in self.later:
            return {}
        members = self.first.get(node, [node])
        return {n: cotangents[n] for n in members if n in cotangents}


def contributions(node: Node, ct: Node) -> tuple[Node | None, ...]:
    """What the cotangent of a node gives for each of its operands."""
    return _contributions({node: ct}, [True] * len(node.inputs))


def _contributions(known: Mapping[Node, Node], wanted: Sequence[bool]) -> tuple[Node | None, ...]:
    node, ct = next(iter(known.items()))
    if node.op.family is not None:
        cts: dict[Op, Node] = {n.op: c for n, c in known.items()}
        return node.op.pull(cts, wanted, _pullback, *node.inputs)
    if type(node.op).vjp is Op.vjp:
        reason = node.op.undifferentiable
        raise GradientError(
            f"{node.op.name} has no derivative: {node.type}",
            *([reason] if reason else []),
            where=provenance.line_of(node),
        )
    return node.op.vjp(ct, node, *node.inputs)


def _pullback(
    results: Sequence[Node], seeds: Sequence[Node], wrt: Sequence[Node]
) -> Sequence[Node | None]:
    """Reverse mode, for ops that hold graphs."""
    return differentiate(results, seeds, wrt).gradients


def _total(parts: list[Node]) -> Node:
    total = parts[0]
    for part in parts[1:]:
        total = apply(TABLE["add"], total, part)
    return total
