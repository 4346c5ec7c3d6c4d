"""Images laid down with their channels side by side, for lanes to go along them."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from chainrule.ir.loop import LANES, Barrier, Buffer, Literal, Load, Loop, Store, Value
from chainrule.ir.node import Node, Stmts
from chainrule.ir.size import Dim, Size
from chainrule.ir.types import float32
from chainrule.loops.builder import Builder
from chainrule.loops.layout import is_view
from chainrule.loops.packing import in_squares, square_of
from chainrule.loops.parts import by_one
from chainrule.ops.layout import unravel
from chainrule.ops.padding import among_zeros
from chainrule.records import dataclass

_M, _N, _I, _J = (Size.symbol(f"{name}'") for name in "mnij")


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

    @staticmethod
    def of(view: Node, channels: int, room: tuple[int, ...]) -> Image | None:
        """What windows are read of: what is padded with zeros, and not those. None where it is of
        unknown size, or padded otherwise.
        """
        found = among_zeros(view, 2)
        if found is None:
            return None
        node, before, _ = found
        sizes = tuple(d for d in node.type.shape[2:] if isinstance(d, int))
        return Image(node, channels, sizes, before, room) if len(sizes) == len(room) else None

    @property
    def size(self) -> int:
        """The elements of a channel."""
        return prod(self.extents)


def lay(b: Builder, image: Image, at: Dim, private: bool) -> tuple[Buffer, Stmts]:
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

        def in_room(place: Dim) -> Dim:
            return start + place + place // width * (wide - width)

        turn = _turned(b, image, at, in_room, memory, split)
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
    read, c = b.reader(image.node), image.channels

    def element(channel: Dim, place: Dim) -> Value:
        if is_view(image.node):
            return read((at, channel, *unravel(place, image.extents)))
        return read((at, channel, *(0 for _ in image.extents[1:]), place))

    def places(first: Dim, lanes: int) -> Stmts:
        def square(start: Dim, count: int) -> Stmts:
            to_place = Load(to, (placed(start) + _I) * c + first + _J)
            return (square_of(to_place, element(first + _J, start + _I), lanes, count),)

        return in_squares(image.size, square, False)

    body: Stmts = (Loop("m'", c // LANES, places(_M * LANES, LANES), split=split),)
    rest = c % LANES
    if rest:
        last = places(c - rest, rest)
        body += by_one(last) if split else last
    return body
