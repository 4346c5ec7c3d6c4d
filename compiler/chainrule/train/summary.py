"""What a model is made of, in figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from chainrule.ir.graph import Graph
from chainrule.ir.node import Node
from chainrule.ir.size import Size, evaluate, symbols_of
from chainrule.lang.derive import flatten
from chainrule.ops.phase import resolve_phase
from chainrule.records import dataclass
from chainrule.train.plan import label
from chainrule.train.problem import ROWS, Problem
from chainrule.train.step import TrainingStep


@dataclass(frozen=True)
class Row:
    """A layer, or of a net that is a function a parameter: its name, kind, shape and numbers."""

    name: str
    kind: str
    shape: str
    parameters: int


@dataclass(frozen=True)
class Summary:
    """What a model is made of; `str()` is a table.

    `bytes` are those of parameters and states, `training_bytes` with the optimizer's; `flops` are
    the operations of a prediction of one row.
    """

    rows: tuple[Row, ...]
    parameters: int
    trainable: int
    bytes: int
    training_bytes: int
    flops: int

    def __str__(self) -> str:
        table = [("name", "kind", "shape", "parameters")]
        table += [(r.name, r.kind, r.shape, f"{r.parameters:,}") for r in self.rows]
        widths = [max(len(line[i]) for line in table) for i in range(4)]
        lines = [
            "  ".join(
                part.rjust(w) if i == 3 else part.ljust(w)
                for i, (part, w) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in table
        ]
        lines.insert(1, "-" * len(lines[0]))
        frozen = self.parameters - self.trainable
        lines += [
            f"{self.parameters:,} parameters" + (f", {frozen:,} of them frozen" if frozen else ""),
            f"{self.bytes:,} bytes of parameters and states, {self.training_bytes:,} in training",
            f"{self.flops:,} operations to predict a row",
        ]
        return "\n".join(lines)


def summarize(net: Any, step: TrainingStep, problem: Problem) -> Summary:
    """The figures of a model."""
    plan, state = step.plan, step.state_dict()
    own = [label(n) for n in (*plan.parameters, *plan.states)]
    rows = tuple(_layer_rows(net)) or tuple(
        Row(label(p), "parameter", str(p.type), state[label(p)].size) for p in plan.parameters
    )
    return Summary(
        rows,
        sum(a.size for a in step.parameters.values()),
        sum(state[label(p)].size for p in plan.trained if problem.trained != ()),
        sum(state[n].nbytes for n in own),
        sum(a.nbytes for n, a in state.items()),
        _flops(flatten(problem.prediction)),
    )


def _layer_rows(net: Any) -> Iterator[Row]:
    """The layers of a net that have parameters themselves, or no layers in them."""
    children = getattr(net, "layers", None)
    if not isinstance(children, tuple):
        return
    own = sum(_size(t) for t in net.parameters.values())
    inside = sum(_size(t) for c in children for t in c.parameters.values())
    if not children or own > inside:
        kind = type(net).__name__
        shapes = [str(t.type) for t in net.parameters.values()]
        yield Row(net.name or kind, kind, ", ".join(shapes), own - inside)
    for child in children:
        yield from _layer_rows(child)


def _size(tensor: Any) -> int:
    count = 1
    for d in tensor.shape:
        count *= d
    return count


def _flops(outputs: list[Node]) -> int:
    from chainrule.rewrite.passes import expand_composites

    graph = expand_composites(resolve_phase(Graph(tuple(outputs)), training=False))
    total = 0
    for node in graph.nodes:
        flops = node.op.flops(node.type, *(i.type for i in node.inputs))
        sizes: Mapping[str, int] = (
            dict.fromkeys(symbols_of(flops), 1) if isinstance(flops, Size) else {}
        )
        total += evaluate(flops, sizes) if isinstance(flops, Size) else flops
    return total


__all__ = ["ROWS", "Row", "Summary", "summarize"]
