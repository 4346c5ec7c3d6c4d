"""Data small enough to travel with the package, so that a first run needs no network."""

from __future__ import annotations

from chainrule.datasets.optdigits import Digits, digits

__all__ = ["Digits", "digits"]
