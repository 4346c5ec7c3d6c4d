"""A block's copy engine and what multiplies panels from shared memory, as instructions of sm_90a.

LLVM has no words for most of them, so they stand as PTX. Sections are those of "PTX ISA 9.0",
NVIDIA, 2025. Boxes lie in shared memory in the 128-byte swizzle, in which the engine writes and
the tensor cores read: of each eight lines of 128 bytes, pieces of 16 change places with others of
their line (tensor, "swizzling modes"; wgmma, "shared memory matrix layout").
"""

from __future__ import annotations

from collections.abc import Sequence

from chainrule.codegen.registers import Register
from chainrule.codegen.together import PartCode
from chainrule.ir.engine import CHART, SPAN, Bring, Engage, Hear, Matrix, MultiplyPanels, Panel
from chainrule.ir.loop import Buffer
from chainrule.ir.size import Dim
from chainrule.ir.types import bfloat16
from chainrule.target.gpu import WARP

#: bytes of a line of a box, and of eight of them, after which the swizzle repeats
LINE, ATOM = SPAN * bfloat16.itemsize, 8 * SPAN * bfloat16.itemsize
#: threads that multiply together, and the rows and terms of what they multiply at once
GROUP, ROWS, TERMS = 128, 64, 16
MEET = f"bar.warp.sync {(1 << WARP) - 1};"
#: fields of a tensor map that are the same for all: bfloat16; no interleaving; swizzled in 128
#: bytes; what lies outside is 0 (tensormap.replace, "new_val of each field")
_SAME = (("elemtype", 10), ("interleave_layout", 0), ("swizzle_mode", 3), ("fill_mode", 0))
_REPLACE = "@$0 tensormap.replace.tile.{}.shared::cta.b1024.b{}"
#: ptxas makes of a map's acquire an order to the engine to forget what it knew of it, and nothing
#: that waits for that (seen in what 13.0 makes); to wait for a group of nothing does
_SETTLED = "cp.async.bulk.commit_group;\ncp.async.bulk.wait_group.read 0;"
_WAIT = """{
.reg .pred there;
hear_${:uid}:
mbarrier.try_wait.parity.shared::cta.b64 there, [$0], $1;
@!there bra hear_${:uid};
}"""


