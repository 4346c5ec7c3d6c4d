"""A compiled program as a function: buffers, sizes, one native call, and errors that say what."""

from __future__ import annotations

import ctypes
import os
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from chainrule_runtime.direct import DirectCall, headers_are_known
from chainrule_runtime.errors import FeedError, NonFiniteError, RuntimeFault
from chainrule_runtime.feeds import Binder, place_of
from chainrule_runtime.manifest import PARTS, Check, Manifest, element_type, evaluate
from chainrule_runtime.memory import Arena, Array, Lock, address, round_up, spans
from chainrule_runtime.pool import MOST, TEAM, usable_cpus
from chainrule_runtime.sharing import Sharing, native_sizes, share

_STEP = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p)
#: outputs up to so many bytes are copied from a buffer of the plan: cheaper than a new address
_SMALL = 4096
_PLANS = 64
Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Output:
    """An output at given sizes: where it stands in the table, and what it is read from.

    With a `buffer` it is copied from there after the call, with a `feed` from that array; with
    neither the call writes it into a new array.
    """

    name: str
    place: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    buffer: Array | None = None
    feed: int | None = None

    @property
    def fresh(self) -> bool:
        """Whether each call makes a new array for it to be written to."""
        return self.buffer is None and self.feed is None


@dataclass(frozen=True)
class Plan:
    """What a program needs for one combination of sizes; `slots` are the arena's, in bytes.

    `sharing` is what threads do.
    """

    sizes: dict[str, int]
    native_sizes: Any
    size_address: int
    slots: tuple[int, ...]
    outputs: tuple[Output, ...]
    standing: tuple[tuple[int, int], ...]
    sharing: Sharing

    @property
    def parts(self) -> int:
        """How many share a step."""
        return self.sharing.parts


@dataclass(frozen=True)
class Crew:
    """Threads for a program: so many at most (None: a CPU each), and the native code they run."""

    most: int | None
    work_address: int
    dismiss_address: int


