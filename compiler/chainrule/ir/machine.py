"""The machine operations: what every target has, and all that scalar code is made of.

No library function is among them. Each works on one element type, T; arithmetic on integers wraps.
What each means stands beside it as a NumPy function, `ref`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from chainrule.records import dataclass

Array = np.ndarray[Any, Any]
_SIGNED = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_FLOAT = {4: np.float32, 8: np.float64}


@dataclass(frozen=True)
class MachineOp:
    """A name, how many operands it takes, and what it does to types.

    `kind`: "same" T..T -> T · "compare" T, T -> bool · "select" bool, T, T -> T ·
    "bits" float T -> signed integer of its width · "float_of_bits" the reverse ·
    "to_int" float T -> signed integer of its width, truncating (the value must fit) ·
    "to_float" integer -> float of its width · "cast" any -> the dtype asked for ·
    "logic" bools or integers -> same.
    `ref`: its meaning on NumPy arrays of equal element types; never warns. `cast`'s takes the NumPy
    dtype as a second argument.
    """

    name: str
    arity: int
    kind: str
    doc: str
    meaning: Callable[..., Any]

    def ref(self, *operands: Any) -> Array:
        """The operation on arrays (they broadcast)."""
        with np.errstate(all="ignore"):
            result: Array = np.asarray(self.meaning(*operands))
        return result


def _quotient(x: Array, y: Array) -> Array:
    floor = np.floor_divide(x, y)
    inexact = np.not_equal(np.multiply(floor, y), x)
    quotient: Array = np.add(floor, (inexact & ((x < 0) != (y < 0))).astype(x.dtype))
    return quotient


def _as_signed(x: Array) -> Array:
    return np.asarray(x).view(_SIGNED[x.dtype.itemsize])


def _as_unsigned(x: Array) -> Array:
    return np.asarray(x).view(_UNSIGNED[x.dtype.itemsize])


def _as_float(x: Array) -> Array:
    return np.asarray(x).view(_FLOAT[x.dtype.itemsize])


def _lshr(x: Array, y: Array) -> Array:
    return np.right_shift(_as_unsigned(x), _as_unsigned(y)).view(x.dtype)


def _ashr(x: Array, y: Array) -> Array:
    return np.right_shift(_as_signed(x), _as_signed(y)).view(x.dtype)


def _mulhi(x: Array, y: Array) -> Array:
    wide = np.multiply(x, y, dtype=np.uint64)
    return np.right_shift(wide, np.uint64(32)).astype(np.uint32)


def _to_int(x: Array) -> Array:
    return x.astype(_SIGNED[x.dtype.itemsize])


def _to_float(x: Array) -> Array:
    return x.astype(_FLOAT[x.dtype.itemsize])


def _cast(x: Array, dtype: Any) -> Array:
    return x.astype(dtype)


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """The rounded sum and its exact error (Knuth, The Art of Computer Programming 2, 4.2.2)."""
    s = a + b
    b1 = s - a
    return s, (a - (s - b1)) + (b - b1)


def _odd_sum(a: Array, b: Array) -> Array:
    """The float64 sum rounded to odd: of the two neighbours of an inexact sum, the odd one.

    Rounding that again to at most 51 bits is rounding once (Boldo & Melquiond, Emulation of FMA and
    correctly rounded sums: proved algorithms using rounding to odd, IEEE Trans. Computers 2008).
    """
    s, error = _two_sum(a, b)
    word = np.asarray(s).view(np.int64)
    inexact = np.isfinite(s) & (error != 0) & (word & 1 == 0)
    toward = np.where((error > 0) == (s > 0), 1, -1)
    return _as_float(np.where(inexact, word + toward, word))


def _fma(x: Array, y: Array, z: Array) -> Array:
    if x.dtype == np.float32:
        product = np.multiply(x, y, dtype=np.float64)  # 48 bits: exact
        return _odd_sum(product, z.astype(np.float64)).astype(np.float32)
    return _fma64(x, y, z)


def _fma64(x: Array, y: Array, z: Array) -> Array:
    """The sum x * y + z rounded once, also where it is subnormal.

    The operands are scaled to exponents near 0; where z outweighs the product, or the product z, by
    more than 2**200 the smaller one only decides ties, so its distance is cut off there.
    """
    (fx, ex), (fy, ey), (fz, ez) = np.frexp(x), np.frexp(y), np.frexp(z)
    scale = ex + ey
    fz = np.ldexp(fz, np.clip(ez - scale, -300, 300))
    scale = np.maximum(scale, ez - 300)
    high, low = _two_product(fx, fy)
    top, bottom = _two_sum(fz, low)
    head, tail = _two_sum(high, top)
    rest = _odd_sum(bottom, tail)
    normal = head + rest
    # a subnormal one is rounded beside `grid`, where floats end at 2**-1074, scaled
    grid = np.copysign(np.ldexp(1.0, np.clip(52 - 1074 - scale, -1000, 900)), normal)
    over, under = _two_sum(grid, head)
    subnormal = np.copysign((over + _odd_sum(under, rest)) - grid, normal)
    exact = np.ldexp(np.where(np.frexp(normal)[1] + scale < -1021, subnormal, normal), scale)
    product = np.where((z == 0) & (x != 0) & (y != 0), x * y, x * y + z)  # keeps a tiny one's sign
    plain = (x == 0) | (y == 0) | (z == 0) | ~np.isfinite(x * 0 + y * 0 + z * 0)
    product = np.where(np.isinf(z) & np.isfinite(x) & np.isfinite(y), z, product)
    return np.where(plain, product, exact)


def _two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """The rounded float64 product and its exact error (Dekker, Numer. Math. 18, 1971; Veltkamp)."""
    p = a * b
    a1, b1 = a * 134217729.0, b * 134217729.0  # 2**27 + 1
    a1, b1 = a1 - (a1 - a), b1 - (b1 - b)
    a2, b2 = a - a1, b - b1
    return p, ((a1 * b1 - p) + a1 * b2 + a2 * b1) + a2 * b2


MACHINE = {
    op.name: op
    for op in (
        MachineOp("add", 2, "same", "x + y", np.add),
        MachineOp("sub", 2, "same", "x - y", np.subtract),
        MachineOp("mul", 2, "same", "x * y", np.multiply),
        MachineOp("div", 2, "same", "x / y, floats only", np.divide),
        MachineOp(
            "quotient",
            2,
            "same",
            "integers: x / y truncated; y is not 0 and the quotient fits",
            _quotient,
        ),
        MachineOp("neg", 1, "same", "-x, flipping a float's sign bit", np.negative),
        MachineOp(
            "fma",
            3,
            "same",
            "x * y + z rounded once; multiply, then add, where there is none",
            _fma,
        ),
        MachineOp("sqrt", 1, "same", "floats: the correctly rounded root", np.sqrt),
        MachineOp("abs", 1, "same", "|x|, clearing a float's sign bit", np.abs),
        MachineOp("copysign", 2, "same", "|x| with the sign bit of y", np.copysign),
        MachineOp("lt", 2, "compare", "x < y; false with NaN, as are le, gt, ge, eq", np.less),
        MachineOp("le", 2, "compare", "x <= y", np.less_equal),
        MachineOp("gt", 2, "compare", "x > y", np.greater),
        MachineOp("ge", 2, "compare", "x >= y", np.greater_equal),
        MachineOp("eq", 2, "compare", "x == y", np.equal),
        MachineOp("ne", 2, "compare", "x != y; true with NaN", np.not_equal),
        MachineOp(
            "where",
            3,
            "select",
            "the second operand where the first holds, else the third",
            np.where,
        ),
        MachineOp("and_", 2, "logic", "bitwise and", np.bitwise_and),
        MachineOp("or_", 2, "logic", "bitwise or", np.bitwise_or),
        MachineOp("xor", 2, "logic", "bitwise exclusive or", np.bitwise_xor),
        MachineOp("not_", 1, "logic", "every bit flipped", np.bitwise_not),
        MachineOp("shl", 2, "same", "integers: shifted left", np.left_shift),
        MachineOp("lshr", 2, "same", "integers: shifted right, zeros in", _lshr),
        MachineOp("ashr", 2, "same", "integers: shifted right, the sign in", _ashr),
        MachineOp("mulhi", 2, "same", "uint32: the upper half of the 64-bit product", _mulhi),
        MachineOp("bits", 1, "bits", "a float's bits as an integer", _as_signed),
        MachineOp("float_of_bits", 1, "float_of_bits", "an integer's bits as a float", _as_float),
        MachineOp("to_int", 1, "to_int", "truncated to an integer of the same width", _to_int),
        MachineOp(
            "to_float", 1, "to_float", "the float nearest an integer of the same width", _to_float
        ),
        MachineOp("cast", 1, "cast", "converted to another element type, as NumPy's astype", _cast),
    )
}
