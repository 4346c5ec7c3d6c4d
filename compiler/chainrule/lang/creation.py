"""Tensors from numbers: grids, triangles and the unit matrix, as the array API makes them."""

from __future__ import annotations

import builtins
import math
from typing import Any

import numpy as np

from chainrule.errors import DTypeError, FeedError, ShapeError
from chainrule.given import is_int
from chainrule.ir.node import Node, apply
from chainrule.ir.size import Dim, Size
from chainrule.ir.types import DType, check_shape, int64
from chainrule.ir.types import dtype as _dtype
from chainrule.lang.arguments import flag, whole
from chainrule.lang.beside import as_array
from chainrule.lang.functions import number, zeros, zeros_like
from chainrule.lang.leaves import constant as constant_tensor
from chainrule.lang.manipulation import matrix_axes
from chainrule.lang.tensor import Tensor, TensorLike, as_node, check_device
from chainrule.ops import build
from chainrule.ops.source import Iota, constant, size_of
from chainrule.ops.source import full as full_node

#: numbers that are kept as an array: more than memory has is refused, not tried
_MOST = 2**27


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
    kept = build.call(side, _diagonal(node.type.shape), whole("k", k, least=-(2**31), most=2**31))
    zero = full_node(0, node.type.dtype, node.type.shape)
    return Tensor(build.call("where", kept, node, zero))


def eye(
    n_rows: Dim,
    n_cols: Dim | None = None,
    /,
    *,
    k: int = 0,
    dtype: object = None,
    device: object = None,
) -> Tensor:
    """1 on the k-th diagonal, 0 elsewhere; float32 unless told."""
    check_device(device)
    shape = check_shape((n_rows, n_rows if n_cols is None else n_cols))
    on = build.call("eq", _diagonal(shape), whole("k", k, least=-(2**31), most=2**31))
    return Tensor(build.cast(on, _dtype("float32" if dtype is None else dtype)))


def arange(
    start: Dim | float,
    /,
    stop: Dim | float | None = None,
    step: int | float = 1,
    *,
    dtype: object = None,
    device: object = None,
) -> Tensor:
    """start, start + step, ... up to, but without, stop; of one number, 0 up to it.

    Whole ends may be symbolic sizes. int64, or float32 where a number is a float.
    """
    check_device(device)
    first, last = (0, start) if stop is None else (start, stop)
    ends = [
        v if isinstance(v, Size) else number("an end of arange", v) for v in (first, last, step)
    ]
    if any(isinstance(v, bool) for v in ends):
        raise DTypeError(f"arange counts in numbers, not {first}, {last}, {step}")
    begin: Any
    end: Any
    by: Any
    begin, end, by = ends
    if isinstance(by, Size) or by == 0 or by != by:
        raise ShapeError(f"arange's step is a number other than 0, not {by}")
    if any(isinstance(v, float) for v in ends):
        return _floats(begin, end, by, _dtype("float32" if dtype is None else dtype))
    count: Dim = -((begin - end) // by)
    count = builtins.max(count, 0) if isinstance(count, int) else count
    of = _dtype(dtype or "int64")
    if of.is_integer and isinstance(count, int) and isinstance(begin, int) and count:
        for far in (begin, begin + (count - 1) * by):
            full_node(far, of, ())  # refuses what the type can't hold
    if begin == 0 and by == 1:
        return Tensor(apply(Iota(check_shape((count,)), 0, of)))
    steps = build.call("mul", apply(Iota(check_shape((count,)), 0, int64)), by)
    places = build.call("add", steps, size_of(begin, int64))
    return Tensor(build.cast(places, of))


def _floats(start: Any, stop: Any, step: Any, of: DType) -> Tensor:
    if any(isinstance(v, Size) for v in (start, stop)):
        raise ShapeError(
            f"how many numbers lie from {start} to {stop} in steps of {step} is known for whole "
            "numbers alone"
        )
    steps = (stop - start) / step
    if not math.isfinite(steps) or steps > _MOST:
        raise ShapeError(f"arange from {start} to {stop} in steps of {step} is no finite array")
    count = math.ceil(steps)
    places = start + step * np.arange(builtins.max(count, 0))
    return Tensor(constant(places, of))


def linspace(
    start: float,
    stop: float,
    /,
    num: int,
    *,
    dtype: object = None,
    device: object = None,
    endpoint: bool = True,
) -> Tensor:
    """`num` numbers at equal distances from start to stop, which is the last with `endpoint`.

    float32 unless told.
    """
    check_device(device)
    of = _dtype("float32" if dtype is None else dtype)
    if not of.is_float:
        raise DTypeError(f"linspace makes floats, not {of}")
    if not is_int(num) or num < 0:
        raise ShapeError(f"linspace makes a number of numbers, not {num!r}")
    if num > _MOST:
        raise ShapeError(f"linspace makes at most {_MOST} numbers, which are kept, not {num}")
    first, last = (number("an end of linspace", v) for v in (start, stop))
    with np.errstate(all="ignore"):
        return Tensor(constant(np.linspace(first, last, int(num), flag("endpoint", endpoint)), of))


def empty(shape: Any, *, dtype: object = None, device: object = None) -> Tensor:
    """Zeros: an expression has no memory in which to find other numbers."""
    return zeros(shape, dtype=dtype, device=device)


def empty_like(x: TensorLike, /, *, dtype: object = None, device: object = None) -> Tensor:
    """Zeros of x's shape and, unless told, type."""
    return zeros_like(x, dtype=dtype, device=device)


def asarray(
    obj: TensorLike,
    /,
    *,
    dtype: object = None,
    device: object = None,
    copy: bool | None = None,
) -> Tensor:
    """A Tensor as it is; a number, nested lists or an array as a constant of the graph.

    Without `dtype` Python's floats are float32, its ints int64. Raises FeedError (a ValueError)
    where `copy=False` and the numbers have to be copied into the graph.
    """
    check_device(device)
    if isinstance(obj, Tensor):
        return obj if dtype is None else obj.astype(dtype)
    if copy is False:
        raise FeedError("an array that is part of a graph is a copy: copy=False can't be kept")
    if dtype is not None:
        return constant_tensor(obj, dtype=dtype)
    array = as_array(obj)
    narrow = array.dtype == np.float64 and not _has_types(obj)
    return Tensor(constant(array, _dtype("float32")) if narrow else constant(array))


def _has_types(obj: object) -> bool:
    """Whether something here, or in nested lists, has an element type of its own."""
    if isinstance(obj, (list, tuple)):
        return builtins.any(map(_has_types, obj))
    return isinstance(obj, np.generic) or not isinstance(obj, (bool, int, float))


def from_dlpack(x: object, /, *, device: object = None, copy: bool | None = None) -> Tensor:
    """An array of another library as a constant of the graph; of its type."""
    check_device(device)
    if isinstance(x, Tensor):
        return x
    if copy is False:
        raise FeedError("an array that is part of a graph is a copy: copy=False can't be kept")
    if not hasattr(x, "__dlpack__"):
        raise FeedError(f"{type(x).__name__} has no __dlpack__", "cr.asarray takes lists")
    try:
        array = np.from_dlpack(x)
    except (BufferError, TypeError, ValueError, RuntimeError) as error:
        raise FeedError(f"{type(x).__name__} can't be taken: {error}") from None
    return Tensor(as_node(array))
