"""Convolutions of three taps an axis with fewer multiplications, by minimal filtering.

All terms of one place of a tile, over channels, are a matrix product: images and kernels become
tiles, one product for each of a tile's places follows, and sums come of its results. What z sends
back to the kernel is the adjoint of the same form. An image at a time is laid down with its
channels side by side, and a block of its tiles stays in the second cache from the first to the
last of this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import prod

from chainrule.ir.loop import (
    LANES,
    Apply,
    Barrier,
    Buffer,
    Let,
    Literal,
    Load,
    Loop,
    Note,
    Set,
    Store,
    Value,
    fills,
)
from chainrule.ir.node import Index, Node, Stmts
from chainrule.ir.size import Dim, Size
from chainrule.ir.types import float32
from chainrule.loops.builder import Builder
from chainrule.loops.channels import Image, lay
from chainrule.loops.contract import contraction_loops, packed_reader
from chainrule.loops.filtering import SUMS, TAPS, TILE, A, B, G, Matrix, multiplied, transposed
from chainrule.loops.layout import ContractLayout
from chainrule.loops.parts import split_outermost
from chainrule.loops.tiles import TALLEST, Contraction, tile_shapes
from chainrule.loops.turned import turned_back
from chainrule.ops.cast import widens
from chainrule.ops.contract import Contract
from chainrule.ops.windows import Window
from chainrule.records import dataclass

#: channels of either side, and tiles of an image, from which it is worth it
FEWEST_CHANNELS, FEWEST_TILES = 16, 16
#: bytes of a block of tiles, which is to stay in the second cache
BLOCK_BYTES = 2**18
#: elements between the tiles of one place and those of the next, so as not to evict each other
APART = LANES
#: images in so many groups have sums of their own for a kernel's gradient; or fewer, as long as all
#: of them are more bytes than this
MOST_GROUPS, FEWEST_GROUPS, GROUPS_BYTES = 8, 2, 2**22

#: a row of tiles in its block, a tile in its row, a place in a tile, a block, and a group of images
_ROW, _AT, _PLACE, _BLOCK, _GROUP = (Size.symbol(f"{name}'") for name in "ydebg")
_M, _N, _J = (Size.symbol(f"{name}'") for name in "mnj")

Maps = Callable[[Index, Value], Stmts]
#: what is done at a place that lanes go along
Lanes = Callable[[Dim], Stmts]


@dataclass(frozen=True)
class Winograd:
    """A convolution, or what it sends `back` to its kernel: between images of `x` and of `z`, which
    have so many `tiles` along each axis.
    """

    back: bool
    x: Image
    z: Image
    tiles: tuple[int, ...]

    @staticmethod
    def of(b: Builder, layout: ContractLayout) -> Winograd | None:
        """The form of a product; None where it is another one, or too small."""
        node = b.kernel.anchor
        first, windows = layout.order(node.inputs)
        slides, op = windows.op, node.op
        if not isinstance(slides, Window) or slides.axis != 2 or slides.spatial > 2:
            return None
        steps = {*slides.strides, *slides.dilations}
        if set(slides.sizes) != {TAPS} or steps != {1} or node.type.dtype != float32:
            return None
        assert isinstance(op, Contract)
        if op.parts > 1 or all(map(widens, node.inputs)):
            return None
        n, c, rest, r = layout.b[0], layout.b[1], layout.b[2:], slides.spatial
        offsets, at, o = rest[:r], rest[r:], layout.row
        kernels = (o + c + offsets, c + o + offsets)
        back = layout.letters == o + c + offsets and layout.a == n + o + at
        forth = layout.letters == n + o + at and layout.a in kernels
        if len(o) != 1 or not (back or forth) or layout.column != (c + offsets if back else at):
            return None
        return Winograd.sized(layout, first, windows.inputs[0], (c, o, at), back)

    @staticmethod
    def sized(
        layout: ContractLayout, first: Node, view: Node, letters: Sequence[str], back: bool
    ) -> Winograd | None:
        """The form with its sizes, where they are known and large enough."""
        letter_sizes = [layout.sizes[c] for c in "".join(letters)]
        sizes = [d for d in letter_sizes if isinstance(d, int)]
        if len(sizes) < len(letter_sizes):
            return None
        c, o, *extents = sizes
        tiles = tuple(-(-n // SUMS) for n in extents)
        if min(c, o) < FEWEST_CHANNELS or prod(tiles) < FEWEST_TILES:
            return None
        if not (fills(c, 0.75) and fills(o, 0.75)):
            return None
        x = Image.of(view, c, tuple(SUMS * n + TILE - SUMS for n in tiles))
        no_padding = (0,) * len(tiles)
        z = Image(first, o, tuple(extents), no_padding, tuple(SUMS * n for n in tiles))
        return Winograd(back, x, z, tiles) if x else None

    @property
    def axes(self) -> int:
        """The axes that windows slide along."""
        return len(self.tiles)

    @property
    def places(self) -> int:
        """The elements of a tile."""
        return TILE**self.axes

    @property
    def rows(self) -> int:
        """The rows of tiles in an image."""
        return prod(self.tiles[:-1])

    @property
    def block(self) -> int:
        """How many rows of tiles make a block."""
        channels = self.x.channels + self.z.channels
        most = BLOCK_BYTES // (self.places * channels * self.tiles[-1] * float32.itemsize)
        return max(d for d in range(1, self.rows + 1) if self.rows % d == 0 and d <= max(1, most))

    def plane(self, channels: int) -> int:
        """Elements from a block's tiles at one place to those at the next."""
        return self.block * self.tiles[-1] * channels + APART

    def tile(self, place: int, channels: int, channel: Dim) -> Dim:
        """Where a channel of a tile's place stands in a block."""
        return place * self.plane(channels) + (_ROW * self.tiles[-1] + _AT) * channels + channel

    def row(self, row: Dim) -> Dim:
        """A row of tiles of the image, by its place in the block."""
        return _BLOCK * self.block + row if self.rows > self.block else row

    def element(self, row: Dim, at: Sequence[int]) -> tuple[Dim, ...]:
        """Where an element of a tile stands in the image."""
        corner = (row, _AT)[-self.axes :]
        return tuple(SUMS * t + i for t, i in zip(corner, at, strict=True))

    def each_tile(self, body: Lanes, channels: int, split: bool) -> Stmts:
        """Something done for each tile of a block, lanes along channels."""
        row = Loop("d'", self.tiles[-1], _along(channels, body), split=split and self.block == 1)
        return (Loop("y'", self.block, (row,), split=split and self.block > 1),)

    def each_block(self, body: Stmts) -> Stmts:
        """Something done for each block of an image."""
        count = self.rows // self.block
        return body if count == 1 else (Loop("b'", count, body),)


