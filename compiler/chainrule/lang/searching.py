"""Where things are: the places of extremes, orders, and elements chosen or changed by place."""

from __future__ import annotations

from typing import NoReturn

from chainrule.errors import ShapeError
from chainrule.given import is_int
from chainrule.ir.node import Node, apply
from chainrule.ir.types import Kind, int64
from chainrule.lang.arguments import flag
from chainrule.lang.functions import _axis
from chainrule.lang.functions import take as take_positions
from chainrule.lang.indexing import counted, take_along
from chainrule.lang.manipulation import flat, promoted
from chainrule.lang.tensor import Tensor, TensorLike, as_node, elementwise
from chainrule.ops import build
from chainrule.ops.axes import Expand, Sum
from chainrule.ops.elementwise import check_accepts
from chainrule.ops.index import ScatterAdd
from chainrule.ops.reduce import Max, Min
from chainrule.ops.sort import argsort as order_of
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
    return Tensor(build.keep_axes(out, kept) if flag("keepdims", keepdims) else out)


def argsort(
    x: TensorLike, /, *, axis: int = -1, descending: bool = False, stable: bool = True
) -> Tensor:
    """The places of the elements in order along an axis, as int64; equal ones keep theirs.

    NaNs are above all numbers. In either order the sort is stable, and its time grows with the
    number of elements alone.
    """
    node = as_node(x)
    place = _axis(axis, node.type.rank, node)
    return Tensor(order_of(node, place, flag("descending", descending)))


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
    """The k largest (or smallest) along an axis, in order, and their places.

    Of equal ones the first is taken. A NaN counts as larger than any number.
    """
    node = as_node(x)
    place = _axis(axis, node.type.rank, node)
    size = node.type.shape[place]
    if not is_int(k) or k < 0 or (isinstance(size, int) and k > size):
        raise ShapeError(f"top_k takes a k from 0 to {size}, not {k!r}")
    order = argsort(x, axis=place, descending=largest)
    places = order[(slice(None),) * place + (slice(0, int(k)),)]
    return take_along_axis(x, places, axis=place), places


def take_along_axis(x: TensorLike, indices: TensorLike, /, *, axis: int = -1) -> Tensor:
    """In each row along an axis, the elements that a row of indices names; the rest broadcasts.

    Indices below 0 count from the end.
    """
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
    return Tensor(take_along(node, at, place))


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
    at = counted(at, node.type.shape[place], node)
    signed = at.type.dtype.kind is Kind.INT
    added = apply(ScatterAdd(place, node.type.shape[place], signed), new, at)
    return elementwise("add", Tensor(node), Tensor(added))


def searchsorted(
    x1: TensorLike,
    x2: TensorLike,
    /,
    *,
    side: str = "left",
    sorter: TensorLike | None = None,
) -> Tensor:
    """Where in the sorted vector x1 each element of x2 belongs, as int64: before ("left") or after
    ("right") those that equal it; `sorter` are the places that sort x1.

    Found by counting, so with len(x1) comparisons an element. NaNs are above all numbers.
    """
    row, values = _beside("searchsorted", x1, x2)
    if row.type.rank != 1 or not isinstance(side, str) or side not in ("left", "right"):
        raise ShapeError(f'searchsorted takes a vector, and side "left" or "right": {row.type}')
    if sorter is not None:
        row = take_positions(Tensor(row), sorter).node
    shape = (*values.type.shape, row.type.shape[0])
    many = build.broadcast(row, shape)
    wanted = build.broadcast(build.keep_axes(values, (len(shape) - 1,)), shape)
    last = len(shape) - 1
    before = _below(many, wanted) if side == "left" else build.call("not_", _below(wanted, many))
    return Tensor(apply(Sum((last,)), build.cast(before, int64)))


def isin(x1: TensorLike, x2: TensorLike, /, *, invert: bool = False) -> Tensor:
    """Whether each element of x1 is among those of x2; with `invert` whether it is not."""
    x, among = _beside("isin", x1, x2)
    among = flat(among)
    shape = (*x.type.shape, among.type.shape[0])
    hit = build.call("eq", build.keep_axes(x, (x.type.rank,)), build.broadcast(among, shape))
    found = apply(Sum((x.type.rank,)), build.cast(hit, int64))
    return Tensor(build.call("eq" if flag("invert", invert) else "ne", found, 0))


def _beside(name: str, x1: TensorLike, x2: TensorLike) -> list[Node]:
    """Two operands in the type they meet in; a number takes that of the other."""
    first, second = (None if isinstance(x, (bool, int, float)) else x for x in (x1, x2))
    of = [Tensor(as_node(x)) for x in (first, second) if x is not None]
    return promoted(name, [Tensor(as_node(x, *of[:1])) for x in (x1, x2)])


def nonzero(x: TensorLike, /) -> NoReturn:
    """Refused: how many elements are not 0 is known only when they are."""
    _depends("nonzero", "cr.where, or cr.count_nonzero")


def unique_values(x: TensorLike, /) -> NoReturn:
    """Refused: how many elements differ is known only when they are."""
    _depends("unique_values", "cr.sort, and compare neighbours")


def unique_all(x: TensorLike, /) -> NoReturn:
    """Refused: how many elements differ is known only when they are."""
    _depends("unique_all", "cr.sort and cr.argsort, and compare neighbours")


def unique_counts(x: TensorLike, /) -> NoReturn:
    """Refused: how many elements differ is known only when they are."""
    _depends("unique_counts", "cr.sort, and compare neighbours; of classes known, cr.one_hot's sum")


def unique_inverse(x: TensorLike, /) -> NoReturn:
    """Refused: how many elements differ is known only when they are."""
    _depends("unique_inverse", "cr.argsort, and compare neighbours")


def _depends(name: str, instead: str) -> NoReturn:
    raise ShapeError(
        f"{name} would have a shape that depends on data, and shapes here are known before",
        f"use {instead}",
    )
