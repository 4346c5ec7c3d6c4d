"""What `x[...]` means, in nodes: ranges, new axes, and integer arrays as NumPy has them."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from types import EllipsisType

import numpy as np

from chainrule.errors import DTypeError, ShapeError
from chainrule.given import is_int
from chainrule.ir.node import Node, apply
from chainrule.ir.size import Dim, Size
from chainrule.ir.types import Kind
from chainrule.ops import build
from chainrule.ops.along import TakeAlong
from chainrule.ops.contract import transpose
from chainrule.ops.gather import Gather
from chainrule.ops.index import Take
from chainrule.ops.layout import Slice
from chainrule.ops.source import Constant, Full, constant

Part = int | Size | slice | None | EllipsisType | Node
_WHOLE = slice(None)


def subscript(x: Node, parts: tuple[Part, ...]) -> Node:
    """`x[parts]`: ranges and new axes are views; integer arrays choose, as in NumPy."""
    axes = len([p for p in parts if p is not None and p is not Ellipsis])
    rank = x.type.rank
    dots = [i for i, p in enumerate(parts) if p is Ellipsis]
    if axes > rank:
        raise ShapeError(f"{axes} indices for {rank} axes: {x.type}")
    if len(dots) > 1:
        raise ShapeError("an index holds one '...'")
    at = dots[0] if dots else len(parts)
    chosen = [i for i, p in enumerate(parts) if isinstance(p, Node)]
    numbers = [i for i, p in enumerate(parts) if isinstance(p, (Node, int, Size, np.integer))]
    parts = (*parts[:at], *([_WHOLE] * (rank - axes)), *parts[at + 1 :])
    if not chosen:
        return _ranges(x, parts)
    _refuse_masks(x, [p for p in parts if isinstance(p, Node)])
    together = numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    return _chosen(x, parts, together)


def _refuse_masks(x: Node, positions: Sequence[Node]) -> None:
    for at in positions:
        if at.type.dtype.is_bool:
            raise DTypeError(
                f"a mask chooses as many elements as the data says: {at.type} of {x.type}",
                "shapes are known before the data: choose with cr.where(mask, x, 0)",
            )
        if not at.type.dtype.is_integer:
            raise DTypeError(
                f"an index is made of integers, not {at.type} of {x.type}",
                'convert it: i.astype("int64")',
            )


def _ranges(x: Node, parts: Sequence[Part]) -> Node:
    """Ranges, numbers and new axes, a part for each axis."""
    ranges: list[tuple[Dim, Dim, int]] = []
    dropped: list[int] = []
    added: list[int] = []
    for part in parts:
        place = len(ranges)
        if part is None:
            added.append(place + len(added) - len(dropped))
            continue
        ranges.append(_range(part, x.type.shape[place], x))
        if not isinstance(part, slice):
            dropped.append(place)
    if any(r != (0, size, 1) for r, size in zip(ranges, x.type.shape, strict=True)):
        starts, counts, steps = zip(*ranges, strict=True)
        x = apply(Slice(starts, counts, steps), x)
    x = build.squeeze(x, dropped)
    return build.keep_axes(x, added) if added else x


def _chosen(x: Node, parts: Sequence[Part], together: bool) -> Node:
    """Positions for some axes; the axes of the result that they make stand where those stood, or
    in front where parts that are no numbers stand between them.
    """
    first = next(i for i, p in enumerate(parts) if not isinstance(p, (slice, type(None))))
    kept = [p for p in parts if isinstance(p, (Node, slice, type(None)))]
    before = len([p for p in parts[:first] if isinstance(p, (slice, type(None)))])
    x = _ranges(x, [_WHOLE if isinstance(p, Node) else p for p in parts])
    axes = tuple(i for i, p in enumerate(kept) if isinstance(p, Node))
    positions = [p for p in kept if isinstance(p, Node)]
    to = before if together else 0
    if len(positions) == 1:
        (at,) = positions
        return _moved(take(x, at, axes[0]), axes[0], at.type.rank, to)
    shape = build.broadcast_shapes([p.type.shape for p in positions], "an index", positions)
    sizes = tuple(x.type.shape[a] for a in axes)
    pairs = zip(positions, sizes, strict=True)
    places = [build.broadcast(counted(p, n, x), shape) for p, n in pairs]
    out = apply(Gather(axes, sizes, len(shape)), x, *places)
    return _moved(out, 0, len(shape), to)


def _moved(x: Node, start: int, count: int, to: int) -> Node:
    """`x` with `count` axes from `start` on standing at `to`."""
    others = [a for a in range(x.type.rank) if not start <= a < start + count]
    return transpose(x, [*others[:to], *range(start, start + count), *others[to:]])


def take(x: Node, at: Node, axis: int) -> Node:
    """Elements along an axis at positions; those below 0 count from the end."""
    size = x.type.shape[axis]
    at = counted(at, size, x)
    return apply(Take(axis, at.type.rank, _end_for(at, size)), x, at)


def take_along(x: Node, at: Node, axis: int) -> Node:
    """In each row along an axis the elements that a row of positions names."""
    size = x.type.shape[axis]
    at = counted(at, size, x)
    return apply(TakeAlong(axis, _end_for(at, size)), x, at)


def counted(at: Node, size: Dim, x: Node) -> Node:
    """Positions that are known, counted from 0 and held to an axis of known size."""
    if not isinstance(at.op, (Constant, Full)) or not at.type.dtype.is_integer:
        return at
    if not isinstance(size, int) or not all(isinstance(d, int) for d in at.type.shape):
        return at
    array = at.op.ref()
    bad = array[(array < (-size if array.dtype.kind == "i" else 0)) | (array >= size)]
    if bad.size:
        raise ShapeError(f"index {bad.reshape(-1)[0]} is outside an axis of size {size}: {x.type}")
    return constant(np.where(array < 0, array + size, array)) if (array < 0).any() else at


def _end_for(at: Node, size: Dim) -> Dim | None:
    """The size of an axis, if positions may count from its end."""
    if at.type.dtype.kind is not Kind.INT:
        return None
    known = isinstance(at.op, (Constant, Full)) and all(isinstance(d, int) for d in at.type.shape)
    return None if known and not (at.op.ref() < 0).any() else size


def _range(part: Part, size: Dim, x: Node) -> tuple[Dim, Dim, int]:
    """`(start, count, step)` of an index or a slice along an axis of the given size."""
    if isinstance(part, Size):
        return part, 1, 1
    if is_int(part):
        i = int(part)
        if isinstance(size, int) and not -size <= i < size:
            raise ShapeError(f"index {i} is outside an axis of size {size}: {x.type}")
        return (i if i >= 0 else size + i), 1, 1
    if not isinstance(part, slice):
        raise ShapeError(
            f"an index is an int, a slice, None, '...' or an integer tensor, not {part!r}"
        )
    first, last, by = (_end(end) for end in (part.start, part.stop, part.step))
    step = 1 if by is None else by
    if not isinstance(step, int) or step == 0:
        raise ShapeError(f"a slice's step is a number other than 0, not {step}")
    if step > 0:
        start, stop = _place(first, size, 0, size), _place(last, size, size, size)
        count = (stop - start + step - 1) // step
    else:
        start, stop = _place(first, size, size - 1, size - 1), _place(last, size, -1, size - 1)
        count = (start - stop - step - 1) // -step
    return start, max(count, 0) if isinstance(count, int) else count, step


def _end(end: object) -> Dim | None:
    if end is None or isinstance(end, Size):
        return end
    try:
        return operator.index(end)  # type: ignore[arg-type]
    except TypeError:
        raise ShapeError(f"a slice is made of ints and sizes, not of {end!r}") from None


def _place(end: Dim | None, size: Dim, default: Dim, most: Dim) -> Dim:
    """An end of a slice as a place: from the far end where it is negative, cut off at known ends.

    Where the size is symbolic the place must be there when the size is known; the op demands it.
    """
    if end is None:
        return default
    at = size + end if isinstance(end, int) and end < 0 else end
    if not isinstance(at, int) or not isinstance(most, int):
        return at
    return min(max(at, 0 if most == size else -1), most)
