"""A compiled program on a GPU as a function: its memory there, and one recording for each size.

What is kept lives in arrays of the host, as on a CPU: a call sends them, and fetches those that it
has changed. A run of many steps sends and fetches them once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np

from chainrule_runtime.errors import DeviceError, FeedError, RuntimeFault
from chainrule_runtime.feeds import Binder
from chainrule_runtime.gpu import driver
from chainrule_runtime.gpu.blas import room_for
from chainrule_runtime.gpu.commands import GpuCode, ProductRun, Run, resolved
from chainrule_runtime.gpu.driver import Attributes, Gpu
from chainrule_runtime.manifest import Manifest, Tensor, element_type, evaluate
from chainrule_runtime.memory import Array, Lock
from chainrule_runtime.program import Output, fault_of

#: where a stretch of memory begins: what 16-byte accesses and the driver's own allocations ask
_ALIGN = 256
_PLANS = 16
Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """What a call of some sizes needs: offsets by places in the table, and all bytes together."""

    sizes: dict[str, int]
    offsets: dict[int, int]
    size: int
    shapes: tuple[tuple[int, ...], ...]


class _Memory:
    """A program's things on a GPU: its module, what is kept, and an arena that grows.

    `fixed` are the addresses of what stays where it is, by places in the table.
    """

    def __init__(self, gpu: Gpu, code: GpuCode, manifest: Manifest, kept: Mapping[str, Array]):
        self.gpu = gpu
        self.module = gpu.load(code.ptx)
        self.kernels: dict[str, Any] = {}
        given = [(t, kept[t.name]) for t in manifest.kept]
        given += [(t, np.ascontiguousarray(array)) for t, array in manifest.constants]
        starts = [0, *accumulate(rounded(a.nbytes) for _, a in given)]
        self._block = gpu.allocate(_ALIGN + starts[-1])
        self.status = self._block
        self.fixed = {
            t.place: self._block + _ALIGN + start
            for (t, _), start in zip(given, starts, strict=False)
        }
        for tensor, array in manifest.constants:
            gpu.upload(self.fixed[tensor.place], np.ascontiguousarray(array))
        gpu.wait()
        self.arena, self.room = 0, 0
        self._workspace = (0, 0)
        self.recordings: dict[Plan, Any] = {}

    def reserve(self, size: int) -> None:
        """Have an arena of so many bytes; what was recorded for a smaller one is gone."""
        if size > self.room or not self.arena:
            self.forget()
            if self.arena:
                self.gpu.wait()
                self.gpu.release(self.arena)
                self.arena = self.room = 0
            self.arena, self.room = self.gpu.allocate(size), size

    def forget(self) -> None:
        """Give back what was recorded."""
        for recording in self.recordings.values():
            self.gpu.forget(recording)
        self.recordings.clear()

    def kernel(self, name: str) -> Any:
        """A kernel by name."""
        if name not in self.kernels:
            self.kernels[name] = self.gpu.kernel(self.module, name)
        return self.kernels[name]

    @property
    def workspace(self) -> tuple[int, int]:
        """Memory that cuBLASLt may use, its address and bytes: one for all products, which run one
        after another.
        """
        if not self._workspace[0]:
            size = room_for(self.gpu.capability)
            self._workspace = self.gpu.allocate(size), size
        return self._workspace

    def asked(self, run: Run | ProductRun) -> Callable[[], None]:
        """What asks for a launch, or for a product."""
        return asked(self.gpu, run, self.kernel, lambda: self.workspace)

    def __del__(self) -> None:
        try:
            with self.gpu.entered():  # by whichever thread collects garbage
                self.forget()
                for at in (self.arena, self._block, self._workspace[0]):
                    if at:
                        self.gpu.release(at)
                self.gpu.unload(self.module)
        except Exception:  # the process ends, or the GPU is lost: there is nothing to give back
            pass


class GpuProgram:
    """A function on a GPU, which is found at the first call. Calls exclude each other.

    `kept` gives the arrays that live between calls, by name, and `lock` guards them.
    """

    def __init__(
        self,
        manifest: Manifest,
        code: GpuCode,
        kept: Mapping[str, Array] | None = None,
        lock: Lock | None = None,
    ) -> None:
        self.manifest, self.code = manifest, code
        self.binder = Binder(manifest.feeds, manifest.sizes, manifest.nonempty)
        self.lock = lock or Lock()
        kept = kept or {}
        self.kept = {t.name: kept[t.name] for t in manifest.kept}
        self._memory: _Memory | None = None
        self._plans: dict[Shapes, Plan] = {}

    def __call__(self, given: Mapping[str, object]) -> list[Array]:
        """Run once on what is given by name; new arrays, in the order of `manifest.outputs`.

        Raises FeedError, NonFiniteError and DeviceError; what is kept is then as it was.
        """
        arrays = self.binder.arrays(given)
        with self.session() as session:
            results = session.step(arrays)
            session.fetch()
            return results

    def attributes(self, given: Mapping[str, tuple[int, int]]) -> dict[str, Attributes]:
        """What kernels take, by name, which run in blocks of so many threads with so many bytes of
        shared memory beside their own; nothing before the first call, as they are not on the GPU
        yet.
        """
        memory = self._memory
        if memory is None:
            return {}
        with memory.gpu.entered():
            return {n: memory.gpu.attributes(memory.kernel(n), *g) for n, g in given.items()}

    def times(self, given: Mapping[str, object], turns: int) -> list[dict[int, float]]:
        """Seconds of what launches are part of (see `KernelLaunch`), in so many calls that change
        nothing that is kept here. Raises FeedError, NonFiniteError and DeviceError.
        """
        arrays = self.binder.arrays(given)
        found = []
        for _ in range(turns):  # from the same beginning each time
            with self.session() as session:
                found.append(session.times(arrays))
        return found

    @contextmanager
    def session(self) -> Iterator[Session]:
        """The program at work, alone, on the thread's GPU: what is kept has been sent."""
        with self.lock.guard:
            gpu = self._memory.gpu if self._memory else driver.find()
            with gpu.entered():
                if self._memory is None:
                    self._memory = _Memory(gpu, self.code, self.manifest, self.kept)
                memory = self._memory
                for tensor in self.manifest.kept:
                    gpu.upload(memory.fixed[tensor.place], self.kept[tensor.name])
                gpu.clear(memory.status, 4)
                yield Session(self, memory)

    def plan(self, shapes: Shapes) -> Plan:
        """The plan for feeds of these shapes. Raises FeedError where they do not fit."""
        plan = self._plans.get(shapes)
        if plan is None:
            if len(self._plans) >= _PLANS:
                self._plans.clear()
                if self._memory is not None:
                    self._memory.forget()
            plan = self._plans[shapes] = self._make_plan(shapes)
        return plan

    def _make_plan(self, shapes: Shapes) -> Plan:
        m, sizes = self.manifest, self.binder.sizes(shapes)
        offsets: dict[int, int] = {}
        end = 0
        fixed = {t.place for t in (*m.kept, *(t for t, _ in m.constants))}
        for tensor in (*m.feeds, *m.outputs):
            if tensor.place not in offsets and tensor.place not in fixed:
                offsets[tensor.place] = end
                end += rounded(_bytes(tensor, sizes))
        starts = []
        for slot in m.arena:
            starts.append(end)
            end += rounded(max([0, *(evaluate(size, sizes) for size in slot)]))
        offsets |= {place: starts[slot] for place, slot in m.temporaries}
        return Plan(sizes, offsets, end, tuple(_shape(t, sizes) for t in m.outputs))


