"""Random numbers: Philox-4x32-10, a function of (seed, step, draw, element) without any state.

Salmon, Moraes, Dror & Shaw, Parallel random numbers: as easy as 1, 2, 3 (SC'11). The layout is
final, see docs/random.md: key = seed (low word, high word); counter = (element low, element high,
step, draw), where element is the row-major index. What is drawn depends on nothing else: not on
threads, nor on the size of a batch, nor on which slice of it is computed at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np

from chainrule.errors import DTypeError, FeedError
from chainrule.given import is_int
from chainrule.ir.formula import parse_recipe
from chainrule.ir.node import Array
from chainrule.ir.recipe import Listing, run, typed
from chainrule.ir.types import DType, uint32
from chainrule.ir.types import dtype as dtype_of
from chainrule.ops.recipes import RECIPES

#: Draws of random ops are numbered from 0; these ranges are for other things.
INITIAL_DRAWS = 0x40000000
SHUFFLE_DRAW = 0x80000000
ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
_LIMIT = 2**32
#: so many elements are drawn at a time: their words stay in a core's cache
_BLOCK = 2**13


def check_seed(seed: int) -> int:
    """The seed as an int; FeedError unless it is an integer with 0 <= seed < 2**64."""
    return _check("a seed", seed, 64)


def words(seed: int, step: int, draw: int, elements: int | Array) -> Array:
    """Four uint32 words for each element: `uint32[n, 4]`.

    `elements` is how many, counted from 0, or the indices themselves. Raises FeedError for a seed,
    step or draw out of range.
    """
    seed, step, draw = check_seed(seed), _check("a step", step, 32), _check("a draw", draw, 32)
    index = np.arange(elements) if isinstance(elements, int) else np.asarray(elements)
    index = index.astype(np.uint64).reshape(-1)
    return np.stack(_rounds(index, np.full_like(index, step), draw, seed), -1).astype(np.uint32)


def _rounds(element: Array, step: Array, draw: int, seed: int) -> tuple[Array, ...]:
    """The four words of each element at each step, as uint64: the shapes broadcast."""
    low, high = np.uint64(_LIMIT - 1), np.uint64(32)
    even = np.empty((2, *np.broadcast_shapes(element.shape, step.shape)), np.uint64)
    odd = np.empty_like(even)
    even[0], even[1] = element & low, step  # words 0 and 2
    odd[0], odd[1] = element >> high, draw  # words 1 and 3
    column = (2, *[1] * (even.ndim - 1))
    multipliers = np.array(MULTIPLIERS, np.uint64).reshape(column)
    product, other = np.empty_like(even), np.empty_like(even)
    for key in _keys(seed).reshape(ROUNDS, *column):  # in these buffers, no others
        np.multiply(even, multipliers, out=product)
        np.right_shift(product, high, out=even)
        np.bitwise_xor(even[::-1], odd, out=other)
        other ^= key
        np.bitwise_and(product[::-1], low, out=odd)
        even, other = other, even
    return even[0], odd[0], even[1], odd[1]


@lru_cache(maxsize=4)
def _keys(seed: int) -> Array:
    """Both words of the key in each round."""
    halves = (seed, seed >> 32)
    keys = [
        [(k + i * w) % _LIMIT for k, w in zip(halves, WEYL, strict=True)] for i in range(ROUNDS)
    ]
    return np.array(keys, np.uint64)


def uniform(
    seed: int, step: int, draw: int, shape: Sequence[int], dtype: object = "float32"
) -> Array:
    """Multiples of 2**-24 (float32) or 2**-53 (float64) in [0, 1), all equally likely."""
    return _draw(UNIFORM, seed, step, draw, shape, dtype)


def normal(
    seed: int, step: int, draw: int, shape: Sequence[int], dtype: object = "float32"
) -> Array:
    """Standard normal numbers by Box & Muller (Ann. Math. Stat. 29, 1958), the cosine alone.

    Evaluated in the library's own recipes, so that the bits are those of every target with a fused
    multiply-add. The largest is sqrt(-2 log 2**-24) = 5.77 in float32, 8.57 in float64.
    """
    return _draw(NORMAL, seed, step, draw, shape, dtype)


def permutation(seed: int, epoch: int, n: int) -> Array:
    """A random order of n rows, `int64[n]`: sorted by (word 0, word 1) of each, ties by index."""
    order: Array = permutations(seed, epoch, 1, n)[0]
    return order


def permutations(seed: int, first: int, epochs: int, n: int) -> Array:
    """The orders of n rows in `epochs` epochs, the first of number `first`: `int64[epochs, n]`.

    Raises FeedError for a seed or an epoch out of range.
    """
    seed, first = check_seed(seed), _check("an epoch", first, 32)
    _check("the last epoch", first + epochs - 1 if epochs else first, 32)
    numbers = np.arange(first, first + epochs, dtype=np.uint64)[:, None]
    w0, w1, *_ = _rounds(np.arange(n, dtype=np.uint64), numbers, SHUFFLE_DRAW, seed)
    return np.argsort(w0 << np.uint64(32) | w1, axis=1, kind="stable").astype(np.int64, copy=False)


def _draw(
    texts: dict[str, str], seed: int, step: int, draw: int, shape: Sequence[int], dtype: object
) -> Array:
    kind, count = _float(dtype), math.prod(shape)
    seed, step, draw = check_seed(seed), _check("a step", step, 32), _check("a draw", draw, 32)
    listing, out = _listing(texts[kind.name], kind), np.empty(count, kind.numpy)
    for start in range(0, count, _BLOCK):
        index = np.arange(start, min(start + _BLOCK, count), dtype=np.uint64)
        found = _rounds(index, np.full_like(index, step), draw, seed)
        args = {f"w{i}": w.astype(np.uint32) for i, w in enumerate(found)}
        out[start : start + _BLOCK] = run(listing, args)
    return out.reshape(tuple(shape))


@cache
def _listing(text: str, kind: DType) -> Listing:
    """The steps that make a number of words."""
    return typed(parse_recipe(text), dict.fromkeys(("w0", "w1", "w2", "w3"), uint32), kind, RECIPES)


def _float(dtype: object) -> DType:
    kind = dtype_of(dtype)
    if kind.name not in UNIFORM:
        raise DTypeError(f"random numbers are float32 or float64, not {kind}")
    return kind


def _check(what: str, value: int, bits: int) -> int:
    if not is_int(value):
        raise FeedError(f"{what} is an integer, not {value!r}")
    if not 0 <= value < 2**bits:
        raise FeedError(f"{what} is at least 0 and less than 2**{bits}, not {value}")
    return int(value)


# The words as fractions: whole counts of a unit, 2**-24 or 2**-53, both exact.
_COUNT = {
    "float32": ("to_float(lshr(w0, 8))", "to_float(lshr(w1, 8))"),
    "float64": (
        "fma(cast(w0), 2097152.0, cast(lshr(w1, 11)))",
        "fma(cast(w2), 2097152.0, cast(lshr(w3, 11)))",
    ),
}
UNIT = {"float32": 2.0**-24, "float64": 2.0**-53}
_UNIFORM = {dtype: f"{count} * unit" for dtype, (count, _) in _COUNT.items()}
_NORMAL = {
    dtype: f"c = {count}; d = {turns}; sqrt(-2.0 * log((c + 1.0) * unit)) * cos_turns(d * unit)"
    for dtype, (count, turns) in _COUNT.items()
}

#: dtype -> recipe of one number from the words w0..w3 (uint32), for NumPy and native code alike.
UNIFORM = {dtype: text.replace("unit", repr(UNIT[dtype])) for dtype, text in _UNIFORM.items()}
NORMAL = {dtype: text.replace("unit", repr(UNIT[dtype])) for dtype, text in _NORMAL.items()}


def word(i: int) -> str:
    """The recipe of word i from e0, e1 (the element's halves), step, draw, k0, k1 (the key)."""
    m0, m1 = MULTIPLIERS
    lines = ["a = e0", "b = e1", "c = step", "d = draw", "k = k0", "l = k1"]
    for _ in range(ROUNDS):
        lines += [f"h = mulhi(a, {m0})", f"g = a * {m0}", f"f = mulhi(c, {m1})", f"e = c * {m1}"]
        lines += ["a = xor(xor(f, b), k)", "b = e", "c = xor(xor(h, d), l)", "d = g"]
        lines += [f"k = k + {WEYL[0]}", f"l = l + {WEYL[1]}"]
    return "\n".join([*lines, "abcd"[i]])


def wide_word(i: int) -> str:
    """Word i from the same, each in the low half of a uint64, whatever is in the high one.

    A lane stays as wide as its products are, so that vectors are not taken apart in every round.
    """
    m0, m1 = MULTIPLIERS
    lines = ["a = e0", "b = e1", "c = step", "d = draw", "k = k0", "l = k1"]
    for _ in range(ROUNDS):
        lines += [f"g = and_(a, {_LIMIT - 1}) * {m0}", f"e = and_(c, {_LIMIT - 1}) * {m1}"]
        lines += ["a = xor(xor(lshr(e, 32), b), k)", "b = e"]
        lines += ["c = xor(xor(lshr(g, 32), d), l)", "d = g"]
        lines += [f"k = k + {WEYL[0]}", f"l = l + {WEYL[1]}"]
    return "\n".join([*lines, "abcd"[i]])


#: The same as functions of native code: a word from counter and key; a number from the words that
#: `WORDS` counts and, last, the unit, which decides the type.
NATIVE: dict[str, str | dict[str, str]] = {
    **{f"philox_{i}": wide_word(i) for i in range(4)},
    "uniform_of_words": _UNIFORM,
    "normal_of_words": _NORMAL,
}
#: How many words a number is made of, by the function and the type.
WORDS = {
    "uniform_of_words": {"float32": 1, "float64": 2},
    "normal_of_words": {"float32": 2, "float64": 4},
}
