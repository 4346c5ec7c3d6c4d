"""How parameters begin: each initialiser is data, and `draw` makes the numbers.

Fans: a matrix of a layer is (in, out); a convolution's kernel is (out, in, ...) and each fan counts
the kernel's elements too; a vector's fans are its size, a scalar's are 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chainrule.errors import FeedError
from chainrule.ops import philox

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Constant:
    """One number everywhere."""

    value: float


@dataclass(frozen=True)
class Uniform:
    """Equally likely numbers in [low, high)."""

    low: float
    high: float


@dataclass(frozen=True)
class Normal:
    """Numbers of the normal distribution with this mean and standard deviation."""

    mean: float
    std: float


@dataclass(frozen=True)
class Scaled:
    """Numbers of mean 0 and variance gain / fan; `fan` is "in", "out" or "mean", the mean of both.

    The distribution is "uniform" in [-a, a) with a = sqrt(3·gain/fan), or "normal".
    """

    gain: float
    fan: str
    distribution: str


Initializer = Constant | Uniform | Normal | Scaled

#: Glorot & Bengio, Understanding the difficulty of training deep feedforward neural networks
#: (AISTATS 2010), equations 12 and 16: variance 2 / (fan_in + fan_out).
GLOROT_UNIFORM, GLOROT_NORMAL = Scaled(1.0, "mean", "uniform"), Scaled(1.0, "mean", "normal")
#: He, Zhang, Ren & Sun, Delving deep into rectifiers (ICCV 2015), equation 10: variance 2 / fan_in.
HE_UNIFORM, HE_NORMAL = Scaled(2.0, "in", "uniform"), Scaled(2.0, "in", "normal")
#: LeCun, Bottou, Orr & Müller, Efficient BackProp (1998), section 4.6: variance 1 / fan_in.
LECUN_UNIFORM, LECUN_NORMAL = Scaled(1.0, "in", "uniform"), Scaled(1.0, "in", "normal")


def _finite(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise FeedError(f"{name} is a finite number, not {value!r}")
    return float(value)


def zeros() -> Initializer:
    """0 everywhere."""
    return Constant(0.0)


def ones() -> Initializer:
    """1 everywhere."""
    return Constant(1.0)


def constant(value: float) -> Initializer:
    """`value` everywhere. Raises FeedError unless it is finite."""
    return Constant(_finite("value", value))


def uniform(low: float = -0.05, high: float = 0.05) -> Initializer:
    """Equally likely numbers in [low, high). Raises FeedError unless low < high."""
    if not _finite("low", low) < _finite("high", high):
        raise FeedError(f"uniform needs low < high, not {low!r} and {high!r}")
    return Uniform(low, high)


def normal(mean: float = 0.0, std: float = 0.05) -> Initializer:
    """Numbers of the normal distribution. Raises FeedError unless std > 0."""
    if not _finite("std", std) > 0:
        raise FeedError(f"normal needs std > 0, not {std!r}")
    return Normal(_finite("mean", mean), std)


def glorot_uniform() -> Initializer:
    """Uniform of variance 2 / (fan_in + fan_out), for tanh and sigmoid (Glorot & Bengio 2010)."""
    return GLOROT_UNIFORM


def glorot_normal() -> Initializer:
    """Normal of variance 2 / (fan_in + fan_out), for tanh and sigmoid (Glorot & Bengio 2010)."""
    return GLOROT_NORMAL


def he_uniform() -> Initializer:
    """Uniform of variance 2 / fan_in, for ReLU (He et al. 2015)."""
    return HE_UNIFORM


def he_normal() -> Initializer:
    """Normal of variance 2 / fan_in, for ReLU (He et al. 2015)."""
    return HE_NORMAL


def lecun_uniform() -> Initializer:
    """Uniform of variance 1 / fan_in (LeCun et al. 1998)."""
    return LECUN_UNIFORM


def lecun_normal() -> Initializer:
    """Normal of variance 1 / fan_in (LeCun et al. 1998)."""
    return LECUN_NORMAL


BY_NAME: dict[str, Initializer] = {
    "zeros": zeros(),
    "ones": ones(),
    "uniform": uniform(),
    "normal": normal(),
    "glorot_uniform": GLOROT_UNIFORM,
    "glorot_normal": GLOROT_NORMAL,
    "he_uniform": HE_UNIFORM,
    "he_normal": HE_NORMAL,
    "lecun_uniform": LECUN_UNIFORM,
    "lecun_normal": LECUN_NORMAL,
}


def resolve(init: object, what: str = "a parameter") -> Initializer | Array:
    """The initialiser that a name, a function that makes one or one itself stands for, or an array.

    Raises FeedError for anything else, saying that `what` can't begin so.
    """
    if callable(init):
        init = init()
    if isinstance(init, Initializer | np.ndarray):
        return init
    if isinstance(init, str) and init in BY_NAME:
        return BY_NAME[init]
    raise FeedError(
        f"{what} can't begin as {init!r}",
        f"there are {', '.join(BY_NAME)}, the functions of cr.init, and arrays",
    )


def draw(init: object, shape: Sequence[int], dtype: np.dtype[Any], seed: int, index: int) -> Array:
    """The numbers that parameter number `index` begins with: the same on every machine."""
    how = resolve(init)
    if isinstance(how, np.ndarray):
        return np.array(np.broadcast_to(how, tuple(shape)), dtype)
    if isinstance(how, Constant):
        return np.full(tuple(shape), how.value, dtype)
    number = philox.INITIAL_DRAWS + index
    if isinstance(how, Scaled):
        how = _unscaled(how, shape)
    if isinstance(how, Normal):
        return _affine(philox.normal(seed, 0, number, shape, dtype), how.std, how.mean)
    return _affine(philox.uniform(seed, 0, number, shape, dtype), how.high - how.low, how.low)


def _unscaled(how: Scaled, shape: Sequence[int]) -> Uniform | Normal:
    fan_in, fan_out = fans(shape)
    fan = {"in": fan_in, "out": fan_out, "mean": (fan_in + fan_out) / 2}[how.fan]
    std = math.sqrt(how.gain / max(1, fan))
    return (
        Normal(0.0, std) if how.distribution == "normal" else Uniform(-(3**0.5) * std, 3**0.5 * std)
    )


def fans(shape: Sequence[int]) -> tuple[int, int]:
    """How many elements feed one output, and how many outputs one element feeds: (in, out)."""
    if len(shape) <= 1:
        n = shape[0] if shape else 1
        return n, n
    if len(shape) == 2:
        return shape[0], shape[1]
    kernel = math.prod(shape[2:])
    return shape[1] * kernel, shape[0] * kernel


def _affine(numbers: Array, scale: float, shift: float) -> Array:
    kind = numbers.dtype.type
    return np.asarray(numbers * kind(scale) + kind(shift))
