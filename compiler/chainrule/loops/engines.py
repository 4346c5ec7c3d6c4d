"""What copy engines and products of panels mean in the simulator, and what is refused of them: a
panel that was not heard to be there, a box over what lanes may still read, a bell heard out of
turn or that nobody rings.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from chainrule.errors import CompileError
from chainrule.ir.engine import SPAN, Bring, Engage, Hear, Matrix, MultiplyPanels, Panel
from chainrule.ir.loop import Buffer, Local
from chainrule.ir.size import Dim
from chainrule.loops.interpret import Machine
from chainrule.loops.launch import Launch
from chainrule.loops.races import Log, Race

Array = np.ndarray[Any, Any]
#: lanes that multiply together, the rows they have, and the terms that are added at once
GROUP, ROWS, TERMS = 128, 64, 16
#: what matrices begin and lines lie apart by multiples of
EVEN = 8


class Engines(Machine):
    """The part of the simulator that has these. `heard` counts the turns of each part's bells;
    `asked` are boxes on their way; `read_when` says of each element of a panel after how many
    meetings it was last read.
    """

    launch: Launch
    part: Array
    lane: Array
    active: Array
    log: Log
    widths: dict[str, int]

    def begin(self) -> None:
        """Nothing was asked of engines yet."""
        self.heard: dict[tuple[int, int], int] = {}
        self.asked: dict[tuple[int, int], list[tuple[str, Array, Array]]] = {}
        self.read_when: dict[str, Array] = {}
        self.engaged: set[int] = set()

    def whole(self, what: str) -> None:
        """Refuse what some lanes of a part come to and others do not."""
        raise NotImplementedError

    def refused(self, what: str) -> CompileError:
        return CompileError(f"{self.launch.program.name}: {what}")

    def raced(self, what: str) -> Race:
        return Race(f"{self.launch.program.name}: {what}")

    def at(self, dim: Dim, thread: int) -> int:
        """What an index is for a thread."""
        found = np.asarray(self.index(dim))
        return int(found if found.ndim == 0 else found[thread])

    def first_lanes(self) -> list[int]:
        """Of each part that is meant the first lane."""
        return [int(t) for t in np.flatnonzero(self.active & (self.lane == 0))]

    def engage(self, s: Engage) -> None:
        self.whole("an engine")
        if s.desk not in self.launch.shared or s.room not in self.launch.own:
            raise self.refused("an engine's desk is in shared memory, its room is not")
        for thread in self.first_lanes():
            self.engaged.add(int(self.part[thread]))
            for m in s.matrices:
                if any(self.at(dim, thread) % EVEN for dim in (m.offset, m.apart)):
                    raise self.refused("a line of a matrix does not begin at 16 bytes")
                if self.at(m.apart, thread) < self.at(m.along, thread):
                    raise self.refused("lines of a matrix lie over each other")

    def bring(self, s: Bring) -> None:
        for thread in self.first_lanes():
            part = int(self.part[thread])
            if part not in self.engaged:
                raise self.refused("boxes are asked for of no engine")
            bell = part, self.at(s.bell, thread)
            if bell in self.asked:
                raise self.raced("a bell is asked to ring before it was heard")
            self.asked[bell] = []
            for box in s.boxes:
                matrix, at = s.engine.matrices[box.matrix], self.at(box.at, thread)
                data = self.box(
                    matrix, self.at(box.line, thread), self.at(box.first, thread), thread
                )
                if at % (EVEN * SPAN):
                    raise self.refused("a box does not begin as boxes do")
                to = self.own(box.to, at + np.arange(data.size), thread)
                if (self.seen(box.to)[to] >= self.log.meetings[thread]).any():
                    raise self.raced("a box is brought over what lanes may still read")
                if any(
                    name == box.to.name and np.isin(to, old).any()
                    for name, old in self.coming_boxes()
                ):
                    raise self.raced("two boxes are brought to one place")
                self.buffers[box.to.name][to] = np.nan
                self.asked[bell].append((box.to.name, to, data.reshape(-1)))

    def coming_boxes(self) -> list[tuple[str, Array]]:
        """Where boxes go that are on their way."""
        return [(name, to) for boxes in self.asked.values() for name, to, _ in boxes]

    def box(self, m: Matrix, line: int, first: int, thread: int) -> Array:
        """A box's elements, 0 for what the matrix has not."""
        lines, along, apart = (self.at(d, thread) for d in (m.lines, m.along, m.apart))
        rows, columns = line + np.arange(m.box)[:, None], first + np.arange(SPAN)[None]
        there = (rows >= 0) & (rows < lines) & (columns >= 0) & (columns < along)
        at = self.at(m.offset, thread) + rows * apart + columns
        array = self.buffers[m.source.name]
        if (there & ((at < 0) | (at >= len(array)))).any():
            raise self.refused(f"a box is brought from outside of {m.source.name}")
        start = array.__array_interface__["data"][0]
        self.log.note(start + at[there] * array.itemsize, np.full(there.sum(), thread), False)
        data = np.zeros(there.shape, array.dtype)
        data[there] = array[at[there]]
        return data

    def own(self, buffer: Buffer, at: Array, thread: int) -> Array:
        """Elements of a part's own shared memory."""
        width = self.widths.get(buffer.name, 0)
        if buffer not in self.launch.shared or at.min() < 0 or at.max() >= width:
            raise self.refused(f"a box does not lie in {buffer.name}, in shared memory")
        return at + int(self.part[thread]) * width

    def seen(self, buffer: Buffer) -> Array:
        """After how many meetings each element of a panel was last read."""
        if buffer.name not in self.read_when:
            self.read_when[buffer.name] = np.full(len(self.buffers[buffer.name]), -1)
        return self.read_when[buffer.name]

    def hear(self, s: Hear) -> None:
        self.whole("a bell")
        for thread in self.first_lanes():
            bell = int(self.part[thread]), self.at(s.bell, thread)
            if self.heard.get(bell, 0) != self.at(s.turn, thread):
                raise self.refused("a bell is heard out of turn")
            if bell not in self.asked:
                raise self.raced("a bell is waited for that nobody rings")
            for name, to, data in self.asked.pop(bell):
                self.buffers[name][to] = data
            self.heard[bell] = self.heard.get(bell, 0) + 1

    def multiply_panels(self, s: MultiplyPanels) -> None:
        """Each sum in float64 and rounded for each TERMS terms."""
        self.whole("panels")
        lanes = np.arange(self.launch.lanes)
        group, lane = lanes // GROUP * ROWS, lanes % GROUP
        for thread in self.first_lanes():
            a = self.panel(s.a, self.launch.lanes // GROUP * ROWS, thread)
            b = self.panel(s.b, s.columns, thread)
            mine = slice(thread, thread + self.launch.lanes)
            for start in range(0, SPAN, TERMS):
                made = a[:, start : start + TERMS] @ b[:, start : start + TERMS].T
                for r in range(s.columns // 2):
                    row = group + lane // 32 * 16 + lane % 32 // 4 + r // 2 % 2 * 8
                    column = r // 4 * 8 + lane % 4 * 2 + r % 2
                    cell = self.sums(s.local, r)
                    cell[mine] = cell[mine].astype(np.float64) + made[row, column]

    def sums(self, local: Local, number: int) -> Array:
        found: Array = self.cell(local, (number,))
        return found

    def panel(self, panel: Panel, lines: int, thread: int) -> Array:
        """A factor's rows, or columns, by SPAN terms."""
        line, term = np.arange(lines)[:, None], np.arange(SPAN)[None]
        if panel.turned:
            place = line // SPAN * SPAN**2 + term * SPAN + line % SPAN
        else:
            place = line * SPAN + term
        at = self.own(panel.buffer, self.at(panel.at, thread) + place, thread)
        if any(
            name == panel.buffer.name and np.isin(at, to).any() for name, to in self.coming_boxes()
        ):
            raise self.raced(
                f"{panel.buffer.name} is multiplied before what was asked for has come"
            )
        self.seen(panel.buffer)[at] = self.log.meetings[thread]
        found: Array = self.buffers[panel.buffer.name][at].astype(np.float64)
        return found
