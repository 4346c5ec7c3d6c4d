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
    LANES,
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
    fills,
)
from chainrule.ir.node import Index, Node, Stmts, for_each
from chainrule.ir.size import Dim, Size, product
from chainrule.ir.types import int32
from chainrule.loops.abreast import abreast_loops, stands_abreast
from chainrule.loops.blocks import block_loops, room_for, takes_blocks
from chainrule.loops.builder import Builder, Maps
from chainrule.loops.contract import (
    block_sizes,
    contraction_loops,
    packed_once,
    packed_size,
    panels_size,
    with_guess,
)
from chainrule.loops.convolved import winograd_loops
from chainrule.loops.dots import DotTile, dot_loops, goes_along
from chainrule.loops.few import has_few_rows
from chainrule.loops.flat import flat_size
from chainrule.loops.images import ImageTile, image_loops, left_over
from chainrule.loops.laid import Laid
from chainrule.loops.layout import ContractLayout, letter_sizes
from chainrule.loops.packing import is_strided
from chainrule.loops.pairs import pair_loops, sums_size, takes_pairs, word_sizes
from chainrule.loops.parts import split_outermost
from chainrule.loops.tiles import Contraction, tile_size
from chainrule.loops.turned import TurnedTile, turned_loops
from chainrule.loops.walk import at_most
from chainrule.loops.winograd import Winograd
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
    if layout is None or 0 in layout.sizes.values():  # nothing is shared out, or copied
        return plain_product(b)
    winograd = Winograd.of(b, layout)
    if winograd is not None:
        return winograd_loops(b, layout, winograd, maps)
    laid = Laid.of(b, layout)
    return (*laid.all, *_laid_product(b, layout, laid, maps))


def _laid_product(b: Builder, layout: ContractLayout, laid: Laid, maps: Maps) -> Stmts:
    """A product in the form that its windows call for, if it is of such; else in tiles."""
    turned = TurnedTile.of(b, layout)
    if turned is not None and turned.all and laid.each:  # no image stays for all terms of a sum
        turned = None
    images = ImageTile.of(b, layout) if turned is None and not laid.each else None
    if images is not None:
        return _by_images(b, layout, images, laid, maps)
    slides = not laid.each and _slides(b, layout, turned is not None)
    if turned is not None and not slides:
        return turned_loops(b, layout, turned, laid, maps)
    tile = DotTile.of(b, layout) if any(layout.gathered) else None
    if tile is not None:
        return dot_loops(b, layout, tile, laid, maps)
    return _in_tiles(b, layout, laid, maps, slides)


def _by_images(
    b: Builder, layout: ContractLayout, tile: ImageTile, laid: Laid, maps: Maps
) -> Stmts:
    """LANES images at a time, then one by one those that are left."""
    images = layout.sizes[tile.image]
    if isinstance(images, int) and images % LANES == 0:
        return image_loops(b, layout, tile, maps)
    (one_by_one,) = _in_tiles(b, layout, laid, maps, _slides(b, layout, False))
    return (*image_loops(b, layout, tile, maps), left_over(one_by_one, tile, images))


def _slides(b: Builder, layout: ContractLayout, turns: bool) -> bool:
    """Whether vectors had better go along the columns of a view where it stands.

    Where they would not be full, the product turned or copies are as good, unless they are of few
    terms, or the other factor would be copied too.
    """
    last = layout.column[-1]
    y = layout.order(b.kernel.anchor.inputs)[1]
    in_steps = bool(layout.outer) and y.op.role == "view"
    if not (layout.gathered[1] or in_steps) or not goes_along(b.reader(y), layout.b, last):
        return False
    few = at_most(product(tuple(layout.sizes[c] for c in layout.outer + layout.inner)), FEW)
    both = layout.gathered[0] and not turns
    return fills(layout.sizes[last], 0.75 if few or both else 0.9)


def _in_tiles(b: Builder, layout: ContractLayout, laid: Laid, maps: Maps, slides: bool) -> Stmts:
    """Tiles of rows by vectors of columns, which go along a view where it stands if it `slides`."""
    layout = (ContractLayout.of(b.kernel, sliding=True) if slides else None) or layout
    c = _contraction(b, layout, laid, maps)
    parts = 0 if laid.first or laid.each else _parts(b, layout)
    if parts and b.target.blocks and takes_blocks(c, parts):
        body = _blocks(b, c, layout.by_group, parts)
    elif parts == 1 and takes_pairs(c):
        body = _pairs(b, c, layout.by_group)
    else:
        body = _panels(b, c, layout, laid)
    return split_outermost(body, len(layout.groups)) if layout.by_group else body


def _contraction(b: Builder, layout: ContractLayout, laid: Laid, maps: Maps) -> Contraction:
    """The product as the templates take it: by rows, columns and terms."""
    x, y = layout.order(b.kernel.anchor.inputs)
    first, copy_first = _factor(b, layout, x, layout.a, layout.gathered[0] and not layout.sliding)
    second, copy_second = _factor(b, layout, y, layout.b, layout.gathered[1] and not layout.sliding)
    c = Contraction(
        layout.groups,
        layout.m,
        layout.n,
        layout.k,
        lambda m, k: first(layout.first(m, k)),
        lambda k, n: second(layout.second(k, n)),
        b.kernel.anchor.type.dtype,
        lambda m, n, acc: maps(layout.out(m, n), acc),
        before=(*copy_first, *copy_second),
        own=laid.each,
        choice=b.choice,
    )
    if not layout.sliding:
        return c
    outside, inside = layout.split_groups
    return replace(c, groups=outside, inside=inside, terms=layout.sums, width=layout.width)


