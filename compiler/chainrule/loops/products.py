"""Kernels around a product: the scheduled template where it fits, else plain loops.

A factor that is a view, such as windows, is copied to workspace first, in the order of its axes:
as much as one pass of the template reads, an image of a batch. Sums over axes that don't lie
together take a pass for each step of the outer ones; what they have come to waits in workspace, so
that each element is one chain of multiply-adds still.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from chainrule.ir.loop import (
    Apply,
    Barrier,
    Buffer,
    Get,
    Literal,
    Load,
    Local,
    Loop,
    Set,
    Store,
    Value,
)
from chainrule.ir.node import Index, Node, Stmts, for_each
from chainrule.ir.size import Dim, Size, product
from chainrule.ir.types import int32
from chainrule.loops.abreast import abreast_loops, stands_abreast
from chainrule.loops.builder import Builder
from chainrule.loops.contract import block_sizes, contraction_loops, packed_size
from chainrule.loops.dots import DotTile, dot_loops, goes_along
from chainrule.loops.layout import ContractLayout, fills, letter_sizes
from chainrule.loops.pairs import pair_loops, sums_size, takes_pairs, word_sizes
from chainrule.loops.parts import split_outermost
from chainrule.loops.tiles import Contraction, tile_size
from chainrule.loops.walk import at_most
from chainrule.ops.cast import widens
from chainrule.ops.contract import Contract
from chainrule.ops.layout import ravel

#: terms of a sum that are few: copying a factor's views takes longer than multiplying them
FEW = 64


def product_loops(b: Builder) -> Stmts:
    """One product, with the maps that follow it in its epilogue."""
    node, rest = b.kernel.anchor, b.kernel.nodes[1:]

    def maps(index: Index, acc: Value) -> Stmts:
        b.values[node] = acc
        return (*b.compute(rest, index, True), *b.store([node, *rest], index))

    if stands_abreast(b):
        return abreast_loops(b, maps)
    layout = ContractLayout.of(b.kernel)
    if layout is None:
        return plain_product(b)
    tile = DotTile.of(b, layout) if any(layout.gathered) else None
    if tile is None and _slides(b, layout):
        layout = ContractLayout.of(b.kernel, sliding=True) or layout
    return _scheduled(b, layout, maps) if tile is None else dot_loops(b, layout, tile, maps)


def _slides(b: Builder, layout: ContractLayout) -> bool:
    """Whether vectors had better go along the columns of a view where it stands.

    Where they would not be full, copies are as good, unless they are of few terms, or the other
    factor would be copied too.
    """
    last = layout.column[-1]
    read = b.reader(layout.order(b.kernel.anchor.inputs)[1])
    if not layout.gathered[1] or not goes_along(read, layout.b, last):
        return False
    few = at_most(product(tuple(layout.sizes[c] for c in layout.outer + layout.inner)), FEW)
    return fills(layout.sizes[last], 0.75 if few or layout.gathered[0] else 0.9)


def _scheduled(b: Builder, layout: ContractLayout, maps: Callable[[Index, Value], Stmts]) -> Stmts:
    node = b.kernel.anchor

    def epilogue(m: Dim, n: Dim, acc: Value) -> Stmts:
        return maps(layout.out(m, n), acc)

    by_group = any(extent != 1 for _, extent in layout.groups)
    x, y = layout.order(node.inputs)
    first, copy_first = _factor(b, layout, x, layout.a, layout.gathered[0] and not layout.sliding)
    second, copy_second = _factor(b, layout, y, layout.b, layout.gathered[1] and not layout.sliding)
    contraction = Contraction(
        layout.groups,
        layout.m,
        layout.n,
        layout.k,
        lambda m, k: first(layout.first(m, k)),
        lambda k, n: second(layout.second(k, n)),
        node.type.dtype,
        epilogue,
        before=(*copy_first, *copy_second),
    )
    if layout.sliding:
        outside, inside = layout.split_groups
        contraction = replace(contraction, groups=outside, inside=inside, terms=layout.sums)
    if _narrow(b, layout) and takes_pairs(contraction):
        sizes = word_sizes(contraction)
        words = b.scratch_of(int32, sizes[0], by_group), b.scratch_of(int32, sizes[1], by_group)
        sums = b.workspace(node, sums_size(b.target), True)
        body = pair_loops(contraction, b.target, words, sums, split=not by_group)
        return split_outermost(body, len(layout.groups)) if by_group else body
    tall = tile_size(contraction, b.target)
    if tall:
        contraction = replace(contraction, tile=b.workspace(node, tall, True))
    long = None if layout.outer else block_sizes(contraction, b.target)
    if long is not None:
        block, sums = b.workspace(node, long[0], True), b.workspace(node, long[1], by_group)
        contraction = replace(contraction, block=block, sums=sums)
    size = 0 if layout.sliding else packed_size(contraction, b.target)
    packed = b.workspace(node, size, by_group) if size != 0 else None
    if layout.outer and not layout.sliding:
        body = _in_steps(b, contraction, layout, packed)
    else:
        body = contraction_loops(contraction, b.target, packed, split=not by_group)
    return split_outermost(body, len(layout.groups)) if by_group else body


def _narrow(b: Builder, layout: ContractLayout) -> bool:
    """Whether both factors are bfloat16, and each element one sum of them."""
    return all(map(widens, b.kernel.anchor.inputs)) and not (layout.sliding or layout.outer)


def _factor(
    b: Builder, layout: ContractLayout, operand: Node, letters: str, copied: bool
) -> tuple[Callable[[Mapping[str, Dim]], Value], Stmts]:
    """How a factor is read at places of runs, and what must have been done before."""
    read = b.reader(operand)
    if not copied:
        return lambda runs: read(layout.index(letters, runs)), ()
    kept = layout.inside(letters)
    shape = tuple(layout.sizes[c] for c in kept)
    by_group = any(extent != 1 for _, extent in layout.groups)
    copy = b.workspace(operand, product(shape), by_group)

    def move(index: Index) -> Stmts:
        at = layout.index(letters, dict(zip(kept, index, strict=True)))
        return (Store(copy, ravel(index, shape), read(at)),)

    def copied_at(runs: Mapping[str, Dim]) -> Value:
        return Load(copy, ravel(layout.index(kept, runs), shape))

    return copied_at, for_each(shape, move, "w", inner="vector")


def _in_steps(b: Builder, c: Contraction, layout: ContractLayout, packed: Buffer | None) -> Stmts:
    """A product whose sums go on from one pass of the template to the next."""
    by_group = any(extent != 1 for _, extent in c.groups)
    sums = b.workspace(b.kernel.anchor, c.m * c.n, by_group)
    m, n = Size.symbol("m'"), Size.symbol("n'")

    def so_far(m: Dim, n: Dim) -> Value:
        return Load(sums, m * c.n + n)

    def keep(m: Dim, n: Dim, acc: Value) -> Stmts:
        return (Store(sums, m * c.n + n, acc),)

    steps = replace(c, groups=layout.sums, start=so_far, epilogue=keep)
    zero = Store(sums, n, Literal(0, c.dtype))
    finish = Loop("n'", c.n, c.epilogue(m, n, so_far(m, n)), "vector")
    between = () if by_group else (Barrier(),)
    body: Stmts = (
        Loop("n'", c.m * c.n, (zero,), "vector", split=not by_group),
        *between,
        *contraction_loops(steps, b.target, packed, split=not by_group),
        *between,
        Loop("m'", c.m, (finish,), split=not by_group),
    )
    for var, extent in reversed(c.groups):
        body = (Loop(var, extent, body),)
    return body


def plain_product(b: Builder) -> Stmts:
    """A product whose axes no template takes: one sum of products an element."""
    node, rest = b.kernel.anchor, b.kernel.nodes[1:]
    op, dtype = node.op, node.type.dtype
    assert isinstance(op, Contract)
    sizes = letter_sizes(node)
    x, y = (b.reader(i) for i in node.inputs)
    acc = Local("acc", dtype)

    def element(index: Index) -> Stmts:
        at = dict(zip(op.out, index, strict=True))

        def add(k: Index) -> Stmts:
            full = at | dict(zip(op.summed, k, strict=True))
            left, right = x(tuple(full[c] for c in op.a)), y(tuple(full[c] for c in op.b))
            if dtype.is_float:
                return (Set(acc, (), Apply("fma", (left, right, Get(acc)), dtype)),)
            term = Apply("mul", (left, right), dtype)
            return (Set(acc, (), Apply("add", (Get(acc), term), dtype)),)

        b.values[node] = Get(acc)
        return (
            Set(acc, (), Literal(0, dtype)),
            *for_each(tuple(sizes[c] for c in op.summed), add, "k"),
            *b.compute(rest, index, False),
            *b.store([node, *rest], index),
        )

    nest = for_each(node.type.shape, element)
    return (acc, *split_outermost(nest, node.type.rank))
