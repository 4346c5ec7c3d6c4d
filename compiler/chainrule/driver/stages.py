"""What each stage of a shared step touches: parts meet where one needs what another has done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from chainrule.codegen.module import shared_calls
from chainrule.codegen.steps import Call, Copy, Place, Step, calls_in, stages
from chainrule.ir.loop import Barrier, Buffer, Load, Stmt
from chainrule.loops.walk import has_check, postorder, statements, stored_buffers, values_of
from chainrule_runtime.manifest import Stage

#: the memory that a place in the table is of, by number, or None where each part has its own
Memory = Callable[[int], int | None]


def stages_of(order: Sequence[Step], memory: Memory) -> tuple[Stage, ...]:
    """The stages of a step that threads share, as parts come to them."""
    shared = [call for call, _ in shared_calls(order)]
    found: list[Stage] = []
    turn = 0
    for stage in stages(order, {id(call.program) for call in shared}):
        if stage is None:
            found.append(Stage(meeting=True))
        elif isinstance(stage, list):
            found.append(_alone(stage, memory))
        else:
            body = stage.program.body
            inner = [i for i, s in enumerate(body) if isinstance(s, Barrier)]
            reads, writes = _touched(stage, body, memory)
            first = _touched(stage, body[: inner[0]], memory) if inner else (reads, writes)
            found.append(Stage(turn, reads, writes, *first, inner=bool(inner)))
            turn += 1
    return tuple(found)


def _alone(steps: Sequence[Step], memory: Memory) -> Stage:
    """What one part does."""
    reads: set[int] = set()
    writes: set[int] = set()
    checked: set[int] = set()
    for call in calls_in(steps):
        read, written = _touched(call, call.program.body, memory)
        reads.update(read)
        writes.update(written)
        checked.update(read if has_check(call.program.body) else ())
    for copy in _copies(steps):
        reads.update(_numbers([copy.source], memory))
        writes.update(_numbers([copy.target], memory))
    return Stage(None, _ordered(reads), _ordered(writes), checked=_ordered(checked))


def _touched(
    call: Call, body: Iterable[Stmt], memory: Memory
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The memory that statements of a call read, and that they write."""
    place = dict(zip(call.program.buffers, call.buffers, strict=True))
    inside = list(statements(body))
    values = (v for s in inside for v in postorder(*values_of(s)))
    reads = {v.buffer for v in values if isinstance(v, Load)}

    def numbers(buffers: Iterable[Buffer]) -> tuple[int, ...]:
        return _ordered(_numbers((place[b] for b in buffers), memory))

    return numbers(reads), numbers(stored_buffers(inside))


def _copies(steps: Iterable[Step]) -> list[Copy]:
    found: list[Copy] = []
    for step in steps:
        if isinstance(step, Copy):
            found.append(step)
        elif not isinstance(step, Call):
            found += _copies(step.steps)
    return found


def _numbers(places: Iterable[int | Place], memory: Memory) -> set[int]:
    found = (memory(p if isinstance(p, int) else p.entry) for p in places)
    return {number for number in found if number is not None}


def _ordered(numbers: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(numbers))
