"""Random tensors: each a draw of its own, the same numbers wherever seed and step are the same.

Their numbers are those of docs/random.md. A compiled function draws the same ones at each call; a
training step other ones in each step.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from chainrule.errors import DTypeError, ShapeError
from chainrule.given import is_int, is_real
from chainrule.ir.node import Node
from chainrule.ir.size import Shape
from chainrule.ir.types import DType, bool_, check_shape
from chainrule.ir.types import dtype as _dtype
from chainrule.lang.tensor import Tensor, TensorLike, as_node
from chainrule.ops import build, phase
from chainrule.ops.philox import UNIFORM
from chainrule.ops.random import Bernoulli, Integers, Normal, Uniform, draw

__all__ = ["bernoulli", "normal", "randint", "uniform"]


def uniform(
    shape: Any, low: TensorLike = 0.0, high: TensorLike = 1.0, dtype: object = "float32"
) -> Tensor:
    """Floats between `low` and `high`: low + (high - low) * u, with u from 0 to below 1.

    Rounding may make the largest `high` itself. The bounds may be Tensors, which broadcast to
    `shape` and get derivatives. Raises ShapeError and DTypeError.
    """
    of, sizes = _float(dtype), check_shape(shape)
    begin, end = (_operand("uniform", b, of, sizes) for b in (low, high))
    if not isinstance(begin, Node) and not isinstance(end, Node) and begin > end:
        raise ShapeError(f"uniform needs low <= high, not {low} and {high}")
    number = draw(Uniform(sizes, of))
    if isinstance(begin, Node) or isinstance(end, Node):
        width: float | Node = build.call("sub", end, begin)
    else:
        width = end - begin
    scaled = number if width == 1.0 else build.call("mul", width, number)
    return Tensor(scaled if begin == 0.0 else build.call("add", begin, scaled))


def normal(
    shape: Any, mean: TensorLike = 0.0, std: TensorLike = 1.0, dtype: object = "float32"
) -> Tensor:
    """Floats of a normal distribution: mean + std * ε, with ε of the standard one.

    `mean` and `std` may be Tensors, which broadcast to `shape` and get derivatives, as a
    variational autoencoder wants (Kingma and Welling, arXiv:1312.6114). Raises ShapeError and
    DTypeError.
    """
    of, sizes = _float(dtype), check_shape(shape)
    centre, width = (_operand("normal", b, of, sizes) for b in (mean, std))
    if not isinstance(width, Node) and width < 0:
        raise ShapeError(f"a standard deviation is at least 0, not {std}")
    node = draw(Normal(sizes, of))
    scaled = node if width == 1.0 else build.call("mul", width, node)
    return Tensor(scaled if centre == 0.0 else build.call("add", centre, scaled))


def bernoulli(p: TensorLike, shape: Any = None, dtype: object = "bool") -> Tensor:
    """True (or 1) with probability `p`, a number from 0 to 1 or a Tensor of floats; else False.

    `shape` is that of `p` by default; `p` broadcasts to it. A Tensor's elements below 0 count as 0,
    those above 1 as 1, NaN as 0. Nothing has a derivative by `p`. Raises ShapeError and DTypeError.
    """
    if isinstance(p, (bool, int, float, np.bool_, np.integer, np.floating)):
        if isinstance(p, (bool, np.bool_)) or not 0 <= p <= 1:
            raise ShapeError(f"a probability is a number from 0 to 1, not {p!r}")
        drawn = draw(Bernoulli(check_shape(() if shape is None else shape), bool_, float(p)))
    else:
        node = as_node(p)
        of = _float(node.type.dtype)
        sizes = node.type.shape if shape is None else check_shape(shape)
        drawn = build.call("lt", draw(Uniform(sizes, of)), build.broadcast(node, sizes))
    return Tensor(build.cast(drawn, _dtype(dtype)))


def randint(low: int, high: int, shape: Any, dtype: object = "int32") -> Tensor:
    """Whole numbers from `low` to `high` - 1, all equally likely up to 2**-32.

    Raises ShapeError for other than 1 to 2**32 - 1 of them, DTypeError where `dtype` has not all.
    """
    of, sizes = _dtype(dtype), check_shape(shape)
    if not of.is_integer:
        raise DTypeError(f"randint makes integers, not {of}")
    for bound in (low, high):
        if not is_int(bound):
            raise DTypeError(f"randint goes from an int to an int, not {bound!r}")
    first, count = int(low), int(high) - int(low)
    if not 0 < count < 2**32:
        raise ShapeError(f"randint makes 1 to 2**32 - 1 numbers, not {count}: {low} to {high}")
    if first < of.bounds[0] or high - 1 > of.bounds[1]:
        raise DTypeError(f"{of} does not hold all of {low} to {high - 1}")
    drawn = draw(Integers(sizes, of, count))
    return Tensor(drawn if first == 0 else build.call("add", drawn, first))


def dropout(h: TensorLike, rate: float = 0.5) -> Tensor:
    """In training, `h` with elements made 0 at random and the others divided by 1 - rate.

    `rate` is the probability of an element to go; in inference nothing does. What goes is 0
    whatever it was, and so is its derivative. (Srivastava et al., JMLR 15, 2014.) Raises ShapeError
    for a rate outside 0 to 1, DTypeError for what is no float.
    """
    node = as_node(h)
    if not is_real(rate) or not 0 <= rate <= 1:
        raise ShapeError(f"dropout's rate is a number from 0 to 1, not {rate!r}")
    if not node.type.dtype.is_float:
        raise DTypeError(f"dropout is defined for floats, not for {node.type}")
    return Tensor(phase.dropout(node, float(rate)))


def _float(dtype: object) -> DType:
    of = _dtype(dtype)
    if of.name not in UNIFORM:
        raise DTypeError(f"random numbers are {' or '.join(UNIFORM)}, not {of}")
    return of


def _operand(name: str, value: TensorLike, of: DType, shape: Shape) -> float | Node:
    """A bound or a moment: a finite number, or a node that has the shape of what is drawn."""
    if isinstance(value, (bool, np.bool_)):
        raise DTypeError(f"{name} takes numbers and Tensors, not {value!r}")
    if isinstance(value, (int, float, np.integer, np.floating)):
        if not math.isfinite(value):
            raise ShapeError(f"{name} takes finite numbers, not {value!r}")
        return float(value)
    node = as_node(value)
    if node.type.dtype != of:
        raise DTypeError(f"{name} of {of} takes {of} Tensors, not {node.type}", "use astype")
    return build.broadcast(node, shape)
