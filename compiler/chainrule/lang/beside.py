"""What stands beside a Tensor: numbers, NumPy's scalars and lists, which take its type; arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from chainrule.errors import DTypeError, ShapeError
from chainrule.ir.types import DType, dtype

Number = bool | int | float


def plain(value: object) -> Number | None:
    """The number that a scalar of Python's or NumPy's is; None for anything else.

    NumPy promotes its own scalars, so that `x / np.sqrt(d)` would turn a float32 program into a
    float64 one. Here they are what Python's numbers are: a float64 scalar is one, by its class.
    """
    if not isinstance(value, np.generic):
        return value if isinstance(value, (bool, int, float)) else None
    kinds = {"b": bool, "i": int, "u": int, "f": float}
    kind = kinds.get(value.dtype.kind)
    return None if kind is None else kind(value)


def as_array(value: object) -> np.ndarray[Any, Any]:
    """An array of numbers, of NumPy's type for them. Raises DTypeError for anything else."""
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ShapeError(f"an array has rows of one length, this has not: {error}") from None
    if array.dtype.kind == "c":
        dtype(array.dtype)
    if array.dtype.kind not in "biufV" or array.dtype.names or array.dtype.subdtype:
        raise DTypeError(f"a {type(value).__name__} is not a tensor: {value!r}")
    dtype(array.dtype)
    return array


def listed(value: object, of: DType) -> np.ndarray[Any, Any] | None:
    """A list of numbers as an array of the type beside it; None where it holds anything else.

    Raises DTypeError for numbers that do not promote to that type, or that it can't hold.
    """
    if not isinstance(value, (list, tuple)) or not _only_numbers(value):
        return None
    try:
        array = np.asarray(value)
    except ValueError:
        return None  # rows of several lengths: as_array says so
    if array.size == 0 or array.dtype.kind not in "biuf":
        return None
    if not _promotes(array, of):
        raise DTypeError(
            f"a list of {array.dtype} numbers does not promote to {of}",
            "convert with .astype(...) first",
        )
    if of.is_integer:
        low, high = of.bounds
        if int(array.min()) < low or int(array.max()) > high:
            raise DTypeError(f"a list of numbers from {array.min()} to {array.max()} is no {of}")
    return array


def _only_numbers(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_only_numbers, value))
    return plain(value) is not None


def _promotes(array: np.ndarray[Any, Any], of: DType) -> bool:
    if of.is_float:
        return array.dtype.kind in "iuf"
    return array.dtype.kind == "b" if of.is_bool else of.is_integer and array.dtype.kind in "iu"
