"""Numbers of an optimizer: the ranges they are held to, and how they stand in an update.

A hyper-parameter stands in `update` as a scalar Tensor, or, if it was 0 when the step was made, as
the plain number 0. The helpers here take either.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from chainrule.lang import functions as f
from chainrule.lang.tensor import Tensor, TensorLike
from chainrule.nn.numbers import check

Scalar = float | Tensor


class Range(NamedTuple):
    """Which numbers a hyper-parameter may be: finite, and within these bounds.

    It begins with `least`, or beyond `above` if that is given, and ends before `below`. A `decay`
    is a factor that is mostly near 1, such as 0.999: kept as what it lacks of 1 (see `Decay`).
    """

    least: float = -math.inf
    above: float | None = None
    below: float = math.inf
    decay: bool = False

    def check(self, name: str, value: float) -> float:
        """The value as a float. Raises FeedError unless it is a number in this range."""
        return check(name, value, above=self.above, least=self.least, below=self.below)


ANY = Range()
ABOVE_ZERO = Range(above=0.0)
FROM_ZERO = Range(least=0.0)
FRACTION = Range(least=0.0, below=1.0)
#: the same, kept by what it lacks of 1
DECAY = Range(least=0.0, below=1.0, decay=True)


class Decay(Tensor):
    """A factor such as 0.999, kept as the 0.001 that it lacks of 1.

    In float32, 1 - 0.999 has lost the last third of its digits; `1 - decay` of a Decay is what it
    was made of, with all of them.
    """

    __slots__ = ("lack",)
    lack: Tensor

    def __init__(self, lack: Tensor) -> None:
        super().__init__((1.0 - lack).node)
        self.lack = lack

    def __rsub__(self, other: TensorLike) -> Tensor:
        one = isinstance(other, (int, float)) and other == 1
        return self.lack if one else super().__rsub__(other)


def off(value: Scalar) -> bool:
    """Whether a hyper-parameter is 0 for good, so that its term may be left out."""
    return not isinstance(value, Tensor) and value == 0


def smallest(x: Tensor) -> float:
    """The smallest normal number of x's element type: 2**-126 or 2**-1022."""
    return float(np.finfo(x.dtype.name).tiny)


def largest(x: Tensor) -> float:
    """The largest finite number of x's element type."""
    return float(np.finfo(x.dtype.name).max)


def quiet(x: Tensor, floor: Scalar) -> Tensor:
    """x, or 0 where |x| < floor; the test stands before a product, since the product is slow."""
    return f.where(f.abs(x) < floor, 0.0, x)


def shrunk(factor: Scalar, x: Tensor) -> Tensor:
    """factor·x for a factor in [0, 1], with 0 for a product below the smallest normal number.

    One that may change is taken to be 1/2 or more: with a smaller one, what is denormal after a
    step is 0 after the next.
    """
    if off(factor):
        return f.zeros_like(x)
    return factor * quiet(x, smallest(x) / (0.5 if isinstance(factor, Tensor) else factor))


def quiet_square(x: Tensor) -> Tensor:
    """x², or 0 where that is below the smallest normal number."""
    return f.square(quiet(x, math.sqrt(smallest(x))))


def average(decay: Scalar, old: Tensor, new: Tensor) -> Tensor:
    """decay·old + (1 - decay)·new, as old + (1 - decay)·(new - old), free of denormal numbers.

    Where the difference is so small that (1 - decay) times it would be denormal, it is new.
    """
    return _moved(1 - decay, old, new, new - old)


def average_square(decay: Scalar, old: Tensor, new: Tensor) -> Tensor:
    """decay·old + (1 - decay)·new², as `average`; not below 0 if old is not.

    Where new² overflows it is infinite, and stays so: whatever is divided by its root is 0 from
    then on, as in PyTorch. An old value that is infinite takes a difference that is not, since
    infinity less infinity is NaN.
    """
    square, least = quiet_square(new), -largest(old)
    difference = square - old
    return _moved(1 - decay, old, square, f.where(difference < least, least, difference))


def _moved(step: Scalar, old: Tensor, new: Tensor, difference: Tensor) -> Tensor:
    moving = f.abs(difference) >= smallest(old) / step
    return f.where(moving, old + f.where(moving, step * difference, 0.0), new)


def one_minus_power(base: Scalar, t: Tensor) -> Tensor:
    """1 - baseᵗ as -expm1(t·log(base)), which keeps its digits where baseᵗ is near 1."""
    if off(base):
        return f.ones_like(t)
    return -f.expm1(t * (f.log1p(-(1 - base)) if isinstance(base, Tensor) else math.log(base)))
