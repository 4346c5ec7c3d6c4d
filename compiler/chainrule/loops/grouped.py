"""The product on tensor cores that read whole panels of bfloat16 from shared memory, where a copy
engine brings them: GPUs of compute capability 9.0 alone.

A block of two groups of four warps has a tile of the result, each group half of its rows. Panels
of SPAN terms come box by box, STAGES of them at a time on their way or there, whatever the sizes:
what lies outside of a factor comes as 0. So a factor must lie in memory as a matrix does, whose
lines begin at multiples of 16 bytes; which of its two letters its neighbours go along is free.
"""

from __future__ import annotations

from collections.abc import Mapping

from chainrule.errors import CompileError
from chainrule.ir.engine import (
    CHART,
    SPAN,
    Box,
    Bring,
    Engage,
    Hear,
    Matrix,
    MultiplyPanels,
    Panel,
)
from chainrule.ir.loop import Apply, Buffer, Load, Local, Loop, Stmt, When
from chainrule.ir.node import Stmts
from chainrule.ir.size import Dim, Size, coefficient, divide, is_nonnegative, typical
from chainrule.ir.types import bfloat16, float32, int64
from chainrule.loops.builder import Builder
from chainrule.loops.tiled import Read, Tiles
from chainrule.records import dataclass
from chainrule.target.gpu import WARP

#: rows and columns of a tile
WIDE = 128
#: panels that are in shared memory or on their way
STAGES = 3
#: so many tiles, and so many panels of each, are worth it: enough for half of a large GPU, and for
#: what it takes until the first panel has come; fewer are cut into smaller tiles of another form
TILES, PANELS = 64, 4
#: elements that begin at a multiple of 16 bytes
EVEN = 8

_T, _K, _P, _R, _G = (Size.symbol(f"{name}'") for name in "tkprg")


@dataclass(frozen=True)
class Factor:
    """A factor as a matrix in memory; `turned` if its neighbours are rows or columns, not terms."""

    matrix: Matrix
    turned: bool


class GroupTiles(Tiles):
    """Tiles of WIDE rows and columns; a group of four warps has 64 rows of one."""

    unit, sides, depth = WIDE, (1,), SPAN

    @classmethod
    def fitting(cls, b: Builder, asked: bool = False) -> GroupTiles | None:
        """The tiles of a product whose factors lie as they should, and that is large enough; None
        of another. If they are `asked` for any size is: raises CompileError for another.
        """
        made = cls(b) if b.target.engine and not b.kernel.depth else None
        if made and asked and made.factors(made.groups.at(_G)):
            return made
        if asked:
            raise CompileError("panels are of bfloat16 factors with lines that begin at 16 bytes")
        if made is None:  # a slice may begin anywhere
            return None
        g, m, n = (typical(a.size) for a in (made.groups, made.rows, made.columns))
        worth = g * -(-m // WIDE) * -(-n // WIDE) >= TILES
        if worth and typical(made.terms.size) >= PANELS * SPAN and made.factors(made.groups.at(_G)):
            return made
        b.scratch.clear()
        return None

    def memory(self) -> tuple[Local, Buffer, Buffer]:
        """A thread's sums, and the stages of both factors' panels."""
        self.stage = WIDE * SPAN
        first, second = (
            self.b.scratch_of(bfloat16, STAGES * self.stage, private=True) for _ in range(2)
        )
        self.room = self.b.scratch_of(int64, 2 * CHART, private=True)
        self.desk = self.b.scratch_of(int64, CHART + STAGES, private=True)
        return Local("acc", float32, (WIDE // 2,), True), first, second

    def element(self) -> tuple[Dim, Dim, tuple[Dim, ...]]:
        """Row and column in the tile of a sum of a thread's, and its cell: see MultiplyPanels."""
        row = _T // WARP * 16 + _T % WARP // 4 + _R // 2 % 2 * 8
        return row, _R // 4 * 8 + _T % 4 * 2 + _R % 2, (_R,)

    def share(self, body: Stmts) -> Stmts:
        """The body for each sum of a thread's."""
        return (Loop("r'", WIDE // 2, body, "unroll"),)

    def sums(self, places: Mapping[str, Dim], top: Dim, left: Dim) -> Stmts:
        """All terms, a panel at a time; the next STAGES - 1 are on their way meanwhile."""
        found = self.factors(places)
        assert found is not None
        count = (self.terms.size + SPAN - 1) // SPAN
        engine = Engage(tuple(f.matrix for f in found), self.room, self.desk)
        sides = tuple(zip(found, (self.first, self.second), (top, left), strict=True))

        def ask(panel: Dim) -> Stmt:
            stage = panel % STAGES
            boxes = [
                box
                for i, (factor, to, line) in enumerate(sides)
                for box in _boxes(i, factor, to, stage * self.stage, line, panel * SPAN)
            ]
            return When(((panel, count),), (Bring(engine, tuple(boxes), stage),))

        a, b = (Panel(to, _K % STAGES * self.stage, factor.turned) for factor, to, _ in sides)
        panels: Stmts = (
            ask(_K + STAGES - 1),
            Hear(engine, _K % STAGES, _K // STAGES),
            MultiplyPanels(self.acc, a, b, WIDE),
        )
        return (engine, *map(ask, range(STAGES - 1)), Loop("k'", count, panels))

    def factors(self, places: Mapping[str, Dim]) -> tuple[Factor, Factor] | None:
        """Both factors as matrices; None where one is none that a copy engine can bring."""
        x, y = self.reads(places)
        terms = self.terms.size
        first, second = _factor(x, terms, self.rows.size), _factor(y, terms, self.columns.size)
        return (first, second) if first and second else None


def _factor(read: Read, terms: Dim, lines: Dim) -> Factor | None:
    """A factor of so many terms and lines as a matrix in memory, if it is one."""
    value = read(_K, _P)
    load = value.args[0] if isinstance(value, Apply) and value.fn == "cast" else None
    if not isinstance(load, Load) or load.dtype != bfloat16 or load.index is not None:
        return None
    by_term = coefficient(load.offset, "k'")
    by_line = by_term and coefficient(by_term[1], "p'")
    if not by_term or not by_line or 1 not in (by_term[0], by_line[0]):
        return None
    turned, start = by_term[0] != 1, by_line[1]
    apart, count, along = (by_term[0], terms, lines) if turned else (by_line[0], lines, terms)
    if divide(apart, EVEN) is None or divide(start, EVEN) is None or not _reaches(apart, along):
        return None
    box = SPAN if turned else WIDE
    return Factor(Matrix(load.buffer, start, count, along, apart, box), turned)


def _reaches(apart: Dim, along: Dim) -> bool:
    """Whether a line ends before the next one begins, as far as is known."""
    if isinstance(apart, int) and isinstance(along, int):
        return apart >= along
    times = divide(apart, along)
    return times is not None and times != 0 and is_nonnegative(times)


def _boxes(
    number: int, factor: Factor, to: Buffer, at: Dim, line: Dim, term: Dim
) -> tuple[Box, ...]:
    """The boxes of a factor's panel, from a line and a term on."""
    if not factor.turned:
        return (Box(number, line, term, to, at),)
    return tuple(Box(number, term, line + far, to, at + far * SPAN) for far in range(0, WIDE, SPAN))
