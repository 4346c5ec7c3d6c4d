"""How a program computes, in words, read from its loops: tiles, copies, vectors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from chainrule.ir.loop import LANES, Buffer, Get, Load, Local, Loop, Note, Program, Set, Stmt, Store
from chainrule.loops.walk import postorder, statements
from chainrule.target import Target


def chosen(program: Program, names: Sequence[str], target: Target) -> tuple[str, ...]:
    """What was chosen for a program; `names` are those of its operands and results, whose buffers
    come before its workspace.
    """
    body = list(statements(program.body))
    notes = [s.text for s in body if isinstance(s, Note)]
    tiles = _tiles(body, target)
    if tiles:
        notes.append(tiles)
    called = dict(zip(program.buffers, names, strict=False))
    copies = _copies(body, program.buffers[len(names) :])
    for source, copy in copies:
        of = called[source]
        notes.append(f"blocks of {of} packed" if copy.private else f"{of} packed")
    if tiles and not copies:
        notes.append("nothing packed")
    if not tiles and any(isinstance(s, Loop) and s.mode == "vector" for s in body):
        notes.append(f"vectors of {LANES}")
    return tuple(dict.fromkeys(notes))


def _tiles(body: Iterable[Stmt], target: Target) -> str:
    """The tiles of a product, whose sums stay in registers; the one of most registers first."""
    sums = {
        v.local
        for s in body
        if isinstance(s, Set)
        for v in postorder(s.value)
        if isinstance(v, Get) and v.local == s.local and len(s.local.shape) == 2
    }
    if not sums:
        return ""

    def registers(local: Local) -> int:
        rows, vectors = local.shape
        return rows * vectors * target.registers_of(local.dtype.itemsize, LANES)

    largest = max(sums, key=registers)
    shapes = dict.fromkeys(s.shape for s in sorted(sums, key=registers, reverse=True))
    texts = [f"{rows}x{vectors * LANES}" for rows, vectors in shapes]
    held = f"{registers(largest)} of {target.vector_registers} registers hold sums"
    return f"tiles {', '.join(texts[:3])}{' ...' if len(texts) > 3 else ''}: {held}"


def _copies(body: Iterable[Stmt], scratch: Iterable[Buffer]) -> list[tuple[Buffer, Buffer]]:
    """What is copied as it is to workspace before it is read, and where to."""
    work = set(scratch)
    pairs = [
        (s.value.buffer, s.buffer)
        for s in body
        if isinstance(s, Store) and s.buffer in work and isinstance(s.value, Load)
    ]
    return list(dict.fromkeys(p for p in pairs if p[0] not in work))
