"""Convolution and pooling: what is made of sliding windows, with PyTorch's arguments."""

from __future__ import annotations

from collections.abc import Sequence

from chainrule.errors import ShapeError
from chainrule.given import is_int
from chainrule.ir.node import Node, apply
from chainrule.ir.types import promote
from chainrule.lang.tensor import Tensor, TensorLike, as_node
from chainrule.ops import build
from chainrule.ops.convolution import Conv
from chainrule.ops.max_pooling import MaxPool
from chainrule.ops.pooling import AvgPool

Ints = int | Sequence[int]


def conv(
    x: TensorLike,
    k: TensorLike,
    /,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlation of x (batch, in, ...) with a kernel k (out, in / groups, ...).

    Along each spatial axis, of which there are one, two or more, an int or one of a tuple each:
    (n + 2*padding - dilation*(size - 1) - 1)//stride + 1 positions. The padding is zeros.
    """
    a, b = as_node(x), as_node(k)
    if a.type.rank < 3 or a.type.rank != b.type.rank:
        raise ShapeError(
            f"conv needs an input and a kernel of one rank, at least 3: {a.type}, {b.type}",
            "an input is (batch, channels, ...), a kernel (out, in, ...)",
        )
    dtype = promote(a.type.dtype, b.type.dtype)
    given = {"stride": stride, "padding": padding, "dilation": dilation}
    strides, paddings, dilations = (_spatial(n, v, a, "conv") for n, v in given.items())
    op = Conv(strides, paddings, dilations, _int("groups", groups, "conv"))
    return Tensor(apply(op, build.cast(a, dtype), build.cast(b, dtype)))


def max_pool(
    x: TensorLike, /, kernel: Ints, stride: Ints | None = None, padding: Ints = 0
) -> Tensor:
    """The largest of each window of x (batch, channels, ...); stride is the kernel by default.

    The padding is never largest. Of equal elements the first gets the derivative, as in PyTorch.
    """
    node, sizes, strides, paddings = _pool(x, kernel, stride, padding, "max_pool")
    return Tensor(apply(MaxPool(sizes, strides, paddings), node))


def avg_pool(
    x: TensorLike, /, kernel: Ints, stride: Ints | None = None, padding: Ints = 0
) -> Tensor:
    """The mean of each window of x (batch, channels, ...); stride is the kernel by default.

    The padding counts, as zeros.
    """
    node, sizes, strides, paddings = _pool(x, kernel, stride, padding, "avg_pool")
    return Tensor(apply(AvgPool(sizes, strides, paddings), node))


def _pool(
    x: TensorLike, kernel: Ints, stride: Ints | None, padding: Ints, what: str
) -> tuple[Node, tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    node = as_node(x)
    if node.type.rank < 3:
        raise ShapeError(f"{what} takes (batch, channels, ...), not {node.type}")
    sizes = _spatial("kernel", kernel, node, what)
    strides = sizes if stride is None else _spatial("stride", stride, node, what)
    return node, sizes, strides, _spatial("padding", padding, node, what)


#: what padding is, where a word such as "same" was given for it
_PADDING = {
    "conv": 'zeros at both ends: for "same" dilation*(size - 1)//2, of odd sizes; '
    'or cr.nn.Conv1D and cr.nn.Conv2D(filters, size, padding="same")',
    "max_pool": "so many places at both ends of an axis, which are never the largest",
    "avg_pool": "zeros at both ends of an axis",
}


def _spatial(name: str, value: Ints, x: Node, what: str) -> tuple[int, ...]:
    """One int for each spatial axis."""
    count = x.type.rank - 2
    if isinstance(value, str):
        hint = [_PADDING[what]] if name == "padding" else []
        raise ShapeError(f"{what}: {name} is an int or {count} of them, not {value!r}", *hint)
    if not isinstance(value, Sequence):
        return (_int(name, value, what),) * count
    if len(value) != count:
        raise ShapeError(f"{what}: {name} is an int or {count} of them for {x.type}: {value!r}")
    return tuple(_int(name, v, what) for v in value)


def _int(name: str, value: object, what: str) -> int:
    if not is_int(value):
        two = name == "padding" and isinstance(value, Sequence)
        hint = ["one number pads both ends of an axis"] if two else []
        raise ShapeError(f"{what}: {name} is an int, not {value!r}", *hint)
    return int(value)