def _blocks(b: Builder, c: Contraction, by_group: bool, parts: int) -> Stmts:
    """A product of bfloat16, or of float32 in parts, by blocks."""
    room = room_for(c, parts)
    own = [by_group or mine for mine in room.own]
    words = b.scratch_of(int32, room.left, own[0]), b.scratch_of(int32, room.right, own[1])
    sums, turned = (
        b.workspace(b.kernel.anchor, room.sums, own[2]),
        b.scratch_of(int32, room.turned, True),
    )
    return block_loops(c, words, sums, turned, not by_group, parts)


def _pairs(b: Builder, c: Contraction, by_group: bool) -> Stmts:
    """A product of bfloat16, pairs of terms at a time."""
    left, right = word_sizes(c)
    words = b.scratch_of(int32, left, by_group), b.scratch_of(int32, right, by_group)
    sums = b.workspace(b.kernel.anchor, sums_size(b.target), True)
    return pair_loops(c, b.target, words, sums, split=not by_group)


def _panels(b: Builder, c: Contraction, layout: ContractLayout, laid: Laid) -> Stmts:
    """A product in tiles of registers, its second factor copied in panels where that pays: once for
    all steps of a loop in which it is the same.
    """
    plain = not (layout.sliding or layout.by_group or layout.outer or layout.gathered[1])
    fixed = plain and b.is_fixed(layout.order(b.kernel.anchor.inputs)[1])
    if fixed:
        c, fill = packed_once(c, b.last(b.kernel.anchor, panels_size(c)))
        b.once += fill
    c = replace(c, choice=with_guess(c))
    c, packed = _with_workspace(b, c, layout, fixed)
    if layout.outer and not layout.sliding:
        return _in_steps(b, c, layout, laid, packed)
    groups, split = c.groups, not layout.by_group
    body = contraction_loops(replace(c, groups=()), b.target, packed, split)
    return laid.in_groups(groups, (*body, *((Barrier(),) if split and groups else ())))


def _with_workspace(
    b: Builder, c: Contraction, layout: ContractLayout, fixed: bool
) -> tuple[Contraction, Buffer | None]:
    """A product with the workspace that its loops want, but for that of panels, which is beside it;
    there is none for those of a `fixed` factor, which lie elsewhere.
    """

    def room(size: Dim, private: bool) -> Buffer | None:
        return b.workspace(b.kernel.anchor, size, private) if size != 0 else None

    near, far = (0, 0) if layout.outer or fixed else block_sizes(c, b.target)
    if far != 0 and near == 0 and not is_strided(c):
        b.free_rows = c.m
    c = replace(c, block=room(near, layout.by_group), sums=room(far, layout.by_group))
    alone = b.target.vector_bytes <= c.dtype.itemsize  # no vectors, which b must lie for
    few = not (layout.outer or fixed) and has_few_rows(c, b.target)
    other = few or alone or layout.outer or fixed or far != 0 or is_strided(c)
    flat = 0 if other else flat_size(c)
    c = replace(c, flat=room(flat, True))
    c = replace(c, tile=room(0 if few or flat else tile_size(c, b.target), True))
    packs = not (layout.sliding or fixed or alone or few)
    return c, room(packed_size(c, b.target) if packs else 0, layout.by_group)


def _parts(b: Builder, layout: ContractLayout) -> int:
    """In how many bfloat16 a factor is multiplied, where an element is one sum; else 0."""
    op = b.kernel.anchor.op
    assert isinstance(op, Contract)
    if layout.sliding or layout.outer:
        return 0
    if all(map(widens, b.kernel.anchor.inputs)):
        return 1
    return op.parts if op.parts > 1 else 0


def _factor(
    b: Builder, layout: ContractLayout, operand: Node, letters: str, copied: bool
) -> tuple[Callable[[Mapping[str, Dim]], Value], Stmts]:
    """How a factor is read at places of runs, and what must have been done before."""
    read = b.reader(operand)
    if not copied:
        return lambda runs: read(layout.index(letters, runs)), ()
    kept = layout.inside(letters)
    shape = tuple(layout.sizes[c] for c in kept)
    copy = b.workspace(operand, product(shape), layout.by_group)

    def move(index: Index) -> Stmts:
        at = layout.index(letters, dict(zip(kept, index, strict=True)))
        return (Store(copy, ravel(index, shape), read(at)),)

    def copied_at(runs: Mapping[str, Dim]) -> Value:
        return Load(copy, ravel(layout.index(kept, runs), shape))

    return copied_at, for_each(shape, move, "w", inner="vector")


def _in_steps(
    b: Builder, c: Contraction, layout: ContractLayout, laid: Laid, packed: Buffer | None
) -> Stmts:
    """A product whose sums go on from one pass of the template to the next."""
    split, between = not layout.by_group, () if layout.by_group else (Barrier(),)
    sums = b.workspace(b.kernel.anchor, c.m * c.n, layout.by_group)
    m, n = Size.symbol("m'"), Size.symbol("n'")

    def so_far(m: Dim, n: Dim) -> Value:
        return Load(sums, m * c.n + n)

    def keep(m: Dim, n: Dim, acc: Value) -> Stmts:
        return (Store(sums, m * c.n + n, acc),)

    steps = replace(c, groups=layout.sums, start=so_far, epilogue=keep)
    zero = Store(sums, n, Literal(0, c.dtype))
    finish = Loop("n'", c.n, c.epilogue(m, n, so_far(m, n)), "vector")
    body: Stmts = (
        Loop("n'", c.m * c.n, (zero,), "vector", split=split),
        *between,
        *contraction_loops(steps, b.target, packed, split),
        *between,
        Loop("m'", c.m, (finish,), split=split),
    )
    return laid.in_groups(c.groups, body)


def plain_product(b: Builder) -> Stmts:
    """A product whose axes no template takes, or of nothing: one sum of products an element."""
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
