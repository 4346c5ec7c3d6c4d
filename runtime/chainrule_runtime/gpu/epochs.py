"""Many steps on a GPU: the data lies there whole, and each step is one recording that is played."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from chainrule_runtime.epochs import Minibatches, Outcome
from chainrule_runtime.errors import DeviceError
from chainrule_runtime.gpu.commands import BLOCK, PER_LAUNCH, RESIDENT, WARP, ProductRun, Run
from chainrule_runtime.gpu.program import GpuProgram, Plan, Session, rounded
from chainrule_runtime.manifest import element_type
from chainrule_runtime.memory import Array

#: steps of a kernel that stays: a GPU with a display ends what takes seconds
STAYS = 1000


class GpuEpochLoop:
    """A program's loop over minibatches; its outputs are of one shape in all of them.

    Every so many steps (`snapshot_every`) what is kept is brought back, so that a GPU that is lost
    takes no more of them with it.
    """

    def __init__(self, program: GpuProgram, snapshot_every: int | None = None) -> None:
        self.program, self.snapshot_every = program, snapshot_every

    def sizes(self, arrays: Sequence[Array], cut: Minibatches) -> dict[str, int]:
        """The sizes of a full minibatch. Raises FeedError where shapes do not fit."""
        plans = [self.program.plan(s) for s in cut.both_shapes(arrays)]
        return plans[0].sizes

    def __call__(
        self, arrays: list[Array], cut: Minibatches, first: int, last: int, order: Array | None
    ) -> Outcome:
        """Run steps `first` to `last` - 1, counted from the beginning of an epoch.

        `order` holds the row numbers of that epoch and of each that follows; None: as they lie.
        An interrupt leaves what was made of the steps that had been asked for. A step that refuses
        its input ends the run: see `Outcome.fault`.
        """
        with self.program.session() as session:
            run = _Run(session, arrays, cut, first, last, order)
            try:
                outcome = run(self.snapshot_every)
            except DeviceError as fault:
                if not fault.lost:  # else there is nothing to give back
                    run.release()
                raise
            except BaseException:
                run.release()
                raise
            run.release()
            return outcome


class _Run:
    """Data, order, cursor and logs on the GPU, and what is played for a minibatch of each size."""

    def __init__(
        self,
        session: Session,
        arrays: list[Array],
        cut: Minibatches,
        first: int,
        last: int,
        order: Array | None,
    ) -> None:
        self.session, self.gpu = session, session.gpu
        self.arrays, self.cut, self.first, self.last = arrays, cut, first, last
        self.order, self.epochs = order, -(-last // cut.steps)
        self.plans = [session.program.plan(s) for s in cut.both_shapes(arrays)]
        manifest = session.program.manifest
        self.feeds = manifest.feeds
        self.results = [
            (t.place, shape, element_type(t.dtype))
            for t, shape in zip(manifest.outputs, self.plans[0].shapes, strict=True)
        ]
        self.owned: list[int] = []
        self.recordings: list[Any] = []

    def given(self, array: Array) -> int:
        """An array that lies on the GPU during the run."""
        at = self.room(array.nbytes)
        self.gpu.upload(at, array)
        return at

    def room(self, size: int) -> int:
        """Memory for the run."""
        self.owned.append(self.gpu.allocate(rounded(size)))
        return self.owned[-1]

    def release(self) -> None:
        """Give back what the run had, once nothing is at work there."""
        self.gpu.wait()
        for recording in self.recordings:
            self.gpu.forget(recording)
        for at in self.owned:
            self.gpu.release(at)

    def __call__(self, snapshot_every: int | None) -> Outcome:
        """Play the steps, then look what came of them."""
        cut, count = self.cut, self.last - self.first
        if count <= 0:
            return Outcome(0, tuple(self.fetched([])))
        self.session.memory.reserve(max(plan.size for plan in self.plans))
        rows = np.tile(np.arange(cut.rows), self.epochs) if self.order is None else self.order
        self.cursor = self.given(np.zeros(1, np.int64))
        self.rows = self.given(np.ascontiguousarray(rows.reshape(-1)[: cut.rows * self.epochs]))
        self.data = [self.given(a) for a in self.arrays]
        logs = [self.room(count * _bytes(s, t)) for _, s, t in self.results]
        tables = [self.table(plan) for plan in self.plans]
        both = zip(self.plans, tables, strict=True)
        go = self.player([self.launches(plan, table, logs) for plan, table in both])
        every, done = snapshot_every or count, 0
        try:
            while done < count:
                if done and done % every == 0:
                    self.session.fetch(whole=True)
                more = min(every - done % every, STAYS, count - done)
                go(self.first + done, self.first + done + more)
                done += more
        except KeyboardInterrupt:
            self.session.fetch()
            raise
        code = self.session.status()
        made = np.zeros(1, np.int64)
        self.gpu.download(made, self.cursor)
        self.session.fetch(whole=snapshot_every is not None)
        count = int(made[0])
        at = self.first + count
        fault = None
        if code:
            batch, which = cut.minibatch(self.arrays, at, self.order), self.is_last(at)
            plan = self.plans[which]
            outputs = self.session.outputs(plan, tables[which])
            fault = self.session.fault(code, batch, outputs, plan)
        return Outcome(count, tuple(log[:count] for log in self.fetched(logs)), fault)

    def player(self, runs: Sequence[Sequence[Run | ProductRun]]) -> Callable[[int, int], None]:
        """What asks for steps from one up to another, each of which runs the first of `runs`, or
        the second where it is the last of an epoch: by a recording each, or, of runs that are of
        about a block each, by one kernel that stays.
        """
        memory, code = self.session.memory, self.session.program.code
        small = [_in_blocks(some) for some in runs]
        if not code.resident or None in small:
            self.recordings += map(self.session.record, runs)

            def play(first: int, last: int) -> None:
                for step in range(first, last):
                    self.gpu.play(self.recordings[self.is_last(step)])

            return play
        number = {name: i for i, name in enumerate(code.resident)}
        each = [(which, run) for which, some in enumerate(small) for run in some or ()]
        table = np.zeros((len(each), code.row), np.uint64)
        for row, (which, run) in zip(table, each, strict=True):
            words = number[run.name], run.blocks, which, *run.arguments[:-1]
            row[: len(words)] = words
        rows, kernel = self.given(table), memory.kernel(RESIDENT)

        def stay(first: int, last: int) -> None:
            given = rows, len(table), first, last, self.cut.steps, memory.status
            self.gpu.launch(kernel, 1, BLOCK, given)

        return stay

    def is_last(self, step: int) -> bool:
        """Whether a step's minibatch is the last of its epoch, which may be smaller."""
        return step % self.cut.steps == self.cut.steps - 1

    def fetched(self, logs: Sequence[int]) -> list[Array]:
        """The logs, brought back."""
        arrays = [np.zeros((self.last - self.first, *s), t) for _, s, t in self.results]
        for array, at in zip(arrays, logs, strict=False):
            self.gpu.download(array, at)
        return arrays

    def table(self, plan: Plan) -> dict[int, int]:
        """The addresses of a step: of what is not cut into minibatches, where it lies whole."""
        triples = zip(self.feeds, self.data, self.cut.sliced, strict=True)
        return self.session.table(plan) | {t.place: at for t, at, cuts in triples if not cuts}

    def launches(
        self, plan: Plan, table: dict[int, int], logs: Sequence[int]
    ) -> list[Run | ProductRun]:
        """The rows of a minibatch, the step, its logs, and the cursor on."""
        cut, status = self.cut, self.session.memory.status
        out: list[Run | ProductRun] = []
        for i, (tensor, data) in enumerate(zip(self.feeds, self.data, strict=True)):
            if cut.sliced[i]:
                count, row = plan.sizes[str(cut.symbol)], math.prod(self.arrays[i].shape[1:])
                buffers = data, self.rows, self.cursor, table[tensor.place]
                sizes = count, row, cut.rows, cut.steps, cut.size, self.first, self.epochs
                out += _over(f"gather_{tensor.dtype}", count * row, (*buffers, *sizes, status))
        out += self.session.launches(plan, table)
        for (place, shape, dtype), log in zip(self.results, logs, strict=True):
            count = math.prod(shape)
            given = table[place], log, self.cursor, count, self.last - self.first, status
            out += _over(f"log_{dtype}", count, given)
        return [*out, Run("advance", 1, WARP, (self.cursor, status))]


def _in_blocks(runs: Sequence[Run | ProductRun]) -> list[Run] | None:
    """Launches of about a block each, which one block may as well go through; None of others."""
    own = [run for run in runs if isinstance(run, Run)]
    few = sum(run.blocks for run in own) <= PER_LAUNCH * len(own)
    return own if few and len(own) == len(runs) else None


def _over(name: str, count: int, arguments: tuple[int, ...]) -> list[Run]:
    """A kernel of so many threads; none where there is nothing to do."""
    blocks = -(-count // BLOCK)
    return [Run(name, blocks, BLOCK, arguments)] if blocks else []


def _bytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    return math.prod(shape) * dtype.itemsize
