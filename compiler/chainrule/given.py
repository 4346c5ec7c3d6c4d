"""What a value that a user gives is. True and False are no numbers here, NumPy's scalars are."""

from __future__ import annotations

from typing import TypeGuard

import numpy as np


def is_int(value: object) -> TypeGuard[int]:
    """Whether it is an int, Python's or NumPy's."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_real(value: object) -> TypeGuard[float]:
    """Whether it is an int or a float, Python's or NumPy's; NaN and infinities are."""
    return is_int(value) or isinstance(value, float | np.floating)
