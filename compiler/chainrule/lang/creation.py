"""Tensors from numbers: grids, triangles and the unit matrix, as the array API makes them."""

from __future__ import annotations

import numpy as np

from chainrule.errors import DTypeError, ShapeError
from chainrule.ir.node import Node, apply
from chainrule.ir.size import Dim
from chainrule.ir.types import check_shape, int64
from chainrule.ir.types import dtype as _dtype
from chainrule.lang.manipulation import matrix_axes
from chainrule.lang.tensor import Tensor, TensorLike, as_node
from chainrule.ops import build
from chainrule.ops.source import Iota, constant
from chainrule.ops.source import full as full_node


def _diagonal(shape: tuple[Dim, ...]) -> Node:
    """For each element of a matrix the number of its diagonal: column less row."""
    rank = len(shape)
    row, column = (apply(Iota(shape, a, int64)) for a in (rank - 2, rank - 1))
    return build.call("sub", column, row)


def tril(x: TensorLike, /, *, k: int = 0) -> Tensor:
    """A matrix with 0 above its k-th diagonal."""
    return _triangle("tril", "le", x, k)


def triu(x: TensorLike, /, *, k: int = 0) -> Tensor:
    """A matrix with 0 below its k-th diagonal."""
    return _triangle("triu", "ge", x, k)


def _triangle(name: str, side: str, x: TensorLike, k: int) -> Tensor:
    node = as_node(x)
    matrix_axes(node, name)
    kept = build.call(side, _diagonal(node.type.shape), k)
    zero = full_node(0, node.type.dtype, node.type.shape)
    return Tensor(build.call("where", kept, node, zero))


def eye(
    n_rows: Dim, n_cols: Dim | None = None, /, *, k: int = 0, dtype: object = "float32"
) -> Tensor:
    """1 on the k-th diagonal, 0 elsewhere."""
    shape = check_shape((n_rows, n_rows if n_cols is None else n_cols))
    return Tensor(build.cast(build.call("eq", _diagonal(shape), k), _dtype(dtype)))


def linspace(
    start: float, stop: float, /, num: int, *, dtype: object = "float32", endpoint: bool = True
) -> Tensor:
    """`num` numbers at equal distances from start to stop, which is the last with `endpoint`."""
    of = _dtype(dtype)
    if not of.is_float:
        raise DTypeError(f"linspace makes floats, not {of}")
    if isinstance(num, bool) or not isinstance(num, int) or num < 0:
        raise ShapeError(f"linspace makes a number of numbers, not {num!r}")
    return Tensor(constant(np.linspace(start, stop, num, endpoint), of))


def full_like(x: TensorLike, /, fill_value: bool | int | float, *, dtype: object = None) -> Tensor:
    """One number everywhere, of x's shape and, unless told, type."""
    node = as_node(x)
    of = _dtype(dtype) if dtype else node.type.dtype
    return Tensor(full_node(fill_value, of, node.type.shape))
