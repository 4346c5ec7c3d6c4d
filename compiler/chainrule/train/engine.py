"""What runs a step: native code, or the reference evaluator, behind one door."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from chainrule import driver
from chainrule.driver.sizes import demands_of, dim_data, sizes_of
from chainrule.driver.wanted import behind_moves
from chainrule.errors import CompileError
from chainrule.ir.evaluate import evaluate
from chainrule.ir.graph import Graph, walk
from chainrule.ir.node import Bound, Node, within
from chainrule.ir.size import known
from chainrule.ops.each import Every, Own
from chainrule.ops.source import Leaf
from chainrule.records import dataclass
from chainrule.rewrite.passes import expand_composites
from chainrule.schedule.budget import Budget
from chainrule.train.plan import rows_of
from chainrule_runtime import (
    Binder,
    Check,
    EpochLoop,
    FeedError,
    Minibatches,
    Outcome,
    Program,
    RuntimeFault,
    Storage,
    check_positions,
    non_finite,
)
from chainrule_runtime import Tensor as TensorData
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
    [Graph, Sequence[Node], Sequence[Node], Sequence[str], Storage, bool, Options], Engine
]


class NativeEngine:
    """Compiled code over the storage."""

    def __init__(
        self,
        graph: Graph,
        inputs: Sequence[Node],
        kept: Sequence[Node],
        names: Sequence[str],
        storage: Storage,
        trains: bool,
        options: Options,
    ) -> None:
        self.compiled = driver.build(
            graph,
            feeds=inputs,
            kept=kept,
            outputs=names,
            finite=[0] if trains else [],
            epochs=trains,
            threads=options.threads,
            precision=options.precision,
            budget=options.budget,
            tune=options.tune,
        )
        manifest = self.compiled.manifest
        self._program = Program(
            replace(manifest, nonempty=(*manifest.nonempty, *_rows(inputs, trains))),
            self.compiled.step_address,
            kept=storage.arrays,
            lock=storage.lock,
            keep_alive=self.compiled.loaded,
            direct_address=self.compiled.direct_address if trains else None,
            crew=self.compiled.crew,
        )
        self.binder = self._program.binder
        self._loop = EpochLoop(self._program, self.compiled.run_address) if trains else None

    @property
    def direct(self) -> Callable[[dict[str, Any]], float] | None:
        """The shorter way of the last call, if there is one, to a loss or NaN."""
        return self._program.direct

    def call(self, feeds: Mapping[str, object]) -> list[Array]:
        """Run once."""
        return self._program(feeds)

    def scalars(self) -> list[Array]:
        """What the last call left of its outputs."""
        return self._program.results()

    def check(self, arrays: Sequence[Array], cut: Minibatches) -> None:
        """Refuse data whose shapes or labels do not fit."""
        sizes = self._over_minibatches().sizes(arrays, cut)
        check_positions(self.compiled.manifest.checks, self.binder.names, arrays, sizes)

    def loop(
        self, arrays: list[Array], cut: Minibatches, first: int, last: int, order: Array | None
    ) -> Outcome:
        """Run steps in one native call."""
        return self._over_minibatches()(arrays, cut, first, last, order)

    def _over_minibatches(self) -> EpochLoop:
        if self._loop is None:
            raise CompileError("only a training step runs over minibatches")
        return self._loop

    def show(self, level: str) -> str:
        """The program as text at a level."""
        from chainrule.driver.levels import show

        return show(self.compiled, level)

    def report(self, measured: bool, sizes: Mapping[str, int] | None) -> Report:
        """What the compiler did; see driver.report."""
        from chainrule.driver.report import report

        return report(self.compiled, measured, sizes, self._program.kept)


class GpuEngine:
    """Kernels on a GPU over the storage, which they are sent before and which is fetched after."""

    def __init__(
        self,
        graph: Graph,
        inputs: Sequence[Node],
        kept: Sequence[Node],
        names: Sequence[str],
        storage: Storage,
        trains: bool,
        options: Options,
    ) -> None:
        from chainrule.driver.gpu import build_gpu
        from chainrule_runtime.gpu.epochs import GpuEpochLoop
        from chainrule_runtime.gpu.program import GpuProgram

        self.compiled = build_gpu(
            graph,
            feeds=inputs,
            kept=kept,
            outputs=names,
            finite=[0] if trains else [],
            epochs=trains,
            precision=options.precision,
            budget=options.budget,
        )
        manifest = self.compiled.manifest
        self._program = GpuProgram(
            replace(manifest, nonempty=(*manifest.nonempty, *_rows(inputs, trains))),
            self.compiled.code,
            kept=storage.arrays,
            lock=storage.lock,
        )
        self.binder = self._program.binder
        self._loop = GpuEpochLoop(self._program, options.snapshot_every)

    @property
    def direct(self) -> None:
        """There is no shorter way."""
        return None

    def scalars(self) -> list[Array]:
        """There is nothing that `call` did not return."""
        return []

    def call(self, feeds: Mapping[str, object]) -> list[Array]:
        """Run once."""
        return self._program(feeds)

    def check(self, arrays: Sequence[Array], cut: Minibatches) -> None:
        """Refuse data whose shapes or labels do not fit."""
        sizes = self._loop.sizes(arrays, cut)
        check_positions(self.compiled.manifest.checks, self.binder.names, arrays, sizes)

    def loop(
        self, arrays: list[Array], cut: Minibatches, first: int, last: int, order: Array | None
    ) -> Outcome:
        """Run steps one after another on the GPU."""
        return self._loop(arrays, cut, first, last, order)

    def show(self, level: str) -> str:
        """The program as text at a level."""
        from chainrule.driver.gpu_report import show_gpu

        return show_gpu(self.compiled, level)

    def report(self, measured: bool, sizes: Mapping[str, int] | None) -> Report:
        """What the compiler did."""
        from chainrule.driver.gpu_report import report_gpu

        return report_gpu(self.compiled, self._program, measured, sizes)


class ReferenceEngine:
    """The graph as written, evaluated in NumPy node by node over the same storage."""

    def __init__(
        self,
        graph: Graph,
        inputs: Sequence[Node],
        kept: Sequence[Node],
        names: Sequence[str],
        storage: Storage,
        trains: bool,
        options: Options,
    ) -> None:
        self.graph, self.inputs = driver.narrowed(graph, options.precision), tuple(inputs)
        self.kept = tuple(kept)
        self.names, self.storage, self.trains = tuple(names), storage, trains
        self.binder = Binder(
            [_data(n, i) for i, n in enumerate(inputs)],
            sizes_of(inputs),
            (*map(dim_data, demands_of(expand_composites(graph), graph)), *_rows(inputs, trains)),
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
            values |= {n: self.storage.arrays[_name(n)] for n in self.kept}
            for check, node in self._positions.items():
                found = _evaluated([node], values)
                check_positions([check], [check.feed or ""], found, sizes)
            results = [np.array(a) for a in _evaluated(self.graph.roots, values)]
            if self.trains and (fault := non_finite(self.names[0], results[0])):
                raise fault
            outputs = results[: len(self.names)]
            changed = results[len(self.names) :]
            for (node, _), new in zip(self.graph.updates, changed, strict=True):
                self.storage.arrays[_name(node)][...] = new
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


ENGINES: dict[str, MakeEngine] = {
    "cpu": NativeEngine,
    "cuda": GpuEngine,
    "reference": ReferenceEngine,
}


def cut_rows(inputs: Sequence[Node], arrays: Sequence[Array], batch_size: int) -> Minibatches:
    """How data is cut into minibatches. Raises FeedError where rows differ or there are none."""
    size = rows_of(inputs)
    sliced = [bool(n.type.shape) and n.type.shape[0] == size for n in inputs]
    rows = {
        _name(n): len(a) for n, a, cut in zip(inputs, arrays, sliced, strict=True) if cut and a.ndim
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


def _rows(inputs: Sequence[Node], trains: bool) -> tuple[DimData, ...]:
    """The number of rows, which must not be 0 in training: there is nothing to learn."""
    rows = rows_of(inputs)
    return (dim_data(rows),) if trains and rows is not None else ()


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
    return Check(0, str(node.op.name), _name(operand), above, least)


def _name(node: Node) -> str:
    return node.op.label if isinstance(node.op, Leaf) else f"({node.op.name})"


def _data(node: Node, place: int) -> TensorData:
    shape = tuple(map(dim_data, node.type.shape))
    return TensorData(_name(node), node.type.dtype.name, shape, place)
