"""The functions of the language, by the names of the Python array API standard 2024.12.

Each takes Tensors, arrays or numbers and gives a Tensor; shapes broadcast, element types promote as
the standard says. Where the standard leaves a promotion open (a float with an integer) it is a
DTypeError; shapes that do not fit are a ShapeError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from chainrule.errors import DTypeError, ShapeError
from chainrule.given import is_int
from chainrule.ir.node import Node, apply
from chainrule.ir.size import Size, product
from chainrule.ir.size import divide as exact_quotient
from chainrule.ir.types import Kind, check_shape
from chainrule.ir.types import dtype as _dtype
from chainrule.lang.arguments import flag, several
from chainrule.lang.indexing import take as take_nodes
from chainrule.lang.pointwise import *  # noqa: F403 - one namespace for all functions
from chainrule.lang.tensor import Tensor, TensorLike, as_node, as_nodes, check_device
from chainrule.ops import build
from chainrule.ops.axes import Reduce, Sum
from chainrule.ops.composite import LogSoftmax, LogSumExp, Pick, Softmax
from chainrule.ops.contract import einsum as einsum_nodes
from chainrule.ops.contract import matmul as matmul_nodes
from chainrule.ops.contract import transpose
from chainrule.ops.index import OneHot
from chainrule.ops.layout import Reshape
from chainrule.ops.reduce import Max, Min
from chainrule.ops.source import full as full_node
from chainrule.ops.source import size_of

Axis = int | Sequence[int] | None


# reductions


def sum(
    x: TensorLike, /, *, axis: Axis = None, dtype: object = None, keepdims: bool = False
) -> Tensor:
    """The sum over axes, all by default; of no elements 0.

    Integers are summed in 64 bits, and bools are counted so, as the standard says; `dtype` is
    another type to sum in.
    """
    return _reduce(Sum, accumulated(x, dtype), axis, keepdims)


def accumulated(x: TensorLike, dtype: object) -> Node:
    """x as the type that its elements are added or multiplied in: small integers in 64 bits."""
    node = as_node(x)
    of = node.type.dtype
    if dtype is not None:
        to = _dtype(dtype)
        if to.is_bool:
            raise DTypeError(f"bools are not added or multiplied: {node.type} in {to}")
        return build.cast(node, to)
    if of.is_float:
        return node
    return build.cast(node, _dtype("uint64" if of.kind is Kind.UINT else "int64"))


def mean(x: TensorLike, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The mean of floats over axes, all by default; of no elements NaN."""
    t = as_node(x)
    if not t.type.dtype.is_float:
        raise DTypeError(
            f"mean is defined for floats, not for {t.type}", 'convert first: x.astype("float32")'
        )
    axes, wide = _axes(axis, t), build.cast(t, t.type.dtype.wide)
    count = size_of(product(tuple(t.type.shape[a] for a in axes)), wide.type.dtype)
    quotient = build.call("div", _reduce(Sum, wide, axes, keepdims).node, count)
    return Tensor(build.cast(quotient, t.type.dtype))


