"""Loads and stores: contiguous, masked, gathered, or turned from rows to columns in blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from chainrule.codegen.addresses import IOTA, WIDE, AddressCode
from chainrule.codegen.registers import Builder, Register, mangled, memory, vector
from chainrule.codegen.scalar import ScalarCode, constant
from chainrule.errors import CompileError
from chainrule.ir.loop import LANES, Apply, Buffer, Load, Loop, Set, Store
from chainrule.ir.size import Dim, coefficient
from chainrule.ir.types import DType, bool_, int32, int64, uint8
from chainrule.loops.tiles import SET_SPAN
from chainrule.loops.walk import postorder, stored_buffers
from chainrule.records import dataclass

#: a block of LANES x LANES that is turned, by the number of the column
Columns = Callable[[int], Register]


@dataclass(frozen=True)
class Lanes:
    """The vector loop being emitted: its variable, which lanes are there (None: all), and how many,
    if that is known.
    """

    var: str
    mask: Register | None
    count: int | None = LANES


def first_lanes(count: int) -> Register:
    """The mask of the first `count` lanes, as a constant."""
    bits = ", ".join(f"i1 {'true' if i < count else 'false'}" for i in range(LANES))
    return Register(f"<{bits}>", bool_, LANES)


#: Of a vector cut to a narrower integer LLVM 22 stores too much where the mask is this constant:
#: one element of the wider type. So one lane is stored as the scalar that it is.
_ONE_LANE = first_lanes(1)


class MemoryCode:
    """Emits accesses to buffers; `lanes` is the vector loop they stand in, if any."""

    def __init__(self, builder: Builder, address: AddressCode, code: ScalarCode) -> None:
        self.builder, self.address, self.code = builder, address, code
        self.lanes: Lanes | None = None
        self.versions = dict.fromkeys(address.pointers, 0)
        self.transposed: dict[int, tuple[str, Columns]] = {}

    def written(self, buffers: Iterable[Buffer]) -> None:
        """Forget what was loaded from buffers that have been written."""
        for buffer in buffers:
            self.versions[buffer] += 1

    def transpose_blocks(self, loop: Loop, extent: int) -> None:
        """Read blocks of LANES x LANES by rows and turn them, where lanes would stride across them.

        That is what packing a transposed factor asks for: lane j, unrolled i at j * stride + i.
        """
        if self.lanes is None or self.lanes.mask is not None or extent != LANES:
            return
        written = stored_buffers(loop.body)
        for s in loop.body:
            if not isinstance(s, Set | Store):
                continue
            at_once = isinstance(s.value, Apply) and s.value.fn == "fma"
            for v in postorder(s.value):
                if isinstance(v, Load) and v.index is None and v.buffer not in written:
                    self.transpose_block(v, loop.var, at_once)

    def square(self, loop: Loop, extent: int) -> tuple[Load, Store, Dim, Dim] | None:
        """A copy of LANES x LANES elements whose columns become rows, and nothing else: how far
        apart columns are where they are read, and rows where they are written.
        """
        whole = self.lanes is not None and self.lanes.mask is None and extent == LANES
        if not whole or len(loop.body) != 1:
            return None
        (s,) = loop.body
        if not isinstance(s, Store) or not isinstance(s.value, Load) or s.value.pair:
            return None
        v = s.value
        if s.index or v.index or v.buffer == s.buffer or v.dtype.is_bool:
            return None
        assert self.lanes is not None
        read, write = (self.address.slope(a.offset, self.lanes.var) for a in (v, s))
        along, down = (coefficient(a.offset, loop.var) for a in (v, s))
        if read is None or write is None or along is None or down is None:
            return None
        if read[0] in (0, 1) or along[0] != 1 or write[0] != 1:
            return None
        return v, s, read[0], down[0]

    def transpose_block(self, v: Load, var: str, at_once: bool) -> None:
        assert self.lanes is not None
        across, along = self.address.slope(v.offset, self.lanes.var), coefficient(v.offset, var)
        if across is None or across[0] in (0, 1) or along is None or along[0] != 1:
            return
        starts = [along[1] + across[0] * r for r in range(LANES)]
        size, apart = v.dtype.itemsize, across[0]
        # rows a page apart share a set of the cache, and a line is gone before its second quarter
        paged = isinstance(apart, int) and apart * size % SET_SPAN == 0
        quartered = at_once and size == 4 and not paged
        read = self.quartered_columns if quartered else self.wide_columns
        self.transposed[id(v)] = var, read(v.buffer, starts)

    def wide_columns(self, buffer: Buffer, starts: list[Dim]) -> Columns:
        """The columns of a block whose rows begin at `starts`, read row by row."""
        rows = [self.vector_load(buffer, self.address.pointer(buffer, at)) for at in starts]
        columns = self.code.transpose(rows)
        return columns.__getitem__

    def quartered_columns(self, buffer: Buffer, starts: list[Dim]) -> Columns:
        """The same for what is multiplied at once: four when the first is asked for, of quarters of
        four rows to a vector, which are put together as they are loaded, so that half of the
        exchanging is none. A copy takes as long either way, and this way is more code.
        """
        kind, align = vector(memory(buffer.dtype), 4), buffer.dtype.itemsize
        found: dict[int, list[Register]] = {}

        def quarters(rows: list[Dim], first: int) -> Register:
            a, b, c, d = (
                self.loaded(buffer, f"load {kind}, ptr {pointer}, align {align}", 4, pointer)
                for pointer in (self.address.pointer(buffer, at + first) for at in rows)
            )
            return self.code.joined(self.code.joined(a, b), self.code.joined(c, d))

        def column(i: int) -> Register:
            first = i // 4 * 4
            if first not in found:
                rows = [quarters(starts[r::4], first) for r in range(4)]
                found[first] = self.code.turn_quarters(rows)
            return found[first][i - first]

        return column

    def load(self, v: Load, index: Register | None) -> Register:
        """Read an element, or a vector of them; a scalar where every lane reads the same."""
        if id(v) in self.transposed:
            var, columns = self.transposed[id(v)]
            return columns(int(self.address.symbols[var]))
        slope = self.address.slope(v.offset, self.lanes.var) if self.lanes else (0, v.offset)
        if v.pair:
            return self.pair_load(v, slope)
        if index is not None and index.lanes:
            return self.gather(v.buffer, self.lane_pointers(v, slope, index))
        if slope is None or slope[0] not in (0, 1):
            near = self.near(v, slope) if index is None else None
            return near or self.gather(v.buffer, self.lane_pointers(v, slope, index))
        pointer = self.moved(v, index)
        if slope[0] == 0:
            return self.loaded(
                v.buffer,
                f"load {memory(v.dtype)}, ptr {pointer}, align {self.alignment(v)}",
                0,
                pointer,
            )
        return self.vector_load(v.buffer, pointer)

    def pair_load(self, v: Load, slope: tuple[Dim, Dim] | None) -> Register:
        """Words of two bfloat16: those of all lanes lie side by side, or are one."""
        if slope is None or slope[0] not in (0, 2):
            raise CompileError(f"the pairs at {v.buffer.name}[{v.offset}] do not lie side by side")
        pointer, align = self.address.pointer(v.buffer, v.offset), v.buffer.dtype.itemsize
        if slope[0] == 0:
            text = f"load i32, ptr {pointer}, align {align}"
            return self.loaded(v.buffer, text, 0, pointer, of=int32)
        return self.vector_load(v.buffer, pointer, int32)

    def alignment(self, access: Load | Store) -> int:
        """Of how many bytes an address is a multiple: of an element's, as far as is known."""
        return access.buffer.dtype.itemsize

    def moved(self, access: Load | Store, index: Register | None) -> str:
        """The address of an element; `index`, a scalar, moves it by index * stride."""
        pointer = self.address.pointer(access.buffer, access.offset)
        if index is None:
            return pointer
        at, by = self.code.cast(index, int64).text, self.address.number(access.stride)
        by_stride = self.builder.pure(f"mul nsw i64 {at}, {by}", at, by)
        return self.address.step(pointer, access.buffer, by_stride)

    def loaded(
        self, buffer: Buffer, text: str, lanes: int, *operands: str, of: DType | None = None
    ) -> Register:
        """A load, as far out as it may be and once for each state of the buffer."""
        depth = self.builder.load_depth(self.builder.depth(operands), buffer)
        key = f"{text} @{self.versions[buffer]}"
        name = self.builder.name_at(depth, text, key)
        if not buffer.dtype.is_bool:
            return Register(name, of or buffer.dtype, lanes)
        return self.code.cast(Register(name, uint8, lanes), bool_)

    def vector_load(self, buffer: Buffer, pointer: str, of: DType | None = None) -> Register:
        kind, align = vector(memory(of or buffer.dtype), LANES), buffer.dtype.itemsize
        mask = self.lanes.mask if self.lanes else None
        if mask is not None:
            return self.masked_load(buffer, pointer, mask, of)
        text = f"load {kind}, ptr {pointer}, align {align}"
        return self.loaded(buffer, text, LANES, pointer, of=of)

    def masked_load(
        self, buffer: Buffer, pointer: str, mask: Register, of: DType | None = None
    ) -> Register:
        element, align = memory(of or buffer.dtype), buffer.dtype.itemsize
        kind, fn = vector(element, LANES), f"@llvm.masked.load.{mangled(element, LANES)}.p0"
        self.builder.declare(f"{kind} {fn}(ptr, i32, <{LANES} x i1>, {kind})")
        text = f"call {kind} {fn}(ptr {pointer}, i32 {align}, {mask.typed}, {kind} zeroinitializer)"
        return self.loaded(buffer, text, LANES, pointer, mask.text, of=of)

    def near(self, v: Load, slope: tuple[Dim, Dim] | None) -> Register | None:
        """A few vectors that hold all lanes' elements, shuffled: where lanes are 2 to 4 elements
        apart, or several lanes have each element. None where they lie otherwise, or it is not known
        how many lanes there are.
        """
        assert self.lanes is not None
        count = self.lanes.count
        if count is None or v.dtype.is_bool:
            return None
        if slope is None:
            times = self.address.repetitions(v.offset, self.lanes.var)
            return self.repeated(v, times, -(-count // times)) if times else None
        apart, first = slope[0], v.offset
        if not isinstance(apart, int) or not 2 <= apart <= 4:
            return None
        starts = [LANES * i for i in range(apart)]
        if count == LANES:  # a last vector that ends with the last element, so that none is masked
            starts[-1] = (LANES - 1) * (apart - 1)
        ends = (count - 1) * apart + 1
        pieces = [self.part(v.buffer, first + at, ends - at) for at in starts if at < ends]
        at = [min(i, count - 1) * apart for i in range(LANES)]
        result = self.code.picked(pieces[0], pieces[0], [min(p, LANES - 1) for p in at])
        for number, piece in enumerate(pieces[1:], 1):
            mine = [min(p // LANES, len(pieces) - 1) == number for p in at]
            picks = [
                LANES + p - starts[number] if m else i
                for i, (p, m) in enumerate(zip(at, mine, strict=True))
            ]
            result = self.code.picked(result, piece, picks)
        return result

    def repeated(self, v: Load, times: int, count: int) -> Register:
        """`count` elements, each in so many lanes."""
        few = self.part(v.buffer, v.offset, count)
        return self.code.picked(few, few, [i // times for i in range(LANES)])

    def part(self, buffer: Buffer, offset: Dim, count: int) -> Register:
        """Elements from an offset on, `count` of them or LANES."""
        kind, align = vector(memory(buffer.dtype), LANES), buffer.dtype.itemsize
        pointer = self.address.pointer(buffer, offset)
        if count < LANES:
            return self.masked_load(buffer, pointer, first_lanes(count))
        return self.loaded(buffer, f"load {kind}, ptr {pointer}, align {align}", LANES, pointer)

    def gather(self, buffer: Buffer, pointers: str) -> Register:
        kind, align = vector(memory(buffer.dtype), LANES), buffer.dtype.itemsize
        fn = f"@llvm.masked.gather.{mangled(memory(buffer.dtype), LANES)}.v{LANES}p0"
        mask = self.mask()
        self.builder.declare(f"{kind} {fn}(<{LANES} x ptr>, i32, <{LANES} x i1>, {kind})")
        where = f"<{LANES} x ptr> {pointers}, i32 {align}, {mask.typed}"
        text = f"call {kind} {fn}({where}, {kind} zeroinitializer)"
        return self.loaded(buffer, text, LANES, pointers, mask.text)

    def mask(self) -> Register:
        mask = self.lanes.mask if self.lanes else None
        return mask or self.code.widen(constant(True, bool_), LANES)

    def lane_pointers(
        self, access: Load | Store, slope: tuple[Dim, Dim] | None, index: Register | None = None
    ) -> str:
        """The address of each lane's element."""
        assert self.lanes is not None
        buffer, offset = access.buffer, access.offset
        if slope is None:
            base, moves = self.address.pointers[buffer], self.address.lanes(offset, self.lanes.var)
        else:
            base = self.address.pointer(buffer, offset)
            moves = self.address.wide(
                "mul", self.address.splat(self.address.number(slope[0])), IOTA
            )
        if index is not None:
            at = self.code.widen(self.code.cast(index, int64), LANES).text
            by = self.address.splat(self.address.number(access.stride))
            moves = self.address.wide("add", moves, self.address.wide("mul", at, by))
        text = f"getelementptr {memory(buffer.dtype)}, ptr {base}, {WIDE} {moves}"
        return self.builder.pure(text, base, moves)

    def store(self, s: Store, value: Register, index: Register | None) -> None:
        """Write a value; a scalar is written to every lane there is."""
        if index is not None and index.lanes:
            raise CompileError(f"lanes store to {s.buffer.name} at places known at run time only")
        slope = self.address.slope(s.offset, self.lanes.var) if self.lanes else None
        if self.lanes is not None and slope is not None and slope[0] == 0:
            raise CompileError(
                f"a vector loop stores to {s.buffer.name}[{s.offset}] from every lane"
            )
        if self.lanes is not None:
            value = self.code.widen(value, LANES)
        value = self.in_memory(value, s.buffer.dtype)
        self.written([s.buffer])
        if self.lanes is not None and (slope is None or slope[0] != 1):
            self.scatter(s, value.text, self.lane_pointers(s, slope, index))
            return
        pointer = self.moved(s, index)
        mask = self.lanes.mask if self.lanes else None
        if mask == _ONE_LANE:
            value, mask = self.code.lane(value, 0), None
        kind, align = vector(memory(s.buffer.dtype), value.lanes), self.alignment(s)
        if mask is None:
            self.builder.effect(f"store {kind} {value.text}, ptr {pointer}, align {align}")
            return
        fn = f"@llvm.masked.store.{mangled(memory(s.buffer.dtype), LANES)}.p0"
        self.builder.declare(f"void {fn}({kind}, ptr, i32, <{LANES} x i1>)")
        self.builder.effect(
            f"call void {fn}({kind} {value.text}, ptr {pointer}, i32 {align}, {mask.typed})"
        )

    def in_memory(self, value: Register, dtype: DType) -> Register:
        """The value as memory holds it. Raises CompileError where it is of another type."""
        if value.dtype != dtype:
            raise CompileError(f"a {value.dtype} is stored in a buffer of {dtype}")
        if not dtype.is_bool:
            return value
        kind = vector("i8", value.lanes)
        return Register(
            self.builder.pure(f"zext {value.typed} to {kind}", value.text), uint8, value.lanes
        )

    def scatter(self, s: Store, value: str, pointers: str) -> None:
        kind, align, mask = (
            vector(memory(s.buffer.dtype), LANES),
            s.buffer.dtype.itemsize,
            self.mask(),
        )
        fn = f"@llvm.masked.scatter.{mangled(memory(s.buffer.dtype), LANES)}.v{LANES}p0"
        self.builder.declare(f"void {fn}({kind}, <{LANES} x ptr>, i32, <{LANES} x i1>)")
        text = (
            f"call void {fn}({kind} {value}, <{LANES} x ptr> {pointers}, i32 {align}, {mask.typed})"
        )
        self.builder.effect(text)