class Session:
    """A program at work on a GPU, with what is kept there."""

    def __init__(self, program: GpuProgram, memory: _Memory) -> None:
        self.program, self.memory, self.gpu = program, memory, memory.gpu

    def fetch(self, whole: bool = False) -> None:
        """Bring back what is kept and may have changed; if it is to be `whole`, all of it or, where
        the GPU is lost in the middle, nothing: there is a copy then.
        """
        program, fixed = self.program, self.memory.fixed
        changed = [t for t in program.manifest.kept if t.name in program.code.changed]
        arrays = [program.kept[t.name] for t in changed]
        there = [np.empty_like(a) for a in arrays] if whole else arrays
        for number, (tensor, array) in enumerate(zip(changed, there, strict=True)):
            try:
                self.gpu.download(array, fixed[tensor.place])
            except DeviceError as fault:
                if number and not whole:
                    fault.details += ("some of what is kept had come back before: load a state",)
                raise
        for array, new in zip(arrays, there, strict=True):
            if array is not new:
                array[...] = new

    def step(self, arrays: Sequence[Array]) -> list[Array]:
        """Run once; new arrays. Raises FeedError and NonFiniteError."""
        memory = self.memory
        plan, table = self.given(arrays)
        if plan not in memory.recordings:
            memory.recordings[plan] = self.record(self.launches(plan, table))
        self.gpu.play(memory.recordings[plan])
        return self.results(plan, table, arrays)

    def given(self, arrays: Sequence[Array]) -> tuple[Plan, dict[int, int]]:
        """The plan for feeds, which are sent, and the addresses of places."""
        program = self.program
        plan = program.plan(tuple([a.shape for a in arrays]))
        self.memory.reserve(plan.size)
        table = self.table(plan)
        for tensor, array in zip(program.manifest.feeds, arrays, strict=True):
            self.gpu.upload(table[tensor.place], array)
        return plan, table

    def results(self, plan: Plan, table: Mapping[int, int], arrays: Sequence[Array]) -> list[Array]:
        """What a call has left; new arrays. Raises FeedError and NonFiniteError."""
        code, outputs = self.status(), self.outputs(plan, table)
        if code:
            raise self.fault(code, arrays, outputs, plan)
        return [o.buffer for o in outputs if o.buffer is not None]

    def times(self, arrays: Sequence[Array]) -> dict[int, float]:
        """Run once, launch by launch; seconds of what they are part of."""
        plan, table = self.given(arrays)
        runs = self.launches(plan, table)
        seconds = self.gpu.timed([self.memory.asked(run) for run in runs])
        self.results(plan, table, arrays)
        found: dict[int, float] = {}
        for run, spent in zip(runs, seconds, strict=True):
            found[run.part_of] = found.get(run.part_of, 0.0) + spent
        return found

    def table(self, plan: Plan) -> dict[int, int]:
        """The address of each place, where the arena is now."""
        return {p: self.memory.arena + at for p, at in plan.offsets.items()} | self.memory.fixed

    def launches(self, plan: Plan, table: Mapping[int, int]) -> list[Run | ProductRun]:
        """What a call of a plan launches, in order."""
        commands, status = self.program.code.commands, self.memory.status
        return list(resolved(commands, plan.sizes, table, status))

    def record(self, launches: Sequence[Run | ProductRun]) -> Any:
        """Launches as one thing to be played."""
        asked = [self.memory.asked(run) for run in launches]

        def go() -> None:
            for ask in asked:
                ask()

        return self.gpu.record(go)

    def status(self) -> int:
        """The code that a check left, or 0, once all is done."""
        status = np.zeros(1, np.int32)
        self.gpu.download(status, self.memory.status)
        return int(status[0])

    def outputs(self, plan: Plan, table: Mapping[int, int]) -> list[Output]:
        """What a call of a plan has left."""
        found = []
        for t, shape in zip(self.program.manifest.outputs, plan.shapes, strict=True):
            array = np.zeros(shape, element_type(t.dtype))
            self.gpu.download(array, table[t.place])
            found.append(Output(t.name, t.place, shape, array.dtype, array))
        return found

    def fault(
        self, code: int, arrays: Sequence[Array], outputs: Sequence[Output], plan: Plan
    ) -> RuntimeFault:
        """What a code means, in words."""
        program = self.program
        known = {**program.kept, **dict(zip(program.binder.names, arrays, strict=True))}
        return fault_of(program.manifest.checks, code, known, outputs, plan.sizes)


def asked(
    gpu: Gpu,
    run: Run | ProductRun,
    kernel: Callable[[str], Any],
    workspace: Callable[[], tuple[int, int]],
) -> Callable[[], None]:
    """What asks a GPU for a launch, of a kernel by its name, or for a product, which may be made
    once for that: what is asked for is not recorded yet.
    """
    if isinstance(run, Run):
        given = run.blocks, run.threads, run.arguments, run.shared
        return partial(gpu.launch, kernel(run.name), *given)
    if not run.terms:
        return partial(gpu.clear, run.places[2], run.size)
    return gpu.multiplier(run, workspace())


def rounded(size: int) -> int:
    """The next multiple of what a stretch of memory begins at."""
    return -(-size // _ALIGN) * _ALIGN


def _shape(tensor: Tensor, sizes: Mapping[str, int]) -> tuple[int, ...]:
    shape = tuple(evaluate(d, sizes) for d in tensor.shape)
    if any(d < 0 for d in shape):
        raise FeedError(f"{tensor.name} is {tensor}: of these sizes its shape would be {shape}")
    return shape


def _bytes(tensor: Tensor, sizes: Mapping[str, int]) -> int:
    return math.prod(_shape(tensor, sizes)) * element_type(tensor.dtype).itemsize
