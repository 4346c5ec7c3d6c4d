"""Convolutions of three taps an axis with fewer multiplications: Winograd's minimal filtering.

Two neighbouring sums of three taps take 4 products of sums, where they take 6 by themselves:

    z = Aᵀ [(G k) ⊙ (Bᵀ x)]        x: a tile of 4, k: 3, z: 2

and along two axes 16 where they take 36. All terms of one place of a tile, over channels, are a
matrix product. The adjoint of the same form gives what z sends back to k. Additions and halves are
all that tiles are made with, so rounding is about that of the plain sums (S. Winograd, "Arithmetic
Complexity of Computations", SIAM, 1980; A. Lavin, S. Gray, "Fast Algorithms for Convolutional
Neural Networks", CVPR 2016, arXiv:1509.09308, F(2x2, 3x3)).

Images are laid down turned, channels side by side, an image at a time, for lanes to go along them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product as places_of

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
from chainrule.ir.node import Index, Node, Reader, Stmts
from chainrule.ir.size import Dim, Size
from chainrule.ir.types import DType, float32
from chainrule.loops.builder import Builder
from chainrule.loops.contract import contraction_loops, packed_reader
from chainrule.loops.layout import ContractLayout, is_view
from chainrule.loops.parts import by_one, split_outermost
from chainrule.loops.tiles import Contraction
from chainrule.loops.turned import turned_back
from chainrule.ops.cast import widens
from chainrule.ops.contract import Contract
from chainrule.ops.layout import unravel
from chainrule.ops.padding import Padded
from chainrule.ops.windows import Window
from chainrule.records import dataclass

Matrix = tuple[tuple[float, ...], ...]

#: taps of a kernel, sums and elements of a tile, along an axis
TAPS, SUMS, TILE = 3, 2, 4
#: what a tile of x, of k and of z is multiplied by
B: Matrix = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
G: Matrix = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
A: Matrix = ((1, 1, 1, 0), (0, 1, -1, -1))
#: channels of either side, and tiles of an image, from which it is worth it
FEWEST_CHANNELS, FEWEST_TILES = 16, 16
#: bytes of a block of tiles, which is to stay in the second cache
BLOCK_BYTES = 2**18
#: elements between the tiles of one place and those of the next, so as not to evict each other
APART = LANES

_M, _N, _I, _J = (Size.symbol(f"{name}'") for name in "mnij")
#: a row of tiles, a tile in it, and a place of a tile
_ROW, _AT, _PLACE, _BLOCK = (Size.symbol(f"{name}'") for name in "ydeb")


@dataclass(frozen=True)
class Image:
    """One operand, an image at a time: `node` read at (image, channel, ...), with so many zeros
    `before` it along each axis, laid down in `room`, its size with all that is around it.
    """

    node: Node
    channels: int
    extents: tuple[int, ...]
    before: tuple[int, ...]
    room: tuple[int, ...]


@dataclass(frozen=True)
class Winograd:
    """A convolution, or what it sends back to its kernel: between an image of `x` and one of `z`,
    of so many tiles along each axis.
    """

    back: bool
    x: Image
    z: Image
    kernel: Node | None
    image: Dim
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
        r = slides.spatial
        n, c, offsets, at = (layout.b[i:j] for i, j in ((0, 1), (1, 2), (2, 2 + r), (2 + r, None)))
        o = layout.row
        back = layout.letters == o + c + offsets and layout.a == n + o + at
        forth = layout.letters == n + o + at and layout.a in (o + c + offsets, c + o + offsets)
        if len(o) != 1 or not (back or forth) or layout.column != (c + offsets if back else at):
            return None
        return Winograd.sized(layout, first, windows, (c, o, at), back)

    @staticmethod
    def sized(
        layout: ContractLayout, first: Node, windows: Node, letters: Sequence[str], back: bool
    ) -> Winograd | None:
        """The form with its sizes, where they are known and large enough."""
        c, o, at = (tuple(layout.sizes[i] for i in run) for run in letters)
        sizes = [d for d in (*c, *o, *at) if isinstance(d, int)]
        if len(sizes) < 2 + len(at) or min(sizes[:2]) < FEWEST_CHANNELS:
            return None
        extents, tiles = tuple(sizes[2:]), tuple(-(-n // SUMS) for n in sizes[2:])
        if not all(fills(n, 0.75) for n in sizes[:2]) or _count(tiles) < FEWEST_TILES:
            return None
        room = tuple(SUMS * n + TILE - SUMS for n in tiles)
        x = _image(windows.inputs[0], sizes[0], room)
        if x is None:
            return None
        z = Image(first, sizes[1], extents, (0,) * len(at), tuple(SUMS * n for n in tiles))
        image = layout.index(layout.b, {})[0]
        return Winograd(back, x, z, None if back else first, image, tiles)

    @property
    def places(self) -> int:
        """The elements of a tile."""
        return TILE ** len(self.tiles)

    def plane(self, channels: int) -> int:
        """Elements from a block's tiles at one place to those at the next."""
        return self.block * self.tiles[-1] * channels + APART

    @property
    def block(self) -> int:
        """How many rows of tiles make a block."""
        *rows, row = self.tiles
        channels = self.x.channels + self.z.channels
        most = BLOCK_BYTES // (self.places * channels * row * float32.itemsize)
        return max(
            d for d in range(1, _count(rows) + 1) if _count(rows) % d == 0 and d <= max(1, most)
        )


