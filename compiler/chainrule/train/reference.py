"""The reference evaluator that runs a step: what native code is held to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from chainrule import driver
from chainrule.driver.sizes import demands_of, dim_data, sizes_of
from chainrule.driver.wanted import behind_moves
from chainrule.errors import CompileError
from chainrule.ir.describe import Unwritten, written
from chainrule.ir.evaluate import evaluate
from chainrule.ir.graph import Graph, walk
from chainrule.ir.node import Bound, Node, within
from chainrule.ir.size import known
from chainrule.ops.each import Every, Own
from chainrule.train.engine import Array, Options, input_name, nonempty_rows
from chainrule_runtime import (
    Binder,
    Check,
    Minibatches,
    Outcome,
    RuntimeFault,
    Storage,
    check_positions,
    non_finite,
)
from chainrule_runtime import Tensor as TensorData

if TYPE_CHECKING:
    from chainrule.driver.report import Report


class ReferenceEngine:
    """The graph as written, evaluated in NumPy node by node over the same storage."""

    def __init__(
        self,
        graph: Graph | Unwritten,
        inputs: Sequence[Node],
        kept: Sequence[Node],
        names: Sequence[str],
        storage: Storage,
        trains: bool,
        options: Options,
    ) -> None:
        from chainrule.rewrite.passes import expand_composites

        graph = written(graph)
        self.graph, self.inputs = driver.narrowed(graph, options.precision), tuple(inputs)
        self.kept = tuple(kept)
        self.names, self.storage, self.trains = tuple(names), storage, trains
        self.binder = Binder(
            [_data(n, i) for i, n in enumerate(inputs)],
            sizes_of(inputs),
            (
                *map(dim_data, demands_of(expand_composites(graph), graph)),
                *nonempty_rows(inputs, trains),
            ),
        )
        self._positions = {
            _check(node, given := behind_moves(node.inputs[i]), bound): given
            for node in walk(graph.roots)
            for i, bound in node.op.bounds(*[x.type for x in node.inputs])
        }

    @property
    def direct(self) -> None:
        """There is no shorter way."""
        return None

    def scalars(self) -> list[Array]:
        """There is nothing that `call` did not return."""
        return []

    def call(self, feeds: Mapping[str, object]) -> list[Array]:
        """Run once."""
        return self._step(self.binder.arrays(feeds))

    def _step(self, arrays: Sequence[Array]) -> list[Array]:
        sizes = self.binder.sizes([a.shape for a in arrays])
        with self.storage.lock.guard:
            values = dict(zip(self.inputs, arrays, strict=True))
            values |= {n: self.storage.arrays[input_name(n)] for n in self.kept}
            for check, node in self._positions.items():
                found = _evaluated([node], values)
                check_positions([check], [check.feed or ""], found, sizes)
            results = [np.array(a) for a in _evaluated(self.graph.roots, values)]
            if self.trains and (fault := non_finite(self.names[0], results[0])):
                raise fault
            outputs = results[: len(self.names)]
            changed = results[len(self.names) :]
            for (node, _), new in zip(self.graph.updates, changed, strict=True):
                self.storage.arrays[input_name(node)][...] = new
        return outputs

    def check(self, arrays: Sequence[Array], cut: Minibatches) -> None:
        """Refuse data whose shapes or labels do not fit."""
        first, _ = (self.binder.sizes(s) for s in cut.both_shapes(arrays))
        check_positions(list(self._positions), self.binder.names, arrays, first)

    def loop(
        self, arrays: list[Array], cut: Minibatches, first: int, last: int, order: Array | None
    ) -> Outcome:
        """Run steps one by one."""
        logs: list[list[Array]] = []
        fault: RuntimeFault | None = None
        for k in range(first, last):
            try:
                logs.append(self._step(cut.minibatch(arrays, k, order)))
            except RuntimeFault as error:
                fault = error
                break
        kinds = [n.type.dtype.numpy for n in self.graph.outputs]
        shapes = [(len(logs), *known(n.type.shape)) for n in self.graph.outputs]
        columns = [
            np.array([row[i] for row in logs], kind).reshape(shape)
            for i, (kind, shape) in enumerate(zip(kinds, shapes, strict=True))
        ]
        return Outcome(len(logs), tuple(columns), fault)

    def show(self, level: str) -> str:
        """The graph; there is nothing else to the reference."""
        if level not in ("graph", "optimized"):
            raise CompileError(f"the reference backend has no level {level!r}", "there is graph")
        from chainrule.show.graph import graph_text

        return graph_text(self.graph)

    def report(self, measured: bool, sizes: Mapping[str, int] | None) -> Report:
        """There is nothing to report: raises CompileError."""
        raise CompileError("the reference backend compiles nothing", 'use backend="cpu"')


def _evaluated(roots: Sequence[Node], values: Mapping[Node, Array]) -> list[Array]:
    """What roots are; those of every member of an ensemble, member by member."""
    parts = [n for n in walk(roots) if isinstance(n.op, Own)]
    if not parts:
        return evaluate(roots, values)
    ends = [n.inputs[0] if isinstance(n.op, Every) else n for n in roots]
    members = [
        evaluate(ends, {**values, **{n: values[n.inputs[0]][..., i] for n in parts}})
        for i in range(values[parts[0].inputs[0]].shape[-1])
    ]
    return [
        np.stack(each, axis=-1) if isinstance(n.op, Every) else each[0]
        for n, each in zip(roots, zip(*members, strict=True), strict=True)
    ]


def _check(node: Node, operand: Node, bound: Bound) -> Check:
    least, above = map(dim_data, within(bound))
    return Check(0, str(node.op.name), input_name(operand), above, least)


def _data(node: Node, place: int) -> TensorData:
    shape = tuple(map(dim_data, node.type.shape))
    return TensorData(input_name(node), node.type.dtype.name, shape, place)
