"""The engines, by backend: compiled code that runs a step on a CPU or a GPU, and the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from chainrule import driver
from chainrule.errors import CompileError
from chainrule.ir.describe import Unwritten, written
from chainrule.ir.graph import Graph
from chainrule.ir.node import Node
from chainrule.train.engine import Array, MakeEngine, Options, nonempty_rows
from chainrule.train.reference import ReferenceEngine
from chainrule_runtime import (
    EpochLoop,
    Minibatches,
    Outcome,
    Program,
    Storage,
    check_positions,
)

if TYPE_CHECKING:
    from chainrule.driver.report import Report


class NativeEngine:
    """Compiled code over the storage."""

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
            replace(manifest, nonempty=(*manifest.nonempty, *nonempty_rows(inputs, trains))),
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
        graph: Graph | Unwritten,
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
            written(graph),
            feeds=inputs,
            kept=kept,
            outputs=names,
            finite=[0] if trains else [],
            epochs=trains,
            precision=options.precision,
            budget=options.budget,
            tune=options.tune,
        )
        manifest = self.compiled.manifest
        self._program = GpuProgram(
            replace(manifest, nonempty=(*manifest.nonempty, *nonempty_rows(inputs, trains))),
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


ENGINES: dict[str, MakeEngine] = {
    "cpu": NativeEngine,
    "cuda": GpuEngine,
    "reference": ReferenceEngine,
}
