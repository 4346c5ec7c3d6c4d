"""A loop program as one LLVM function, in static single assignment from the start.

Cells of locals are values, not memory: loops and guards get the phi nodes they need. A vector loop
is whole vectors of LANES elements, then one masked vector; it is unrolled where it is short.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache

from chainrule.codegen.blocks import BlockCode
from chainrule.codegen.memory import Lanes, first_lanes
from chainrule.codegen.registers import Region, Register
from chainrule.codegen.values import ValueCode
from chainrule.errors import CompileError
from chainrule.ir.loop import (
    LANES,
    Barrier,
    Blocks,
    Buffer,
    Check,
    Let,
    Load,
    Local,
    Loop,
    Note,
    Program,
    Set,
    Stmt,
    Store,
)
from chainrule.ir.size import Dim, Size
from chainrule.ir.types import DType, bool_
from chainrule.loops.walk import (
    at_most,
    has_check,
    multiplies_blocks,
    set_locals,
    statements,
    stored_buffers,
    values_of,
)
from chainrule.target import Target

UNROLLED_VECTORS = 4
#: the parameters of a function that parts may share, and what all of its iterations are counted as:
#: a share's ends need no division, and what one part ends with the next begins with
PART = ("i64 %low", "i64 %high", "i64 %part", "ptr %team")
WHOLE = 1 << 16
#: what the functions that turn squares are called
SQUARE = "turn."


@lru_cache(maxsize=16)
def square_function(dtype: DType, target: Target) -> tuple[str, str, frozenset[str]]:
    """The function that copies LANES x LANES elements with columns for rows, columns so far apart
    where they come from and rows where they go: its name, text and the declarations it needs.
    """
    i, j, across, down = (Size.symbol(name) for name in ("i'", "j'", "across", "down"))
    read, written = Buffer("from", dtype, 0), Buffer("to", dtype, 0)
    copy = Store(written, i * down + j, Load(read, i + j * across))
    body = (Loop("j'", LANES, (Loop("i'", LANES, (copy,), "unroll"),), "vector"),)
    program = Program(f"{SQUARE}{dtype}", (read, written), ("across", "down"), body)
    text, needed = emit_function(program, program.name, target)
    return program.name, text, frozenset(needed)


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


#: buffers, locals, and whether there is a check
_Touched = tuple[frozenset[Buffer], frozenset[Local], bool]


class Emitter(ValueCode):
    """Emits the statements of one function."""

    def __init__(self, program: Program, target: Target, parts: bool) -> None:
        super().__init__(program, target)
        self.parts = parts
        self.squares = not program.name.startswith(SQUARE)  # are there to be called
        self.blocks = BlockCode(self.builder, self.address)
        # whether tiles have their shapes, as they always have where there are none
        self.tiled = not any(isinstance(s, Blocks) for s in statements(program.body))
        self.touched: dict[int, tuple[Loop, _Touched]] = {}
        private = [b for b in program.buffers if parts and b.private]
        self.pointers.update({b: self.own(b) for b in private})

    def own(self, buffer: Buffer) -> str:
        """Where this part's own piece of a private buffer starts: at a multiple of 64 bytes."""
        pure, bytes_ = self.builder.pure, self.address.number(buffer.size * buffer.dtype.itemsize)
        above = pure(f"add i64 {bytes_}, 63", bytes_)
        each = pure(f"and i64 {above}, -64", above)
        by = pure(f"mul i64 {each}, %part", each)
        return pure(f"getelementptr i8, ptr {self.address.pointers[buffer]}, i64 {by}", by)

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
        if self.squares and self.turned(loop, extent):
            return
        self.memory.transpose_blocks(loop, extent)
        for i in range(extent):
            self.address.symbols[loop.var] = i
            self.block(loop.body)
        self.memory.transposed.clear()

    def turned(self, loop: Loop, extent: int) -> bool:
        """Whether this copies a whole square, turned: it is a call then, as there may be several of
        these, each more than a hundred instructions.
        """
        square = self.memory.square(loop, extent)
        if square is None:
            return False
        load, store, across, down = square
        name, text, needed = square_function(load.dtype, self.target)
        self.builder.declarations |= {text, *needed}
        given = [f"ptr {self.address.pointer(s.buffer, s.offset)}" for s in (load, store)]
        given += [f"i64 {self.address.number(by)}" for by in (across, down)]
        self.builder.effect(f"call i32 @{name}({', '.join(given)})")
        self.memory.written([store.buffer])
        return True

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
            if new is not old and cell[0] in self.carried:
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

    def touches(self, loop: Loop) -> _Touched:
        """What a loop's body writes that is wanted elsewhere, and whether it may leave."""
        if id(loop) not in self.touched:
            body = loop.body
            found = stored_buffers(body), set_locals(body) & self.carried, has_check(body)
            self.touched[id(loop)] = loop, found  # kept with it, so that no other gets its id
        return self.touched[id(loop)][1]

    def counted(
        self, loop: Loop, stop: str, step: int, body: Callable[[], None], start: str = "0"
    ) -> None:
        """A loop from `start` to `stop` by `step` that runs at least once."""
        builder, head = self.builder, self.builder.label()
        stores, changed, checked = self.touches(loop)
        outside = {c: r for c, r in self.cells.items() if c[0] in changed}
        declared = set(self.cells)
        depth = len(builder.regions)
        builder.open(Region(head, stores=stores, checked=checked))
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
