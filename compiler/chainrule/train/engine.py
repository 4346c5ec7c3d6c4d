"""What runs a step, behind one door: how it is asked for, and how data is cut into minibatches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from chainrule.driver.sizes import dim_data
from chainrule.ir.describe import Unwritten
from chainrule.ir.graph import Graph
from chainrule.ir.node import Node
from chainrule.ops.source import Leaf
from chainrule.records import dataclass
from chainrule.schedule.budget import Budget
from chainrule.train.plan import rows_of
from chainrule_runtime import (
    Binder,
    FeedError,
    Minibatches,
    Outcome,
    Storage,
)
from chainrule_runtime.manifest import DimData

if TYPE_CHECKING:
    from chainrule.driver.report import Report

Array = np.ndarray[Any, Any]


class Engine(Protocol):
    """A graph with its feeds and what it keeps; faults are the runtime's.

    `call` runs once, `loop` over the minibatches of steps `first` to `last` - 1; `check` refuses
    data whose shapes or labels do not fit, before anything changes. `direct`, where it is not None,
    is `call` for feeds like those of the call before: it gives the loss, or NaN where `call` must
    decide, and `scalars` the outputs.
    """

    binder: Binder

    @property
    def direct(self) -> Callable[[dict[str, Any]], float] | None: ...

    def scalars(self) -> list[Array]: ...

    def call(self, feeds: Mapping[str, object]) -> list[Array]: ...

    def check(self, arrays: Sequence[Array], cut: Minibatches) -> None: ...

    def loop(
        self, arrays: list[Array], cut: Minibatches, first: int, last: int, order: Array | None
    ) -> Outcome: ...

    def show(self, level: str) -> str: ...

    def report(self, measured: bool, sizes: Mapping[str, int] | None) -> Report: ...


@dataclass(frozen=True)
class Options:
    """How many threads there may be, the products' precision, a budget for the arena, sizes to tune
    at, and after how many steps of a run what lies elsewhere is brought to the host.
    """

    threads: int | None = None
    precision: str | None = None
    budget: Budget | None = None
    tune: Mapping[str, int] | None = None
    snapshot_every: int | None = None


#: graph, inputs, kept leaves, names of the outputs, their storage, whether the first is a loss
MakeEngine = Callable[
    [Graph | Unwritten, Sequence[Node], Sequence[Node], Sequence[str], Storage, bool, Options],
    Engine,
]


def cut_rows(inputs: Sequence[Node], arrays: Sequence[Array], batch_size: int) -> Minibatches:
    """How data is cut into minibatches. Raises FeedError where rows differ or there are none."""
    size = rows_of(inputs)
    sliced = [bool(n.type.shape) and n.type.shape[0] == size for n in inputs]
    rows = {
        input_name(n): len(a)
        for n, a, cut in zip(inputs, arrays, sliced, strict=True)
        if cut and a.ndim
    }
    if not rows:
        return Minibatches(None, (False,) * len(inputs), 1, 1)
    count = next(iter(rows.values()))
    if any(n != count for n in rows.values()):
        shown = ", ".join(f"{name} has {n}" for name, n in rows.items())
        raise FeedError(f"{size} is one number of rows: {shown}")
    if count == 0:
        raise FeedError(f"there is no data: {', '.join(rows)} of 0 rows")
    return Minibatches(str(size), tuple(sliced), count, min(batch_size, count))


def nonempty_rows(inputs: Sequence[Node], trains: bool) -> tuple[DimData, ...]:
    """The number of rows, which must not be 0 in training: there is nothing to learn."""
    rows = rows_of(inputs)
    return (dim_data(rows),) if trains and rows is not None else ()


def input_name(node: Node) -> str:
    """What a message calls an input, or what is computed of one."""
    return node.op.label if isinstance(node.op, Leaf) else f"({node.op.name})"
