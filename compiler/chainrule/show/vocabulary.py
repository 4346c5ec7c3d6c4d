"""The functions of printed mathematics by name, each made into nodes as it prints.

A function takes nodes and numbers by place and options by name; ops of the elementwise table are
functions by their own names and stand in `parse`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from chainrule.errors import FormulaError
from chainrule.ir.node import Node, apply
from chainrule.ir.size import Dim
from chainrule.ir.size import divide as exact_quotient
from chainrule.ir.types import DTYPES, DType, bool_
from chainrule.ops import build
from chainrule.ops.along import AddAlong, CumulativeSum, TakeAlong
from chainrule.ops.assemble import Concat, Roll
from chainrule.ops.axes import Reduce, Sum
from chainrule.ops.composite import LogSoftmax, LogSumExp, Softmax
from chainrule.ops.contract import einsum, transpose
from chainrule.ops.convolution import Conv, ConvTranspose, Correlate
from chainrule.ops.index import ScatterAdd, Take
from chainrule.ops.layout import Reshape
from chainrule.ops.pooling import AtMax, AvgPool, AvgUnpool, MaxPool, Unpool
from chainrule.ops.product import Prod
from chainrule.ops.reduce import Max, Min
from chainrule.ops.source import Iota

Function = Callable[..., Node]
Ints = int | Sequence[int]


def _fold(kind: type[Reduce]) -> Function:
    def function(x: Node, axis: Ints | None = None) -> Node:
        given = range(x.type.rank) if axis is None else _several(axis)
        axes = tuple(sorted(_axis(a, x) for a in given))
        return apply(kind(axes), x) if axes else x

    return function


def _along(kind: Callable[[int], Any]) -> Function:
    return lambda x, axis=-1: apply(kind(_axis(axis, x)), x)


def _cast(to: DType) -> Function:
    return lambda x: build.cast(x, to)


def _reshape(x: Node, shape: Any) -> Node:
    return apply(Reshape(tuple(_several(shape))), x)


def _permute(x: Node, axes: Any) -> Node:
    return transpose(x, tuple(_several(axes)))


def _outer(x: Node, y: Node) -> Node:
    return einsum("i,j->ij", x, y)


def _take(x: Node, at: Node, axis: int = 0) -> Node:
    return apply(Take(_axis(axis, x), at.type.rank), x, at)


def _scatter_add(x: Node, at: Node, n: Dim, axis: int = 0) -> Node:
    return apply(ScatterAdd(axis, n), x, at)


def _take_along(x: Node, at: Node, axis: int) -> Node:
    return apply(TakeAlong(_axis(axis, x)), x, at)


def _add_along(x: Node, at: Node, axis: int, n: Dim) -> Node:
    return apply(AddAlong(_axis(axis, x), n), x, at)


def _roll(x: Node, by: int, axis: int) -> Node:
    return apply(Roll(_axis(axis, x), by), x)


def _concat(parts: Any, axis: int = 0) -> Node:
    return apply(Concat(_axis(axis, parts[0])), *parts)


def _arange(n: Dim) -> Node:
    return apply(Iota((n,), 0, DTYPES["int64"]))


def _conv(x: Node, k: Node, **options: Any) -> Node:
    return apply(Conv(*_sliding(x, options)), x, k)


def _conv_transpose(z: Node, k: Node, size: Any = None, **options: Any) -> Node:
    strides, padding, dilations, groups = _sliding(z, options)
    if size is None:
        along = zip(z.type.shape[2:], k.type.shape[2:], padding, dilations, strict=True)
        size = tuple(n + d * (m - 1) - 2 * p for n, m, p, d in along)
    extents = _each(size, len(strides))
    return apply(ConvTranspose(strides, padding, dilations, groups, extents), z, k)


def _correlate(x: Node, z: Node, size: Any = None, **options: Any) -> Node:
    strides, padding, dilations, groups = _sliding(x, options)
    if size is None:
        along = zip(x.type.shape[2:], z.type.shape[2:], padding, dilations, strict=True)
        size = tuple(_quotient(n + 2 * p - m, d) + 1 for n, m, p, d in along)
    return apply(Correlate(strides, padding, dilations, groups, _each(size, len(strides))), x, z)


def _quotient(n: Dim, d: int) -> Dim:
    count = exact_quotient(n, d)
    if count is None:
        raise FormulaError("the size of this kernel is not in the text: write size=")
    return count


def _sliding(x: Node, options: dict[str, Any]) -> tuple[Any, Any, Any, int]:
    """Strides, padding, dilations for every spatial axis, and groups."""
    r = x.type.rank - 2
    usual = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    given = usual | options
    if unknown := sorted(given.keys() - usual.keys()):
        raise FormulaError(f"no option is called {unknown[0]!r}")
    strides, padding, dilations = (_each(given[k], r) for k in ("stride", "padding", "dilation"))
    return strides, padding, dilations, int(given["groups"])


def _pool(kind: Callable[..., Any], operands: int) -> Function:
    def function(*args: Any, stride: Any = None, padding: Any = 0) -> Node:
        nodes, kernel = args[:operands], args[operands]
        r = nodes[0].type.rank - 2
        sizes = _each(kernel, r)
        strides = sizes if stride is None else _each(stride, r)
        return apply(kind(sizes, strides, _each(padding, r)), *nodes)

    return function


def _avg_unpool(
    z: Node, kernel: Any, stride: Any = None, padding: Any = 0, size: Any = None
) -> Node:
    r = z.type.rank - 2
    sizes, around = _each(kernel, r), _each(padding, r)
    strides = sizes if stride is None else _each(stride, r)
    if size is None:
        along = zip(z.type.shape[2:], sizes, around, strict=True)
        size = tuple(n + k - 1 - 2 * p for n, k, p in along)
    return apply(AvgUnpool(sizes, strides, around, _each(size, r)), z)


def _axis(axis: int, x: Node) -> int:
    rank = x.type.rank
    if not isinstance(axis, int) or not -rank <= axis < rank:
        raise FormulaError(f"axis {axis} is out of range for {x.type}")
    return axis % rank


def _several(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple) else (value,)


def _each(value: Any, count: int) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple) else (value,) * count


FUNCTIONS: dict[str, Function] = {
    **{kind.symbol[0]: _fold(kind) for kind in (Sum, Prod, Max, Min)},
    **{name: _cast(of) for name, of in DTYPES.items()},
    "bool": _cast(bool_),
    "softmax": _along(Softmax),
    "log_softmax": _along(LogSoftmax),
    "logsumexp": _along(LogSumExp),
    "reshape": _reshape,
    "permute_dims": _permute,
    "outer": _outer,
    "einsum": einsum,
    "take": _take,
    "scatter_add": _scatter_add,
    "take_along_axis": _take_along,
    "add_along_axis": _add_along,
    "cumulative_sum": _along(CumulativeSum),
    "reverse_cumulative_sum": _along(lambda axis: CumulativeSum(axis, True)),
    "roll": _roll,
    "concat": _concat,
    "arange": _arange,
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "correlate": _correlate,
    "max_pool": _pool(MaxPool, 1),
    "at_max": _pool(AtMax, 2),
    "unpool": _pool(Unpool, 2),
    "avg_pool": _pool(AvgPool, 1),
    "avg_unpool": _avg_unpool,
}
"""What is written f(x, y, option=z), but for elementwise ops."""
