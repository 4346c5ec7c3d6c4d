"""Putting tensors together, taking them apart and moving their axes, as the array API has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from chainrule.errors import ShapeError
from chainrule.ir.node import Node, apply
from chainrule.ir.size import Dim, Size, product
from chainrule.ir.types import check_shape, promote
from chainrule.lang.arguments import one_of, several, whole
from chainrule.lang.functions import _axes, _axis
from chainrule.lang.tensor import Tensor, TensorLike, as_node
from chainrule.ops import build
from chainrule.ops.assemble import Concat, Roll
from chainrule.ops.axes import Expand
from chainrule.ops.contract import transpose
from chainrule.ops.index import Take
from chainrule.ops.layout import Reshape
from chainrule.ops.source import constant


def promoted(name: str, arrays: Sequence[TensorLike]) -> list[Node]:
    """Tensors in the element type they meet in. Raises ShapeError without any."""
    nodes = [as_node(a) for a in several(f"what {name} takes", arrays)]
    if not nodes:
        raise ShapeError(f"{name} needs at least one tensor")
    dtype = nodes[0].type.dtype
    for n in nodes[1:]:
        dtype = promote(dtype, n.type.dtype)
    return [build.cast(n, dtype) for n in nodes]


def flat(x: Node) -> Node:
    """The elements in row-major order, along one axis."""
    return x if x.type.rank == 1 else apply(Reshape((product(x.type.shape),)), x)


def concat(arrays: Sequence[TensorLike], /, *, axis: int | None = 0) -> Tensor:
    """Tensors one after another along an axis, or all their elements with axis=None."""
    nodes = promoted("concat", arrays)
    if axis is None:
        nodes, axis = [flat(n) for n in nodes], 0
    place = _axis(axis, nodes[0].type.rank, nodes[0])
    return Tensor(apply(Concat(place), *nodes) if len(nodes) > 1 else nodes[0])


def stack(arrays: Sequence[TensorLike], /, *, axis: int = 0) -> Tensor:
    """Tensors of one shape along a new axis."""
    nodes = promoted("stack", arrays)
    if any(n.type.shape != nodes[0].type.shape for n in nodes):
        shown = ", ".join(str(n.type) for n in nodes)
        raise ShapeError(f"stack needs tensors of one shape: {shown}")
    place = _axis(axis, nodes[0].type.rank + 1, nodes[0])
    return concat([Tensor(build.keep_axes(n, (place,))) for n in nodes], axis=place)


def unstack(x: TensorLike, /, *, axis: int = 0) -> tuple[Tensor, ...]:
    """The parts along an axis of known size, which goes."""
    node = as_node(x)
    place = _axis(axis, node.type.rank, node)
    size = node.type.shape[place]
    if not isinstance(size, int):
        raise ShapeError(f"unstack needs an axis of known size, not {size}: {node.type}")
    return tuple(Tensor(node)[(slice(None),) * place + (i,)] for i in range(size))


def tile(x: TensorLike, repetitions: Sequence[Dim], /) -> Tensor:
    """x beside itself so many times along each axis; missing axes are new ones in front."""
    node = as_node(x)
    repetitions = check_shape(several("repetitions", repetitions))
    rank = max(node.type.rank, len(repetitions))
    node = build.keep_axes(node, tuple(range(rank - node.type.rank)))
    times = (*[1] * (rank - len(repetitions)), *repetitions)
    repeated = tuple(i for i, n in enumerate(times) if n != 1)
    return Tensor(_repeated(node, {i: times[i] for i in repeated}, before=True))


def _repeated(x: Node, times: dict[int, Dim], before: bool) -> Node:
    """Axes repeated whole (`before`) or element by element."""
    shape: list[Dim] = []
    new: list[int] = []
    out: list[Dim] = []
    for i, size in enumerate(x.type.shape):
        n = times.get(i)
        out.append(size if n is None else size * n)
        if n is not None:
            new.append(len(shape) + (not before))
            shape += [n, size] if before else [size, n]
        else:
            shape.append(size)
    return apply(Reshape(tuple(out)), apply(Expand(tuple(shape), tuple(new)), x)) if new else x


def repeat(x: TensorLike, repeats: Dim | Sequence[int], /, *, axis: int | None = None) -> Tensor:
    """Each element so many times in a row along an axis, or of all of them with axis=None.

    One number, which may be a symbolic size, or a number for each element where they are known:
    not a Tensor, since no shape may depend on data.
    """
    node = as_node(x)
    if isinstance(repeats, Tensor):
        raise ShapeError(
            "repeat takes numbers, not a Tensor: the result's shape would depend on its values",
            "give ints or sizes, or choose with cr.take at positions as many as you know",
        )
    if axis is None:
        node, axis = flat(node), 0
    place = _axis(axis, node.type.rank, node)
    if isinstance(repeats, Size):
        return Tensor(_repeated(node, {place: repeats}, before=False))
    try:
        counts = np.asarray(repeats)
    except ValueError:
        raise ShapeError(f"repeats are numbers from 0, not {repeats!r}") from None
    if counts.dtype.kind not in "iu" or counts.ndim > 1 or (counts < 0).any():
        raise ShapeError(f"repeats are numbers from 0, not {repeats!r}")
    if counts.size == 1:
        return Tensor(_repeated(node, {place: int(counts.reshape(()))}, before=False))
    if node.type.shape[place] != counts.size:
        raise ShapeError(f"repeat needs a number for each of {node.type}, not {counts.size}")
    positions = constant(np.repeat(np.arange(counts.size), counts))
    return Tensor(apply(Take(place, 1), node, positions))


def roll(
    x: TensorLike, /, shift: int | Sequence[int], *, axis: int | Sequence[int] | None = None
) -> Tensor:
    """Elements moved up along axes, those pushed over the end coming in at the start."""
    node = as_node(x)
    if axis is None:
        if isinstance(shift, Sequence):
            raise ShapeError("roll over all elements takes one shift")
        rolled = roll(Tensor(flat(node)), shift, axis=0).node
        return Tensor(rolled if node.type.rank == 1 else apply(Reshape(node.type.shape), rolled))
    axes = list(axis) if isinstance(axis, Sequence) else [axis]
    shifts = list(shift) if isinstance(shift, Sequence) else [shift] * len(axes)
    if len(shifts) != len(axes):
        raise ShapeError(f"roll takes a shift for each axis: {shift}, {axis}")
    for by, a in zip(shifts, axes, strict=True):
        place = _axis(a, node.type.rank, node)
        size = node.type.shape[place]
        by = whole("a shift of roll", by, least=-(2**62), most=2**62)
        by = by % size if isinstance(size, int) and size else by
        node = apply(Roll(place, by), node) if by and size != 0 else node
    return Tensor(node)


def moveaxis(
    x: TensorLike, source: int | Sequence[int], destination: int | Sequence[int], /
) -> Tensor:
    """Axes moved to other places; the others stay in order."""
    node = as_node(x)
    rank = node.type.rank
    ends = (("source", source), ("destination", destination))
    pairs = [(v,) if isinstance(v, int) else several(name, v) for name, v in ends]
    start, end = ([_axis(a, rank, node) for a in part] for part in pairs)
    if len(start) != len(end) or len({*start}) < len(start) or len({*end}) < len(end):
        raise ShapeError(
            f"moveaxis needs as many different places as axes: {source}, {destination}"
        )
    order = [a for a in range(rank) if a not in start]
    for to, a in sorted(zip(end, start, strict=True)):
        order.insert(to, a)
    return Tensor(transpose(node, order))


def broadcast_arrays(*arrays: TensorLike) -> tuple[Tensor, ...]:
    """Tensors repeated to the shape they meet in."""
    nodes = [as_node(a) for a in arrays]
    shape = build.broadcast_shapes([n.type.shape for n in nodes], "broadcast_arrays", nodes)
    return tuple(Tensor(build.broadcast(n, shape)) for n in nodes)


def broadcast_shapes(*shapes: Any) -> tuple[Dim, ...]:
    """The shape that shapes, which may hold symbolic sizes, broadcast to."""
    return build.broadcast_shapes([check_shape(s) for s in shapes], "broadcast_shapes")


def meshgrid(*arrays: TensorLike, indexing: str = "xy") -> tuple[Tensor, ...]:
    """Coordinates on a grid from the vectors of its axes; "xy" swaps the first two."""
    nodes = promoted("meshgrid", arrays) if arrays else []
    one_of("indexing", indexing, "xy", "ij")
    if any(n.type.rank > 1 for n in nodes):
        raise ShapeError(f"meshgrid takes vectors: {', '.join(str(n.type) for n in nodes)}")
    count = len(nodes)
    places = list(range(count))
    if indexing == "xy" and count > 1:
        places[:2] = [1, 0]
    flats = [n if n.type.rank else build.keep_axes(n, (0,)) for n in nodes]
    raised = [
        Tensor(build.keep_axes(n, tuple(a for a in range(count) if a != place)))
        for n, place in zip(flats, places, strict=True)
    ]
    return broadcast_arrays(*raised)


def diff(
    x: TensorLike,
    /,
    *,
    axis: int = -1,
    n: int = 1,
    prepend: TensorLike | None = None,
    append: TensorLike | None = None,
) -> Tensor:
    """Each element less the one before it along an axis, n times over."""
    node = as_node(x)
    place = _axis(axis, node.type.rank, node)
    n = whole("the n of diff", n, most=1000)
    parts = [p for p in (prepend, x, append) if p is not None]
    out = concat(parts, axis=place) if n else Tensor(node)
    lead = (slice(None),) * place
    for _ in range(n):
        after, before = out[(*lead, slice(1, None))], out[(*lead, slice(None, -1))]
        out = after != before if out.dtype.is_bool else after - before
    return out


def matrix_axes(x: Node, name: str) -> tuple[int, int]:
    """The last two axes. Raises ShapeError where there are fewer."""
    if x.type.rank < 2:
        raise ShapeError(f"{name} needs two axes: {x.type}")
    return x.type.rank - 2, x.type.rank - 1


def count(x: Node, axis: int | Sequence[int] | None) -> Dim:
    """The number of elements along axes, all by default."""
    return product(tuple(x.type.shape[a] for a in _axes(axis, x)))
