"""Cells of locals, and values, as registers: what statements of a function are made of."""

from __future__ import annotations

from itertools import product

from chainrule.codegen.addresses import AddressCode
from chainrule.codegen.memory import Lanes, MemoryCode
from chainrule.codegen.registers import Builder, Register
from chainrule.codegen.scalar import ScalarCode, constant
from chainrule.errors import CompileError
from chainrule.ir.loop import (
    LANES,
    Apply,
    Get,
    IndexValue,
    Literal,
    Load,
    Local,
    Program,
    Set,
    Value,
)
from chainrule.ir.size import Dim
from chainrule.ir.types import int64
from chainrule.loops.walk import carried_locals, merged_locals, postorder
from chainrule.target import Target

Cell = tuple[Local, tuple[int, ...]]


class ValueCode:
    """Emits the values of one function. A cell of a local is a register, `cells`, not memory."""

    def __init__(self, program: Program, target: Target) -> None:
        self.builder = Builder()
        self.pointers = {b: f"%b{i}" for i, b in enumerate(program.buffers)}
        self.address = AddressCode(self.builder, self.pointers)
        self.address.symbols.update({s: f"%s{i}" for i, s in enumerate(program.sizes)})
        self.code = ScalarCode(self.builder, target)
        self.target = target
        self.cells: dict[Cell, Register] = {}
        self.orders: dict[tuple[int, ...], list[Value]] = {}
        self.merged = merged_locals(program.body)
        self.carried = carried_locals(program.body) | self.merged
        self.memory = MemoryCode(self.builder, self.address, self.code)

    @property
    def lanes(self) -> Lanes | None:
        """The vector loop that is being emitted."""
        return self.memory.lanes

    def local(self, local: Local) -> None:
        lanes = LANES if local.lanes else 0
        zero = self.code.widen(constant(0, local.dtype), lanes)
        for index in product(*map(range, local.shape)):
            self.cells[local, index] = zero

    def cell(self, local: Local, index: tuple[Dim, ...]) -> Cell:
        known = tuple(self.address.known(i) for i in index)
        cell = (local, tuple(i for i in known if isinstance(i, int)))
        if cell not in self.cells:
            where = ", ".join(map(str, index))
            raise CompileError(
                f"{local.name}[{where}] is no cell of a local that is declared here",
                f"{local.name} has the shape {local.shape}; indices must be known after unrolling",
            )
        return cell

    def set(self, s: Set) -> None:
        cell = self.cell(s.local, s.index)
        value = self.value(s.value)
        if self.lanes is None or s.local.lanes:
            value = self.code.widen(value, LANES) if s.local.lanes else value
        else:
            raise CompileError(f"{s.local.name} is set in a vector loop, so it must have lanes")
        mask = self.lanes.mask if self.lanes else None
        if mask is not None and s.local in self.merged and not self.loads_zero(s.value, cell):
            text = f"select {mask.typed}, {value.typed}, {self.cells[cell].typed}"
            value = self.code.instruction(text, (mask, value, self.cells[cell]), value.dtype)
        self.cells[cell] = value

    def loads_zero(self, value: Value, cell: Cell) -> bool:
        """Whether absent lanes are 0 in any case: in a cell, and of what is loaded under a mask."""
        zero = self.code.widen(constant(0, cell[0].dtype), LANES)
        if not isinstance(value, Load) or value.index is not None or self.cells[cell] != zero:
            return False
        assert self.lanes is not None
        slope = self.address.slope(value.offset, self.lanes.var)
        return slope is not None and slope[0] == 1 and not value.dtype.is_bool

    def value(self, root: Value) -> Register:
        """A value's register; a scalar where every lane has the same."""
        return self.values(root)[0]

    def values(self, *roots: Value) -> list[Register]:
        registers: dict[int, Register] = {}
        key = tuple(map(id, roots))  # the program keeps them all, so none is another's
        order = self.orders.get(key)
        if order is None:
            order = self.orders[key] = postorder(*roots)
        for v in order:
            registers[id(v)] = self.part_of(v, registers)
        return [registers[id(root)] for root in roots]

    def part_of(self, v: Value, registers: dict[int, Register]) -> Register:
        if isinstance(v, Apply):
            return self.code.apply(v.fn, [registers[id(a)] for a in v.args], v.dtype)
        if isinstance(v, Load):
            return self.memory.load(v, registers[id(v.index)] if v.index is not None else None)
        if isinstance(v, Get):
            return self.get(v)
        if isinstance(v, Literal):
            return constant(v.value, v.dtype)
        if isinstance(v, IndexValue):
            return self.index_value(v)
        cell = self.cells[self.cell(v.local, v.index)]
        if not cell.lanes:
            raise CompileError(f"{v.local.name} has no lanes to combine")
        return self.code.combine(v.fn, cell)

    def get(self, v: Get) -> Register:
        if v.local.lanes and self.lanes is None:
            raise CompileError(f"{v.local.name} has lanes: outside a vector loop, combine them")
        return self.cells[self.cell(v.local, v.index)]

    def index_value(self, v: IndexValue) -> Register:
        slope = self.address.slope(v.index, self.lanes.var) if self.lanes else (0, v.index)
        if slope is not None and slope[0] == 0:
            return self.code.cast(Register(self.address.number(v.index), int64), v.dtype)
        assert self.lanes is not None
        whole = self.address.lanes(v.index, self.lanes.var)
        return self.code.cast(Register(whole, int64, LANES), v.dtype)
