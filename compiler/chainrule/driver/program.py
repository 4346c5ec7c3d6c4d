"""Programs that can be called: native ones, and the reference evaluator behind the same door."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import numpy as np

from chainrule import errors
from chainrule.driver.build import Compiled, build
from chainrule.driver.sizes import demands_of, dim_data, sizes_of
from chainrule.driver.wanted import called, label
from chainrule.errors import CompileError
from chainrule.ir.evaluate import evaluate
from chainrule.ir.graph import Graph, walk
from chainrule.ir.node import Node, within
from chainrule.ir.passes import in_bodies
from chainrule.ir.size import evaluate as number_of
from chainrule_runtime import Binder, FeedError, Program, RuntimeFault, Tensor

if TYPE_CHECKING:
    from chainrule.driver.gpu import CompiledGpu
    from chainrule.driver.report import Report
    from chainrule.schedule.budget import Budget

Array = np.ndarray[Any, Any]


class Callee(Protocol):
    """What `cr.compile` calls, whichever backend it is."""

    def call(self, feeds: Mapping[str, object]) -> list[Array]: ...

    def show(self, level: str) -> str: ...

    def report(self, measured: bool, sizes: Mapping[str, int] | None) -> Report: ...


def program(
    graph: Graph,
    feeds: Sequence[Node],
    names: Sequence[str],
    backend: str,
    threads: int | None = None,
    precision: str | None = None,
    budget: Budget | None = None,
    tune: Mapping[str, int] | None = None,
) -> Callee:
    """A pure function of the leaves `feeds`, by one of the backends."""
    if backend == "reference":
        return ReferenceProgram(graph, feeds, precision)
    if backend == "cuda":
        from chainrule.driver.gpu import build_gpu

        made = build_gpu(
            graph, feeds=feeds, outputs=names, precision=precision, budget=budget, tune=tune
        )
        return GpuFunction(made)
    native = build(
        graph, feeds=feeds, outputs=names, threads=threads, precision=precision, budget=budget,
        tune=tune,
    )  # fmt: skip
    return NativeProgram(native)


def raise_ours(fault: RuntimeFault) -> NoReturn:
    """Raise what the runtime found as the error of ours of the same name, at the user's line."""
    kind = getattr(errors, type(fault).__name__, CompileError)
    raise kind(fault.what, *fault.details) from None


def _stable(graph: Graph) -> Graph:
    from chainrule.rewrite.passes import stabilize

    return in_bodies(stabilize, stabilize(graph))


def narrowed(graph: Graph, precision: str | None) -> Graph:
    """A graph with the products that a precision asks for, those inside composites too, but not
    those of attention that native code makes of rows in registers.
    """
    if precision is None:
        return graph
    from chainrule.rewrite.narrow import PRECISIONS
    from chainrule.rewrite.passes import attend, expand_composites

    for each in (attend, expand_composites, PRECISIONS[precision]):
        graph = in_bodies(each, each(graph))
    return graph


class NativeProgram:
    """Compiled code with its buffers."""

    def __init__(self, compiled: Compiled) -> None:
        self.compiled = compiled
        self._program = Program(
            compiled.manifest,
            compiled.step_address,
            keep_alive=compiled.loaded,
            crew=compiled.crew,
        )

    def call(self, feeds: Mapping[str, object]) -> list[Array]:
        """New arrays, one for each output in order. Raises FeedError."""
        try:
            return self._program(feeds)
        except RuntimeFault as fault:
            raise_ours(fault)

    def show(self, level: str) -> str:
        """The program as text at a level."""
        from chainrule.driver.levels import show

        return show(self.compiled, level)

    def report(self, measured: bool, sizes: Mapping[str, int] | None) -> Report:
        """What the compiler did; see driver.report."""
        from chainrule.driver.report import report

        try:
            return report(self.compiled, measured, sizes)
        except RuntimeFault as fault:
            raise_ours(fault)


class GpuFunction:
    """A program for a GPU, which is asked for at the first call."""

    def __init__(self, compiled: CompiledGpu) -> None:
        from chainrule_runtime.gpu.program import GpuProgram

        self.compiled = compiled
        self._program = GpuProgram(compiled.manifest, compiled.code)

    def call(self, feeds: Mapping[str, object]) -> list[Array]:
        """New arrays, one for each output in order. Raises FeedError and DeviceError."""
        try:
            return self._program(feeds)
        except RuntimeFault as fault:
            raise_ours(fault)

    def show(self, level: str) -> str:
        """The program as text at a level."""
        from chainrule.driver.gpu_report import show_gpu

        return show_gpu(self.compiled, level)

    def report(self, measured: bool, sizes: Mapping[str, int] | None) -> Report:
        """What the compiler did. Raises DeviceError for times where there is no GPU."""
        from chainrule.driver.gpu_report import report_gpu

        try:
            return report_gpu(self.compiled, self._program, measured, sizes)
        except RuntimeFault as fault:
            raise_ours(fault)


class ReferenceProgram:
    """The graph in its stable form, evaluated in NumPy node by node, its feeds checked likewise."""

    def __init__(self, graph: Graph, feeds: Sequence[Node], precision: str | None) -> None:
        from chainrule.rewrite.passes import expand_composites

        self.source, self.feeds = graph, tuple(feeds)
        self.graph = narrowed(_stable(graph), precision)
        tensors = [
            Tensor(label(n), n.type.dtype.name, tuple(map(dim_data, n.type.shape)), i)
            for i, n in enumerate(feeds)
        ]
        opened = in_bodies(expand_composites, expand_composites(self.graph))
        demands = list(map(dim_data, demands_of(opened, graph)))
        self._binder = Binder(tensors, sizes_of(feeds), demands)
        self._positions = [
            (node, node.inputs[i], bound)
            for node in walk(graph.roots)
            for i, bound in node.op.bounds(*[x.type for x in node.inputs])
        ]

    def call(self, feeds: Mapping[str, object]) -> list[Array]:
        """New arrays, one for each output in order. Raises FeedError."""
        try:
            arrays = self._binder.arrays(feeds)
            sizes = self._binder.sizes([a.shape for a in arrays])
            given = dict(zip(self.feeds, arrays, strict=True))
            self._check_positions(given, sizes)
        except RuntimeFault as fault:
            raise_ours(fault)
        return [np.array(a) for a in evaluate(self.graph.outputs, given)]

    def _check_positions(self, given: Mapping[Node, Array], sizes: Mapping[str, int]) -> None:
        for node, operand, bound in self._positions:
            (array,) = evaluate([operand], given)  # not all at once: one may be read at another
            least, above = (number_of(d, sizes) for d in within(bound))
            if array.size and not (array.min() >= least and array.max() < above):
                bad = array[(array < least) | (array >= above)].reshape(-1)[0]
                name = called(operand)
                raise FeedError(
                    f"{name} holds {bad}, where only {least} to {above - 1} have a meaning",
                    f"it is read as positions by {node.op.name}",
                )

    def show(self, level: str) -> str:
        """The graph as written, or in its stable form: there is nothing else to the reference."""
        if level not in ("graph", "optimized"):
            raise CompileError(
                f"the reference backend has no level {level!r}", "there are graph, optimized"
            )
        from chainrule.show.graph import graph_text

        return graph_text(self.source if level == "graph" else self.graph)

    def report(self, measured: bool, sizes: Mapping[str, int] | None) -> Report:
        """There is nothing to report: raises CompileError."""
        raise CompileError("the reference backend compiles nothing", 'use backend="cpu"')
