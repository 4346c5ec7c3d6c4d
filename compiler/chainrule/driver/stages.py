"""What each stage of a shared step touches: parts meet where one needs what another has done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from chainrule.codegen.steps import Call, Copy, Place, Step, calls_in, stages
from chainrule.ir.loop import Barrier, Program, Stmt
from chainrule.loops.walk import has_check, loaded_buffers, stored_buffers
from chainrule.records import dataclass
from chainrule_runtime.manifest import Stage

#: the memory that a place in the table is of, by number, or None where each part has its own
Memory = Callable[[int], int | None]


def stages_of(order: Sequence[Step], shared: Sequence[Call], memory: Memory) -> tuple[Stage, ...]:
    """The stages of a step, of which threads share some calls, as parts come to them."""
    kinds = {id(call.program): call.program for call in calls_in(order)}
    uses = {key: _use(program) for key, program in kinds.items()}

    def found() -> Iterator[Stage]:
        turn = 0
        for stage in stages(order, {id(call.program) for call in shared}):
            if stage is None:
                yield Stage(meeting=True)
            elif isinstance(stage, list):
                yield _alone(stage, uses, memory)
            else:
                use = uses[id(stage.program)]
                reads, writes, first_reads, first_writes = (
                    _ordered(_memories(stage, buffers, memory))
                    for buffers in (use.reads, use.writes, use.first_reads, use.first_writes)
                )
                yield Stage(turn, reads, writes, first_reads, first_writes, use.inner)
                turn += 1

    return tuple(found())


@dataclass(frozen=True)
class _Use:
    """Which buffers of a program are read and written, by number; the first, before parts meet."""

    reads: tuple[int, ...]
    writes: tuple[int, ...]
    first_reads: tuple[int, ...]
    first_writes: tuple[int, ...]
    inner: bool
    checks: bool


def _use(program: Program) -> _Use:
    meetings = [i for i, s in enumerate(program.body) if isinstance(s, Barrier)]
    whole = _touched(program, program.body)
    first = _touched(program, program.body[: meetings[0]]) if meetings else whole
    return _Use(*whole, *first, inner=bool(meetings), checks=has_check(program.body))


def _touched(program: Program, body: Iterable[Stmt]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    body = list(body)
    reads, writes = loaded_buffers(body), stored_buffers(body)
    numbered = list(enumerate(program.buffers))
    return tuple(i for i, b in numbered if b in reads), tuple(i for i, b in numbered if b in writes)


def _alone(steps: Sequence[Step], uses: dict[int, _Use], memory: Memory) -> Stage:
    """What one part does."""
    reads: set[int] = set()
    writes: set[int] = set()
    checked: set[int] = set()
    for call in calls_in(steps):
        use = uses[id(call.program)]
        read = _memories(call, use.reads, memory)
        reads |= read
        writes |= _memories(call, use.writes, memory)
        checked |= read if use.checks else set()
    for copy in _copies(steps):
        reads |= _numbers([copy.source], memory)
        writes |= _numbers([copy.target], memory)
    return Stage(None, _ordered(reads), _ordered(writes), checked=_ordered(checked))


def _copies(steps: Iterable[Step]) -> list[Copy]:
    found: list[Copy] = []
    for step in steps:
        if isinstance(step, Copy):
            found.append(step)
        elif not isinstance(step, Call):
            found += _copies(step.steps)
    return found


def _memories(call: Call, buffers: Iterable[int], memory: Memory) -> set[int]:
    return _numbers((call.buffers[i] for i in buffers), memory)


def _numbers(places: Iterable[int | Place], memory: Memory) -> set[int]:
    found = (memory(p if isinstance(p, int) else p.entry) for p in places)
    return {number for number in found if number is not None}


def _ordered(numbers: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(numbers))
