"""Plain arguments, checked where a user gives them: flags, numbers, sequences, texts."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn, TypeGuard

import numpy as np

from chainrule.errors import DTypeError, FeedError, ShapeError
from chainrule.given import is_int, is_real


def flag(name: str, value: object) -> bool:
    """True or False, as which 1 and 0 count. Raises DTypeError for what is neither."""
    if not isinstance(value, bool | int | np.bool_) or value not in (0, 1):
        raise DTypeError(f"{name} is True or False, not {value!r}")
    return bool(value)


def whole(name: str, value: object, least: int = 0, most: int | None = None) -> int:
    """An int within bounds. Raises ShapeError for what is none."""
    if not is_int(value) or value < least:
        raise ShapeError(f"{name} is an int of at least {least}, not {value!r}")
    if most is not None and value > most:
        raise ShapeError(f"{name} is an int of at most {most}, not {value!r}")
    return int(value)


def several(name: str, value: object) -> tuple[Any, ...]:
    """The elements of a sequence. Raises ShapeError for what is none."""
    if not is_several(value):
        raise ShapeError(f"{name} is a sequence, not {value!r}")
    return tuple(value)


def is_several(value: object) -> TypeGuard[Iterable[Any]]:
    """Whether something has elements in a row: no text, no dict, no array of one number."""
    single = isinstance(value, np.ndarray) and not value.ndim
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | dict) and not single


def words(name: str, value: object) -> str:
    """A text. Raises DTypeError for what is none."""
    if not isinstance(value, str):
        raise DTypeError(f"{name} is a text, not {value!r}")
    return value


def number(name: str, value: object) -> float:
    """A finite number. Raises DTypeError for what is none, or too large for a float."""
    if not is_real(value):
        raise DTypeError(f"{name} is a number, not {value!r}")
    if (isinstance(value, int) and abs(value) > sys.float_info.max) or not math.isfinite(value):
        raise DTypeError(f"{name} is a finite number, not {value!r}")
    return float(value)


def one_of(name: str, value: object, *choices: str) -> str:
    """One of some words. Raises DTypeError for anything else."""
    if not isinstance(value, str) or value not in choices:
        raise DTypeError(f"{name} is {' or '.join(map(repr, choices))}, not {value!r}")
    return value


def refuse_unnamed(given: Sequence[object], names: Sequence[str]) -> NoReturn:
    """Raise FeedError for arrays that are given by their places, where each has a name."""
    taken = ", ".join(f"{name}=..." for name in names)
    raise FeedError(f"{len(given)} inputs are given without their names", f"it takes {taken}")
