"""Functions as those calls of a step that do what they do: where code is to be little."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from chainrule.codegen.steps import Call, Place, Step, entries
from chainrule.export.model import Unit
from chainrule.ir.loop import Buffer, Combine, Get, Local, Loop, Program, Set, Stmt, Store
from chainrule.loops.text import signature
from chainrule.loops.walk import (
    has_check,
    loaded_buffers,
    postorder,
    statements,
    stored_buffers,
    values_of,
)
from chainrule_runtime.manifest import DimData, Manifest


def loss_of(step: Unit, wanted: Manifest) -> Unit | None:
    """The calls that the first output of a step comes from, and checks of data.

    None if there are others than calls among them, if they write what lives on or another output,
    or where a step is fed otherwise than it is `wanted`.
    """
    manifest = step.manifest
    if [t.name for t in manifest.feeds] != [t.name for t in wanted.feeds]:
        return None
    loss = manifest.outputs[0]
    calls = _behind(step.calls, loss.place)
    others = {t.place for t in (*manifest.kept, *manifest.outputs[1:])}
    if calls is None or others & {p for c in calls for p in _written(c)}:
        return None
    checks = tuple(c for c in manifest.checks if c.bound is not None)
    return Unit(tuple(calls), replace(manifest, outputs=(loss,), checks=checks))


def with_calls_of(unit: Unit, step: Unit) -> Unit:
    """A unit that calls what a step does, where that computes the same and something besides.

    What comes out besides, such as the derivative of an activation, lies in workspace unread.
    """
    calls, others = _all_calls(unit), _all_calls(step)
    if calls is None or others is None:
        return unit
    manifest = unit.manifest
    for at, call in enumerate(calls):
        found = _more(call, others, step.manifest)
        if found is None:
            continue
        other, buffer, slot = found
        spare = Place(manifest.places)
        manifest = replace(
            manifest,
            arena=(*manifest.arena, slot),
            temporaries=(*manifest.temporaries, (spare.entry, len(manifest.arena))),
        )
        own = iter(call.buffers)
        buffers = tuple(spare if b == buffer else next(own) for b in other.program.buffers)
        calls[at] = replace(call, program=other.program, buffers=buffers)
    return Unit(tuple(calls), manifest)


def _all_calls(unit: Unit) -> list[Call] | None:
    calls = [call for call in unit.calls if isinstance(call, Call)]
    return calls if len(calls) == len(unit.calls) else None


def _more(
    call: Call, others: Sequence[Call], manifest: Manifest
) -> tuple[Call, Buffer, tuple[DimData, ...]] | None:
    """Which other call does what this one does and fills one buffer more, and that one's slot."""
    for other in others:
        for buffer, place in zip(other.program.buffers, other.buffers, strict=True):
            slot = _slot(manifest, place)
            if slot is not None and _is_without(call.program, other.program, buffer):
                return other, buffer, slot
    return None


def _slot(manifest: Manifest, place: int | Place) -> tuple[DimData, ...] | None:
    """The sizes of the slot that a call's buffer is all of; None where it is something else."""
    place = Place(place) if isinstance(place, int) else place
    slot = dict(manifest.temporaries).get(place.entry)
    if slot is None or place.moves or place.start != 0:
        return None
    return manifest.arena[slot]


def _is_without(program: Program, other: Program, more: Buffer) -> bool:
    """Whether a program is another one without what that writes to a buffer."""
    if len(other.buffers) != len(program.buffers) + 1 or more not in stored_buffers(other.body):
        return False
    if more in loaded_buffers(other.body) or program.sizes != other.sizes:
        return False
    body = _useful(_kept(other.body, lambda s: not (isinstance(s, Store) and s.buffer == more)))
    buffers = tuple(b for b in other.buffers if b != more)
    return signature(replace(other, buffers=buffers, body=body)) == signature(program)


def _useful(body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
    """A body without locals that nothing reads."""
    while True:
        values = (v for s in statements(body) for v in postorder(*values_of(s)))
        read = {v.local for v in values if isinstance(v, Get | Combine)}

        def is_read(s: Stmt, read: set[Local] = read) -> bool:
            local = s if isinstance(s, Local) else s.local if isinstance(s, Set) else None
            return local is None or local in read

        less = _kept(body, is_read)
        if less == body:
            return body
        body = less


def _kept(body: tuple[Stmt, ...], keeps: Callable[[Stmt], bool]) -> tuple[Stmt, ...]:
    """The statements of a body, and of loops in it, that are to be kept."""
    return tuple(
        replace(s, body=_kept(s.body, keeps)) if isinstance(s, Loop) else s
        for s in body
        if keeps(s)
    )


def _behind(steps: Sequence[Step], place: int) -> list[Call] | None:
    """In their order, the calls that write a place, and those that write what they read."""
    needed, found = {place}, list[Call]()
    for call in reversed(steps):
        if not isinstance(call, Call):
            return None
        written = _written(call)
        if needed & written or (not written and has_check(call.program.body) and found):
            found.append(call)
            needed |= set(entries(call))
    return found[::-1]


def _written(call: Call) -> set[int]:
    stored = stored_buffers(call.program.body)
    places = zip(call.program.buffers, entries(call), strict=True)
    return {place for buffer, place in places if buffer in stored}
