"""Where the lanes of a part must wait for each other on a GPU, so that none reads too early.

What a program is given may lie in one place where it works in place, so that buffers of one element
size are taken to be the same memory here; private ones are memory of their own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field, replace

from chainrule.ir.engine import Bring, Hear
from chainrule.ir.loop import Barrier, Buffer, Load, Loop, Stmt
from chainrule.ir.node import Stmts
from chainrule.loops.walk import postorder, statements, stored_buffers, values_of
from chainrule.records import dataclass

_MEET = Barrier(lanes=True)
Memory = Buffer | int


def with_barriers(body: Stmts, lanes: int) -> Stmts:
    """The statements with a barrier among lanes wherever one may touch what another has written, or
    write what another reads, outside of one vector loop: there each has its own elements.
    """
    return body if lanes == 1 else tuple(_Walk().block(body))


@dataclass
class _Walk:
    """Memory that was read and written since lanes met, and that the copy engine brings to."""

    read: set[Memory] = field(default_factory=set)
    written: set[Memory] = field(default_factory=set)
    brought: set[Memory] = field(default_factory=set)

    def block(self, body: Iterable[Stmt]) -> list[Stmt]:
        out: list[Stmt] = []
        for s in body:
            if isinstance(s, Loop) and s.mode != "vector":
                out.append(self.loop(s))
            elif isinstance(s, Barrier):
                self.meet(out)
            elif isinstance(s, Hear):  # which shows to all what was brought
                out.append(s)
                self.written -= self.brought
            else:
                self.one(s, out)
        return out

    def loop(self, loop: Loop) -> Loop:
        """A loop; where one time of it may clash with the next, lanes meet as each begins."""
        if loop.split:  # each iteration is another part's
            return replace(loop, body=tuple(self.block(loop.body)))
        before = set(self.read), set(self.written)
        reads, writes = _touched(loop.body)
        clash = writes & (reads | self.read | self.written) or reads & self.written
        out: list[Stmt] = []
        if clash:
            self.meet(out)
        out += self.block(loop.body)
        self.read |= before[0]
        self.written |= before[1]
        return replace(loop, body=tuple(out))

    def one(self, s: Stmt, out: list[Stmt]) -> None:
        reads, writes = _touched((s,))
        boxes = (b for i in statements((s,)) if isinstance(i, Bring) for b in i.boxes)
        brought = {_memory(b.to) for b in boxes}
        written = self.written - (self.brought & brought)  # one lane asks for them, in order
        if writes & (self.read | written) or reads & self.written:
            self.meet(out)
        out.append(s)
        self.read |= reads
        self.written |= writes
        self.brought |= brought

    def meet(self, out: list[Stmt]) -> None:
        out.append(_MEET)
        self.read.clear()
        self.written.clear()


def _touched(body: Iterable[Stmt]) -> tuple[set[Memory], set[Memory]]:
    inside = list(statements(body))
    values = (v for s in inside for v in postorder(*values_of(s)))
    reads = {_memory(v.buffer) for v in values if isinstance(v, Load)}
    return reads, set(map(_memory, stored_buffers(inside)))


def _memory(buffer: Buffer) -> Memory:
    return buffer if buffer.private else buffer.dtype.itemsize
