"""Reductions and running sums beyond sum, mean, max and min, by the names of the array API."""

from __future__ import annotations

from collections.abc import Sequence

from chainrule.errors import ShapeError
from chainrule.ir.node import Node, apply
from chainrule.lang.arguments import flag, number
from chainrule.lang.functions import _axis, _reduce, accumulated, full, mean
from chainrule.lang.functions import sum as sum_
from chainrule.lang.manipulation import concat, count
from chainrule.lang.tensor import Tensor, TensorLike, as_node, elementwise
from chainrule.ops import build
from chainrule.ops.elementwise import check_accepts
from chainrule.ops.product import Prod
from chainrule.ops.running import CumulativeProd, CumulativeSum
from chainrule.ops.source import size_of

Axis = int | Sequence[int] | None


def prod(
    x: TensorLike, /, *, axis: Axis = None, dtype: object = None, keepdims: bool = False
) -> Tensor:
    """The product over axes, all by default; of no elements 1. Integers multiply in 64 bits."""
    return _reduce(Prod, accumulated(x, dtype), axis, keepdims)


def cumulative_sum(
    x: TensorLike,
    /,
    *,
    axis: int | None = None,
    dtype: object = None,
    include_initial: bool = False,
) -> Tensor:
    """The sum of each element and those before it; with `include_initial` it begins with 0."""
    node = accumulated(x, dtype)
    place = _running("cumulative_sum", node, axis)
    out = Tensor(apply(CumulativeSum(place), node))
    return _begun(out, place, 0) if flag("include_initial", include_initial) else out


def cumulative_prod(
    x: TensorLike,
    /,
    *,
    axis: int | None = None,
    dtype: object = None,
    include_initial: bool = False,
) -> Tensor:
    """The product of each element and those before it; with `include_initial` it begins with 1."""
    node = accumulated(x, dtype)
    place = _running("cumulative_prod", node, axis)
    out = Tensor(apply(CumulativeProd(place), node))
    return _begun(out, place, 1) if flag("include_initial", include_initial) else out


def _running(name: str, x: Node, axis: int | None) -> int:
    if axis is None and x.type.rank != 1:
        raise ShapeError(f"{name} needs an axis for {x.type}")
    return _axis(0 if axis is None else axis, x.type.rank, x)


def _begun(x: Tensor, axis: int, value: int) -> Tensor:
    """x with one more element along an axis, in front."""
    first = full((*x.shape[:axis], 1, *x.shape[axis + 1 :]), value, dtype=x.dtype)
    return concat([first, x], axis=axis)


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
    return _var(build.cast(node, node.type.dtype.wide), axis, correction, keepdims).astype(
        node.type.dtype
    )


def _var(node: Node, axis: Axis, correction: float, keepdims: bool) -> Tensor:
    correction = number("correction", correction)
    distance = Tensor(node) - mean(Tensor(node), axis=axis, keepdims=True)
    squares = elementwise("square", distance)
    if correction == 0:
        return mean(squares, axis=axis, keepdims=keepdims)
    n = Tensor(size_of(count(node, axis), node.type.dtype)) - float(correction)
    return sum_(squares, axis=axis, keepdims=keepdims) / n


def std(
    x: TensorLike, /, *, axis: Axis = None, correction: float = 0.0, keepdims: bool = False
) -> Tensor:
    """The square root of `var`; where that is 0 its derivative is 0, as in PyTorch."""
    node = as_node(x)
    check_accepts("std", "float", node.type.dtype)
    square = _var(build.cast(node, node.type.dtype.wide), axis, correction, keepdims)
    none = square == 0
    root = elementwise("sqrt", elementwise("where", none, 1.0, square))
    return elementwise("where", none, 0.0, root).astype(node.type.dtype)
