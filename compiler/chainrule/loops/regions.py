"""A program in regions: what its parts do between meetings, as programs of their own.

Where threads can't wait for each other, each region is begun for all parts and ends before the next
begins (fork and join). Loops that parts meet in stand around regions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from chainrule.ir.loop import (
    Barrier,
    Combine,
    Get,
    Let,
    Local,
    Loop,
    Note,
    Program,
    Set,
    Stmt,
)
from chainrule.ir.size import Dim, substitute
from chainrule.loops.walk import postorder, statements, values_of
from chainrule.records import dataclass


@dataclass(frozen=True)
class Region:
    """What parts do without meeting. Its sizes are those of the whole program, and the variables of
    the loops around, the outermost first.
    """

    program: Program


@dataclass(frozen=True)
class Around:
    """A loop in whose body parts meet."""

    var: str
    extent: Dim
    body: tuple[Region | Around, ...]


def regions_of(program: Program) -> tuple[Region | Around, ...] | None:
    """The regions of a program in order, with the loops around them.

    None where registers hold something from one region to the next.
    """
    made = _Regions(program)
    found = made.divided(program.body, program.sizes, (), {})
    return None if made.carried else found


def every_region(parts: Sequence[Region | Around]) -> Iterator[Region]:
    """The regions, in the order in which they stand."""
    for part in parts:
        if isinstance(part, Region):
            yield part
        else:
            yield from every_region(part.body)


class _Regions:
    def __init__(self, program: Program) -> None:
        self.program, self.count, self.carried = program, 0, False

    def divided(
        self,
        body: Sequence[Stmt],
        sizes: tuple[str, ...],
        locals_: tuple[Local, ...],
        named: Mapping[str, Dim],
    ) -> tuple[Region | Around, ...]:
        """A body whose symbols are `sizes`, locals, and names for numbers made of sizes."""
        named = dict(named)
        found: list[Region | Around] = []
        stretch: list[Stmt] = []

        def end() -> None:
            if any(not isinstance(s, Note | Local) for s in stretch):
                given = [local for local in locals_ if local not in stretch]
                self.carried = self.carried or not _begins_anew(stretch, given)
                names = [Let(var, value) for var, value in named.items()]
                found.append(self.region((*names, *given, *stretch), sizes))
            stretch.clear()

        for s in body:
            if isinstance(s, Barrier):
                end()
            elif isinstance(s, Let):
                named[s.var] = substitute(s.value, named)
            elif isinstance(s, Loop) and any(isinstance(i, Barrier) for i in statements(s.body)):
                end()
                inside = self.divided(s.body, (*sizes, s.var), locals_, named)
                found.append(Around(s.var, substitute(s.extent, named), inside))
            else:
                locals_ = (*locals_, s) if isinstance(s, Local) else locals_
                stretch.append(s)
        end()
        return tuple(found)

    def region(self, body: tuple[Stmt, ...], sizes: tuple[str, ...]) -> Region:
        self.count += 1
        name = f"{self.program.name}.r{self.count}"
        return Region(Program(name, self.program.buffers, sizes, body))


_Cell = tuple[Local, tuple[Dim, ...]]


def _begins_anew(body: Sequence[Stmt], given: Sequence[Local]) -> bool:
    """Whether a region sets each cell of the locals that it is given before it reads it."""
    try:
        _set_in(body, set(given), set())
    except _Carried:
        return False
    return True


class _Carried(Exception):
    """A cell is read that may not have been set."""


def _set_in(body: Sequence[Stmt], given: set[Local], cells: set[_Cell]) -> set[_Cell]:
    """The cells that are set once a body has run, given those that are when it begins."""
    cells, given = set(cells), set(given)
    for s in body:
        for v in postorder(*values_of(s)):
            read = (v.local, v.index) if isinstance(v, Get | Combine) else None
            if read is not None and read[0] in given and read not in cells:
                raise _Carried
        if isinstance(s, Set):
            cells.add((s.local, s.index))
        elif isinstance(s, Local):
            given.discard(s)
        elif isinstance(s, Loop):
            runs = isinstance(s.extent, int) and s.extent > 0
            # what is set at an index of the loop's own may be read at another one
            inside = _set_in(s.body, given, cells)
            cells |= {cell for cell in inside if runs and cell[1] == ()}
    return cells
