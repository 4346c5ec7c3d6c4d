"""What can go wrong, in one format: what, where in the user's own file, and how to mend it.

    ShapeError: matmul needs inner sizes to agree: f32[batch, 784] @ f32[512, 10]
      at examples/mlp.py:14    logits = h @ w2
      784 (axis 1 of h) != 512 (axis 0 of w2)

Every error of this project is a `ChainruleError` and also the built-in kind it is.
"""

from __future__ import annotations

import linecache
import os
import sys
import threading
from types import FrameType
from typing import NamedTuple

_OURS = os.path.dirname(os.path.abspath(__file__)) + os.sep
#: the command line writes expressions as users do
_USES = _OURS + "cli" + os.sep
_THREADS = threading.__file__


class Location(NamedTuple):
    """A line of somebody's file."""

    filename: str
    line: int

    @property
    def source(self) -> str:
        """The text of the line, or "" where the file is gone."""
        return linecache.getline(self.filename, self.line).strip()

    def __str__(self) -> str:
        name = os.path.relpath(self.filename) if os.path.isabs(self.filename) else self.filename
        name = self.filename if name.startswith("..") else name
        return f"{name}:{self.line}" + (f"    {self.source}" if self.source else "")


def user_location() -> Location | None:
    """The innermost line on the stack that is not chainrule's own."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        filename = frame.f_code.co_filename
        ours = _ours.get(filename)
        if ours is None:
            ours = _ours[filename] = _is_ours(filename)
        if not ours:
            # below the file of threads nobody called: a thread begins there
            return None if filename == _THREADS else Location(filename, frame.f_lineno)
        frame = frame.f_back
    return None


#: whether a file is one of ours, as this is asked for each node that is made
_ours: dict[str, bool] = {}


def _is_ours(filename: str) -> bool:
    ours = filename.startswith(_OURS) and not filename.startswith(_USES)
    return ours or filename.startswith("<frozen")


class ChainruleError(Exception):
    """The base of every error raised here.

    `what` is one sentence with the operands and their types, `details` are further lines (the last
    one says how to mend it), `where` is the user's line: by default the one that called us.
    """

    def __init__(self, what: str, *details: str, where: Location | None = None) -> None:
        self.what, self.details = what, details
        self.where = where or user_location()
        super().__init__(what, *details)

    def __str__(self) -> str:
        where = [f"at {self.where}"] if self.where else []
        return "\n  ".join([self.what, *where, *self.details])


class ShapeError(ChainruleError, ValueError):
    """Sizes that do not fit together, an axis out of range, a shape that can't be."""


class DTypeError(ChainruleError, TypeError):
    """An element type that an operation does not take, or two that do not promote."""


class GradientError(ChainruleError, ValueError):
    """A derivative that does not exist, or that was asked for where nothing depends."""


class FeedError(ChainruleError, ValueError):
    """Data given to a compiled function that it can't take."""


class CompileError(ChainruleError, RuntimeError):
    """A graph, an option or a machine that can't be compiled for."""


class DeviceError(ChainruleError, RuntimeError):
    """A GPU that is not there, has no room, or has failed."""


class ArtifactError(ChainruleError, OSError):
    """A file that is damaged, of another model, or of another version."""


class NonFiniteError(ChainruleError, ArithmeticError):
    """A loss that is infinite or NaN: training stops before anything changes."""


class FormulaError(ChainruleError, ValueError):
    """Text that is not a formula."""
