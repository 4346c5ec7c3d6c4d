"""Programs for a GPU: which thread does what.

A program is cut into launches, one for each split loop, which run one after another. Split loops
nest here: a launch has as many parts as they have iterations together, in row-major order iteration
p is done by part p, and a part is 1, 4, 16 or BLOCK threads: its lanes. Iteration i of a vector
loop is done by lane i modulo their number. So a fold over lanes has one order, whatever else runs
on the machine, and of 16 lanes that of every other target.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate

from chainrule.errors import CompileError
from chainrule.ir.engine import Engage
from chainrule.ir.loop import (
    Barrier,
    Buffer,
    Get,
    Load,
    Local,
    Loop,
    Note,
    Program,
    Stmt,
)
from chainrule.ir.node import Stmts
from chainrule.ir.size import Dim, product
from chainrule.loops.lanes import with_barriers
from chainrule.loops.parts import by_one
from chainrule.loops.walk import postorder, set_locals, statements, stored_buffers, values_of
from chainrule.records import dataclass
from chainrule.target.gpu import WARP

#: threads of a block; a part has so many at most
BLOCK = 256
#: bytes that the private buffers of a block may have in shared memory: of the 48 KB that every GPU
#: has, what a fold of a block's lanes leaves
SHARED = 44 * 1024
#: of a GPU with a copy engine so much is asked for beside, two blocks on a multiprocessor of 228 KB
MORE_SHARED = 112 * 1024
#: what begins there at a multiple of so many bytes: a box of a matrix ("PTX ISA 9.0", NVIDIA,
#: wgmma, matrix descriptor: the 128-byte swizzle repeats from there)
BOX_ALIGN = 1024


@dataclass(frozen=True)
class Launch:
    """A program with one nest of split loops, run by `parts` parts of `lanes` threads each.

    Of private buffers those in `shared` lie in shared memory, `parts_of_block` of each; of the
    others, in `own`, part p has elements p * size up to (p + 1) * size of a buffer that is given.
    With `aligned` all buffers that are given begin at multiples of 16 bytes; with `whole` a block
    has BLOCK threads, however few parts there are.
    """

    program: Program
    lanes: int
    parts: Dim
    shared: tuple[Buffer, ...] = ()
    own: tuple[Buffer, ...] = ()
    aligned: bool = False
    whole: bool = False

    @property
    def places(self) -> dict[Buffer, int]:
        """Where each of `shared` lies in what is asked for at launch; empty where they are the
        kernel's own.
        """
        if not any(isinstance(s, Engage) for s in statements(self.program.body)):
            return {}
        sizes = [-(-_bytes(b) * self.parts_of_block // BOX_ALIGN) * BOX_ALIGN for b in self.shared]
        return dict(zip(self.shared, accumulate(sizes, initial=0), strict=False))

    @property
    def dynamic(self) -> int:
        """Bytes of shared memory that are asked for at launch, beside what the kernel says."""
        return max(
            (at + _bytes(b) * self.parts_of_block for b, at in self.places.items()), default=0
        )

    @property
    def threads(self) -> int:
        """The threads of a block: whole warps."""
        if isinstance(self.parts, int) and not self.whole:
            return min(BLOCK, max(1, -(-self.parts * self.lanes // WARP)) * WARP)
        return BLOCK

    @property
    def parts_of_block(self) -> int:
        """How many parts stand in one block."""
        return self.threads // self.lanes

    @property
    def blocks(self) -> Dim:
        """How many blocks there are; 0 where there is nothing to do."""
        return (self.parts + self.parts_of_block - 1) // self.parts_of_block


def launches_of(
    program: Program, lanes: int, aligned: bool = False
) -> tuple[tuple[Launch, ...], tuple[Buffer, ...]]:
    """The launches of a program whose parts have so many lanes, and its buffers as they are given
    then: without those in shared memory, and with a private one for each part in the others.

    Statements that are not split are done by one part.
    """
    cut = [replace(program, body=body) for body in _cut(program)]
    private = [b for b in program.buffers if b.private]
    made: list[Launch] = []
    grown: dict[Buffer, Dim] = {}
    for piece in cut:
        parts = product(tuple(loop.extent for loop in split_loops(piece.body)))
        launch = Launch(replace(piece, body=with_barriers(piece.body, lanes)), lanes, parts)
        mine = [b for b in private if b in _touched(piece.body)]
        engines = [s for s in statements(piece.body) if isinstance(s, Engage)]
        rooms, limit = {e.room for e in engines}, MORE_SHARED if engines else SHARED
        shared = _in_shared([b for b in mine if b not in rooms], launch.parts_of_block, limit)
        own = tuple(b for b in mine if b not in shared)
        if any(b in grown for b in mine):
            raise CompileError(f"{program.name}: a private buffer is used in several loops")
        grown |= {b: 0 if b in shared else b.size * parts for b in mine}
        made.append(replace(launch, shared=shared, own=own, aligned=aligned))
    buffers = tuple(
        replace(b, size=grown.get(b, 0), private=False) if b.private else b
        for b in program.buffers
        if not b.private or grown.get(b, 0) != 0
    )
    return tuple(replace(m, program=replace(m.program, buffers=buffers)) for m in made), buffers


def split_loops(body: Iterable[Stmt]) -> tuple[Loop, ...]:
    """The nest of split loops in a body, outermost first: each holds the next and nothing else."""
    first = next((s for s in statements(body) if isinstance(s, Loop) and s.split), None)
    if first is None:
        return ()
    return (first, *(split_loops(first.body) if len(first.body) == 1 else ()))


def _cut(program: Program) -> Iterator[Stmts]:
    """The statements of each launch: one that is split or done by one part, and its locals."""
    locals_ = tuple(s for s in program.body if isinstance(s, Local))
    where: dict[Local, int] = {}
    pieces = [s for s in program.body if not isinstance(s, Local | Note | Barrier)]
    for number, s in enumerate(pieces):
        for local in {*set_locals((s,)), *_read_locals((s,))}:
            if where.setdefault(local, number) != number:
                raise CompileError(f"{program.name}: {local.name} is used in several launches")
        split = any(isinstance(t, Loop) and t.split for t in statements((s,)))
        used = tuple(local for local in locals_ if where.get(local) == number)
        yield (*used, *((s,) if split else by_one((s,))))


def _read_locals(body: Iterable[Stmt]) -> set[Local]:
    values = (v for s in statements(body) for v in postorder(*values_of(s)))
    return {v.local for v in values if isinstance(v, Get)}


def _touched(body: Iterable[Stmt]) -> set[Buffer]:
    values = (v for s in statements(body) for v in postorder(*values_of(s)))
    return {v.buffer for v in values if isinstance(v, Load)} | stored_buffers(body)


def _bytes(buffer: Buffer) -> int:
    assert isinstance(buffer.size, int)
    return buffer.size * buffer.dtype.itemsize


def _in_shared(buffers: Sequence[Buffer], parts: int, limit: int) -> tuple[Buffer, ...]:
    """Those that fit into a block's shared memory, all its parts' together."""
    left, chosen = limit, []
    for b in buffers:
        size = _bytes(b) * parts if isinstance(b.size, int) else limit + 1
        if size <= left:
            chosen.append(b)
            left -= size
    return tuple(chosen)
