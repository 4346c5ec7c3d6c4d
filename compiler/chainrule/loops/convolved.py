"""The loops of convolutions by minimal filtering, and of what they send back to their kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import prod

from chainrule.ir.loop import (
    LANES,
    Apply,
    Barrier,
    Buffer,
    Get,
    Let,
    Literal,
    Load,
    Local,
    Loop,
    Note,
    Set,
    Store,
    Value,
)
from chainrule.ir.node import Stmts
from chainrule.ir.size import Dim, Size
from chainrule.ir.types import float32
from chainrule.loops.builder import Builder, Maps
from chainrule.loops.channels import lay
from chainrule.loops.contract import contraction_loops
from chainrule.loops.filtering import SUMS, multiplied, transposed
from chainrule.loops.group import least
from chainrule.loops.layout import ContractLayout
from chainrule.loops.packing import packed_reader
from chainrule.loops.parts import split_outermost
from chainrule.loops.tiles import TALLEST, Contraction, tile_shapes
from chainrule.loops.turned import turned_back
from chainrule.loops.winograd import ROW, Winograd, along
from chainrule.target import SECOND

#: images in so many groups have sums of their own for a kernel's gradient; or fewer, as long as all
#: of them are more bytes than this
MOST_GROUPS, FEWEST_GROUPS, GROUPS_BYTES = 8, 2, 4 * SECOND
#: a place in a tile, and a group of images
_PLACE, _GROUP = (Size.symbol(f"{name}'") for name in "eg")
_M, _N, _J = (Size.symbol(f"{name}'") for name in "mnj")


def winograd_loops(b: Builder, layout: ContractLayout, form: Winograd, maps: Maps) -> Stmts:
    """The loops of such a product; `maps(index, sum)` is what becomes of an element."""
    plain = prod(SUMS * f.taps for f in form.filters)
    saved = f"{form.places} products for {plain}, by minimal filtering"
    return (Note(saved), *(_back if form.back else _forth)(b, layout, form, maps))


# what z is made of


def _forth(b: Builder, layout: ContractLayout, form: Winograd, maps: Maps) -> Stmts:
    c, o, node = form.x.channels, form.z.channels, b.kernel.anchor
    by_group = layout.by_group
    split, between = not by_group, () if by_group else (Barrier(),)
    kernels = b.workspace(node, form.places * c * -(-o // LANES) * LANES)
    panels = packed_reader(kernels, form.places * c)
    image, laid = lay(b, form.x, layout.index(layout.b, {})[0], by_group)
    of_x = b.workspace(node, form.places * form.plane(c), by_group)
    of_z = b.workspace(node, form.places * form.plane(o), by_group)
    height, width = form.z.extents[0], form.z.extents[-1]
    near = height % SUMS == 0 and form.axes > 1  # sums are turned back block after block
    pixels = SUMS * form.block * width if near else form.z.size
    sums = b.workspace(node, o * (pixels // LANES + 1) * LANES, by_group)
    product = Contraction(
        (),
        form.block * form.tiles[-1],
        o,
        c,
        lambda m, k: Load(of_x, _PLACE * form.plane(c) + m * c + k),
        lambda k, n: panels(_PLACE * c + k, n),
        float32,
        lambda m, n, acc: (Store(of_z, _PLACE * form.plane(o) + m * o + n, acc),),
    )
    product = _evenly(product, b)
    row = ROW if near else form.row(ROW)
    columns = (form.row(0) * (SUMS * width), pixels) if near else None
    turn = turned_back(b, layout, lambda m, n: Load(sums, m * o + n), maps, split, columns, True)
    block = (
        *form.each_tile(
            partial(form.image_tile, form.x, [f.b for f in form.filters], image, of_x), c, split
        ),
        *between,
        Loop("e'", form.places, contraction_loops(product, b.target, None), split=split),
        *between,
        *form.each_tile(partial(_z_sums, form, of_z, sums, row, pixels), o, split),
        *between,
        *((*turn, *between) if near else ()),
    )
    body: Stmts = (*laid, *between, *form.each_block(block), *(() if near else turn))
    for var, extent in reversed(layout.groups):
        body = (Loop(var, extent, body),)
    body = split_outermost(body, len(layout.groups)) if by_group else body
    return (*_kernel_tiles(b, layout, form, panels), Barrier(), *body)


def _kernel_tiles(
    b: Builder, layout: ContractLayout, form: Winograd, panels: Callable[[Dim, Dim], Load]
) -> Stmts:
    """G k Gᵀ for all kernels and channels, in panels of kernels."""
    kernel, c, o = b.reader(form.z.node), form.x.channels, form.z.channels
    channel, offsets = layout.b[1], layout.b[2 : 2 + form.axes]

    def tile(of: Dim) -> Stmts:
        def read(at: tuple[int, ...]) -> Value:
            places = {layout.row: of, channel: _M, **dict(zip(offsets, at, strict=True))}
            return kernel(layout.index(layout.a, places))

        def write(number: int, value: Value) -> Stmts:
            to = panels(number * c + _M, of)
            return (Store(to.buffer, to.offset, value),)

        return multiplied([f.g for f in form.filters], read, write)

    return (Loop("m'", c, along(o, tile), split=True),)


def _z_sums(
    form: Winograd, of_z: Buffer, sums: Buffer, row: Dim, outside: int, kernel: Dim
) -> Stmts:
    """The sums of a tile, from its products: those outside of the image go where none is read."""
    o, extents = form.z.channels, form.z.extents

    def read(at: tuple[int, ...]) -> Value:
        return Load(of_z, form.tile(form.number(at), o, kernel))

    def write(number: int, value: Value) -> Stmts:
        places = (number // SUMS ** (form.axes - 1 - i) % SUMS for i in range(form.axes))
        flat: Dim = 0
        beyond: Dim = 0
        for place, extent in zip(form.element(row, tuple(places)), extents, strict=True):
            flat = flat * extent + place
            if extent % SUMS:
                beyond = beyond + place // extent - beyond * (place // extent)
        return (Store(sums, (flat + beyond * (outside - flat)) * o + kernel, value),)

    return multiplied([f.a for f in form.filters], read, write)


# what z sends back to the kernel


def _back(b: Builder, layout: ContractLayout, form: Winograd, maps: Maps) -> Stmts:
    """Images are summed over in groups, whatever the threads: how many there are is a matter of
    sizes, and so are the sums. Of fewer images each is a group: none is empty.
    """
    c, o, node = form.x.channels, form.z.channels, b.kernel.anchor
    images, size = layout.sizes[layout.b[0]], form.places * o * c
    most = _most_groups(size)
    groups = _of_any(images, most)
    first, after = (_most(images * (_GROUP + i) // most, _GROUP + i) for i in (0, 1))
    last = least(after, images)
    at = Size.symbol("first'") + Size.symbol("a'")
    image, x_laid = lay(b, form.x, at, True)
    slopes, z_laid = lay(b, form.z, at, True)
    sums = b.workspace(node, (groups if isinstance(groups, int) else most) * size)
    of_x = b.workspace(node, form.places * form.plane(c), True)
    of_z = b.workspace(node, form.places * form.plane(o), True)

    def so_far(m: Dim, n: Dim) -> Load:
        return Load(sums, _GROUP * size + (_PLACE * o + m) * c + n)

    product = Contraction(
        (),
        o,
        c,
        form.block * form.tiles[-1],
        lambda m, k: Load(of_z, _PLACE * form.plane(o) + k * o + m),
        lambda k, n: Load(of_x, _PLACE * form.plane(c) + k * c + n),
        float32,
        lambda m, n, acc: (Store(sums, so_far(m, n).offset, acc),),
        start=so_far,
    )
    product = _evenly(product, b)
    block = (
        *form.each_tile(
            partial(form.image_tile, form.x, [f.b for f in form.filters], image, of_x), c, False
        ),
        *form.each_tile(
            partial(form.image_tile, form.z, [transposed(f.a) for f in form.filters], slopes, of_z),
            o,
            False,
        ),
        Loop("e'", form.places, contraction_loops(product, b.target, None)),
    )
    zero = Store(sums, _GROUP * size + _N, Literal(0, float32))
    group: Stmts = (
        Loop("n'", size, (zero,), "vector"),
        Let("first'", first),
        Loop("a'", last - first, (*x_laid, *z_laid, *form.each_block(block))),
    )
    body = Loop("g'", groups, group, split=True)
    return (body, Barrier(), *_kernel_sums(b, layout, form, groups, sums, maps))


def _most_groups(size: int) -> int:
    """Into how many groups images go at most: sums have so many elements."""
    groups = MOST_GROUPS
    while groups > FEWEST_GROUPS and groups * size * float32.itemsize > GROUPS_BYTES:
        groups //= 2
    return groups


def _of_any(images: Dim, groups: int) -> Dim:
    """So many groups, or one for each image; one, of nothing, for none."""
    if isinstance(images, int):
        return min(groups, max(images, 1))
    return least(groups, images) + 1 - least(images, 1)


def _most(a: Dim, b: Dim) -> Dim:
    """The larger of two sizes."""
    return a + b - least(a, b)


def _kernel_sums(
    b: Builder, layout: ContractLayout, form: Winograd, groups: Dim, sums: Buffer, maps: Maps
) -> Stmts:
    """What becomes of Gᵀ s G, where s are the sums of all groups, in the order of the result."""
    c, o, taps = form.x.channels, form.z.channels, prod(f.taps for f in form.filters)
    turned = b.workspace(b.kernel.anchor, o * c * taps)

    def kernel(channel: Dim) -> Stmts:
        def read(at: tuple[int, ...]) -> Value:
            return Load(sums, (form.number(at) * o + _M) * c + channel)

        def write(number: int, value: Value) -> Stmts:
            return (Store(turned, (_M * c + channel) * taps + number, value),)

        return multiplied([transposed(f.g) for f in form.filters], read, write)

    all_groups = Loop("e'", form.places, _together(form, groups, sums))
    finish = maps(layout.out(_M, _N), Load(turned, _M * (c * taps) + _N))
    return (
        Loop("m'", o, (*((all_groups,) if groups != 1 else ()), *along(c, kernel)), split=True),
        Barrier(),
        Loop("m'", o, (Loop("n'", c * taps, finish, "vector"),), split=True),
    )


def _together(form: Winograd, groups: Dim, sums: Buffer) -> Stmts:
    """The sums of all groups, one after the other, at a place and for a kernel, in the first's."""
    c, o = form.x.channels, form.z.channels
    acc = Local("acc", float32, (1,), True)

    def some(channel: Dim, lanes: int) -> Stmts:
        at = (_PLACE * o + _M) * c + channel
        more = Load(sums, (_GROUP + 1) * (form.places * o * c) + at)
        first: Stmts = (Set(acc, (0,), Load(sums, at)),)
        add: Stmts = (Set(acc, (0,), Apply("add", (Get(acc, (0,)), more), float32)),)
        keep: Stmts = (Store(sums, at, Get(acc, (0,))),)
        first, add, keep = ((Loop("j'", lanes, s, "vector"),) for s in (first, add, keep))
        return (acc, *first, Loop("g'", groups - 1, add), *keep)

    whole = Loop("n'", c // LANES, some(_N * LANES + _J, LANES))
    return (whole, *(some(c - c % LANES + _J, c % LANES) if c % LANES else ()))


def _evenly(c: Contraction, b: Builder) -> Contraction:
    """A product with rows in tiles of one height, where one that divides them is tall enough."""
    tallest = tile_shapes(c, b.target, TALLEST)[0][0].rows
    assert isinstance(c.m, int)
    height = max(h for h in range(1, tallest + 1) if c.m % h == 0)
    return replace(c, height=height) if 2 * height >= tallest else c
