"""Numbers that users give, held to their range."""

from __future__ import annotations

import math

import numpy as np

from chainrule.errors import FeedError
from chainrule.given import is_int, is_real

_LARGEST = float(np.finfo(np.float64).max)


def check(
    name: str,
    value: float,
    *,
    above: float | None = None,
    least: float = 0.0,
    below: float = math.inf,
) -> float:
    """The value as a float, 0.0 for -0.0. Raises FeedError unless it is a number in the range told.

    The range begins with `least`, or beyond `above` if that is given, and ends before `below`.
    """
    low = f" above {above}" if above is not None else f" from {least}" if least > -math.inf else ""
    high = f" to below {below}" if below < math.inf else ", finite"
    wanted = f"{name} is a number{low}{high}"
    if not is_real(value):
        raise FeedError(f"{wanted}, not {value!r}")
    number = _float(value)
    begins = number >= least if above is None else number > above
    if not (begins and number < below and abs(number) <= _LARGEST):
        raise FeedError(f"{wanted}, not {value!r}")
    return number + 0.0


def _float(value: float) -> float:
    """The value as a float: infinity for an int that is beyond every one."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def check_int(name: str, value: int, least: int | None = None) -> int:
    """The value as an int. Raises FeedError unless it is one, NumPy's too, from `least` on."""
    if not is_int(value) or (least is not None and value < least):
        beginning = "" if least is None else f" from {least} on"
        raise FeedError(f"{name} is an int{beginning}, not {value!r}")
    return int(value)