class Program:
    """A function with buffers. Calls exclude each other; the native part runs without the GIL.

    `kept` gives the arrays that live between calls, by name, and `lock` guards them: programs that
    share arrays share the lock. `keep_alive` is whatever owns the code at `step_address`. With a
    `direct_address` there is `direct` after a call: the same call again, by a shorter way.
    """

    def __init__(
        self,
        manifest: Manifest,
        step_address: int,
        *,
        kept: Mapping[str, Array] | None = None,
        lock: Lock | None = None,
        keep_alive: object = None,
        direct_address: int | None = None,
        crew: Crew | None = None,
    ) -> None:
        self.manifest = manifest
        self._crew = crew
        self.threads = threads_for(crew.most if crew else 1)
        self.direct: DirectCall | None = None
        self._direct_address = direct_address
        self.binder = Binder(manifest.feeds, manifest.sizes, manifest.nonempty)
        self.lock = lock or Lock()
        self.table = (ctypes.c_void_p * max(1, manifest.places))()
        self.table_address = ctypes.addressof(self.table)
        self._keep_alive = keep_alive
        self._step = _STEP(step_address)
        self._feed_places = [t.place for t in manifest.feeds]
        self._arena = Arena()
        self._plans: dict[Shapes, Plan] = {}
        self._current: Plan | None = None
        kept = kept or {}
        self.kept = {t.name: kept[t.name] for t in manifest.kept}
        self._spans = spans(a for a in self.kept.values() if a.nbytes)
        standing = [(t.place, self.kept[t.name]) for t in manifest.kept]
        standing += [(t.place, np.ascontiguousarray(a)) for t, a in manifest.constants]
        self._standing = dict(standing)
        for place, array in standing:
            self.table[place] = address(array)
        _programs.add(self)

    def forget_threads(self) -> None:
        """Ask for threads again at the next call, in a process that has none."""
        self.direct = self._current = None

    def __call__(self, given: Mapping[str, object]) -> list[Array]:
        """Run once on what is given by name; new arrays, in the order of `manifest.outputs`.

        Raises FeedError or NonFiniteError; what is kept is then as it was.
        """
        arrays = self.binder.arrays(given)
        with self.lock.guard:
            plan = self.plan(tuple([a.shape for a in arrays]))
            self.point(arrays)
            self.use(plan)
            results = [self._receive(o, arrays) for o in plan.outputs]
            code = self._step(self.table_address, plan.size_address)
            if code:
                raise self.fault(code, arrays, plan.outputs, plan.sizes)
            if self.direct is None:
                self.direct = self._make_direct(plan, arrays)
            return [
                result if output.fresh else result.copy()
                for output, result in zip(plan.outputs, results, strict=True)
            ]

    def results(self) -> list[Array]:
        """What the last call left in the outputs that have buffers; they are not copies."""
        outputs = self._current.outputs if self._current else ()
        return [o.buffer for o in outputs if o.buffer is not None]

    def _make_direct(self, plan: Plan, arrays: Sequence[Array]) -> DirectCall | None:
        """The shorter way for arrays like these, to a first output that is a float."""
        buffers = [o.buffer for o in plan.outputs]
        loss = buffers[0] if buffers else None
        if self._direct_address is None or loss is None or any(b is None for b in buffers):
            return None
        if loss.shape or loss.dtype not in (np.float32, np.float64) or not headers_are_known():
            return None
        feeds = [
            (t.name, a.dtype, a.shape, t.place)
            for t, a in zip(self.manifest.feeds, arrays, strict=True)
        ]
        return DirectCall(
            self._direct_address, self.table_address, plan.size_address, loss, feeds, self._spans
        )

    def point(self, arrays: list[Array]) -> None:
        """Enter the feeds in the table; one that lies in kept memory is replaced by a copy."""
        for i, place in enumerate(self._feed_places):
            at = address(arrays[i])
            for start, end in self._spans:
                if at < end and start < at + arrays[i].nbytes:
                    arrays[i] = arrays[i].copy()
                    at = address(arrays[i])
            self.table[place] = at

    def plan(self, shapes: Shapes) -> Plan:
        """The plan for feeds of these shapes. Raises FeedError where they do not fit."""
        plan = self._plans.get(shapes)
        if plan is None:
            if len(self._plans) >= _PLANS:
                self._plans.clear()
            plan = self._plans[shapes] = self._make_plan(self.binder.sizes(shapes))
        return plan

    def _make_plan(self, sizes: dict[str, int]) -> Plan:
        sharing = share(self.manifest, sizes, self.threads)
        native = self.native_sizes(sizes, sharing)
        outputs = self._outputs(sizes)
        standing = [(o.place, address(o.buffer)) for o in outputs if o.buffer is not None]
        return Plan(
            sizes, native, ctypes.addressof(native), self.slots(sizes, sharing.parts), outputs,
            tuple(standing), sharing,
        )  # fmt: skip

    def native_sizes(self, sizes: Mapping[str, int], sharing: Sharing) -> Any:
        """What native code reads: the sizes in order, and how a step is shared."""
        return native_sizes([sizes[s] for s in self.manifest.sizes], sharing)

    def slots(self, sizes: Mapping[str, int], parts: int) -> tuple[int, ...]:
        """The bytes of each slot of the arena, where so many share a step."""
        known = {**sizes, PARTS: parts}
        return tuple(
            round_up(max([0, *(evaluate(size, known) for size in slot)]))
            for slot in self.manifest.arena
        )

    def _outputs(self, sizes: Mapping[str, int]) -> tuple[Output, ...]:
        uses = Counter(t.place for t in self.manifest.outputs)
        buffers: dict[int, Array] = dict(self._standing)
        made = []
        for t in self.manifest.outputs:
            shape, dtype = tuple(evaluate(d, sizes) for d in t.shape), element_type(t.dtype)
            if any(d < 0 for d in shape):
                raise FeedError(f"{t.name} is {t}: of these sizes its shape would be {shape}")
            if t.place in self._feed_places:
                feed = self._feed_places.index(t.place)
                made.append(Output(t.name, t.place, shape, dtype, feed=feed))
                continue
            small = dtype.itemsize * int(np.prod(shape, dtype=object)) <= _SMALL
            if t.place not in buffers and (small or uses[t.place] > 1):
                buffers[t.place] = np.zeros(shape, dtype)
            buffer = buffers.get(t.place)
            buffer = None if buffer is None else buffer.reshape(shape)
            made.append(Output(t.name, t.place, shape, dtype, buffer))
        return tuple(made)

    def use(self, plan: Plan) -> None:
        """Enter a plan's buffers in the table, unless they are there."""
        if plan is self._current:
            return
        self.direct = self._current = None  # whatever interrupts this, the table is half made
        if plan.parts > 1 and self._crew is not None:
            crew = self._crew
            TEAM.want(plan.parts, crew.work_address, crew.dismiss_address, self._keep_alive)
        starts = [0, *accumulate(plan.slots)]
        start = self._arena.reserve(starts[-1])
        for place, slot in self.manifest.temporaries:
            self.table[place] = start + starts[slot]
        for place, at in plan.standing:
            self.table[place] = at
        self._current = plan

    def _receive(self, output: Output, arrays: Sequence[Array]) -> Array:
        if output.buffer is not None:
            return output.buffer
        if output.feed is not None:
            return arrays[output.feed].reshape(output.shape)
        try:
            result = np.empty(output.shape, output.dtype)
        except (MemoryError, ValueError):  # ValueError: more than an address can tell
            raise RuntimeFault(f"there is no room for a result of shape {output.shape}") from None
        self.table[output.place] = address(result)
        return result

    def fault(
        self,
        code: int,
        arrays: Sequence[Array],
        outputs: Sequence[Output],
        sizes: Mapping[str, int],
    ) -> RuntimeFault:
        """What a code other than 0 means, in words; `arrays` are what was fed."""
        known = {**self.kept, **dict(zip(self.binder.names, arrays, strict=True))}
        return fault_of(self.manifest.checks, code, known, outputs, sizes)


