"""A loop program as one LLVM function, in static single assignment from the start.

Cells of locals are values, not memory: loops and guards get the phi nodes they need. A vector loop
is whole vectors of LANES elements, then one masked vector; it is unrolled where it is short.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product

from chainrule.codegen.addresses import AddressCode
from chainrule.codegen.blocks import BlockCode
from chainrule.codegen.memory import Lanes, MemoryCode, first_lanes
from chainrule.codegen.registers import Builder, Region, Register
from chainrule.codegen.scalar import ScalarCode, constant
from chainrule.errors import CompileError
from chainrule.ir.loop import (
    LANES,
    Apply,
    Barrier,
    Blocks,
    Buffer,
    Check,
    Get,
    IndexValue,
    Let,
    Literal,
    Load,
    Local,
    Loop,
    Note,
    Program,
    Set,
    Stmt,
    Store,
    Value,
)
from chainrule.ir.size import Dim
from chainrule.ir.types import bool_, int64
from chainrule.loops.walk import (
    at_most,
    has_check,
    merged_locals,
    multiplies_blocks,
    postorder,
    set_locals,
    stored_buffers,
    values_of,
)
from chainrule.target import Target

UNROLLED_VECTORS = 4
#: the parameters of a function that parts may share, and what all of its iterations are counted as:
#: a share's ends need no division, and what one part ends with the next begins with
PART = ("i64 %low", "i64 %high", "i64 %part", "ptr %team")
WHOLE = 1 << 16
Cell = tuple[Local, tuple[int, ...]]


def emit_function(
    program: Program, name: str, target: Target, parts: bool = False
) -> tuple[str, set[str]]:
    """The function's LLVM text and the declarations it needs.

    Its parameters are the program's buffers and sizes, its result an i32. With `parts` there are
    PART more: the stretch that is this part's, in WHOLE-ths, its number and the team, or null for
    none. Nothing is promised about aliases: what a promise would let LLVM move has been moved here.
    """
    emitter = Emitter(program, target, parts)
    emitter.block(program.body)
    parameters = [f"ptr %b{i}" for i in range(len(program.buffers))]
    parameters += [f"i64 %s{i}" for i in range(len(program.sizes))]
    parameters += PART if parts else ()
    head = f"define internal i32 @{name}({', '.join(parameters)}) #0 {{"
    lines = [head, "entry:", *emitter.builder.here.lines, "  ret i32 0", "}"]
    return "\n".join(lines), emitter.builder.declarations


class Emitter:
    """Emits the statements of one function."""

    def __init__(self, program: Program, target: Target, parts: bool) -> None:
        self.parts = parts
        self.builder = Builder()
        pointers = {b: f"%b{i}" for i, b in enumerate(program.buffers)}
        self.address = AddressCode(self.builder, pointers)
        self.address.symbols.update({s: f"%s{i}" for i, s in enumerate(program.sizes)})
        self.code = ScalarCode(self.builder, target)
        self.target = target
        self.cells: dict[Cell, Register] = {}
        self.merged = merged_locals(program.body)
        self.memory = MemoryCode(self.builder, self.address, self.code)
        self.blocks = BlockCode(self.builder, self.address)
        self.tiled = False  # whether tiles have their shapes
        private = [b for b in program.buffers if parts and b.private]
        pointers.update({b: self.own(b) for b in private})

    def own(self, buffer: Buffer) -> str:
        """Where this part's own piece of a private buffer starts: at a multiple of 64 bytes."""
        pure, bytes_ = self.builder.pure, self.address.number(buffer.size * buffer.dtype.itemsize)
        above = pure(f"add i64 {bytes_}, 63", bytes_)
        each = pure(f"and i64 {above}, -64", above)
        by = pure(f"mul i64 {each}, %part", each)
        return pure(f"getelementptr i8, ptr {self.address.pointers[buffer]}, i64 {by}", by)

    @property
    def lanes(self) -> Lanes | None:
        """The vector loop that is being emitted."""
        return self.memory.lanes

    # statements

    def block(self, body: Iterable[Stmt]) -> None:
        for statement in body:
            self.statement(statement)

    def statement(self, s: Stmt) -> None:
        if not self.tiled and multiplies_blocks(s):
            self.tiled = True
            self.blocks.begin()
            self.statement(s)
            self.blocks.end()
            self.tiled = False
        elif isinstance(s, Loop):
            self.loop(s)
        elif isinstance(s, Let):
            number = self.address.number(s.value)
            self.address.symbols[s.var] = number if number.startswith("%") else int(number)
        elif isinstance(s, Blocks):
            self.blocks.multiply(s, lambda loop, stop, body: self.counted(loop, stop, 1, body))
            self.memory.written([s.sums])
        elif isinstance(s, Local):
            self.local(s)
        elif isinstance(s, Set):
            self.set(s)
        elif isinstance(s, Store):
            value, *index = self.values(*values_of(s))
            self.memory.store(s, value, index[0] if index else None)
        elif isinstance(s, Check):
            self.check(s)
        elif isinstance(s, Barrier):
            if self.parts:
                self.builder.effect("call void @barrier(ptr %team)")
        elif not isinstance(s, Note):
            raise CompileError(f"{s!r} is no statement of the loop grammar")

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

    def check(self, s: Check) -> None:
        if self.lanes is not None:
            raise CompileError("a Check can't stand in a vector loop")
        condition = self.value(s.condition)
        go_on, leave = self.builder.label(), self.builder.label()
        self.builder.effect(f"br {condition.typed}, label %{go_on}, label %{leave}")
        self.builder.here.lines += [f"{leave}:", f"  ret i32 {s.code}", f"{go_on}:"]
        self.builder.here.label = go_on

    # loops

    def loop(self, loop: Loop) -> None:
        shadowed = self.address.symbols.get(loop.var)
        extent = self.address.known(loop.extent)
        if loop.mode == "vector":
            self.vector_loop(loop, extent)
        elif loop.mode == "unroll":
            self.unrolled_loop(loop, extent)
        else:
            self.serial_loop(loop, extent)
        self.address.symbols.pop(loop.var, None)
        if shadowed is not None:
            self.address.symbols[loop.var] = shadowed

    def unrolled_loop(self, loop: Loop, extent: Dim) -> None:
        if not isinstance(extent, int):
            raise CompileError(f"an unrolled loop's extent must be known, not {extent}")
        self.address.symbols[loop.var] = 0
        self.memory.transpose_blocks(loop, extent)
        for i in range(extent):
            self.address.symbols[loop.var] = i
            self.block(loop.body)
        self.memory.transposed.clear()

    def serial_loop(self, loop: Loop, extent: Dim) -> None:
        if self.lanes is not None:
            raise CompileError("a serial loop can't stand in a vector loop")
        if loop.split and self.parts:
            self.split_loop(loop, extent)
            return
        if extent == 1:
            self.address.symbols[loop.var] = 0
            self.block(loop.body)
            return
        stop = self.address.number(extent)
        self.guarded(
            extent, stop, lambda: self.counted(loop, stop, 1, lambda: self.block(loop.body))
        )

    def split_loop(self, loop: Loop, extent: Dim) -> None:
        """This part's share of a serial loop."""

        def once() -> None:
            self.address.symbols[loop.var] = 0
            self.block(loop.body)

        start, stop = self.share(self.address.number(extent))

        def several() -> None:
            self.counted(loop, stop, 1, lambda: self.block(loop.body), start)

        self.where(self.less(start, stop), once if extent == 1 else several)

    def split_vector_loop(self, loop: Loop, extent: Dim) -> None:
        """This part's share of a vector loop: whole vectors; the last part has what is left."""
        pure, count = self.builder.pure, self.address.number(extent)
        vectors = pure(f"lshr i64 {count}, {LANES.bit_length() - 1}", count)
        ends = [pure(f"mul i64 {end}, {LANES}", end) for end in self.share(vectors)]
        self.where(self.less(*ends), lambda: self.whole_vectors(loop, ends[1], ends[0]))
        whole = pure(f"and i64 {count}, {-LANES}", count)
        rest = pure(f"and i64 {count}, {LANES - 1}", count)
        last = pure(f"icmp eq i64 %high, {WHOLE}", "%high")
        mine = pure(f"select i1 {last}, i64 {rest}, i64 0", last, rest)

        def tail() -> None:
            self.vector_body(loop, whole, self.counted_mask(rest))

        self.where(self.less("0", mine), tail)

    def share(self, count: str) -> tuple[str, str]:
        """Where this part's share of so many iterations starts, and where it stops."""

        def end(bound: str) -> str:
            wide = self.builder.pure(f"mul i64 {count}, {bound}", count, bound)
            return self.builder.pure(f"lshr i64 {wide}, {WHOLE.bit_length() - 1}", wide)

        return end("%low"), end("%high")

    def less(self, a: str, b: str) -> str:
        return self.builder.pure(f"icmp slt i64 {a}, {b}", a, b)

    def vector_loop(self, loop: Loop, extent: Dim) -> None:
        if self.lanes is not None:
            raise CompileError("vector loops do not nest")
        if loop.split and self.parts:
            self.split_vector_loop(loop, extent)
        elif isinstance(extent, int):
            self.known_vector_loop(loop, extent)
        elif at_most(extent, LANES):
            rest = self.address.number(extent)
            self.guarded(extent, rest, lambda: self.vector_body(loop, 0, self.counted_mask(rest)))
        elif extent % LANES == 0:
            stop = self.address.number(extent)
            self.guarded(extent, stop, lambda: self.whole_vectors(loop, stop))
        else:
            stop = self.address.number(extent)
            whole = self.builder.pure(f"and i64 {stop}, {-LANES}", stop)
            rest = self.builder.pure(f"and i64 {stop}, {LANES - 1}", stop)
            self.guarded(extent, whole, lambda: self.whole_vectors(loop, whole))
            self.guarded(
                extent, rest, lambda: self.vector_body(loop, whole, self.counted_mask(rest))
            )

    def known_vector_loop(self, loop: Loop, extent: int) -> None:
        whole, rest = extent - extent % LANES, extent % LANES
        if -(-extent // LANES) <= UNROLLED_VECTORS:
            for start in range(0, whole, LANES):
                self.vector_body(loop, start, None)
        else:
            self.whole_vectors(loop, str(whole))
        if rest:
            self.vector_body(loop, whole, first_lanes(rest), rest)

    def whole_vectors(self, loop: Loop, stop: str, start: str = "0") -> None:
        def body() -> None:
            self.vector_body(loop, self.address.symbols[loop.var], None)

        self.counted(loop, stop, LANES, body, start)

    def counted_mask(self, count: str) -> Register:
        """The first `count` lanes; it is at most LANES."""
        pure, kind = self.builder.pure, f"<{LANES} x i32>"
        short = pure(f"trunc i64 {count} to i32", count)
        one = pure(f"insertelement {kind} poison, i32 {short}, i32 0", short)
        limit = pure(f"shufflevector {kind} {one}, {kind} poison, {kind} zeroinitializer", one)
        numbers = ", ".join(f"i32 {i}" for i in range(LANES))
        return Register(pure(f"icmp ult {kind} <{numbers}>, {limit}", limit), bool_, LANES)

    def vector_body(
        self, loop: Loop, start: int | str, mask: Register | None, count: int | None = None
    ) -> None:
        self.address.symbols[loop.var] = start
        count = LANES if mask is None else count
        self.memory.lanes, self.code.mask = Lanes(loop.var, mask, count), mask
        self.block(loop.body)
        self.memory.lanes, self.code.mask = None, None

    def guarded(self, extent: Dim, count: str, emit: Callable[[], None]) -> None:
        """Code that runs where `count` is above 0; nothing is tested where `extent` tells."""
        if isinstance(extent, int):
            if extent > 0:
                emit()
            return
        self.where(self.builder.pure(f"icmp sgt i64 {count}, 0", count), emit)

    def where(self, condition: str, emit: Callable[[], None]) -> None:
        """Code that runs on a condition."""
        builder, before = self.builder, dict(self.cells)
        inside, after = builder.label(), builder.label()
        builder.open(Region(inside, guard=True))
        emit()
        region, parent = builder.close(), builder.here
        parent.lines.append(f"  br i1 {condition}, label %{inside}, label %{after}")
        parent.lines += [f"{inside}:", *region.lines, f"  br label %{after}", f"{after}:"]
        for cell, old in before.items():
            new = self.cells[cell]
            if new is not old:
                name = self.phi_name(len(builder.regions) - 1)
                incoming = f"[{old.text}, %{parent.label}], [{new.text}, %{region.label}]"
                parent.lines.append(f"  {name} = phi {new.type} {incoming}")
                before[cell] = Register(name, new.dtype, new.lanes)
        self.cells = before
        parent.label = after

    def phi_name(self, depth: int) -> str:
        name = self.builder.fresh()
        self.builder.depth_of[name] = depth
        return name

    def counted(
        self, loop: Loop, stop: str, step: int, body: Callable[[], None], start: str = "0"
    ) -> None:
        """A loop from `start` to `stop` by `step` that runs at least once."""
        builder, head = self.builder, self.builder.label()
        stores, changed = stored_buffers(loop.body), set_locals(loop.body)
        outside = {c: r for c, r in self.cells.items() if c[0] in changed}
        declared = set(self.cells)
        depth = len(builder.regions)
        builder.open(Region(head, stores=stores, checked=has_check(loop.body)))
        index = self.phi_name(depth)
        self.address.symbols[loop.var] = index
        for cell, register in outside.items():
            self.cells[cell] = Register(self.phi_name(depth), register.dtype, register.lanes)
        phis = {c: self.cells[c] for c in outside}
        self.memory.written(stores)
        body()
        region, parent = builder.close(), builder.here
        following, again, after = builder.fresh(), builder.fresh(), builder.label()
        lines = [f"  br label %{head}", f"{head}:"]
        lines.append(
            f"  {index} = phi i64 [{start}, %{parent.label}], [{following}, %{region.label}]"
        )
        for cell, phi in phis.items():
            first, end = outside[cell].text, self.cells[cell].text
            incoming = f"[{first}, %{parent.label}], [{end}, %{region.label}]"
            lines.append(f"  {phi.text} = phi {phi.type} {incoming}")
            builder.depth_of[end] = min(builder.depth_of.get(end, 0), depth - 1)
        lines += region.lines
        lines += [f"  {following} = add nuw nsw i64 {index}, {step}"]
        lines += [f"  {again} = icmp ult i64 {following}, {stop}"]
        lines += [f"  br i1 {again}, label %{head}, label %{after}", f"{after}:"]
        parent.lines += lines
        parent.label = after
        self.cells = {c: r for c, r in self.cells.items() if c in declared}
        self.memory.written(stores)

    # values

    def value(self, root: Value) -> Register:
        """A value's register; a scalar where every lane has the same."""
        return self.values(root)[0]

    def values(self, *roots: Value) -> list[Register]:
        registers: dict[int, Register] = {}
        for v in postorder(*roots):
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
