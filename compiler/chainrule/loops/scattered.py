"""Nests that add to places known at run time, for a CPU: vectors along what lies in a row, and
threads that each have columns of the table.

An element's sums stay in their order, whoever makes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from chainrule.ir.loop import LANES, Apply, Barrier, IndexValue, Load, Loop, Stmt, Store, Value
from chainrule.ir.node import Stmts
from chainrule.ir.size import Dim, Size, static_product, substitute, symbols_of
from chainrule.loops.independent import independent, perfect
from chainrule.loops.parts import by_one, shared_nest
from chainrule.loops.walk import dims_of, postorder

#: bytes of a row that a thread adds up: a page of what is read, at the ends of which memory that is
#: fetched ahead stops
PIECE = 4096


def adds_by_columns(body: Stmts) -> Stmts:
    """Nests of which each is shared, where one of them adds to places known at run time row by row;
    as they were where none does.
    """
    adds = [_by_columns(s) for s in body]
    if not any(adds):
        return body
    out: list[Stmt] = []
    for s, found in zip(body, adds, strict=True):
        out += [Barrier()] if out else []
        out += found or shared_nest((s,), 1)
    return tuple(out)


def _by_columns(nest: Stmt) -> Stmts | None:
    """A nest of adds with blocks of columns outside and vectors inside, if it is one."""
    if not isinstance(nest, Loop):
        return None
    loops, body = perfect(nest)
    if len(body) != 1 or not isinstance(body[0], Store) or body[0].index is None:
        return None
    free = independent(loops, body)
    count = len(loops)
    while count and loops[count - 1].var in free:
        count -= 1
    rows, columns = loops[:count], loops[count:]
    moving = {loop.var for loop in columns}
    if not columns or not all(isinstance(loop.extent, int) for loop in columns):
        return None
    if any(moving & symbols_of(d) for v in postorder(body[0].index) for d in dims_of(v)):
        return None
    if static_product(tuple(loop.extent for loop in columns)) < LANES:
        return None
    return _in_blocks(rows, columns, body[0])


def _in_blocks(rows: Sequence[Loop], columns: Sequence[Loop], add: Store) -> Stmts:
    """Blocks of the first of the columns' axes, and what is left of it."""
    first, inner = columns[0], columns[1:]
    extent = static_product((first.extent,))
    each = add.buffer.dtype.itemsize * static_product(tuple(loop.extent for loop in inner))
    size = max(1, PIECE // each)
    count, rest = divmod(extent, size)
    block, var = Size.symbol("block'"), Size.symbol(first.var)

    def part(start: Dim, length: int) -> Stmts:
        moved = _moved(add, {first.var: start + var})
        return _nested([*rows, replace(first, extent=length), *inner], moved)

    out: Stmts = ()
    if count:
        out += (Loop("block'", count, part(block * size, size), split=True),)
    return (*out, *by_one(part(count * size, rest))) if rest else out


def _nested(loops: Sequence[Loop], add: Store) -> Stmts:
    """An add in loops, the innermost in vectors."""
    body: Stmts = (add,)
    for i, loop in enumerate(reversed(loops)):
        body = (replace(loop, body=body, mode="serial" if i else "vector"),)
    return body


def _moved(add: Store, to: Mapping[str, Dim]) -> Store:
    """An add with loop variables elsewhere."""
    assert add.index is not None
    new: dict[int, Value] = {}
    for v in postorder(add.value, add.index):
        made: Value = v
        if isinstance(v, Apply):
            made = replace(v, args=tuple(new[id(a)] for a in v.args))
        elif isinstance(v, Load):
            index = None if v.index is None else new[id(v.index)]
            made = replace(v, offset=substitute(v.offset, to), index=index)
        elif isinstance(v, IndexValue):
            made = replace(v, index=substitute(v.index, to))
        new[id(v)] = made
    offset = substitute(add.offset, to)
    return replace(add, offset=offset, value=new[id(add.value)], index=new[id(add.index)])