def fault_of(
    checks: Sequence[Check],
    code: int,
    known: Mapping[str, Array],
    outputs: Sequence[Output],
    sizes: Mapping[str, int],
) -> RuntimeFault:
    """What a code other than 0 means, in words; `known` are what was fed and what is kept."""
    found = [c for c in checks if c.code == code]
    if not found:
        return RuntimeFault(f"the program left with code {code}, which it does not define")
    check = found[0]
    if check.bound is None:
        return _non_finite(outputs) or NonFiniteError(f"{check.what} is not finite")
    least, bound = evaluate(check.least, sizes), evaluate(check.bound, sizes)
    array = known.get(check.feed or "")
    fault = None if array is None else outside(check, array, least, bound)
    return fault or FeedError(
        f"{check.what} holds a position outside [{least}, {bound})",
        f"it is computed: cr.clip(x, {least}, {bound - 1}) keeps it inside, x.named(...) names it; "
        "nothing was changed",
    )


def threads_for(most: int | None) -> int:
    """How many threads share a step: a CPU each, `most` at most."""
    return 1 if most == 1 else min(usable_cpus(), most or MOST + 1, MOST + 1)


_programs: weakref.WeakSet[Program] = weakref.WeakSet()


def _forget_threads() -> None:
    for program in _programs:
        program.forget_threads()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


def _non_finite(outputs: Sequence[Output]) -> NonFiniteError | None:
    """The error of the first number among outputs that is not finite; single ones come first."""
    by_rank = sorted(outputs, key=lambda o: len(o.shape))
    found = (non_finite(o.name, o.buffer) for o in by_rank if o.buffer is not None)
    return next((error for error in found if error is not None), None)


def non_finite(name: str, array: Array) -> NonFiniteError | None:
    """The error of the first number in an array that is not finite; None if all are."""
    good = np.isfinite(array)
    if good.all():
        return None
    place = tuple(map(int, np.unravel_index(int(np.argmin(good)), array.shape)))
    at, number = f"[{', '.join(map(str, place))}]" if place else "", array[place].item()
    return NonFiniteError(f"{name}{at} is {number}", named=name, place=place, number=number)


def check_positions(
    checks: Sequence[Check],
    names: Sequence[str],
    arrays: Sequence[Array],
    sizes: Mapping[str, int],
) -> None:
    """Raise FeedError where an array of one of these names holds positions outside its bound."""
    for check in checks:
        if check.bound is not None and check.feed in names:
            array = arrays[names.index(check.feed)]
            least, bound = evaluate(check.least, sizes), evaluate(check.bound, sizes)
            fault = outside(check, array, least, bound)
            if fault is not None:
                raise fault


def outside(check: Check, array: Array, least: int, bound: int) -> FeedError | None:
    """What is wrong with an array of positions, naming the first bad one; None if nothing is."""
    if array.size == 0 or (array.min() >= least and array.max() < bound):
        return None
    where = np.unravel_index(int(np.argmax((array < least) | (array >= bound))), array.shape)
    return FeedError(
        f"{check.feed} holds {array[where]}, where only {least} to {bound - 1} have a meaning",
        f"{place_of(where)} is the first outside [{least}, {bound}); nothing was changed",
    )
