"""How parameters begin: each initialiser is data, and `draw` makes the numbers.

Fans: a matrix of a layer is (in, out); a convolution's kernel is (out, in, ...) and each fan counts
the kernel's elements too; a vector's fans are its size, a scalar's are 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from chainrule.errors import FeedError
from chainrule.given import is_real
from chainrule.ops import philox
from chainrule.records import dataclass

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

    The distribution is "uniform" in [-a, a) with a = sqrt(3·gain/fan), "normal", or
    "truncated_normal".
    """

    gain: float
    fan: str
    distribution: str


@dataclass(frozen=True)
class Truncated:
    """Numbers of the normal distribution, drawn again until they are within 2 deviations.

    `std` is that of the whole distribution; what is left has 0.8796 of it.
    """

    mean: float
    std: float


@dataclass(frozen=True)
class Orthogonal:
    """A matrix whose rows or columns, the fewer, are orthogonal and of length `gain`.

    Of a kernel the matrix is (out, all else).
    """

    gain: float


Initializer = Constant | Uniform | Normal | Scaled | Truncated | Orthogonal

#: the deviation of the standard normal distribution within [-2, 2]: sqrt(1 - 4·φ(2)/(2·Φ(2) - 1))
_TRUNCATED_STD = 0.8796256610342398

#: Glorot & Bengio, Understanding the difficulty of training deep feedforward neural networks
#: (AISTATS 2010), equations 12 and 16: variance 2 / (fan_in + fan_out).
GLOROT_UNIFORM, GLOROT_NORMAL = Scaled(1.0, "mean", "uniform"), Scaled(1.0, "mean", "normal")
#: He, Zhang, Ren & Sun, Delving deep into rectifiers (ICCV 2015), equation 10: variance 2 / fan_in.
HE_UNIFORM, HE_NORMAL = Scaled(2.0, "in", "uniform"), Scaled(2.0, "in", "normal")
#: LeCun, Bottou, Orr & Müller, Efficient BackProp (1998), section 4.6: variance 1 / fan_in.
LECUN_UNIFORM, LECUN_NORMAL = Scaled(1.0, "in", "uniform"), Scaled(1.0, "in", "normal")
#: Uniform in ±1/sqrt(fan_in), variance 1 / (3 fan_in): what PyTorch's linear and convolution layers
#: begin with.
TORCH_UNIFORM = Scaled(1 / 3, "in", "uniform")


def _finite(name: str, value: float) -> float:
    if not is_real(value) or not math.isfinite(value):
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


def torch_uniform() -> Initializer:
    """Uniform in ±1/sqrt(fan_in), what PyTorch's linear and convolution layers begin with."""
    return TORCH_UNIFORM


def variance_scaling(
    gain: float = 1.0, fan: str = "in", distribution: str = "truncated_normal"
) -> Initializer:
    """Mean 0 and variance gain / fan, with fan "in", "out" or "mean", the mean of both.

    The distribution is "uniform", "normal" or "truncated_normal". The form that the others are
    cases of: He's is gain 2 of "in", Glorot's gain 1 of "mean". Raises FeedError.
    """
    if not _finite("gain", gain) > 0:
        raise FeedError(f"variance_scaling needs gain > 0, not {gain!r}")
    if not isinstance(fan, str) or fan not in ("in", "out", "mean"):
        raise FeedError(f'fan is "in", "out" or "mean", not {fan!r}')
    named = isinstance(distribution, str)
    if not named or distribution not in ("uniform", "normal", "truncated_normal"):
        known = '"uniform", "normal" or "truncated_normal"'
        raise FeedError(f"a distribution is {known}, not {distribution!r}")
    return Scaled(float(gain), fan, distribution)


def truncated_normal(mean: float = 0.0, std: float = 0.05) -> Initializer:
    """The normal distribution without what is beyond 2 deviations. Raises FeedError unless std > 0.

    `std` is that of the whole distribution.
    """
    if not _finite("std", std) > 0:
        raise FeedError(f"truncated_normal needs std > 0, not {std!r}")
    return Truncated(_finite("mean", mean), float(std))