def winograd_loops(b: Builder, layout: ContractLayout, form: Winograd, maps: Maps) -> Stmts:
    """The loops of such a product; `maps(index, sum)` is what becomes of an element."""
    saved = f"{form.places} products for {(SUMS * TAPS) ** form.axes}, by minimal filtering"
    return (Note(saved), *(_back if form.back else _forth)(b, layout, form, maps))


# what z is made of


def _forth(b: Builder, layout: ContractLayout, form: Winograd, maps: Maps) -> Stmts:
    c, o, node = form.x.channels, form.z.channels, b.kernel.anchor
    by_group = any(extent != 1 for _, extent in layout.groups)
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
    row = _ROW if near else form.row(_ROW)
    columns = (form.row(0) * (SUMS * width), pixels) if near else None
    turn = turned_back(b, layout, lambda m, n: Load(sums, m * o + n), maps, split, columns, True)
    block = (
        *form.each_tile(partial(_x_tile, form, image, of_x), c, split),
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

        return multiplied(G, form.axes, read, write)

    return (Loop("m'", c, _along(o, tile), split=True),)


def _z_sums(
    form: Winograd, of_z: Buffer, sums: Buffer, row: Dim, outside: int, kernel: Dim
) -> Stmts:
    """The sums of a tile, from its products: those outside of the image go where none is read."""
    o, extents = form.z.channels, form.z.extents

    def read(at: tuple[int, ...]) -> Value:
        return Load(of_z, form.tile(_number(at), o, kernel))

    def write(number: int, value: Value) -> Stmts:
        places = (number // SUMS ** (form.axes - 1 - i) % SUMS for i in range(form.axes))
        flat: Dim = 0
        beyond: Dim = 0
        for place, extent in zip(form.element(row, tuple(places)), extents, strict=True):
            flat = flat * extent + place
            if extent % SUMS:
                beyond = beyond + place // extent - beyond * (place // extent)
        return (Store(sums, (flat + beyond * (outside - flat)) * o + kernel, value),)

    return multiplied(A, form.axes, read, write)


# what z sends back to the kernel


def _back(b: Builder, layout: ContractLayout, form: Winograd, maps: Maps) -> Stmts:
    """Images are summed over in groups, whatever the threads: how many there are is a matter of
    sizes, and so are the sums.
    """
    c, o, node = form.x.channels, form.z.channels, b.kernel.anchor
    images, size = layout.sizes[layout.b[0]], form.places * o * c
    groups = _groups(images, size)
    first, last = (images * (_GROUP + i) // groups for i in (0, 1))
    at = Size.symbol("first'") + Size.symbol("a'")
    image, x_laid = lay(b, form.x, at, True)
    slopes, z_laid = lay(b, form.z, at, True)
    sums = b.workspace(node, groups * size)
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
        *form.each_tile(partial(_x_tile, form, image, of_x), c, False),
        *form.each_tile(partial(_z_tile, form, slopes, of_z), o, False),
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


def _groups(images: Dim, size: int) -> int:
    """Into how many groups images go: sums have so many elements."""
    groups = MOST_GROUPS
    while groups > FEWEST_GROUPS and groups * size * float32.itemsize > GROUPS_BYTES:
        groups //= 2
    return min(groups, images) if isinstance(images, int) else groups


def _kernel_sums(
    b: Builder, layout: ContractLayout, form: Winograd, groups: int, sums: Buffer, maps: Maps
) -> Stmts:
    """What becomes of Gᵀ s G, where s are the sums of all groups, in the order of the result."""
    c, o, taps = form.x.channels, form.z.channels, TAPS**form.axes
    size = form.places * o * c
    turned = b.workspace(b.kernel.anchor, o * c * taps)

    def together(channel: Dim) -> Stmts:
        place = (_PLACE * o + _M) * c + channel
        value: Value = Load(sums, place)
        for group in range(1, groups):
            value = Apply("add", (value, Load(sums, group * size + place)), float32)
        return (Store(sums, place, value),)

    def kernel(channel: Dim) -> Stmts:
        def read(at: tuple[int, ...]) -> Value:
            return Load(sums, (_number(at) * o + _M) * c + channel)

        def write(number: int, value: Value) -> Stmts:
            return (Store(turned, (_M * c + channel) * taps + number, value),)

        return multiplied(transposed(G), form.axes, read, write)

    all_groups = Loop("e'", form.places, _along(c, together))
    finish = maps(layout.out(_M, _N), Load(turned, _M * (c * taps) + _N))
    return (
        Loop("m'", o, (*((all_groups,) if groups > 1 else ()), *_along(c, kernel)), split=True),
        Barrier(),
        Loop("m'", o, (Loop("n'", c * taps, finish, "vector"),), split=True),
    )


# tiles of images, in the order of their places


def _x_tile(form: Winograd, laid: Buffer, of_x: Buffer, channel: Dim) -> Stmts:
    """Bᵀ x B of a tile."""
    return _image_tile(form, form.x, B, laid, of_x, channel)


def _z_tile(form: Winograd, laid: Buffer, of_z: Buffer, channel: Dim) -> Stmts:
    """A z Aᵀ of a tile."""
    return _image_tile(form, form.z, transposed(A), laid, of_z, channel)


def _image_tile(
    form: Winograd, image: Image, matrix: Matrix, laid: Buffer, to: Buffer, channel: Dim
) -> Stmts:
    channels = image.channels

    def read(at: tuple[int, ...]) -> Value:
        flat: Dim = 0
        for place, size in zip(form.element(form.row(_ROW), at), image.room, strict=True):
            flat = flat * size + place
        return Load(laid, flat * channels + channel)

    def write(number: int, value: Value) -> Stmts:
        return (Store(to, form.tile(number, channels, channel), value),)

    return multiplied(matrix, form.axes, read, write)


def _evenly(c: Contraction, b: Builder) -> Contraction:
    """A product with rows in tiles of one height, where one that divides them is tall enough."""
    tallest = tile_shapes(c, b.target, TALLEST)[0][0].rows
    assert isinstance(c.m, int)
    height = max(h for h in range(1, tallest + 1) if c.m % h == 0)
    return replace(c, height=height) if 2 * height >= tallest else c


def _number(at: Sequence[int]) -> int:
    """The place of an element of a tile, as a number."""
    number = 0
    for i in at:
        number = number * TILE + i
    return number


def _along(size: int, body: Lanes) -> Stmts:
    """Something done in vectors, in a loop over whole ones, and what is left: the body is much
    code, which would stand there for each of a few vectors.
    """
    out: Stmts = ()
    whole, rest = size // LANES, size % LANES
    for first, lanes in ((_N * LANES, LANES), (size - rest, rest)):
        if lanes == 0 or size < lanes:
            continue
        made = body(first + _J)
        cells = dict.fromkeys(s.local for s in made if isinstance(s, Set))
        vector = (*cells, Loop("j'", lanes, made, "vector"))
        out += (Loop("n'", whole, vector),) if lanes == LANES else vector
    return out
