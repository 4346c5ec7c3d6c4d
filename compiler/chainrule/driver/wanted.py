"""What a program is compiled for, beside its graph, what its tensors are called, and a clock."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from chainrule.ir import provenance
from chainrule.ir.node import Node
from chainrule.ops.layout import Permute, Reshape
from chainrule.ops.source import Leaf
from chainrule.records import dataclass
from chainrule.target import Target
from chainrule.target.speeds import Speeds

if TYPE_CHECKING:
    from chainrule.schedule.budget import Budget


@dataclass(frozen=True)
class Wanted:
    """All that decides what a graph becomes, beside the graph itself; see `build`.

    Where it is to be tuned, at sizes `tune`, up to so many `threads` may be chosen; for a GPU the
    `device` is told on which it is timed. The `speeds` of the machine are known where it was
    calibrated.
    """

    feeds: tuple[Node, ...]
    kept: tuple[Node, ...]
    finite: tuple[int, ...]
    epochs: bool
    several: bool
    machine: Target
    precision: str | None
    budget: Budget | None
    tune: tuple[tuple[str, int], ...] | None = None
    threads: int = 1
    speeds: Speeds | None = None
    device: str = ""


class Clock:
    """Seconds spent in each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage], self.last = now - self.last, now


def label(node: Node) -> str:
    """What a leaf is called."""
    assert isinstance(node.op, Leaf)
    return node.op.label


def called(node: Node) -> str:
    """What a computed tensor is called; one that only repeats or cuts another, as that is."""
    node = behind_views(node)
    return provenance.name_of(node) or str(node.op.name)


def behind_views(node: Node) -> Node:
    """What a tensor without a name repeats, cuts or reshapes; itself where it does nothing such."""
    while provenance.name_of(node) is None and node.op.role in ("view", "alias"):
        if len(node.inputs) != 1:
            break
        (node,) = node.inputs
    return node


def behind_moves(node: Node) -> Node:
    """The tensor that has a node's very elements, each once, in another order or shape."""
    while isinstance(node.op, (Permute, Reshape)):
        (node,) = node.inputs
    return node
