"""Run a loop program over NumPy arrays, statement by statement: the meaning of native code."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import field
from itertools import product
from typing import Any

import numpy as np

from chainrule.errors import CompileError
from chainrule.ir.loop import (
    LANES,
    Apply,
    Barrier,
    Blocks,
    Check,
    Get,
    IndexValue,
    Let,
    Literal,
    Load,
    Local,
    Loop,
    Note,
    Panels,
    Program,
    Set,
    Stmt,
    Store,
    Value,
)
from chainrule.ir.machine import MACHINE
from chainrule.ir.size import Dim, evaluate
from chainrule.ir.types import DType, dtype
from chainrule.loops.library import listing_of
from chainrule.loops.walk import postorder
from chainrule.records import dataclass

Array = np.ndarray[Any, Any]


class _Leave(Exception):
    """A Check that did not hold."""

    def __init__(self, code: int) -> None:
        self.code = code


def interpret(
    program: Program,
    buffers: Mapping[str, Array],
    sizes: Mapping[str, int],
    fma: bool = True,
    backward: bool = False,
) -> int:
    """Run a program; `buffers` are one-dimensional arrays by name and are written in place.

    The result is 0, or the code of the Check that did not hold. Without `fma` a multiply-add rounds
    twice, as on a target that has none. With `backward` split loops go from their last iteration to
    the first, which must not change anything.
    """
    machine = Machine(buffers, dict(sizes), fma, backward)
    try:
        machine.block(program.body)
    except _Leave as leave:
        return leave.code
    return 0


@dataclass
class Machine:
    """What runs statements. Its state: arrays, the value of each size and loop variable, the cells
    of locals.

    In a vector loop its variable is an array of up to LANES indices, and `count` their number.
    """

    buffers: Mapping[str, Array]
    symbols: dict[str, Any]
    fma: bool
    backward: bool = False
    cells: dict[tuple[str, tuple[int, ...]], Array] = field(default_factory=dict)
    count: int = 0

    def block(self, body: Sequence[Stmt]) -> None:
        for statement in body:
            self.statement(statement)

    def statement(self, s: Stmt) -> None:
        if isinstance(s, Loop):
            self.loop(s)
        elif isinstance(s, Local):
            for index in product(*map(range, s.shape)):
                self.cells[s.name, index] = np.zeros(LANES if s.lanes else (), s.dtype.numpy)
        elif isinstance(s, Set):
            self.cell(s.local, s.index)[self.lanes(s.local)] = self.value(s.value)
        elif isinstance(s, Store):
            moved = None if s.index is None else self.value(s.index)
            self.buffers[s.buffer.name][self.place(s, moved)] = self.value(s.value)
        elif isinstance(s, Blocks):
            self.multiply(s)
        elif isinstance(s, Check):
            if not self.value(s.condition):
                raise _Leave(s.code)
        elif isinstance(s, Let):
            self.symbols[s.var] = self.index(s.value)
        elif not isinstance(s, Note | Barrier):
            raise CompileError(f"{s!r} is no statement of the loop grammar")

    def loop(self, loop: Loop) -> None:
        shadowed = self.symbols.get(loop.var)
        extent = self.index(loop.extent)
        if loop.mode != "vector":
            for i in self.turned(loop, range(extent)):
                self.symbols[loop.var] = i
                self.block(loop.body)
        else:
            for start in self.turned(loop, range(0, extent, LANES)):
                self.symbols[loop.var] = np.arange(start, min(start + LANES, extent))
                self.count = len(self.symbols[loop.var])
                self.block(loop.body)
            self.count = 0
        self.symbols.pop(loop.var, None)
        if shadowed is not None:
            self.symbols[loop.var] = shadowed

    def turned(self, loop: Loop, order: range) -> range:
        return order[::-1] if loop.split and self.backward else order

    def index(self, dim: Dim) -> Any:
        return evaluate(dim, self.symbols)

    def place(self, access: Load | Store, index: Array | None) -> Any:
        """Which element (or elements, in a vector loop) is meant."""
        at = self.index(access.offset)
        return at if index is None else at + index.astype(np.int64) * self.index(access.stride)

    def cell(self, local: Local, index: tuple[Dim, ...]) -> Array:
        return self.cells[local.name, tuple(self.index(i) for i in index)]

    def lanes(self, local: Local) -> Any:
        """Which part of a cell is meant: the lanes that are there, or all of it."""
        return slice(self.count) if local.lanes and self.count else ...

    def multiply(self, s: Blocks) -> None:
        steps, size = self.index(s.steps), (s.rows * LANES, s.columns * LANES)
        shape = (min(s.parts, 2), *size)
        at, array = self.index(s.at), self.buffers[s.sums.name]
        flat = array[at : at + math.prod(shape)]
        sums = flat.reshape(shape).copy() if s.more else np.zeros(shape, np.float32)
        left = self.halves(s.left, s.rows, steps, s.parts).swapaxes(-1, -2)
        right = self.halves(s.right, s.columns, steps, s.parts)
        for step, (a, b) in product(range(steps), s.order()):
            chains = np.zeros((2, *size), np.float32)
            for pair in range(LANES):
                x, y = left[step, a, :, :, pair], right[step, b, :, :, pair]
                x, y = x.reshape(2, -1, 1), y.reshape(2, 1, -1)
                chains = MACHINE["fma"].ref(x, y, chains)
            with np.errstate(all="ignore"):
                sums[a ^ b] += chains[0] + chains[1]
        flat[:] = sums.reshape(-1)

    def halves(self, panels: Panels, count: int, steps: int, parts: int) -> Array:
        """A factor's numbers by step, part, half of the word, panel, and place in the block."""
        words = self.buffers[panels.buffer.name]
        size = steps * parts * LANES**2
        starts = [self.index(panels.offset) + n * self.index(panels.apart) for n in range(count)]
        found = np.stack([words[at : at + size] for at in starts])
        found = found.reshape(count, steps, parts, LANES, LANES).transpose(1, 2, 0, 3, 4)
        return np.stack([found << 16, found & -65536], axis=2).view(np.float32)

    def value(self, root: Value) -> Array:
        known: dict[int, Array] = {}
        for v in postorder(root):
            known[id(v)] = np.asarray(self.part_of(v, known))
        return known[id(root)]

    def part_of(self, v: Value, known: dict[int, Array]) -> Any:
        if isinstance(v, Apply):
            return self.apply(v.fn, [known[id(a)] for a in v.args], v.dtype)
        if isinstance(v, Load):
            index = None if v.index is None else known[id(v.index)]
            array, at = self.buffers[v.buffer.name], self.place(v, index)
            if v.pair:
                lower, upper = (
                    array[at + half].view(np.uint16).astype(np.int32) for half in (0, 1)
                )
                return upper << 16 | lower
            return array[at]
        if isinstance(v, Get):
            return self.cell(v.local, v.index)[self.lanes(v.local)].copy()
        if isinstance(v, Literal):
            return np.asarray(v.value, v.dtype.numpy)
        if isinstance(v, IndexValue):
            return np.asarray(self.index(v.index), np.int64).astype(v.dtype.numpy)
        cell, half = self.cell(v.local, v.index), LANES // 2
        while half:
            cell = self.apply(v.fn, [cell[:half], cell[half : 2 * half]], v.dtype)
            half //= 2
        return cell[0]

    def apply(self, fn: str, arrays: Sequence[Array], to: DType) -> Array:
        """A function of arrays, by its machine operations."""
        if fn == "fma" and not (self.fma and arrays[0].dtype.kind == "f"):
            return MACHINE["add"].ref(MACHINE["mul"].ref(*arrays[:2]), arrays[2])
        if fn == "cast":
            return MACHINE[fn].ref(arrays[0], to.numpy)
        if fn in MACHINE:
            return MACHINE[fn].ref(*arrays)
        params, listing = listing_of(fn, tuple(dtype(a.dtype) for a in arrays))
        values = dict(zip(params, map(np.asarray, arrays), strict=True))

        def array(operand: str | Literal) -> Array:
            if isinstance(operand, Literal):
                return np.asarray(operand.value, operand.dtype.numpy)
            return values[operand]

        for step in listing.steps:
            values[step.name] = self.apply(step.fn, [array(a) for a in step.args], step.dtype)
        return array(listing.result)
