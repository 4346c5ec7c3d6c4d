"""The one place that holds the version; both distributions are built from it."""

from __future__ import annotations

__version__ = "0.1.0"
