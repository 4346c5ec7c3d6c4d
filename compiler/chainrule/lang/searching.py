"""Where things are: the places of extremes, orders, and elements chosen or changed by place.

An order is found by counting, for each element, those that go before it: n**2 comparisons along an
axis of n, fused and without memory of their own.
"""

from __future__ import annotations

from typing import NoReturn

from chainrule.errors import ShapeError
from chainrule.ir.node import Node, apply
from chainrule.ir.types import int64
from chainrule.lang.functions import _axis
from chainrule.lang.manipulation import flat
from chainrule.lang.tensor import Tensor, TensorLike, as_node, elementwise
from chainrule.ops import build
from chainrule.ops.along import AddAlong, TakeAlong
from chainrule.ops.axes import Expand, Sum
from chainrule.ops.elementwise import check_accepts
from chainrule.ops.index import ScatterAdd
from chainrule.ops.reduce import Max, Min
from chainrule.ops.source import Iota, size_of


def argmax(x: TensorLike, /, *, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """The first place of the largest, or of a NaN, along an axis, or among all, as int64."""
    return _place(Max, x, axis, keepdims)


def argmin(x: TensorLike, /, *, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """The first place of the smallest, or of a NaN, along an axis, or among all, as int64."""
    return _place(Min, x, axis, keepdims)


def _place(kind: type[Max] | type[Min], x: TensorLike, axis: int | None, keepdims: bool) -> Tensor:
    node = as_node(x)
    check_accepts("argmax" if kind is Max else "argmin", "numeric", node.type.dtype)
    kept = tuple(range(node.type.rank)) if axis is None else (_axis(axis, node.type.rank, node),)
    along = build.keep_axes(node, (0,)) if not node.type.rank else node
    along, place = (flat(along), 0) if axis is None else (along, kept[0])
    best = apply(Expand(along.type.shape, (place,)), apply(kind((place,)), along))
    hit = build.call("or_", build.call("eq", along, best), build.call("ne", along, along))
    size = build.broadcast(size_of(along.type.shape[place], int64), along.type.shape)
    found = build.call("where", hit, apply(Iota(along.type.shape, place, int64)), size)
    out = apply(Min((place,)), found)
    return Tensor(build.keep_axes(out, kept) if keepdims else out)


def argsort(
    x: TensorLike, /, *, axis: int = -1, descending: bool = False, stable: bool = True
) -> Tensor:
    """The places of the elements in order along an axis, as int64; equal ones keep theirs.

    NaNs are above all numbers.
    """
    node = as_node(x)
    check_accepts("argsort", "numeric", node.type.dtype)
    place = _axis(axis, node.type.rank, node)
    rank = _ranks(node, place, descending)
    own = apply(Iota(node.type.shape, place, int64))
    return Tensor(apply(AddAlong(place, node.type.shape[place]), own, rank))


def _ranks(x: Node, axis: int, descending: bool) -> Node:
    """For each element how many go before it along the axis."""
    shape = (*x.type.shape[: axis + 1], *x.type.shape[axis:])
    mine = apply(Expand(shape, (axis + 1,)), x)
    other = apply(Expand(shape, (axis,)), x)
    if descending:
        after, before = _below(other, mine), _below(mine, other)
    else:
        after, before = _below(mine, other), _below(other, mine)
    places = (apply(Iota(shape, a, int64)) for a in (axis + 1, axis))
    earlier = build.call("lt", *places)
    first = build.call("where", earlier, build.call("not_", after), before)
    return apply(Sum((axis + 1,)), build.cast(first, int64))


def _below(x: Node, y: Node) -> Node:
    """Whether x < y, a NaN being above all numbers."""
    less = build.call("lt", x, y)
    if not x.type.dtype.is_float:
        return less
    last = build.call("and_", build.call("ne", y, y), build.call("eq", x, x))
    return build.call("or_", less, last)


def sort(
    x: TensorLike, /, *, axis: int = -1, descending: bool = False, stable: bool = True
) -> Tensor:
    """The elements in order along an axis, NaNs above all numbers."""
    order = argsort(x, axis=axis, descending=descending, stable=stable)
    return take_along_axis(x, order, axis=axis)


def top_k(
    x: TensorLike, k: int, /, *, axis: int = -1, largest: bool = True
) -> tuple[Tensor, Tensor]:
    """The k largest (or smallest) along an axis, in order, and their places."""
    node = as_node(x)
    place = _axis(axis, node.type.rank, node)
    size = node.type.shape[place]
    if (
        isinstance(k, bool)
        or not isinstance(k, int)
        or k < 0
        or (isinstance(size, int) and k > size)
    ):
        raise ShapeError(f"top_k takes a k from 0 to {size}, not {k!r}")
    order = argsort(x, axis=place, descending=largest)
    places = order[(slice(None),) * place + (slice(0, k),)]
    return take_along_axis(x, places, axis=place), places


def take_along_axis(x: TensorLike, indices: TensorLike, /, *, axis: int = -1) -> Tensor:
    """In each row along an axis, the elements that a row of indices names; the rest broadcasts."""
    node, at = as_node(x), as_node(indices)
    if node.type.rank != at.type.rank:
        raise ShapeError(f"take_along_axis needs operands of one rank: {node.type}, {at.type}")
    place = _axis(axis, node.type.rank, node)
    shapes = [(*t.type.shape[:place], 1, *t.type.shape[place + 1 :]) for t in (node, at)]
    both = build.broadcast_shapes(shapes, "take_along_axis", [node, at])
    node, at = (
        build.broadcast(t, (*both[:place], t.type.shape[place], *both[place + 1 :]))
        for t in (node, at)
    )
    return Tensor(apply(TakeAlong(place), node, at))


def scatter_add(
    x: TensorLike, indices: TensorLike, updates: TensorLike, /, *, axis: int = 0
) -> Tensor:
    """x, with `updates` added at positions along an axis: the adjoint of `take`.

    The shape of `updates` is that of `take(x, indices, axis=axis)`, or broadcasts to it; where
    positions repeat, their updates add up.
    """
    node, at, new = as_node(x), as_node(indices), as_node(updates)
    place = _axis(axis, node.type.rank, node)
    shape = (*node.type.shape[:place], *at.type.shape, *node.type.shape[place + 1 :])
    new = build.broadcast(build.cast(new, node.type.dtype), shape)
    added = apply(ScatterAdd(place, node.type.shape[place]), new, at)
    return elementwise("add", Tensor(node), Tensor(added))


def nonzero(x: TensorLike, /) -> NoReturn:
    """Refused: how many elements are not 0 is known only when they are."""
    _depends("nonzero", "cr.where, or cr.count_nonzero")


def unique_values(x: TensorLike, /) -> NoReturn:
    """Refused: how many elements differ is known only when they are."""
    _depends("unique_values", "cr.sort, and compare neighbours")


def _depends(name: str, instead: str) -> NoReturn:
    raise ShapeError(
        f"{name} would have a shape that depends on data, and shapes here are known before",
        f"use {instead}",
    )
