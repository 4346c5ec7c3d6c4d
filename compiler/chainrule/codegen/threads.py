"""A launch as one LLVM function for a GPU: what each thread does, in code for one thread.

A lane's cell of a local is a value of its thread, a vector loop is a loop from the thread's lane
on, and a fold of lanes exchanges values within a warp, or through shared memory within a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

from chainrule.codegen.engine import EngineCode
from chainrule.codegen.memory import MemoryCode
from chainrule.codegen.registers import Register, memory
from chainrule.codegen.scalar import constant
from chainrule.errors import CompileError
from chainrule.ir.engine import Bring, Engage, Hear, MultiplyPanels
from chainrule.ir.loop import (
    Apply,
    Await,
    Barrier,
    Buffer,
    Check,
    Close,
    Combine,
    Fetch,
    Get,
    Load,
    Local,
    Loop,
    Multiply,
    Set,
    Stmt,
    Store,
    Value,
    When,
    Words,
)
from chainrule.ir.machine import MACHINE
from chainrule.ir.size import Dim, Size
from chainrule.ir.types import float32, int32
from chainrule.loops.launch import Launch, split_loops
from chainrule.loops.walk import postorder, values_of
from chainrule.records import dataclass
from chainrule.target import Target
from chainrule.target.gpu import WARP


@dataclass(frozen=True)
class Body:
    """What the threads of a block do, as lines of LLVM's text that follow a label `begin`, with
    the shared memory and the declarations it needs. It speaks of %b0, ... and %s0, ..., buffers and
    sizes, and of %status, where a Check leaves its code before it returns.
    """

    lines: tuple[str, ...]
    shared: tuple[str, ...]
    declarations: set[str]


def emit_body(launch: Launch, name: str, target: Target, block: str | None = None) -> Body:
    """The body of a launch; `block` is the register that has a block's number, if it is not the
    GPU's own.
    """
    emitter = _Threads(launch, name, target, block)
    emitter.block(launch.program.body)
    builder = emitter.builder
    return Body(tuple(builder.here.lines), tuple(emitter.shared), builder.declarations)


def emit_launch(launch: Launch, name: str, target: Target) -> tuple[str, set[str]]:
    """The kernel's LLVM text, and the declarations it needs.

    Its parameters are the program's buffers, its sizes and `status`: what is launched where a code
    stands there does nothing.
    """
    body, program = emit_body(launch, name, target), launch.program
    parameters = [f"ptr %b{i}" for i in range(len(program.buffers))]
    parameters += [f"i64 %s{i}" for i in range(len(program.sizes))]
    lines = [
        *body.shared,
        f"define ptx_kernel void @{name}({', '.join([*parameters, 'ptr %status'])}) #0 {{",
        "entry:",
        "  %code = load i32, ptr %status, align 4",
        "  %good = icmp eq i32 %code, 0",
        "  br i1 %good, label %begin, label %leave",
        "leave:",
        "  ret void",
        "begin:",
        *body.lines,
        "  ret void",
        "}",
    ]
    return "\n".join(lines), body.declarations


_BFLOAT16 = "m16n8k16.row.col.bf16"
#: bytes of the widest access
WIDEST = 16
#: iterations of a short loop that are written out together, and what is short
AHEAD, SHORT = 8, 12


def _is_short(loop: Loop) -> bool:
    """Whether a loop holds a few assignments and stores nothing: a fold, most often."""
    size = 0
    for s in loop.body:
        turns: int = 1
        sets: tuple[Stmt, ...] = (s,)
        if isinstance(s, Loop) and s.mode == "unroll" and isinstance(s.extent, int):
            turns, sets = s.extent, s.body
        if not all(isinstance(one, Set) for one in sets):
            return False
        values = [v for one in sets for v in postorder(*values_of(one))]
        if any(isinstance(v, Apply) and v.fn not in MACHINE for v in values):
            return False
        size += turns * len(values)
    return size <= SHORT


class _Memory(MemoryCode):
    """Accesses of one thread. Those to `aligned` buffers, which begin at multiples of WIDEST, say
    how they are aligned themselves, so that LLVM makes one of neighbours: of floats up to four.
    """

    aligned: frozenset[Buffer] = frozenset()

    def alignment(self, access: Load | Store) -> int:
        size = super().alignment(access)
        if access.buffer not in self.aligned or access.index is not None:
            return size
        offset = self.address.known(access.offset)
        steps = [c for _, c in offset.terms] if isinstance(offset, Size) else [offset]
        return size * math.gcd(WIDEST // size, *steps)


class _Threads(EngineCode):
    """Emits a launch. `part` and `lane` are the registers that tell this thread's."""

    def __init__(self, launch: Launch, name: str, target: Target, block: str | None) -> None:
        super().__init__(launch, name, target)
        self.in_vector = False
        self.memory = _Memory(self.builder, self.address, self.code)
        thread, block = self.thread, block or self.special("ctaid.x")
        whole = self.pure(f"mul i64 {block}, {launch.threads}", block)
        number = self.pure(f"add i64 {whole}, {thread}", whole, thread)
        self.part = self.pure(f"udiv i64 {number}, {launch.lanes}", number)
        pointers = {b.name: pointer for b, pointer in self.address.pointers.items()}
        for buffer in launch.own:
            size = self.address.number(buffer.size)
            by = self.pure(f"mul i64 {self.part}, {size}", self.part, size)
            start = pointers[buffer.name]
            text = f"getelementptr {memory(buffer.dtype)}, ptr {start}, i64 {by}"
            self.point(buffer, self.pure(text, by))
        for buffer in launch.shared:
            start = self.shared_of(buffer)
            if buffer in launch.places:  # a block is one part
                self.point(buffer, start)
                continue
            mine = self.pure(f"udiv i64 {thread}, {launch.lanes}", thread)
            by = self.pure(f"mul i64 {mine}, {buffer.size}", mine)
            text = f"getelementptr {memory(buffer.dtype)}, ptr {start}, i64 {by}"
            self.point(buffer, self.pure(text, by))
        even = [b for b in launch.shared if b.size * b.dtype.itemsize % WIDEST == 0]
        given = launch.program.buffers if launch.aligned else ()
        self.memory.aligned = frozenset([*even, *given])

    def point(self, buffer: object, pointer: str) -> None:
        self.address.pointers[buffer] = pointer  # type: ignore[index]
        self.memory.versions[buffer] = 0  # type: ignore[index]

    # statements

    def statement(self, s: Stmt) -> None:
        if isinstance(s, When):
            self.when(s)
        elif isinstance(s, Multiply):
            self.multiply(s)
        elif isinstance(s, Fetch):
            self.fetch(s)
        elif isinstance(s, Close):
            self.asynchronous("commit.group", "")
        elif isinstance(s, Await):
            self.asynchronous("wait.group", f"i32 {s.but}")
        elif isinstance(s, Engage):
            self.engage(s)
        elif isinstance(s, Bring):
            self.bring(s)
        elif isinstance(s, Hear):
            self.hear(s)
        elif isinstance(s, MultiplyPanels):
            self.multiply_panels(s)
        elif isinstance(s, Barrier) and s.lanes:
            self.meet()
        elif isinstance(s, Store) and not self.in_vector and self.launch.lanes > 1:
            value, *index = self.values(*values_of(s))  # every lane's, one of which writes
            first = self.pure(f"icmp eq i64 {self.lane}, 0", self.lane)
            self.where(first, lambda: self.memory.store(s, value, index[0] if index else None))
        else:
            super().statement(s)

    def multiply(self, s: Multiply) -> None:
        """One instruction of the tensor cores."""
        both = [*self.words(s.a, 4), *self.words(s.b, 2)]
        words = [self.rounded(w) if s.tf32 else w.typed for w in both]
        cells = [self.cell(s.local, (*s.index, r)) for r in range(4)]
        kinds, kind = ", ".join(["float"] * 4), "m16n8k8.row.col.tf32" if s.tf32 else _BFLOAT16
        fn = f"@llvm.nvvm.mma.{kind}"
        self.builder.declare(f"{{{kinds}}} {fn}({', '.join(['i32'] * 6)}, {kinds})")
        given = ", ".join([*words, *(self.cells[cell].typed for cell in cells)])
        made = self.fresh(f"call {{{kinds}}} {fn}({given})")
        for r, cell in enumerate(cells):
            text = f"extractvalue {{{kinds}}} {made}, {r}"
            self.cells[cell] = Register(self.fresh(text), s.local.dtype)

    def fetch(self, s: Fetch) -> None:
        """A copy from global to shared memory that nobody waits for yet."""
        size = s.count * s.buffer.dtype.itemsize
        to = self.address.pointer(s.buffer, s.offset)
        source = self.address.pointer(s.source.buffer, s.source.offset)
        shared = self.pure(f"addrspacecast ptr {to} to ptr addrspace(3)", to)
        given = self.pure(f"addrspacecast ptr {source} to ptr addrspace(1)", source)
        way = "cg" if size == WIDEST else "ca"  # past the first cache, where nothing is read again
        where = f"ptr addrspace(3) {shared}, ptr addrspace(1) {given}"
        self.asynchronous(f"{way}.shared.global.{size}", where)
        self.memory.written([s.buffer])

    def asynchronous(self, word: str, given: str) -> None:
        """An instruction of the copies that go on by themselves."""
        fn = f"@llvm.nvvm.cp.async.{word}"
        kinds = ", ".join(g.rpartition(" ")[0] for g in given.split(", ")) if given else ""
        self.builder.declare(f"void {fn}({kinds})")
        self.builder.effect(f"call void {fn}({given})")

    def words(self, w: Words, count: int) -> list[Register]:
        """The words of a factor that this lane has: each of the warp's lanes gives the address of a
        line of four, in the order of the 8x4 tiles: of the left factor down, then to the right.
        """
        lane = self.pure(f"and i64 {self.thread}, {WARP - 1}", self.thread)
        lines = 16 if count == 4 else 8
        down = self.pure(f"and i64 {lane}, {lines - 1}", lane)
        along = self.pure(f"udiv i64 {lane}, {lines}", lane)
        along = self.pure(f"and i64 {along}, 1", along)
        rows = self.pure(f"mul i64 {down}, {w.line}", down)
        right = self.pure(f"shl i64 {along}, 2", along)
        by = self.pure(f"add i64 {rows}, {right}", rows, right)
        start = self.address.pointer(w.buffer, w.at)
        mine = self.pure(f"getelementptr i32, ptr {start}, i64 {by}", start, by)
        shared = self.pure(f"addrspacecast ptr {mine} to ptr addrspace(3)", mine)
        kinds = f"{{{', '.join(['i32'] * count)}}}"
        fn = f"@llvm.nvvm.ldmatrix.sync.aligned.m8n8.x{count}.b16.p3"
        self.builder.declare(f"{kinds} {fn}(ptr addrspace(3))")
        here, text = len(self.builder.regions) - 1, f"call {kinds} {fn}(ptr addrspace(3) {shared})"
        made = self.builder.name_at(here, text, f"{text} @{self.memory.versions[w.buffer]}")
        parts = (self.pure(f"extractvalue {kinds} {made}, {i}", made) for i in range(count))
        return [Register(part, int32) for part in parts]

    def rounded(self, word: Register) -> str:
        """A float32, which stands in a word, as one of TF32."""
        x = self.code.converted("bitcast", word, float32)
        self.builder.declare("i32 @llvm.nvvm.f2tf32.rna(float)")
        return f"i32 {self.pure(f'call i32 @llvm.nvvm.f2tf32.rna({x.typed})', x.text)}"

    def local(self, local: Local) -> None:
        for index in product(*map(range, local.shape)):
            self.cells[local, index] = constant(0, local.dtype)

    def set(self, s: Set) -> None:
        if self.in_vector and not s.local.lanes:
            raise CompileError(f"{s.local.name} is set in a vector loop, so it must have lanes")
        self.cells[self.cell(s.local, s.index)] = self.value(s.value)

    def check(self, s: Check) -> None:
        condition = self.value(s.condition)
        go_on, leave = self.builder.label(), self.builder.label()
        self.builder.effect(f"br {condition.typed}, label %{go_on}, label %{leave}")
        here = self.builder.here
        here.lines += [
            f"{leave}:",
            f"  store i32 {s.code}, ptr %status, align 4",
            "  ret void",
            f"{go_on}:",
        ]
        here.label = go_on

    def when(self, s: When) -> None:
        """A body under a condition; what it sets is seen after it."""
        if s.test is not None and s.bounds:  # a test may read what only is there within them
            self.when(When(s.bounds, (When((), s.body, s.test),)))
            return
        tests = [self.below(i, n) for i, n in s.bounds if not self.holds(i, n)]
        tests += [] if s.test is None else [self.value(s.test).text]
        if not tests:
            self.block(s.body)
            return
        all_of = tests[0]
        for test in tests[1:]:
            all_of = self.pure(f"and i1 {all_of}, {test}", all_of, test)
        self.where(all_of, lambda: self.block(s.body))

    def below(self, index: Dim, bound: Dim) -> str:
        return self.less(self.address.number(index), self.address.number(bound))

    def holds(self, index: Dim, bound: Dim) -> bool:
        index, bound = self.address.known(index), self.address.known(bound)
        return isinstance(index, int) and isinstance(bound, int) and index < bound

    # loops

    def counted(
        self, loop: Loop, stop: str, step: int, body: Callable[[], None], start: str = "0"
    ) -> None:
        """A loop that runs at least once; a short one several iterations at a time, in order, so
        that the loads of some are under way while another waits for its own.
        """
        if not _is_short(loop):
            super().counted(loop, stop, step, body, start)
            return
        pure, var = self.pure, loop.var
        left = pure(f"sub i64 {stop}, {start}", stop, start)
        above = pure(f"add i64 {left}, {step - 1}", left)
        count = pure(f"udiv i64 {above}, {step}", above)
        whole = pure(f"and i64 {count}, {-AHEAD}", count)
        far = pure(f"mul i64 {whole}, {step}", whole)
        middle = pure(f"add i64 {start}, {far}", start, far)
        counted = super().counted

        def several() -> None:
            index = str(self.address.symbols[var])
            for i in range(AHEAD):
                self.address.symbols[var] = pure(f"add i64 {index}, {i * step}", index)
                body()

        self.where(
            self.less(start, middle), lambda: counted(loop, middle, AHEAD * step, several, start)
        )
        self.where(self.less(middle, stop), lambda: counted(loop, stop, step, body, middle))

    def loop(self, loop: Loop) -> None:
        if not loop.split:
            super().loop(loop)
            return
        nest = split_loops((loop,))
        stop = self.address.number(self.launch.parts)

        def body() -> None:
            rest = self.part
            for one in reversed(nest[1:]):
                size = self.address.divisor(one.extent)
                self.address.symbols[one.var] = self.pure(f"urem i64 {rest}, {size}", rest, size)
                rest = self.pure(f"udiv i64 {rest}, {size}", rest, size)
            self.address.symbols[nest[0].var] = rest
            self.block(nest[-1].body)

        self.where(self.less(self.part, stop), body)

    def vector_loop(self, loop: Loop, extent: Dim) -> None:
        """This lane's iterations."""
        if self.in_vector:
            raise CompileError("vector loops do not nest")
        lanes = self.launch.lanes
        stop = self.address.number(extent)
        self.in_vector = True

        def one() -> None:
            self.address.symbols[loop.var] = self.lane
            self.block(loop.body)

        def several() -> None:
            self.counted(loop, stop, lanes, lambda: self.block(loop.body), self.lane)

        if isinstance(extent, int) and extent <= lanes:
            if extent == lanes:
                one()
            elif extent > 0:
                self.where(self.less(self.lane, stop), one)
        else:
            self.where(self.less(self.lane, stop), several)
        self.in_vector = False

    # values

    def part_of(self, v: Value, registers: dict[int, Register]) -> Register:
        if isinstance(v, Combine):
            cell = self.cells[self.cell(v.local, v.index)]
            return self.combine(v.fn, cell)
        return super().part_of(v, registers)

    def get(self, v: Get) -> Register:
        if v.local.lanes and not self.in_vector:
            raise CompileError(f"{v.local.name} has lanes: outside a vector loop, combine them")
        return self.cells[self.cell(v.local, v.index)]