def orthogonal(gain: float = 1.0) -> Initializer:
    """A matrix of orthogonal rows or columns of length `gain`, for recurrent weights.

    Saxe, McClelland and Ganguli (arXiv:1312.6120), from normal numbers. Raises FeedError unless
    gain > 0.
    """
    if not _finite("gain", gain) > 0:
        raise FeedError(f"orthogonal needs gain > 0, not {gain!r}")
    return Orthogonal(float(gain))


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
    "torch_uniform": TORCH_UNIFORM,
    "truncated_normal": truncated_normal(),
    "orthogonal": orthogonal(),
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
    if isinstance(how, Orthogonal):
        wide = np.dtype(np.float64 if dtype.itemsize == 8 else np.float32)
        return _affine(_orthogonal(shape, wide, seed, number), how.gain, 0.0).astype(dtype)
    if isinstance(how, Truncated):
        return _affine(_truncated(shape, dtype, seed, number), how.std, how.mean)
    if isinstance(how, Normal):
        return _affine(philox.normal(seed, 0, number, shape, dtype), how.std, how.mean)
    return _affine(philox.uniform(seed, 0, number, shape, dtype), how.high - how.low, how.low)


def rule(init: object, shape: Sequence[int]) -> tuple[str, float, float] | Array:
    """How numbers begin, for code that draws them: distribution, scale and shift, or the numbers.

    The distribution is "uniform", "normal", "truncated", the normal one within 2 deviations; a
    number is scale · drawn + shift. Or it is "orthogonal", of length `scale`. Raises FeedError.
    """
    how = resolve(init)
    if isinstance(how, np.ndarray):
        return how
    if isinstance(how, Constant):
        return np.asarray(how.value)
    if isinstance(how, Scaled):
        how = _unscaled(how, shape)
    if isinstance(how, Uniform):
        return "uniform", how.high - how.low, how.low
    if isinstance(how, Orthogonal):
        return "orthogonal", how.gain, 0.0
    return "normal" if isinstance(how, Normal) else "truncated", how.std, how.mean


def _truncated(shape: Sequence[int], dtype: np.dtype[Any], seed: int, number: int) -> Array:
    """Normal numbers within [-2, 2]: those beyond are drawn again, as those of the next step."""
    drawn = philox.normal(seed, 0, number, shape, dtype)
    step = 0
    while (beyond := np.abs(drawn) > 2).any():
        step += 1
        drawn = np.where(beyond, philox.normal(seed, step, number, shape, dtype), drawn)
    return drawn


def _orthogonal(shape: Sequence[int], dtype: np.dtype[Any], seed: int, number: int) -> Array:
    """A matrix of orthonormal rows or columns, the fewer, made of normal numbers.

    Modified Gram-Schmidt, twice, which is enough (Giraud, Langou & Rozložník, The loss of
    orthogonality in the Gram-Schmidt orthogonalization process, 2005): the Q of QR with a positive
    diagonal of R, which makes it unique (Mezzadri, arXiv:math-ph/0609050). Every sum goes in order,
    so that it has the same bits wherever it is drawn, also in an exported kernel.
    """
    if len(shape) < 2:
        raise FeedError(f"an orthogonal beginning is for two axes or more, not for {tuple(shape)}")
    rows, columns = shape[0], math.prod(shape[1:])
    normal = philox.normal(seed, 0, number, (rows, columns), dtype)
    vectors = np.ascontiguousarray(normal if rows >= columns else normal.T)
    room = np.empty_like(vectors)
    for _ in range(2):
        for i in range(vectors.shape[1]):
            one, others, terms = vectors[:, i : i + 1], vectors[:, i + 1 :], room[:, i + 1 :]
            one /= np.sqrt(_in_order(one * one))
            if others.size:
                shares = _in_order(np.multiply(one, others, out=terms))
                others -= np.multiply(one, shares, out=terms)
    return (vectors if rows >= columns else vectors.T).reshape(tuple(shape))


def _in_order(terms: Array) -> Array:
    """The sums along the first axis, term after term."""
    if terms.shape[1] == 1:  # NumPy sums what lies in one row by halves
        return np.asarray(np.add.accumulate(terms[:, 0])[-1:])
    return np.asarray(np.add.reduce(terms, axis=0))


def _unscaled(how: Scaled, shape: Sequence[int]) -> Uniform | Normal | Truncated:
    fan_in, fan_out = fans(shape)
    fan = {"in": fan_in, "out": fan_out, "mean": (fan_in + fan_out) / 2}[how.fan]
    std = math.sqrt(how.gain / max(1, fan))
    if how.distribution == "uniform":
        return Uniform(-(3**0.5) * std, 3**0.5 * std)
    normal = how.distribution == "normal"
    return Normal(0.0, std) if normal else Truncated(0.0, std / _TRUNCATED_STD)


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
