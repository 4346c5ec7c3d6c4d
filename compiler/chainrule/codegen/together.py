"""What threads of a part do together: wait for each other, and fold what each of them has."""

from __future__ import annotations

from chainrule.codegen.function import Emitter
from chainrule.codegen.registers import Register, element, memory
from chainrule.ir.loop import Buffer
from chainrule.ir.types import DType, int32, int64
from chainrule.loops.launch import BOX_ALIGN, Launch
from chainrule.target import Target
from chainrule.target.gpu import WARP

#: what the shared memory is called that is asked for at launch
DYNAMIC = "dynamic"


class PartCode(Emitter):
    """Emits code for one thread of a part of `launch`, which is its lane number `lane`."""

    def __init__(self, launch: Launch, name: str, target: Target) -> None:
        super().__init__(launch.program, target, False)
        self.launch, self.name = launch, name
        self.shared: list[str] = []
        self.trees: dict[DType, str] = {}
        self.builder.here.label = "begin"
        self.thread = self.special("tid.x")
        self.lane = "0"
        if launch.lanes > 1:
            self.lane = self.pure(f"urem i64 {self.thread}, {launch.lanes}", self.thread)

    def pure(self, text: str, *operands: str) -> str:
        return self.builder.pure(text, *operands)

    def special(self, register: str) -> str:
        """One of the GPU's own registers, as an i64."""
        fn = f"@llvm.nvvm.read.ptx.sreg.{register}"
        self.builder.declare(f"i32 {fn}()")
        number = self.pure(f"call i32 {fn}()")
        return self.pure(f"zext i32 {number} to i64", number)

    def shared_of(self, buffer: Buffer) -> str:
        """Where a buffer's stretch of the block's shared memory begins: in the kernel's own, or in
        what is asked for at launch.
        """
        assert isinstance(buffer.size, int)
        at = self.launch.places.get(buffer)
        if at is None:
            return self.in_shared(
                buffer.name, buffer.dtype, buffer.size * self.launch.parts_of_block
            )
        kind = f"external addrspace(3) global [0 x i8], align {BOX_ALIGN}"
        self.builder.declarations.add(f"@{DYNAMIC} = {kind}")
        start = f"getelementptr (i8, ptr addrspace(3) @{DYNAMIC}, i64 {at})"
        return f"addrspacecast (ptr addrspace(3) {start} to ptr)"

    def in_shared(self, what: str, dtype: DType, count: int) -> str:
        """A stretch of the block's shared memory."""
        name = f"@{self.name}.{what}"
        kind = f"[{count} x {memory(dtype)}]"
        self.shared.append(f"{name} = internal addrspace(3) global {kind} undef, align 16")
        return f"addrspacecast (ptr addrspace(3) {name} to ptr)"

    def meet(self) -> None:
        """Lanes wait for each other; what others wrote is to be read again."""
        if 1 < self.launch.lanes < WARP:
            self.builder.declare("void @llvm.nvvm.bar.warp.sync(i32)")
            self.builder.effect(f"call void @llvm.nvvm.bar.warp.sync(i32 {self.members()})")
        elif self.launch.lanes > 1:
            self.block_barrier()
        self.memory.written(list(self.memory.versions))

    def block_barrier(self) -> None:
        fn = "void @llvm.nvvm.barrier.cta.sync.aligned.all(i32"
        self.builder.declare(f"{fn})")
        self.builder.effect(f"call {fn} 0)")

    def members(self) -> str:
        """The threads of this part, less than a warp, as bits of the warp's."""
        lanes = self.launch.lanes
        upper = self.pure(f"and i64 {self.thread}, {WARP - lanes}", self.thread)
        short = self.pure(f"trunc i64 {upper} to i32", upper)
        return self.pure(f"shl i32 {(1 << lanes) - 1}, {short}", short)

    def combine(self, fn: str, cell: Register) -> Register:
        """The tree over a part's lanes: lane i with lane i + half; all lanes get the root."""
        if self.launch.lanes == 1:
            return cell
        return self.in_warp(fn, cell) if self.launch.lanes < WARP else self.in_block(fn, cell)

    def in_warp(self, fn: str, cell: Register) -> Register:
        half = self.launch.lanes // 2
        while half:
            upper = self.shuffled("down", cell, str(half))
            cell = self.code.apply(fn, (cell, upper), cell.dtype)
            half //= 2
        return self.shuffled("idx", cell, "0")

    def shuffled(self, how: str, x: Register, which: str) -> Register:
        """The value that another lane has."""
        if x.dtype.bits == 64:
            return self.shuffled_halves(how, x, which)
        word = x if x.dtype.bits == 32 and not x.dtype.is_float else self.as_word(x)
        fn, members = f"@llvm.nvvm.shfl.sync.{how}.i32", self.members()
        self.builder.declare(f"i32 {fn}(i32, i32, i32, i32)")
        # the bits of a lane's number that stay, and the last one ("PTX ISA 9.0", shfl.sync)
        within = (WARP - self.launch.lanes) << 8 | WARP - 1
        text = f"call i32 {fn}(i32 {members}, i32 {word.text}, i32 {which}, i32 {within})"
        got = Register(self.fresh(text), int32)
        return got if word is x else self.from_word(got, x.dtype)

    def shuffled_halves(self, how: str, x: Register, which: str) -> Register:
        bits = x if not x.dtype.is_float else self.code.converted("bitcast", x, int64)
        low = self.pure(f"trunc i64 {bits.text} to i32", bits.text)
        above = self.pure(f"lshr i64 {bits.text}, 32", bits.text)
        high = self.pure(f"trunc i64 {above} to i32", above)
        words = [self.shuffled(how, Register(half, int32), which).text for half in (low, high)]
        wide = [self.pure(f"zext i32 {w} to i64", w) for w in words]
        up = self.pure(f"shl i64 {wide[1]}, 32", wide[1])
        got = Register(self.pure(f"or i64 {up}, {wide[0]}", up, wide[0]), int64)
        return self.code.converted("bitcast", got, x.dtype) if x.dtype.is_float else got

    def as_word(self, x: Register) -> Register:
        how = "bitcast" if x.dtype.bits == 32 else "zext"
        return Register(self.pure(f"{how} {x.typed} to i32", x.text), int32)

    def from_word(self, word: Register, dtype: DType) -> Register:
        how = "bitcast" if dtype.bits == 32 else "trunc"
        return Register(self.pure(f"{how} {word.typed} to {element(dtype)}", word.text), dtype)

    def fresh(self, text: str) -> str:
        """The value of an instruction that stays where it stands."""
        name = self.builder.fresh()
        self.builder.here.lines.append(f"  {name} = {text}")
        self.builder.depth_of[name] = len(self.builder.regions) - 1
        return name

    def in_block(self, fn: str, cell: Register) -> Register:
        count, kind = self.launch.lanes, memory(cell.dtype)
        if cell.dtype not in self.trees:
            self.trees[cell.dtype] = self.in_shared(f"tree.{cell.dtype}", cell.dtype, count)
        start, size = self.trees[cell.dtype], cell.dtype.itemsize

        def place(of: str) -> str:
            return self.pure(f"getelementptr {kind}, ptr {start}, i64 {of}", of)

        def load(of: str) -> Register:
            return Register(self.fresh(f"load {kind}, ptr {place(of)}, align {size}"), cell.dtype)

        mine = place(self.lane)

        def store(value: Register) -> None:
            self.builder.effect(f"store {kind} {value.text}, ptr {mine}, align {size}")

        def step(half: int) -> None:
            above = self.pure(f"add i64 {self.lane}, {half}", self.lane)
            store(self.code.apply(fn, (load(self.lane), load(above)), cell.dtype))

        store(cell)
        half = count // 2
        while half:
            self.block_barrier()
            below = self.pure(f"icmp slt i64 {self.lane}, {half}", self.lane)
            self.where(below, lambda half=half: step(half))  # type: ignore[misc]
            half //= 2
        self.block_barrier()
        root = load("0")
        self.block_barrier()  # the tree's memory is free again
        return root
