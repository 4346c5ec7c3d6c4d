"""Numbers that users give, held to their range."""

from __future__ import annotations

import math

import numpy as np

from chainrule.errors import FeedError

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
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise FeedError(f"{wanted}, not {value!r}")
    begins = value >= least if above is None else value > above
    if not (begins and value < below and abs(value) <= _LARGEST):
        raise FeedError(f"{wanted}, not {value!r}")
    return float(value) + 0.0
