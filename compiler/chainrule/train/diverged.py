"""Where the first number that is none came from, found by doing the step again, node by node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from chainrule.errors import NonFiniteError
from chainrule.ir import provenance
from chainrule.ir.evaluate import bind_sizes, value_of
from chainrule.ir.graph import Graph, walk
from chainrule.ir.node import Node
from chainrule.ir.passes import run_passes
from chainrule.ops.source import Leaf
from chainrule.train.plan import label

if TYPE_CHECKING:
    from chainrule.train.source import Source
    from chainrule.train.step import TrainingStep

Array = np.ndarray[Any, Any]
#: the forms that are computed: what a rule of stability mends is no cause
_STABLE = ("canonicalize", "stabilize", "simplify")


def last_finite(
    step: TrainingStep, source: Source, before: Mapping[str, Array], first: int, at: int
) -> int:
    """Bring a step back to the last state that holds nothing but numbers; how far that is.

    `before` is the state at step `first` of the epoch, and step `at` is the one that failed. An
    update can overflow in a step whose loss was finite: it is then seen in a later one.
    """
    if finite(step):
        return at
    good, bad = first, at
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (
            (middle, bad) if _replayed(step, source, before, first, middle) else (good, middle)
        )
    _replayed(step, source, before, first, good)
    return good


def _replayed(
    step: TrainingStep, source: Source, before: Mapping[str, Array], first: int, last: int
) -> bool:
    """Whether the state is finite when the steps up to `last` are made again."""
    step.load_state_dict(before)
    try:
        source.advance(first, last)
    except NonFiniteError:
        return False
    return finite(step)


def finite(step: TrainingStep) -> bool:
    """Whether everything that a step keeps is a number."""
    return all(np.isfinite(a).all() for a in step.state_dict().values())


def why(step: TrainingStep, feeds: Mapping[str, Array], first_of: str) -> list[str]:
    """In words, what in this step is not finite first, going by the reference evaluator."""
    for name, array in feeds.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            at = np.unravel_index(int(np.argmin(np.isfinite(array))), array.shape)
            return [f"{name} holds {array[at]} at [{', '.join(map(str, at))}] of this minibatch"]
    plan = step.plan
    from chainrule.driver.lower import PASSES

    graph, _ = run_passes(plan.graph, [p for p in PASSES if p.name in _STABLE])
    kept = step.state_dict()
    values = {n: np.asarray(feeds[label(n)], n.dtype.numpy) for n in plan.inputs}
    sizes: dict[str, Any] = dict(bind_sizes(values))
    values |= {n: kept[label(n)] for n in plan.kept}
    culprit = _first(graph, values, sizes)
    if culprit is None:
        return ["in NumPy, node by node, this step is finite: it is at the very edge of its type"]
    return _told(culprit, values)


def _first(graph: Graph, values: dict[Node, Array], sizes: dict[str, Any]) -> Node | None:
    """The node that makes the first root not finite, of operands that all are."""
    for root in graph.roots:
        with np.errstate(all="ignore"):
            for node in walk([root], stop=values.__contains__):
                if node not in values:
                    operands = [values[i] for i in node.inputs]
                    values[node] = np.asarray(value_of(node, sizes, operands), node.dtype.numpy)
        node = root
        if not _bad(values[node]):
            continue
        while True:
            worse = [i for i in node.inputs if _bad(values[i])]
            if not worse or not node.inputs:
                return node
            node = worse[0]
    return None


def _bad(array: Array) -> bool:
    return array.dtype.kind not in "biu" and not np.isfinite(array.astype(np.float64)).all()


def _told(node: Node, values: Mapping[Node, Array]) -> list[str]:
    array = values[node].astype(np.float64)
    bad = ~np.isfinite(array)
    at = tuple(int(i) for i in np.unravel_index(int(np.argmax(bad)), array.shape))
    name = provenance.name_of(node)
    called = f"{node.op.name}" + (f", {name}," if name else "")
    place = f" at [{', '.join(map(str, at))}]" if at else ""
    lines = [
        f"the first is {array[at]} of {called} of type {node.type}{place}; "
        f"{int(bad.sum())} of its {bad.size} elements are not finite"
    ]
    where = provenance.line_of(node)
    if where is not None:
        lines.append(f"made at {where}")
    near = _nearest(node)
    if near is not None:
        lines.append(f"in the layer of {near}")
    for operand in node.inputs:
        of = values[operand]
        if of.dtype.kind not in "b" and of.size:
            of = of.astype(np.float64)
            shown = provenance.name_of(operand) or str(operand.op.name)
            lines.append(f"its operand {shown} is from {of.min():.6g} to {of.max():.6g}")
    return lines


def _nearest(node: Node) -> str | None:
    """The name of the parameter that is the fewest steps away, behind a node."""
    seen, level = {node}, [node]
    while level:
        for n in level:
            for i in n.inputs:
                if isinstance(i.op, Leaf) and i.op.kind == "parameter":
                    return label(i)
        level = [i for i in dict.fromkeys(i for n in level for i in n.inputs) if i not in seen]
        seen.update(level)
    return None