class EngineCode(PartCode):
    """Emits what is asked of a copy engine, and products of panels."""

    def assembly(self, text: str, result: str, constraints: str, *given: str) -> str:
        """PTX as it stands, in its place; its result's name, where it has one."""
        written = text.replace("\n", "\\0A\\09")
        call = f'call {result} asm sideeffect "{written}", "{constraints}"({", ".join(given)}) #0'
        if result != "void":
            return self.fresh(call)
        self.builder.effect(call)
        return ""

    def in_shared_memory(self, buffer: Buffer, at: Dim) -> str:
        """The address of an element there, as an i32."""
        pointer = self.address.pointer(buffer, at)
        there = self.pure(f"addrspacecast ptr {pointer} to ptr addrspace(3)", pointer)
        return self.pure(f"ptrtoint ptr addrspace(3) {there} to i32", there)

    def in_global_memory(self, buffer: Buffer, at: Dim) -> str:
        """The address of an element of the GPU's memory, as an i64."""
        pointer = self.address.pointer(buffer, at)
        there = self.pure(f"addrspacecast ptr {pointer} to ptr addrspace(1)", pointer)
        return self.pure(f"ptrtoint ptr addrspace(1) {there} to i64", there)

    def short(self, dim: Dim) -> str:
        """A size as an i32."""
        number = self.address.number(dim)
        return self.pure(f"trunc i64 {number} to i32", number) if "%" in number else number

    def engage(self, s: Engage) -> None:
        """The first warp draws up a map of each matrix in shared memory, has it copied to where the
        engine reads it, and makes the bells; then all threads go on.
        """
        in_warp = self.pure(f"icmp ult i64 {self.thread}, {WARP}", self.thread)
        first = self.pure(f"icmp eq i64 {self.thread}, 0", self.thread)

        def warp() -> None:
            desk = self.in_shared_memory(s.desk, 0)
            lane = self.pure(f"trunc i64 {self.thread} to i32", self.thread)
            far = self.pure(f"shl i32 {lane}, 2", lane)
            mine = self.pure(f"add i32 {desk}, {far}", desk, far)
            self.assembly("st.shared.b32 [$0], 0;", "void", "r,~{memory}", f"i32 {mine}")
            for number, matrix in enumerate(s.matrices):
                self.chart(matrix, desk, self.in_global_memory(s.room, number * CHART), first)
            for bell in range(CHART, int(s.desk.size)):  # type: ignore[arg-type]
                at = self.in_shared_memory(s.desk, bell)
                text = "@$0 mbarrier.init.shared::cta.b64 [$1], 1;"
                self.assembly(text, "void", "b,r,~{memory}", f"i1 {first}", f"i32 {at}")
            # to the engine, which reads through a proxy of its own (memory model, "proxies")
            text = "fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;"
            self.assembly(f"{_SETTLED}\n{text}", "void", "~{memory}")

        self.where(in_warp, warp)
        self.block_barrier()
        self.memory.written([s.desk, s.room])

    def chart(self, m: Matrix, desk: str, room: str, first: str) -> None:
        """The map of a matrix, field by field (tensormap.replace), dimensions from the innermost;
        then its copy, which the engine may see (tensormap.cp_fenceproxy, fence.proxy.tensormap).
        """
        start = self.in_global_memory(m.source, m.offset)
        apart = self.address.number(m.apart * bfloat16.itemsize)
        along, lines = self.short(m.along), self.short(m.lines)
        fields = [
            ("global_address", 64, "$2"), ("rank", 32, "1"),
            ("box_dim", 32, f"0, {SPAN}"), ("box_dim", 32, f"1, {m.box}"),
            ("global_dim", 32, "0, $3"), ("global_dim", 32, "1, $4"),
            ("global_stride", 64, "0, $5"),
            ("element_stride", 32, "0, 1"), ("element_stride", 32, "1, 1"),
            *((name, 32, str(value)) for name, value in _SAME),
        ]  # fmt: skip
        lines_ = [f"{_REPLACE.format(name, bits)} [$1], {value};" for name, bits, value in fields]
        copy = "tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu"
        copy += f".sync.aligned [$6], [$1], {8 * CHART};"
        see = f"fence.proxy.tensormap::generic.acquire.gpu [$6], {8 * CHART};"
        text = "\n".join([MEET, *lines_, MEET, copy, see])
        given = (f"i1 {first}", f"i32 {desk}", f"i64 {start}", f"i32 {along}", f"i32 {lines}",
                 f"i64 {apart}", f"i64 {room}")  # fmt: skip
        self.assembly(text, "void", "b,r,l,r,r,l,l,~{memory}", *given)

    def bring(self, s: Bring) -> None:
        """One thread says how many bytes a bell is to wait for, and asks for them (mbarrier
        .arrive.expect_tx, cp.async.bulk.tensor): whole boxes, be they outside of the matrix.
        """
        engine = s.engine
        size = sum(engine.matrices[box.matrix].box for box in s.boxes) * LINE
        first = self.pure(f"icmp eq i64 {self.thread}, 0", self.thread)

        def ask() -> None:
            bell = self.in_shared_memory(engine.desk, s.bell + CHART)
            text = f"mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], {size};"
            self.assembly(text, "void", "r,~{memory}", f"i32 {bell}")
            for box in s.boxes:
                to = self.in_shared_memory(box.to, box.at)
                chart = self.in_global_memory(engine.room, box.matrix * CHART)
                text = "cp.async.bulk.tensor.2d.shared::cluster.global.tile"
                text += ".mbarrier::complete_tx::bytes [$0], [$1, {$2, $3}], [$4];"
                place = f"i32 {self.short(box.first)}", f"i32 {self.short(box.line)}"
                given = f"i32 {to}", f"i64 {chart}", *place, f"i32 {bell}"
                self.assembly(text, "void", "r,l,r,r,r,~{memory}", *given)

        self.where(first, ask)
        self.memory.written([box.to for box in s.boxes])

    def hear(self, s: Hear) -> None:
        """Every thread asks until the bell has come to the end of its turn, of whose number the
        last bit tells (mbarrier.try_wait.parity).
        """
        bell = self.in_shared_memory(s.engine.desk, s.bell + CHART)
        parity = self.short(s.turn % 2)
        self.assembly(_WAIT, "void", "r,r,~{memory}", f"i32 {bell}", f"i32 {parity}")

    def multiply_panels(self, s: MultiplyPanels) -> None:
        """All terms of two panels, TERMS at a time; waited for, so that registers and panels are
        free again behind it (wgmma.fence, .mma_async, .commit_group, .wait_group).
        """
        count = s.columns // 2
        group = self.pure(f"udiv i64 {self.thread}, {GROUP}", self.thread)
        rows = self.pure(f"mul i64 {group}, {ROWS * LINE}", group)
        a, b = self.described(s.a, rows), self.described(s.b, "0")
        cells = [self.cell(s.local, (r,)) for r in range(count)]
        sums = "{" + ", ".join(f"${r}" for r in range(count)) + "}"
        shape = f"m{ROWS}n{s.columns}k{TERMS}.f32.bf16.bf16"
        steps = SPAN // TERMS
        turned = f"{int(s.a.turned)}, {int(s.b.turned)}"
        multiply = [
            f"wgmma.mma_async.sync.aligned.{shape} {sums}, ${2 * count + h}, "
            f"${2 * count + steps + h}, 1, 1, 1, {turned};"
            for h in range(steps)
        ]
        # lanes may have come here one by one, from asking and from hearing: a warp is one again
        text = "\n".join([
            MEET, "wgmma.fence.sync.aligned;", *multiply,
            "wgmma.commit_group.sync.aligned;", "wgmma.wait_group.sync.aligned 0;",
        ])  # fmt: skip
        kind = f"{{{', '.join(['float'] * count)}}}"
        constraints = ["=f"] * count + [str(r) for r in range(count)] + ["l"] * (2 * steps)
        given = [self.cells[c].typed for c in cells]
        given += [f"i64 {d}" for d in (*self.steps_of(s.a, a), *self.steps_of(s.b, b))]
        made = self.assembly(text, kind, ",".join([*constraints, "~{memory}"]), *given)
        for r, cell in enumerate(cells):
            value = self.fresh(f"extractvalue {kind} {made}, {r}")
            self.cells[cell] = Register(value, s.local.dtype)

    def described(self, panel: Panel, further: str) -> str:
        """The descriptor of a panel (wgmma, "matrix descriptor format"), so many bytes on: with
        terms along lines the next eight lines follow eight; with lines turned the next eight terms
        do, and the next SPAN rows or columns behind all terms of these.
        """
        start = self.in_shared_memory(panel.buffer, panel.at)
        wide = self.pure(f"zext i32 {start} to i64", start)
        moved = self.pure(f"add i64 {wide}, {further}", wide, further)
        part = self.pure(f"and i64 {moved}, {0x3FFFF}", moved)
        low = self.pure(f"lshr i64 {part}, 4", part)
        leading = SPAN * LINE if panel.turned else 16
        rest = 1 << 62 | (ATOM >> 4) << 32 | (leading >> 4) << 16
        return self.pure(f"or i64 {low}, {rest}", low)

    def steps_of(self, panel: Panel, descriptor: str) -> Sequence[str]:
        """The descriptors of TERMS terms each."""
        step = (TERMS * LINE if panel.turned else TERMS * bfloat16.itemsize) >> 4
        return [
            self.pure(f"add i64 {descriptor}, {h * step}", descriptor) if h else descriptor
            for h in range(SPAN // TERMS)
        ]
