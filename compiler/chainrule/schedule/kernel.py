"""Kernels: nodes that are computed together, in one pass over one space of indices."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from chainrule.ir.node import Node
from chainrule.ir.size import Dim, Shape


class Form(Enum):
    """What the loops of a kernel are like."""

    MAP = "map"  # every node has the shape `space`
    ROWS = "rows"  # for each row: folds over the last `inner` axes, and maps over them
    COLUMNS = "columns"  # one fold over leading or middle axes, then maps of its result
    CONTRACT = "contract"  # one product, then maps of its result
    NEST = "nest"  # an op's own loops
    CHECK = "check"  # leaves the program where a value is not allowed
    COPY = "copy"  # a new value put into its leaf


@dataclass(eq=False)
class Kernel:
    """Nodes in order, the memory they read and write, and the space they share.

    `writes` maps a node to the node whose memory takes its value: itself, or the leaf it updates.
    """

    form: Form
    space: Shape
    inner: int = 0
    nodes: list[Node] = field(default_factory=list)
    reads: tuple[Node, ...] = ()
    writes: dict[Node, Node] = field(default_factory=dict)
    test: Test | None = None

    @property
    def anchor(self) -> Node:
        """The fold, product, nest or tested node the kernel is built around."""
        return self.nodes[0]

    @property
    def rows(self) -> Shape:
        """The axes of `space` that are not folded."""
        return self.space[: len(self.space) - self.inner]


@dataclass(frozen=True)
class Test:
    """What a CHECK kernel asks of every element: 0 <= x < bound, or to be finite."""

    node: Node
    code: int
    bound: Dim | None = None

    __test__ = False
