"""The loss alone, as those calls of a step that make it: where code is to be little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from chainrule.codegen.steps import Call, Step
from chainrule.export.model import Unit
from chainrule.loops.walk import has_check, stored_buffers
from chainrule_runtime.manifest import Manifest


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


def _behind(steps: Sequence[Step], place: int) -> list[Call] | None:
    """In their order, the calls that write a place, and those that write what they read."""
    needed, found = {place}, list[Call]()
    for call in reversed(steps):
        if not isinstance(call, Call):
            return None
        written = _written(call)
        if needed & written or (not written and has_check(call.program.body) and found):
            found.append(call)
            needed |= set(_entries(call))
    return found[::-1]


def _written(call: Call) -> set[int]:
    stored = stored_buffers(call.program.body)
    places = zip(call.program.buffers, _entries(call), strict=True)
    return {place for buffer, place in places if buffer in stored}


def _entries(call: Call) -> list[int]:
    return [p if isinstance(p, int) else p.entry for p in call.buffers]
