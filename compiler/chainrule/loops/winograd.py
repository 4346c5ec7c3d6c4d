"""Convolutions of a few taps an axis as tiles, for minimal filtering: which, where, how many.

All terms of one place of a tile, over channels, are a matrix product: images and kernels become
tiles, one product for each of a tile's places follows, and sums come of its results. What z sends
back to the kernel is the adjoint of the same form. An image at a time is laid down with its
channels side by side, and a block of its tiles stays in the second cache from the first to the
last of this. The loops are in `convolved`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from chainrule.ir.loop import LANES, Buffer, Load, Loop, Set, Stmt, Store, Value, fills
from chainrule.ir.node import Node, Stmts
from chainrule.ir.size import Dim, Size
from chainrule.ir.types import float32
from chainrule.loops.builder import Builder
from chainrule.loops.channels import Image
from chainrule.loops.filtering import FILTERS, SUMS, Filter, Matrix, multiplied
from chainrule.loops.layout import ContractLayout
from chainrule.ops.cast import widens
from chainrule.ops.contract import Contract
from chainrule.ops.windows import Window
from chainrule.records import dataclass
from chainrule.target import SECOND

#: channels of either side, and tiles of an image, from which it is worth it
FEWEST_CHANNELS, FEWEST_TILES = 16, 16
#: products for one of plain sums, at most: of whole tiles (5 and 7 taps along one axis are below
#: that, 2 and 4 gain nothing), and of all tiles, the last of which may be half outside
MOST_PRODUCTS, MOST_OF_ALL = 0.72, 0.8
#: products from which little is gained, as of 3 taps along one axis alone (4 for 6), and the tiles
#: that this needs: what kernels take is the same for one image
LITTLE, LITTLE_TILES = 0.6, 64
#: more tiles, and bytes of kernels from which they are needed: those come from memory each time
MORE_TILES, FAR_BYTES = 32, 4 * SECOND
#: bytes of what comes back to kernels, in tiles, for each tile of an image that is added to it
BACK_BYTES = SECOND * 3 // 8
#: bytes of a block of tiles, which is to stay in the second cache
BLOCK_BYTES = SECOND // 4
#: tiles that a block has at least, as kernels (or their sums) are read again for each
BLOCK_TILES = 32
#: elements between the tiles of one place and those of the next, so as not to evict each other
APART = LANES
#: a row of tiles in its block, a tile in its row, and a block
ROW, _AT, _BLOCK = (Size.symbol(f"{name}'") for name in "ydb")
_N, _J = (Size.symbol(f"{name}'") for name in "nj")

#: what is done at a place that lanes go along
Lanes = Callable[[Dim], Stmts]


@dataclass(frozen=True)
class Winograd:
    """A convolution, or what it sends `back` to its kernel: between images of `x` and of `z`, which
    have so many `tiles` along each axis, by the axis' filter.
    """

    filters: tuple[Filter, ...]
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
        if b.target.bare:  # tiles and sums of groups take five times the memory
            return None
        steps = {*slides.strides, *slides.dilations}
        if not FILTERS.keys() >= set(slides.sizes) or steps != {1} or node.type.dtype != float32:
            return None
        filters = tuple(FILTERS[taps] for taps in slides.sizes)
        assert isinstance(op, Contract)
        if (op.parts > 1 and b.target.blocks) or all(map(widens, node.inputs)):
            return None
        n, c, rest, r = layout.b[0], layout.b[1], layout.b[2:], slides.spatial
        offsets, at, o = rest[:r], rest[r:], layout.row
        kernels = (o + c + offsets, c + o + offsets)
        back = layout.letters == o + c + offsets and layout.a == n + o + at
        forth = layout.letters == n + o + at and layout.a in kernels
        columns, column = (
            "".join(letter for letter in letters if layout.sizes[letter] != 1)
            for letters in (layout.column, c + offsets if back else at)
        )
        if len(o) != 1 or not (back or forth) or columns != column:
            return None
        return Winograd.sized(layout, filters, first, windows.inputs[0], (c, o, at), back)

    @staticmethod
    def sized(
        layout: ContractLayout,
        filters: tuple[Filter, ...],
        first: Node,
        view: Node,
        letters: Sequence[str],
        back: bool,
    ) -> Winograd | None:
        """The form with its sizes, where they are known and large enough."""
        letter_sizes = [layout.sizes[c] for c in "".join(letters)]
        sizes = [d for d in letter_sizes if isinstance(d, int)]
        if len(sizes) < len(letter_sizes):
            return None
        c, o, *extents = sizes
        if not _pays(filters, c, o, extents, back):
            return None
        tiles = tuple(-(-n // SUMS) for n in extents)
        x = Image.of(
            view, c, tuple(SUMS * n + f.tile - SUMS for n, f in zip(tiles, filters, strict=True))
        )
        no_padding = (0,) * len(tiles)
        z = Image(first, o, tuple(extents), no_padding, tuple(SUMS * n for n in tiles))
        return Winograd(filters, back, x, z, tiles) if x else None

    @property
    def axes(self) -> int:
        """The axes that windows slide along."""
        return len(self.tiles)

    @property
    def places(self) -> int:
        """The products of a tile, which stand at so many places."""
        return prod(f.products for f in self.filters)

    @property
    def rows(self) -> int:
        """The rows of tiles in an image."""
        return prod(self.tiles[:-1])

    @property
    def block(self) -> int:
        """How many rows of tiles make a block: as many as stay near, but not too few tiles."""
        row, channels = self.tiles[-1], self.x.channels + self.z.channels
        most = BLOCK_BYTES // (self.places * channels * row * float32.itemsize)
        least = min(-(-BLOCK_TILES // row), self.rows)
        even = [d for d in range(1, self.rows + 1) if self.rows % d == 0]
        return max(
            (d for d in even if least <= d <= most), default=min(d for d in even if d >= least)
        )

    def plane(self, channels: int) -> int:
        """Elements from a block's tiles at one place to those at the next."""
        return self.block * self.tiles[-1] * channels + APART

    def tile(self, place: int, channels: int, channel: Dim) -> Dim:
        """Where a channel of a tile's place stands in a block."""
        return place * self.plane(channels) + (ROW * self.tiles[-1] + _AT) * channels + channel

    def row(self, row: Dim) -> Dim:
        """A row of tiles of the image, by its place in the block."""
        return _BLOCK * self.block + row if self.rows > self.block else row

    def element(self, row: Dim, at: Sequence[int]) -> tuple[Dim, ...]:
        """Where an element of a tile stands in the image."""
        corner = (row, _AT)[-self.axes :]
        return tuple(SUMS * t + i for t, i in zip(corner, at, strict=True))

    def each_tile(self, body: Lanes, channels: int, split: bool) -> Stmts:
        """Something done for each tile of a block, lanes along channels."""
        row = Loop("d'", self.tiles[-1], along(channels, body), split=split and self.block == 1)
        return (Loop("y'", self.block, (row,), split=split and self.block > 1),)

    def each_block(self, body: Stmts) -> Stmts:
        """Something done for each block of an image."""
        count = self.rows // self.block
        return body if count == 1 else (Loop("b'", count, body),)

    def number(self, at: Sequence[int]) -> int:
        """The place of a product of a tile, as a number."""
        number = 0
        for i, f in zip(at, self.filters, strict=True):
            number = number * f.products + i
        return number

    def image_tile(
        self,
        image: Image,
        matrices: Sequence[Matrix],
        laid: Buffer,
        to: Buffer,
        channel: Dim,
    ) -> Stmts:
        """A tile of an image, multiplied by a matrix along each axis."""

        def read(at: tuple[int, ...]) -> Value:
            flat: Dim = 0
            for place, size in zip(self.element(self.row(ROW), at), image.room, strict=True):
                flat = flat * size + place
            return Load(laid, flat * image.channels + channel)

        def write(number: int, value: Value) -> Stmts:
            return (Store(to, self.tile(number, image.channels, channel), value),)

        return multiplied(matrices, read, write)


