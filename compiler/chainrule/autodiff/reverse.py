"""The chain rule, once: reverse mode over a graph, each step recorded.

The cotangent of a node is the derivative of the result by it, contracted with the cotangent asked
for. Walking from the result to the leaves, each op turns the cotangent of its result into
contributions to its operands; what reaches a node by several paths is added up. (Griewank and
Walther, Evaluating Derivatives, 2nd ed. 2008, chapter 3.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from chainrule.errors import GradientError
from chainrule.ir import provenance
from chainrule.ir.graph import walk
from chainrule.ir.node import Node, apply
from chainrule.ops.elementwise import TABLE


@dataclass(frozen=True)
class Step:
    """One use of the chain rule: `cotangent` of `node` gives `contribution` to its `operand`."""

    node: Node
    operand: int
    cotangent: Node
    contribution: Node


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
    for node in reversed(order):
        if node not in parts:
            continue
        with provenance.derived_from(node):
            ct = cotangents[node] = _total(parts.pop(node))
            if ct.inputs and note:
                provenance.set_cotangent(ct, node)
            if not any(_leads(node, i, active) for i in range(len(node.inputs))):
                continue
            for operand, contribution in enumerate(_contributions(node, ct)):
                if contribution is not None and _leads(node, operand, active):
                    steps.append(Step(node, operand, ct, contribution))
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


def _contributions(node: Node, ct: Node) -> tuple[Node | None, ...]:
    try:
        return node.op.vjp(ct, node, *node.inputs)
    except NotImplementedError:
        raise GradientError(
            f"{node.op.name} has no derivative: {node.type}",
            where=provenance.line_of(node),
        ) from None


def _total(parts: list[Node]) -> Node:
    total = parts[0]
    for part in parts[1:]:
        total = apply(TABLE["add"], total, part)
    return total
