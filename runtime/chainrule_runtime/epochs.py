"""Many steps in one native call; where they take long, in a few, so that Ctrl-C comes through."""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from chainrule_runtime.errors import RuntimeFault
from chainrule_runtime.memory import Array, address, aligned
from chainrule_runtime.program import Output, Program, Shapes
from chainrule_runtime.runblock import FINISHED, LoggedScalar, RunBlock, SlicedInput

#: seconds after which a native call should be back, so that Python sees what signals came
_PATIENCE = 0.02
#: how much longer the next native call may be than the one before, until it is known how long
_GROWTH = 8
_RUN = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)


@dataclass(frozen=True)
class Minibatches:
    """How data is cut: `rows` of each `sliced` input, `size` at a time; `symbol` is their number.

    Without a symbol every input is whole, and an epoch is one step.
    """

    symbol: str | None
    sliced: tuple[bool, ...]
    rows: int
    size: int

    @property
    def steps(self) -> int:
        """Minibatches in an epoch; the last may be smaller."""
        return -(-self.rows // self.size)

    def both_shapes(
        self, arrays: Sequence[Array]
    ) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
        """The shapes of the inputs of a full minibatch, and of the last one."""
        last = self.rows - self.size * (self.steps - 1)
        return self.shapes(arrays, self.size), self.shapes(arrays, last)

    def minibatch(self, arrays: Sequence[Array], step: int, order: Array | None) -> list[Array]:
        """What step number `step` is fed; `order` has the row numbers of each epoch in turn."""
        epoch, in_epoch = divmod(step, self.steps)
        rows = np.arange(self.rows) if order is None else order.reshape(-1, self.rows)[epoch]
        chosen = rows[in_epoch * self.size :][: self.size]
        pairs = zip(arrays, self.sliced, strict=True)
        return [np.ascontiguousarray(a[chosen]) if cut else a for a, cut in pairs]

    def shapes(self, arrays: Sequence[Array], count: int) -> tuple[tuple[int, ...], ...]:
        """The shapes of the inputs of a minibatch of `count` rows."""
        pairs = zip(arrays, self.sliced, strict=True)
        return tuple((count, *a.shape[1:]) if cut else a.shape for a, cut in pairs)


@dataclass(frozen=True)
class Outcome:
    """How many steps a call finished, what each output was, and what stopped it, if any.

    `logs` has one array for each of `manifest.outputs`, along whose first axis are the steps.
    """

    steps: int
    logs: tuple[Array, ...]
    fault: RuntimeFault | None = None


class EpochLoop:
    """A program's native loop over minibatches; its outputs are of one shape in all of them."""

    def __init__(self, program: Program, run_address: int) -> None:
        self.program = program
        self._run: Callable[[int], int] = _RUN(run_address)
        self._last: tuple[tuple[Minibatches, Shapes], _Job] | None = None

    def __call__(
        self, arrays: list[Array], cut: Minibatches, first: int, last: int, order: Array | None
    ) -> Outcome:
        """Run steps `first` to `last` - 1, counted from the beginning of an epoch.

        `order` holds the row numbers of that epoch and of each that follows; None: as they lie.
        Raises KeyboardInterrupt after the step during which it came, FeedError where shapes do not
        fit. A step that refuses its input ends the run: see `Outcome.fault`.
        """
        with self.program.lock.guard:
            return self._locked(arrays, cut, first, last, order)

    def sizes(self, arrays: Sequence[Array], cut: Minibatches) -> dict[str, int]:
        """The sizes of a full minibatch. Raises FeedError where shapes do not fit."""
        return self._job(arrays, cut).plan.sizes

    def _job(self, arrays: Sequence[Array], cut: Minibatches) -> _Job:
        """How these are run: what the call before was told, where data and cut are of its form."""
        form, last = (cut, tuple([a.shape for a in arrays])), self._last
        if last is not None and last[0] == form:
            return last[1]
        job = _Job(self.program, arrays, cut)
        self._last = form, job
        return job

    def _locked(
        self,
        arrays: list[Array],
        cut: Minibatches,
        first: int,
        last: int,
        order: Array | None,
    ) -> Outcome:
        job = self._job(arrays, cut)
        self.program.point(arrays)
        self.program.use(job.plan)
        logs = job.begin(arrays, first, last, order)
        code = self._all(job, last)
        at = int(job.block.step)
        done = at - first
        fault = None
        if code != FINISHED:
            batch = cut.minibatch(arrays, at, order)
            sizes = self.program.plan(tuple(a.shape for a in batch)).sizes
            fault = self.program.fault(code, batch, job.plan.outputs, sizes)
            logs = [log[:done] for log in logs]
        return Outcome(done, tuple(logs), fault)

    def _all(self, job: _Job, total: int) -> int:
        """Run the steps of a job up to `total`; between native calls Python handles its signals."""
        block, begun = job.block, time.perf_counter()
        while True:
            first = block.step
            block.last = min(first + job.pace, total)
            code = self._run(job.address)
            now = time.perf_counter()
            if code == FINISHED and block.last > first:
                patient = int((block.last - first) * _PATIENCE / max(now - begun, 1e-9))
                job.pace = max(1, min(job.pace * _GROWTH, patient))
            if code != FINISHED or block.step >= total:
                return code
            begun = now


class _Job:
    """The block that the native loop is told by, for data of one form, and what it points to.

    `plan` is of a full minibatch, with room for the last one too. `pace` is how many steps may go
    in one native call, as far as is known by now.
    """

    def __init__(self, program: Program, arrays: Sequence[Array], cut: Minibatches) -> None:
        self._program, self._cut = program, cut
        self.pace = 1
        first, last = (program.plan(s) for s in cut.both_shapes(arrays))
        pairs = zip(first.slots, program.slots(last.sizes, first.parts), strict=True)
        slots = tuple(max(a, b) for a, b in pairs)
        self.plan = replace(first, slots=slots)
        self._staging: list[Array] = []
        self._fresh: dict[int, Array] = {}
        places = [t.place for t in program.manifest.feeds]
        self._sliced = [i for i, chosen in enumerate(cut.sliced) if chosen]
        inputs = [SlicedInput(None, None, _row_bytes(arrays[i]), places[i]) for i in self._sliced]
        logs = [LoggedScalar(o.place, _bytes(o), None) for o in first.outputs]
        self._inputs = (SlicedInput * max(1, len(inputs)))(*inputs)
        self._logs = (LoggedScalar * max(1, len(logs)))(*logs)
        names = program.manifest.sizes
        self._sizes = program.native_sizes(first.sizes, first.sharing)
        self.block = RunBlock(
            table=program.table_address,
            sizes=ctypes.addressof(self._sizes),
            steps_per_epoch=cut.steps,
            rows=cut.rows,
            batch_size=cut.size,
            batch_index=-1 if cut.symbol is None else names.index(cut.symbol),
            input_count=len(inputs),
            inputs=ctypes.addressof(self._inputs),
            log_count=len(logs),
            logs=ctypes.addressof(self._logs),
        )
        self.address = ctypes.addressof(self.block)

    def begin(
        self, arrays: Sequence[Array], first: int, last: int, order: Array | None
    ) -> list[Array]:
        """Enter data that the program has been pointed to; the arrays that will hold the logs."""
        table, block = self._program.table, self.block
        block.step, block.order = first, 0 if order is None else address(order)
        if order is not None and not self._staging:
            rows = (_row_bytes(arrays[i]) for i in self._sliced)
            self._staging = [aligned(self._cut.size * row) for row in rows]
        for k, i in enumerate(self._inputs[: len(self._sliced)]):
            i.source = table[i.table_index] or 0
            i.staging = 0 if order is None else address(self._staging[k])
        logs = [np.zeros((last - first, *o.shape), o.dtype) for o in self.plan.outputs]
        for output in self.plan.outputs:
            if output.fresh:
                self._fresh[output.place] = aligned(_bytes(output))
                table[output.place] = address(self._fresh[output.place])
        for entry, log, output in zip(self._logs, logs, self.plan.outputs, strict=False):
            entry.destination = address(log) - first * _bytes(output)  # its element 0 is of step 0
        return logs


def _bytes(output: Output) -> int:
    size: int = output.dtype.itemsize * math.prod(output.shape)
    return size


def _row_bytes(array: Array) -> int:
    size: int = array.itemsize * math.prod(array.shape[1:])
    return size
