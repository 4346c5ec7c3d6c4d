"""Data small enough to travel with the package, so that a first run needs no network; readers."""

from __future__ import annotations

from chainrule.datasets.idx_files import idx
from chainrule.datasets.optdigits import Digits, digits

__all__ = ["Digits", "digits", "idx"]