def _count(sizes: Sequence[int]) -> int:
    count = 1
    for size in sizes:
        count *= size
    return count


def _image(view: Node, channels: int, room: tuple[int, ...]) -> Image | None:
    """What windows are read of, with what zeros around it."""
    padding, r = view.op, len(room)
    if not isinstance(padding, Padded):
        extents, before, node = view.type.shape[2:], (0,) * r, view
    else:
        node = view.inputs[0]
        extents, before = node.type.shape[2:], padding.before[2:]
        if padding.fill != 0 or any((*padding.before[:2], *padding.after[:2])):
            return None
    sizes = tuple(d for d in extents if isinstance(d, int))
    return Image(node, channels, sizes, before, room) if len(sizes) == r else None


def winograd_loops(
    b: Builder,
    layout: ContractLayout,
    form: Winograd,
    maps: Callable[[Index, Value], Stmts],
) -> Stmts:
    """The loops of such a product; `maps(index, sum)` is what becomes of an element."""
    return (_back if form.back else _forth)(b, layout, form, maps)


# what z is made of


def _forth(
    b: Builder,
    layout: ContractLayout,
    form: Winograd,
    maps: Callable[[Index, Value], Stmts],
) -> Stmts:
    c, o, tiles = form.x.channels, form.z.channels, form.block * form.tiles[-1]
    by_group = any(extent != 1 for _, extent in layout.groups)
    split, between = not by_group, () if by_group else (Barrier(),)
    node, panels = b.kernel.anchor, -(-o // LANES)
    kernels = b.workspace(node, form.places * c * panels * LANES)
    read = packed_reader(kernels, form.places * c)
    *_, width = form.z.extents
    near = form.z.extents[0] % SUMS == 0 and len(form.tiles) > 1  # sums are turned back by blocks
    pixels = SUMS * form.block * width if near else _count(form.z.extents)
    sums = b.workspace(node, o * (pixels // LANES + 1) * LANES, by_group)
    of_x = b.workspace(node, form.places * form.plane(c), by_group)
    of_z = b.workspace(node, form.places * form.plane(o), by_group)
    image, laid = _lay(b, form.x, form.image, by_group)

    def keep(m: Dim, n: Dim, acc: Value) -> Stmts:
        return (Store(of_z, _PLACE * form.plane(o) + m * o + n, acc),)

    product = Contraction(
        (),
        tiles,
        o,
        c,
        lambda m, k: Load(of_x, _PLACE * form.plane(c) + m * c + k),
        lambda k, n: read(_PLACE * c + k, n),
        float32,
        keep,
    )

    def so_far(row: Dim, column: Dim) -> Value:
        return Load(sums, row * o + column)

    columns = (_first(form, 0) * (SUMS * width), pixels) if near else None
    turn = turned_back(b, layout, so_far, maps, split, columns)
    blocks = (
        *_tiles(form, partial(_x_tile, form, image, of_x), c, split),
        *between,
        Loop("e'", form.places, contraction_loops(product, b.target, None), split=split),
        *between,
        *_tiles(form, partial(_z_sums, form, of_z, sums, near, pixels), o, split),
        *between,
        *((*turn, *between) if near else ()),
    )
    body: Stmts = (*laid, *between, *_blocks(form, blocks), *(() if near else turn))
    for var, extent in reversed(layout.groups):
        body = (Loop(var, extent, body),)
    body = split_outermost(body, len(layout.groups)) if by_group else body
    return (*_kernel_tiles(b, layout, form, read), Barrier(), *body)


def _kernel_tiles(
    b: Builder, layout: ContractLayout, form: Winograd, place: Callable[[Dim, Dim], Load]
) -> Stmts:
    """G k Gᵀ for all kernels and channels, in panels of kernels."""
    assert form.kernel is not None
    kernel, c, o, r = b.reader(form.kernel), form.x.channels, form.z.channels, len(form.tiles)
    channel, offsets = layout.b[1], layout.b[2 : 2 + r]

    def tile(first: Dim) -> Stmts:
        def read(at: tuple[int, ...]) -> Value:
            places = {layout.row: first + _J, channel: _N, **dict(zip(offsets, at, strict=True))}
            return kernel(layout.index(layout.a, places))

        def write(number: int, value: Value) -> Stmts:
            to = place(number * c + _N, first + _J)
            return (Store(to.buffer, to.offset, value),)

        return multiplied(G, r, read, write)

    whole: Stmts = (Loop("m'", o // LANES, _over_lanes(LANES, tile(_M * LANES))),)
    rest = _over_lanes(o % LANES, tile(o - o % LANES)) if o % LANES else ()
    return (Loop("n'", c, (*whole, *rest), split=True),)


def _z_sums(
    form: Winograd, of_z: Buffer, sums: Buffer, near: bool, outside: int, row: Dim
) -> Stmts:
    """The sums of a tile, from its products, those of a block alone where they are `near`: what
    lies outside of the image goes where none is read.
    """
    o, extents = form.z.channels, form.z.extents
    row = _ROW if near else row

    def read(at: tuple[int, ...]) -> Value:
        return Load(of_z, _number(at) * form.plane(o) + _tile(form) * o + _N)

    def write(number: int, value: Value) -> Stmts:
        at = _corner(form, row, _in_tile(number, len(extents), SUMS))
        flat: Dim = 0
        beyond: Dim = 0
        for place, extent in zip(at, extents, strict=True):
            flat = flat * extent + place
            if extent % SUMS:
                beyond = beyond + place // extent - beyond * (place // extent)
        return (Store(sums, (flat + beyond * (outside - flat)) * o + _N, value),)

    return multiplied(A, len(extents), read, write)


# what z sends back to the kernel


def _back(
    b: Builder,
    layout: ContractLayout,
    form: Winograd,
    maps: Callable[[Index, Value], Stmts],
) -> Stmts:
    node, c, o, tiles = (
        b.kernel.anchor,
        form.x.channels,
        form.z.channels,
        form.block * form.tiles[-1],
    )
    sums = b.workspace(node, form.places * o * c)
    of_x = b.workspace(node, form.places * form.plane(c))
    of_z = b.workspace(node, form.places * form.plane(o))
    image, x_laid = _lay(b, form.x, form.image, False)
    slopes, z_laid = _lay(b, form.z, form.image, False)

    def so_far(m: Dim, n: Dim) -> Load:
        return Load(sums, (_PLACE * o + m) * c + n)

    def keep(m: Dim, n: Dim, acc: Value) -> Stmts:
        return (Store(sums, so_far(m, n).offset, acc),)

    product = Contraction(
        (),
        o,
        c,
        tiles,
        lambda m, k: Load(of_z, _PLACE * form.plane(o) + k * o + m),
        lambda k, n: Load(of_x, _PLACE * form.plane(c) + k * c + n),
        float32,
        keep,
        start=so_far,
    )
    blocks: Stmts = (
        *_tiles(form, partial(_x_tile, form, image, of_x), c, True),
        *_tiles(form, partial(_z_tile, form, slopes, of_z), o, True),
        Barrier(),
        Loop("e'", form.places, contraction_loops(product, b.target, None), split=True),
        Barrier(),
    )
    body: Stmts = (*x_laid, *z_laid, Barrier(), *_blocks(form, blocks))
    for var, extent in reversed(layout.sums):
        body = (Loop(var, extent, body),)
    zero = Store(sums, _N, Literal(0, float32))
    begin = Loop("n'", form.places * o * c, (zero,), "vector", split=True)
    return (begin, Barrier(), *body, *_kernel_sums(b, layout, form, sums, maps))


def _kernel_sums(
    b: Builder,
    layout: ContractLayout,
    form: Winograd,
    sums: Buffer,
    maps: Callable[[Index, Value], Stmts],
) -> Stmts:
    """What becomes of Gᵀ s G, in the order of the result."""
    c, o, r = form.x.channels, form.z.channels, len(form.tiles)
    taps = TAPS**r
    turned = b.workspace(b.kernel.anchor, o * c * taps)

    def read(at: tuple[int, ...]) -> Value:
        return Load(sums, (_number(at) * o + _M) * c + _N)

    def write(number: int, value: Value) -> Stmts:
        return (Store(turned, (_M * c + _N) * taps + number, value),)

    kernel = multiplied(_transposed(G), r, read, write)
    finish = maps(layout.out(_M, _N), Load(turned, _M * (c * taps) + _N))
    return (
        Loop("m'", o, _over_channels(c, kernel), split=True),
        Barrier(),
        Loop("m'", o, (Loop("n'", c * taps, finish, "vector"),), split=True),
    )


def _z_tile(form: Winograd, laid: Buffer, of_z: Buffer, row: Dim) -> Stmts:
    """A z Aᵀ of a tile."""
    o = form.z.channels

    def read(at: tuple[int, ...]) -> Value:
        return Load(laid, _flat(_corner(form, row, at), form.z.room) * o + _N)

    def write(number: int, value: Value) -> Stmts:
        return (Store(of_z, number * form.plane(o) + _tile(form) * o + _N, value),)

    return multiplied(_transposed(A), len(form.tiles), read, write)


# what both do


def _x_tile(form: Winograd, laid: Buffer, of_x: Buffer, row: Dim) -> Stmts:
    """Bᵀ x B of a tile."""
    c = form.x.channels

    def read(at: tuple[int, ...]) -> Value:
        return Load(laid, _flat(_corner(form, row, at), form.x.room) * c + _N)

    def write(number: int, value: Value) -> Stmts:
        return (Store(of_x, number * form.plane(c) + _tile(form) * c + _N, value),)

    return multiplied(B, len(form.tiles), read, write)


def multiplied(
    matrix: Matrix,
    axes: int,
    read: Callable[[tuple[int, ...]], Value],
    write: Callable[[int, Value], Stmts],
) -> Stmts:
    """A small array multiplied by a matrix along each of its axes; in a vector loop."""
    rows, columns = len(matrix), len(matrix[0])
    shape = [columns] * axes
    values = {at: read(at) for at in places_of(*map(range, shape))}
    out: Stmts = ()
    for axis in range(axes):
        shape[axis] = rows
        cells = Local(f"p{axis}", float32, (_count(shape),), True)
        made: dict[tuple[int, ...], Value] = {}
        for number, at in enumerate(places_of(*map(range, shape))):
            along = [values[(*at[:axis], i, *at[axis + 1 :])] for i in range(columns)]
            value = _sum_of(matrix[at[axis]], along)
            if axis == axes - 1:
                out += write(number, value)
            else:
                out += (Set(cells, (number,), value),)
                made[at] = Get(cells, (number,))
        values = made
    return out


def _sum_of(row: Sequence[float], values: Sequence[Value]) -> Value:
    """The sum of values times a matrix's row; what is added first."""
    terms = sorted((t for t in zip(row, values, strict=True) if t[0]), key=lambda t: t[0] < 0)
    out: Value | None = None
    for factor, value in terms:
        if abs(factor) != 1:
            value = Apply("mul", (Literal(abs(factor), float32), value), float32)
        if out is None:
            out = value if factor > 0 else Apply("neg", (value,), float32)
        else:
            out = Apply("add" if factor > 0 else "sub", (out, value), float32)
    assert out is not None
    return out


def _transposed(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))


def _number(at: Sequence[int]) -> int:
    """The place of a tile as a number."""
    number = 0
    for i in at:
        number = number * TILE + i
    return number


def _in_tile(number: int, axes: int, size: int) -> tuple[int, ...]:
    return tuple(number // size ** (axes - 1 - i) % size for i in range(axes))


def _flat(at: Sequence[Dim], sizes: Sequence[int]) -> Dim:
    flat: Dim = 0
    for place, size in zip(at, sizes, strict=True):
        flat = flat * size + place
    return flat


def _tile(form: Winograd) -> Dim:
    """The number of a tile in its block."""
    return _ROW * form.tiles[-1] + _AT


def _corner(form: Winograd, row: Dim, at: Sequence[int]) -> tuple[Dim, ...]:
    """An element of the image, by its place in the tile."""
    tile = (row, _AT)[-len(form.tiles) :]
    return tuple(SUMS * t + i for t, i in zip(tile, at, strict=True))


def _tiles(form: Winograd, body: Callable[[Dim], Stmts], channels: int, split: bool) -> Stmts:
    """Something done for each tile of a block, lanes along channels."""
    lanes = _over_channels(channels, body(_first(form, _ROW)))
    row = Loop("d'", form.tiles[-1], lanes, split=split and form.block == 1)
    return (Loop("y'", form.block, (row,), split=split and form.block > 1),)


def _first(form: Winograd, row: Dim) -> Dim:
    """A row of tiles, by its place in the block."""
    return _BLOCK * form.block + row if _count(form.tiles[:-1]) > form.block else row


def _blocks(form: Winograd, body: Stmts) -> Stmts:
    count = _count(form.tiles[:-1]) // form.block
    return body if count == 1 else (Loop("b'", count, body),)


def _over_channels(channels: int, body: Stmts) -> Stmts:
    cells = dict.fromkeys(s.local for s in body if isinstance(s, Set))
    return (*cells, Loop("n'", channels, body, "vector"))


def _over_lanes(count: int, body: Stmts) -> Stmts:
    cells = dict.fromkeys(s.local for s in body if isinstance(s, Set))
    return (*cells, Loop("j'", count, body, "vector"))


def _lay(b: Builder, image: Image, at: Dim, private: bool) -> tuple[Buffer, Stmts]:
    """An image with its channels side by side and zeros around it, and what lays it down."""
    c, split = image.channels, not private
    rows, width = (1, *image.extents)[-2:]  # a line is one row
    before, left = (0, *image.before)[-2:]
    high, wide = (1, *image.room)[-2:]
    start, end = before * wide + left, (before + rows) * wide + left
    memory = b.workspace(image.node, c * max(high * wide, end), private)

    def zeros(first: Dim, count: int) -> Stmts:
        zero = Store(memory, first * c + _N, Literal(0, float32))
        return (Loop("n'", count * c, (zero,), "vector"),) if count > 0 else ()

    around = (*zeros(0, start), *zeros(end, high * wide - end))
    around = by_one(around) if split and around else around
    beside = zeros(start + _M * wide + width, wide - width)
    if width % LANES == 0 or width == wide:
        turn = _turned(
            b,
            image,
            at,
            lambda place: start + place + place // width * (wide - width),
            memory,
            split,
        )
        besides = (Loop("m'", rows, beside, split=split),) if beside else ()
        return memory, (*turn, *besides, *around)
    flat = b.workspace(image.node, c * rows * width, private)
    turn = _turned(b, image, at, lambda place: place, flat, split)
    move = Store(memory, (start + _M * wide) * c + _N, Load(flat, _M * (width * c) + _N))
    put: Stmts = (Loop("n'", width * c, (move,), "vector"), *beside)
    between = (Barrier(),) if split else ()
    return memory, (*turn, *between, Loop("m'", rows, put, split=split), *around)


def _turned(
    b: Builder, image: Image, at: Dim, placed: Callable[[Dim], Dim], to: Buffer, split: bool
) -> Stmts:
    """An image with its channels side by side: squares of LANES are turned in registers. `placed`
    says where an element of it goes.
    """
    read, c, size = b.reader(image.node), image.channels, _count(image.extents)

    def element(channel: Dim, place: Dim) -> Value:
        if is_view(image.node):
            return read((at, channel, *unravel(place, image.extents)))
        return read((at, channel, *(0 for _ in image.extents[1:]), place))

    def square(first: Dim, lanes: int, start: Dim, count: int) -> Stmts:
        channel = first + _J
        store = Store(to, (placed(start) + _I) * c + channel, element(channel, start + _I))
        return (Loop("j'", lanes, (Loop("i'", count, (store,), "unroll"),), "vector"),)

    def places(first: Dim, lanes: int) -> Stmts:
        whole = Loop("n'", size // LANES, square(first, lanes, _N * LANES, LANES))
        rest = size % LANES
        return (whole, *(square(first, lanes, size - rest, rest) if rest else ()))

    body: Stmts = (Loop("m'", c // LANES, places(_M * LANES, LANES), split=split),)
    rest = c % LANES
    if rest:
        last = places(c - rest, rest)
        body += by_one(last) if split else last
    return body
