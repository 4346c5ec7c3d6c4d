"""Many steps in one native call; where they take long, in a few, so that Ctrl-C comes through."""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from chainrule_runtime.errors import RuntimeFault
from chainrule_runtime.memory import Array, address, aligned
from chainrule_runtime.program import Plan, Program
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
    """How many steps were finished, what each scalar output was, and what stopped them, if any.

    `logs` has one array for each of `manifest.outputs`, of `steps` elements.
    """

    steps: int
    logs: tuple[Array, ...]
    fault: RuntimeFault | None = None


class EpochLoop:
    """A program's native loop over minibatches; all its outputs are scalars."""

    def __init__(self, program: Program, run_address: int) -> None:
        self.program = program
        self._run: Callable[[int], int] = _RUN(run_address)

    def __call__(
        self, arrays: list[Array], cut: Minibatches, epochs: int, order: Array | None
    ) -> Outcome:
        """Run whole epochs. `order` holds the row numbers of each in turn; None: as they lie.

        Raises KeyboardInterrupt after the step during which it came, FeedError where shapes do not
        fit. A step that refuses its input ends the run: see `Outcome.fault`.
        """
        with self.program.lock.guard:
            return self._locked(arrays, cut, epochs, order)

    def _locked(
        self,
        arrays: list[Array],
        cut: Minibatches,
        epochs: int,
        order: Array | None,
    ) -> Outcome:
        first, last = (self.program.plan(s) for s in cut.both_shapes(arrays))
        slots = [max(a, b) for a, b in zip(first.slots, last.slots, strict=True)]
        self.program.point(arrays)
        self.program.use(first, slots)
        job = _Job(self.program, first, arrays, cut, epochs, order)
        code = self._all(job)
        done = int(job.block.step)
        fault = None
        if code != FINISHED:
            batch = cut.minibatch(arrays, done, order)
            sizes = self.program.plan(tuple(a.shape for a in batch)).sizes
            fault = self.program.fault(code, batch, first.outputs, sizes)
        return Outcome(done, tuple(log[:done] for log in job.logs), fault)

    def _all(self, job: _Job) -> int:
        """Run the steps of a job; between native calls Python handles its signals."""
        block, count = job.block, 1
        while True:
            block.last = min(block.step + count, job.total)
            begun = time.perf_counter()
            code = self._run(job.address)
            if code != FINISHED or block.step >= job.total:
                return code
            took = time.perf_counter() - begun
            count = max(1, int(count * min(_GROWTH, _PATIENCE / max(took, 1e-9))))


class _Job:
    """The block that the native loop is told by, and everything it points to."""

    def __init__(
        self,
        program: Program,
        plan: Plan,
        arrays: Sequence[Array],
        cut: Minibatches,
        epochs: int,
        order: Array | None,
    ) -> None:
        self._alive = arrays, order
        self.total = total = epochs * cut.steps
        self.logs = [np.zeros(total, o.dtype) for o in plan.outputs]
        self._staging = [
            aligned(cut.size * _row_bytes(a)) if chosen and order is not None else None
            for a, chosen in zip(arrays, cut.sliced, strict=True)
        ]
        places = [t.place for t in program.manifest.feeds]
        inputs = [
            SlicedInput(address(a), None if s is None else address(s), _row_bytes(a), place)
            for a, s, place, chosen in zip(arrays, self._staging, places, cut.sliced, strict=True)
            if chosen
        ]
        logs = [
            LoggedScalar(o.place, o.dtype.itemsize, address(log))
            for o, log in zip(plan.outputs, self.logs, strict=True)
        ]
        self._inputs = (SlicedInput * max(1, len(inputs)))(*inputs)
        self._logs = (LoggedScalar * max(1, len(logs)))(*logs)
        names = program.manifest.sizes
        self._sizes = (ctypes.c_int64 * max(1, len(names)))(*[plan.sizes[s] for s in names])
        self.block = RunBlock(
            table=program.table_address,
            sizes=ctypes.addressof(self._sizes),
            step=0,
            last=0,
            steps_per_epoch=cut.steps,
            rows=cut.rows,
            batch_size=cut.size,
            batch_index=-1 if cut.symbol is None else names.index(cut.symbol),
            order=None if order is None else address(order),
            input_count=len(inputs),
            inputs=ctypes.addressof(self._inputs),
            log_count=len(logs),
            logs=ctypes.addressof(self._logs),
        )
        self.address = ctypes.addressof(self.block)


def _row_bytes(array: Array) -> int:
    size: int = array.itemsize * math.prod(array.shape[1:])
    return size
