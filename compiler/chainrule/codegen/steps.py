"""What is called in which order, and where its buffers stand: the data that `step` is made of."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import replace

from chainrule.ir.loop import Program
from chainrule.ir.size import Dim
from chainrule.records import dataclass


@dataclass(frozen=True)
class Place:
    """Where a buffer starts: so many bytes from an address in the table, and further on by so many
    for each slice that the loops around it have come to: `moves` are (loop, bytes), the outermost
    loop 0.
    """

    entry: int
    moves: tuple[tuple[int, Dim], ...] = ()
    start: Dim = 0

    def moved(self, loop: int, size: Dim) -> Place:
        """A slice of `size` bytes of what lies here."""
        return replace(self, moves=(*self.moves, (loop, size)))

    def after(self, size: Dim) -> Place:
        """What lies so many bytes further on."""
        return replace(self, start=self.start + size)


@dataclass(frozen=True)
class Call:
    """A program and where its buffers stand, in the order of `program.buffers`.

    A number is the place in the table. Two buffers of a call may share memory where the program
    works in place: where each element is read only by the iteration that writes it, and before it
    does.
    """

    program: Program
    buffers: tuple[int | Place, ...]


@dataclass(frozen=True)
class Copy:
    """So many bytes from one place to another."""

    source: Place
    target: Place
    size: Dim


@dataclass(frozen=True)
class Repeat:
    """Calls and copies once for each slice, from the first or, with `reverse`, from the last."""

    length: Dim
    steps: tuple[Call | Copy | Repeat, ...]
    reverse: bool = False


Step = Call | Copy | Repeat


def calls_in(steps: Sequence[Step]) -> list[Call]:
    """The calls among steps, in order."""
    found: list[Call] = []
    for step in steps:
        if isinstance(step, Repeat):
            found += calls_in(step.steps)
        elif isinstance(step, Call):
            found.append(step)
    return found


def entries(call: Call) -> list[int]:
    """The places in the table that a call is given, by its buffers."""
    return [p if isinstance(p, int) else p.entry for p in call.buffers]


#: steps that one part does alone, or a call or a loop that parts share
Stretch = list[Step] | Call | Repeat


def stretches(order: Sequence[Step], shared: Container[int]) -> list[Stretch]:
    """Steps by who does them; `shared` has the identities of programs that parts share."""
    out: list[Stretch] = []
    for step in order:
        if any(id(c.program) in shared for c in calls_in([step])):
            assert not isinstance(step, Copy)
            out.append(step)
            continue
        if not out or not isinstance(out[-1], list):
            out.append([])
        last = out[-1]
        assert isinstance(last, list)
        last.append(step)
    return out


def stages(order: Sequence[Step], shared: Container[int]) -> Iterator[list[Step] | Call | None]:
    """Stretches one after the other as parts come to them.

    None stands where all meet in any case: before, and at the end of, what a loop repeats.
    """
    for stretch in stretches(order, shared):
        if isinstance(stretch, Repeat):
            yield None
            yield from stages(stretch.steps, shared)
            yield None
        else:
            yield stretch