def max(x: TensorLike, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The largest over axes, all by default. Equal ones share the derivative equally."""
    return _reduce(Max, as_node(x), axis, keepdims)


def min(x: TensorLike, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The smallest over axes, all by default. Equal ones share the derivative equally."""
    return _reduce(Min, as_node(x), axis, keepdims)


def _reduce(kind: type[Reduce], x: Node, axis: Axis, keepdims: bool) -> Tensor:
    axes, keep = _axes(axis, x), flag("keepdims", keepdims)
    node = apply(kind(axes), x) if axes else x
    return Tensor(build.keep_axes(node, axes) if keep and axes else node)


def _axes(axis: Axis, x: Node) -> tuple[int, ...]:
    """Axes as sorted numbers from 0."""
    if axis is None:
        return tuple(range(x.type.rank))
    given = tuple(axis) if isinstance(axis, Sequence) else (axis,)
    axes = tuple(sorted(_axis(a, x.type.rank, x) for a in given))
    if len(set(axes)) != len(axes):
        raise ShapeError(f"axis {axis} names an axis twice: {x.type}")
    return axes


def _axis(axis: int, rank: int, x: Node) -> int:
    if not is_int(axis):
        raise ShapeError(f"an axis is an int, not {axis!r}")
    if not -rank <= axis < rank:
        raise ShapeError(
            f"axis {axis} is out of range for {x.type}", f"axes go from {-rank} to {rank - 1}"
        )
    return int(axis) % rank


# products


def matmul(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """The matrix product x1 @ x2 of vectors, matrices or stacks of matrices."""
    return Tensor(matmul_nodes(*as_nodes((x1, x2))))


def outer(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """The outer product of two vectors."""
    return Tensor(einsum_nodes("i,j->ij", *as_nodes((x1, x2))))


# form


def reshape(x: TensorLike, /, shape: Any, *, copy: bool | None = None) -> Tensor:
    """The elements in row-major order under another shape; one size may be -1.

    `copy` says nothing to an expression, which has no memory.
    """
    node = as_node(x)
    wanted = list(shape) if isinstance(shape, (tuple, list)) else [shape]
    open_at = [i for i, d in enumerate(wanted) if isinstance(d, (int, np.integer)) and d == -1]
    if len(open_at) > 1:
        raise ShapeError(f"one size of a shape may be -1: {tuple(wanted)}")
    if open_at:
        wanted[open_at[0]] = 1
        known = product(check_shape(wanted))
        count = exact_quotient(product(node.type.shape), known)
        if count is None:
            raise ShapeError(f"reshape keeps the number of elements: {node.type} to {tuple(shape)}")
        wanted[open_at[0]] = count
    to = check_shape(wanted)
    return Tensor(node if to == node.type.shape else apply(Reshape(to), node))


def permute_dims(x: TensorLike, /, axes: Sequence[int]) -> Tensor:
    """Axis i of the result is axis axes[i] of x."""
    node = as_node(x)
    perm = tuple(_axis(a, node.type.rank, node) for a in several("axes", axes))
    return Tensor(transpose(node, perm) if len(perm) == node.type.rank else _bad_perm(node, perm))


def _bad_perm(node: Node, perm: tuple[int, ...]) -> Node:
    raise ShapeError(f"{perm} does not name each axis of {node.type} once")


def matrix_transpose(x: TensorLike, /) -> Tensor:
    """The last two axes swapped."""
    return Tensor(as_node(x)).mT


def expand_dims(x: TensorLike, /, axis: int | Sequence[int] = 0) -> Tensor:
    """New axes of size 1, at the places they have in the result."""
    node = as_node(x)
    given = tuple(axis) if isinstance(axis, Sequence) else (axis,)
    rank = node.type.rank + len(given)
    axes = sorted({_axis(a, rank, node) for a in given})
    if len(axes) != len(given):
        raise ShapeError(f"axis {axis} names an axis twice")
    return Tensor(build.keep_axes(node, axes))


def squeeze(x: TensorLike, /, axis: int | Sequence[int]) -> Tensor:
    """Without the axes named, which have size 1."""
    node = as_node(x)
    axes = _axes(axis, node)
    for a in axes:
        if node.type.shape[a] != 1:
            raise ShapeError(f"axis {a} of {node.type} has size {node.type.shape[a]}, not 1")
    return Tensor(build.squeeze(node, axes))


def broadcast_to(x: TensorLike, /, shape: Any) -> Tensor:
    """Repeated to a shape, axes of size 1 stretching."""
    return Tensor(build.broadcast(as_node(x), check_shape(shape)))


def flip(x: TensorLike, /, *, axis: Axis = None) -> Tensor:
    """The order of elements reversed along axes, all by default."""
    node = as_node(x)
    axes = _axes(axis, node)
    parts = tuple(
        slice(None, None, -1) if i in axes else slice(None) for i in range(node.type.rank)
    )
    return Tensor(node)[parts] if axes else Tensor(node)


def astype(x: TensorLike, dtype: object, /, *, copy: bool = True, device: object = None) -> Tensor:
    """Each element converted to another type; `copy` says nothing to an expression."""
    return Tensor(as_node(x)).astype(dtype, copy=copy, device=device)


# choosing by integers


def one_hot(y: TensorLike, n: int | Size, /, *, dtype: object = "float32") -> Tensor:
    """A new last axis of size n: 1 at the class that y holds, 0 elsewhere."""
    (size,) = check_shape((n,))
    return Tensor(apply(OneHot(size, _dtype(dtype)), as_node(y)))


def take(x: TensorLike, indices: TensorLike, /, *, axis: int | None = None) -> Tensor:
    """Elements of x along an axis at integer positions, of any rank.

    Positions below 0 count from the end; one outside is an error, at the call where it is not
    known before.
    """
    node, positions = as_node(x), as_node(indices)
    if axis is None and node.type.rank != 1:
        raise ShapeError(f"take needs an axis for {node.type}")
    place = _axis(0 if axis is None else axis, node.type.rank, node)
    return Tensor(take_nodes(node, positions, place))


def pick(x: TensorLike, y: TensorLike, /) -> Tensor:
    """Along the last axis of x, the element that the integer y names: x[..., y]."""
    return Tensor(apply(Pick(), as_node(x), as_node(y)))


# softmax and its kin


def softmax(x: TensorLike, /, *, axis: int = -1) -> Tensor:
    """exp(x) / sum(exp(x)) along an axis."""
    node = as_node(x)
    return Tensor(apply(Softmax(_axis(axis, node.type.rank, node)), node))


def log_softmax(x: TensorLike, /, *, axis: int = -1) -> Tensor:
    """log(softmax(x)) along an axis."""
    node = as_node(x)
    return Tensor(apply(LogSoftmax(_axis(axis, node.type.rank, node)), node))


def logsumexp(x: TensorLike, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """log(sum(exp(x))) over axes, all by default."""
    node = as_node(x)
    axes = _axes(axis, node)
    kept = [i for i in range(node.type.rank) if i not in axes]
    shape = tuple(node.type.shape[i] for i in kept)
    moved = transpose(node, (*kept, *axes))
    flat = (*shape, product(tuple(node.type.shape[a] for a in axes)))
    if flat != moved.type.shape:
        moved = apply(Reshape(flat), moved)
    result = apply(LogSumExp(len(kept)), moved)
    keep = flag("keepdims", keepdims)
    return Tensor(build.keep_axes(result, axes) if keep else result)


# creation


def full(
    shape: Any,
    fill_value: bool | int | float,
    *,
    dtype: object = None,
    device: object = None,
) -> Tensor:
    """One number everywhere; float32 unless the number is an int (int64) or a bool."""
    check_device(device)
    value = number("a fill value", fill_value, "of a Tensor: cr.broadcast_to(x, shape)")
    kinds = {bool: "bool", int: "int64", float: "float32"}
    return Tensor(
        full_node(value, _dtype(kinds[type(value)] if dtype is None else dtype), check_shape(shape))
    )


def number(what: str, value: object, *hint: str) -> bool | int | float:
    """A number of Python's from one of NumPy's. Raises DTypeError for anything else."""
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = value.item()
    if isinstance(value, bool):
        return value
    if not isinstance(value, (int, float)):
        raise DTypeError(f"{what} is a number, not {value!r}", *hint)
    return int(value) if isinstance(value, int) else float(value)


def zeros(shape: Any, *, dtype: object = None, device: object = None) -> Tensor:
    """Zeros, float32 unless told."""
    return full(shape, 0, dtype="float32" if dtype is None else dtype, device=device)


def ones(shape: Any, *, dtype: object = None, device: object = None) -> Tensor:
    """Ones, float32 unless told."""
    return full(shape, 1, dtype="float32" if dtype is None else dtype, device=device)


def full_like(
    x: TensorLike,
    /,
    fill_value: bool | int | float,
    *,
    dtype: object = None,
    device: object = None,
) -> Tensor:
    """One number everywhere, of x's shape and, unless told, type."""
    of = as_node(x).type
    return full(of.shape, fill_value, dtype=of.dtype if dtype is None else dtype, device=device)


def zeros_like(x: TensorLike, /, *, dtype: object = None, device: object = None) -> Tensor:
    """Zeros of x's shape and, unless told, type."""
    return full_like(x, 0, dtype=dtype, device=device)


def ones_like(x: TensorLike, /, *, dtype: object = None, device: object = None) -> Tensor:
    """Ones of x's shape and, unless told, type."""
    return full_like(x, 1, dtype=dtype, device=device)
