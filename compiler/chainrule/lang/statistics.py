"""Reductions and running sums beyond sum, mean, max and min, by the names of the array API."""

from __future__ import annotations

from collections.abc import Sequence

from chainrule.errors import DTypeError, ShapeError
from chainrule.ir.node import Node, apply
from chainrule.ir.types import Kind, int64, uint64
from chainrule.ir.types import dtype as _dtype
from chainrule.lang.functions import _axis, _reduce, mean, zeros
from chainrule.lang.functions import sum as sum_
from chainrule.lang.manipulation import concat, count
from chainrule.lang.tensor import Tensor, TensorLike, as_node, elementwise
from chainrule.ops import build
from chainrule.ops.along import CumulativeSum
from chainrule.ops.elementwise import check_accepts
from chainrule.ops.product import Prod
from chainrule.ops.source import size_of

Axis = int | Sequence[int] | None


def _accumulated(x: TensorLike, dtype: object) -> Node:
    """x as the type that its elements are added up in: small integers in 64 bits."""
    node = as_node(x)
    of = node.type.dtype
    if dtype is not None:
        return build.cast(node, _dtype(dtype))
    return node if of.is_float else build.cast(node, uint64 if of.kind is Kind.UINT else int64)


def prod(
    x: TensorLike, /, *, axis: Axis = None, dtype: object = None, keepdims: bool = False
) -> Tensor:
    """The product over axes, all by default; of no elements 1. Integers multiply in 64 bits."""
    return _reduce(Prod, _accumulated(x, dtype), axis, keepdims)


def cumulative_sum(
    x: TensorLike,
    /,
    *,
    axis: int | None = None,
    dtype: object = None,
    include_initial: bool = False,
) -> Tensor:
    """The sum of each element and those before it; with `include_initial` it begins with 0."""
    node = _accumulated(x, dtype)
    if axis is None and node.type.rank != 1:
        raise ShapeError(f"cumulative_sum needs an axis for {node.type}")
    place = _axis(0 if axis is None else axis, node.type.rank, node)
    out = Tensor(apply(CumulativeSum(place), node))
    if not include_initial:
        return out
    shape = node.type.shape
    first = zeros((*shape[:place], 1, *shape[place + 1 :]), dtype=out.dtype)
    return concat([first, out], axis=place)


def count_nonzero(x: TensorLike, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """How many elements over axes are not 0, as int64."""
    return sum_(_holds(x), axis=axis, keepdims=keepdims)


def all(x: TensorLike, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Whether every element over axes holds; a number holds if it is not 0."""
    failing = elementwise("not_", _holds(x))
    return sum_(failing, axis=axis, keepdims=keepdims) == 0


def any(x: TensorLike, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Whether some element over axes holds; a number holds if it is not 0."""
    return sum_(_holds(x), axis=axis, keepdims=keepdims) != 0


def _holds(x: TensorLike) -> Tensor:
    t = Tensor(as_node(x))
    return t if t.dtype.is_bool else t != 0


def var(
    x: TensorLike, /, *, axis: Axis = None, correction: float = 0.0, keepdims: bool = False
) -> Tensor:
    """The mean squared distance from the mean over axes, divided by n - correction, not n."""
    node = as_node(x)
    check_accepts("var", "float", node.type.dtype)
    distance = Tensor(node) - mean(Tensor(node), axis=axis, keepdims=True)
    squares = elementwise("square", distance)
    if correction == 0:
        return mean(squares, axis=axis, keepdims=keepdims)
    if isinstance(correction, bool) or not isinstance(correction, (int, float)):
        raise DTypeError(f"var's correction is a number, not {correction!r}")
    n = Tensor(size_of(count(node, axis), node.type.dtype)) - float(correction)
    return sum_(squares, axis=axis, keepdims=keepdims) / n


def std(
    x: TensorLike, /, *, axis: Axis = None, correction: float = 0.0, keepdims: bool = False
) -> Tensor:
    """The square root of `var`; where that is 0 its derivative is 0, as in PyTorch."""
    square = var(x, axis=axis, correction=correction, keepdims=keepdims)
    none = square == 0
    root = elementwise("sqrt", elementwise("where", none, 1.0, square))
    return elementwise("where", none, 0.0, root)