def _pays(filters: Sequence[Filter], c: int, o: int, extents: Sequence[int], back: bool) -> bool:
    """Whether products are so much fewer, and tiles so many, that it is worth making them."""
    places, plain = prod(f.products for f in filters), prod(f.taps for f in filters)
    tiles = prod(-(-n // SUMS) for n in extents)
    share, size = places / (plain * SUMS ** len(filters)), places * c * o * float32.itemsize
    fewest = MORE_TILES if size > FAR_BYTES else FEWEST_TILES
    return (
        share <= MOST_PRODUCTS
        and places * tiles <= MOST_OF_ALL * plain * prod(extents)
        and tiles >= (LITTLE_TILES if share > LITTLE else fewest)
        and min(c, o) >= FEWEST_CHANNELS
        and (fills(c, 0.75) and fills(o, 0.75))
        and not (back and size > tiles * BACK_BYTES)
    )


def along(size: int, body: Lanes) -> Stmts:
    """Something done in vectors, in a loop over whole ones, and what is left: the body is much
    code, which would stand there for each of a few vectors.
    """
    out: Stmts = ()
    whole, rest = size // LANES, size % LANES
    for first, lanes in ((_N * LANES, LANES), (size - rest, rest)):
        if lanes == 0 or size < lanes:
            continue
        made = body(first + _J)
        cells: dict[Stmt, None] = dict.fromkeys(s.local for s in made if isinstance(s, Set))
        vector: Stmts = (*cells, Loop("j'", lanes, made, "vector"))
        out += (Loop("n'", whole, vector),) if lanes == LANES else vector
    return out
