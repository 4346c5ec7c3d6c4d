"""Products over windows of many images: lanes go along images, of which LANES are turned together.

So lines of an image need not fill vectors, and a place of the result sums over the terms that its
windows have inside the image: padding is neither laid down nor multiplied. Each sum is one
ascending chain of multiply-adds, as one image by itself has it; images that are left over are done
so.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

from chainrule.ir.loop import (
    LANES,
    Apply,
    Buffer,
    Get,
    Let,
    Literal,
    Load,
    Local,
    Loop,
    Set,
    Stmt,
    Store,
    Value,
)
from chainrule.ir.node import Index, Node, Stmts
from chainrule.ir.size import Dim, Size, known
from chainrule.ir.types import float32
from chainrule.loops.builder import Builder, Maps
from chainrule.loops.layout import ContractLayout, is_view, loop_of
from chainrule.loops.packing import in_squares, square_of
from chainrule.loops.parts import split_outermost
from chainrule.loops.tiles import epilogue_operations
from chainrule.loops.turned import TURNED_OPERATIONS, turned_block
from chainrule.ops.contract import Contract
from chainrule.ops.layout import ravel, unravel
from chainrule.ops.padding import among_zeros
from chainrule.ops.windows import Window
from chainrule.records import dataclass
from chainrule.target import SECOND

#: rows of a tile at least: with fewer, multiply-adds wait for each other
FEWEST_ROWS = 6
#: as many multiply-adds of vectors as turning LANES numbers takes
TURNING = 7
#: multiply-adds that are left, of those that lines of images would take, for which this pays
SHARE = 0.75
#: of more numbers, images turned together would leave the second cache
MOST_TURNED = SECOND // 2 // float32.itemsize

_I, _J, _M, _N, _R = (Size.symbol(f"{name}'") for name in "ijmnr")


@dataclass(frozen=True)
class Axis:
    """An axis of `length` that windows of `size` slide along, to `count` places, from `before`
    elements outside on; with the letters of what stands in a window, and of windows.
    """

    offset: str
    place: str
    size: int
    count: int
    length: int
    before: int

    @property
    def at(self) -> Size:
        """The loop over places."""
        return Size.symbol(loop_of(self.place))

    @property
    def first(self) -> Size:
        """The name of the first offset inside the image, at a place."""
        return Size.symbol(f"first{self.place}'")

    @property
    def terms(self) -> Size:
        """The name of the number of offsets that are."""
        return Size.symbol(f"terms{self.place}'")

    def named(self) -> Stmts:
        """What gives the names: offsets from max(0, before - place) on, up to min(size, before +
        length - place).
        """
        cut = self.before + self.length - self.size
        first = (self.before - self.at) * (1 - self._reaches(self.before))
        end = self.size - (self.at - cut) * self._reaches(cut)
        return Let(str(self.first), first), Let(str(self.terms), end - first)

    def _reaches(self, bound: int) -> Dim:
        """1 at a place from `bound` on, else 0."""
        if not 0 < bound < self.count:
            return int(bound <= 0)
        return (self.at + (self.count - bound)) // self.count

    def inside(self) -> int:
        """The offsets inside the image, over all places."""
        places = range(self.count)
        ends = (min(self.size, self.before + self.length - p) for p in places)
        return sum(end - max(0, self.before - p) for p, end in zip(places, ends, strict=True))


@dataclass(frozen=True)
class ImageTile:
    """A product over windows: its letters of images, rows and outer sums, the axes that windows
    slide along, the node that windows are of, and the rows of a tile.
    """

    image: str
    row: str
    sums: str
    axes: tuple[Axis, ...]
    source: Node
    rows: int

    @staticmethod
    def of(b: Builder, layout: ContractLayout) -> ImageTile | None:
        """The tile for a product, or None where it is none of windows, or lines are as good."""
        windows, op, sizes = (
            layout.order(b.kernel.anchor.inputs)[1],
            b.kernel.anchor.op,
            layout.sizes,
        )
        assert isinstance(op, Contract)
        found = _axes(windows, layout.b)
        if found is None or op.parts > 1:
            return None
        axes, source = found
        image, row = layout.letters[:1], layout.letters[1:2]
        sums = layout.b[1 : source.type.rank - len(axes)]
        offsets, places = "".join(a.offset for a in axes), "".join(a.place for a in axes)
        fits = (
            layout.letters == image + row + places
            and layout.b == image + sums + offsets + places
            and sorted(layout.a) == sorted(row + sums + offsets)
            and all(isinstance(sizes[c], int) for c in row + sums)
            and isinstance(b.reader(source)((0,) * source.type.rank), Load)
        )
        images = sizes[image]
        if not fits or (isinstance(images, int) and images < LANES):
            return None
        (m,) = known((sizes[row],))
        tile = ImageTile(image, row, sums, axes, source, _height(b, m))
        return tile if tile.rows and tile._pays(m) else None

    def _pays(self, m: int) -> bool:
        """Whether multiply-adds, and what turning takes, are few beside those along lines."""
        numbers, results = prod(known(self.source.type.shape[1:])), prod(a.count for a in self.axes)
        inside = numbers // prod(a.length for a in self.axes)
        last = self.axes[-1].count
        lines = results // last * -(-last // LANES) * prod(a.size for a in self.axes)
        here = m * inside * prod(a.inside() for a in self.axes) + TURNING * (numbers + m * results)
        return numbers * LANES <= MOST_TURNED and here <= SHARE * LANES * (m * inside * lines)

    @property
    def line(self) -> int:
        """Workspace for a line of the result, in whole LANES."""
        return -(-self.axes[-1].count // LANES) * LANES

    def row_at(self, inside: Dim, m: Dim) -> Dim:
        """A row of the result, by its place in a tile."""
        return inside if m == self.rows else _M * self.rows + inside


def _axes(windows: Node, letters: str) -> tuple[tuple[Axis, ...], Node] | None:
    """The axes that windows slide along by steps of 1, each partly inside, and whose they are."""
    op = windows.op
    if not isinstance(op, Window) or {*op.strides, *op.dilations} != {1}:
        return None
    first, last = op.axis, op.axis + op.spatial
    found = among_zeros(windows.inputs[0], first)
    if found is None:
        return None
    source, before, after = found
    fixed = all(isinstance(d, int) for d in source.type.shape[1:])
    if first < 1 or last != source.type.rank or not fixed:
        return None
    axes = []
    lengths = known(source.type.shape[first:])
    for i, (size, length, *ends) in enumerate(zip(op.sizes, lengths, before, after, strict=True)):
        if max(ends) >= size:
            return None
        count = length + sum(ends) - size + 1
        offset, place = letters[first + i], letters[last + i]
        axes.append(Axis(offset, place, size, count, length, ends[0]))
    return tuple(axes), source


def _height(b: Builder, m: int) -> int:
    """Rows of a tile: as many as registers hold, that divide m; 0 where they are too few."""
    width = b.target.registers_of(b.kernel.anchor.type.dtype.itemsize, LANES)
    room = (b.target.vector_registers - 1 - width) // width
    rows = max((h for h in range(1, room + 1) if m % h == 0), default=0)
    return rows if rows * width >= FEWEST_ROWS else 0


def image_loops(b: Builder, layout: ContractLayout, tile: ImageTile, maps: Maps) -> Stmts:
    """The loops of a product over whole LANES of images; `maps(index, sum)` is what becomes of an
    element.
    """
    shape, group = known(tile.source.type.shape[1:]), Size.symbol(loop_of(tile.image))
    turned = b.workspace(tile.source, prod(shape) * LANES, True)
    sums = b.workspace(b.kernel.anchor, tile.rows * tile.line * LANES, True)
    read = b.reader(tile.source)

    def take(first: Dim, count: int) -> Stmts:
        number = first + _I
        flat: Index = (*(0 for _ in shape[1:]), number)
        at = (group * LANES + _J, *(unravel(number, shape) if is_view(tile.source) else flat))
        return (square_of(Load(turned, number * LANES + _J), read(at), LANES, count),)

    body: Stmts = (*_summed(b, layout, tile, turned, sums), *_finished(b, layout, tile, sums, maps))
    m = layout.sizes[tile.row]
    if m != tile.rows:
        body = (Loop("m'", m // tile.rows, body),)
    for axis in reversed(tile.axes[:-1]):
        body = (Loop(loop_of(axis.place), axis.count, (*axis.named(), *body)),)
    body = (*in_squares(prod(shape), take, False), *body)
    nest = Loop(loop_of(tile.image), layout.sizes[tile.image] // LANES, body)
    return split_outermost((nest,), 1)


def _summed(
    b: Builder, layout: ContractLayout, tile: ImageTile, turned: Buffer, sums: Buffer
) -> Stmts:
    """The sums of a line of the result, in as many rows as a tile has."""
    weights, last = b.reader(layout.order(b.kernel.anchor.inputs)[0]), tile.axes[-1]
    at: dict[str, Dim] = {c: Size.symbol(loop_of(c)) for c in tile.sums}
    at |= {a.offset: a.first + Size.symbol(loop_of(a.offset)) for a in tile.axes}
    at[tile.row] = tile.row_at(_I, layout.sizes[tile.row])
    number = ravel(
        (*(at[c] for c in tile.sums), *(a.at + at[a.offset] - a.before for a in tile.axes)),
        tile.source.type.shape[1:],
    )
    acc = Local("acc", b.kernel.anchor.type.dtype, (tile.rows, 1), True)
    cell = Get(acc, (_I, 0))

    def lanes(body: Stmt) -> Stmt:
        return Loop("i'", tile.rows, (Loop("j'", LANES, (body,), "vector"),), "unroll")

    factors = weights(tuple(at[c] for c in layout.a)), Load(turned, number * LANES + _J)
    body: Stmts = (lanes(Set(acc, cell.index, Apply("fma", (*factors, cell), acc.dtype))),)
    for axis in reversed(tile.axes):
        body = (Loop(loop_of(axis.offset), axis.terms, body),)
    for c in reversed(tile.sums):
        body = (Loop(loop_of(c), layout.sizes[c], body),)
    clear = lanes(Set(acc, cell.index, Literal(0, acc.dtype)))
    keep = lanes(Store(sums, (_I * tile.line + last.at) * LANES + _J, cell))
    return (Loop(loop_of(last.place), last.count, (*last.named(), acc, clear, *body, keep)),)


def _finished(
    b: Builder,
    layout: ContractLayout,
    tile: ImageTile,
    sums: Buffer,
    maps: Maps,
) -> Stmts:
    """What becomes of a line's sums, turned back row after row."""
    last, dtype = tile.axes[-1], b.kernel.anchor.type.dtype
    at: dict[str, Dim] = {a.place: a.at for a in tile.axes}
    at[tile.image] = Size.symbol(loop_of(tile.image)) * LANES + _I
    at[tile.row] = tile.row_at(_R, layout.sizes[tile.row])

    def ending(start: Dim, acc: Value) -> Stmts:
        return maps(tuple((at | {last.place: start + _J})[c] for c in layout.letters), acc)

    operations = epilogue_operations(lambda m, n, acc: ending(n, acc), dtype)
    much = operations * LANES > TURNED_OPERATIONS
    waiting = b.workspace(b.kernel.anchor, LANES * LANES, True) if much else None

    def block(columns: int, start: Dim) -> Stmts:
        read = Load(sums, (_R * tile.line + start + _J) * LANES + _I)
        return turned_block(LANES, columns, read, lambda acc: ending(start, acc), waiting)

    whole, rest = divmod(last.count, LANES)
    blocks: Stmts = (Loop("n'", whole, block(LANES, _N * LANES)),) if whole else ()
    blocks += block(rest, whole * LANES) if rest else ()
    return (Loop("r'", tile.rows, blocks),)


def left_over(one_by_one: Stmt, tile: ImageTile, images: Dim) -> Stmt:
    """Of the loop that does images one by one, those beyond whole LANES."""
    assert isinstance(one_by_one, Loop) and one_by_one.var == loop_of(tile.image)
    named = Let(one_by_one.var, images // LANES * LANES + Size.symbol("over'"))
    body = (named, *one_by_one.body)
    return replace(one_by_one, var="over'", extent=images % LANES, body=body)
