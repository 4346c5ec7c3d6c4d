"""Sizes in printed mathematics: their arithmetic, and ranges of them, `2:5` and `4:0:-2`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chainrule.errors import FormulaError, ShapeError
from chainrule.ir.size import Dim, Size
from chainrule.show.grammar import Range


def is_size(value: Any) -> bool:
    """Whether a value is a size, known or not."""
    return isinstance(value, (int, Size)) and not isinstance(value, bool)


def range_of(part: Any, size: Dim) -> tuple[Dim, Dim, int]:
    """`(start, count, step)`. A negative end is counted from the far one, but for the stop of a
    negative step: there it is as it prints, -1 before the first.
    """
    if not isinstance(part, Range):
        raise FormulaError("an index is a range for each axis, or integers")
    step = 1 if part.step is None else part.step
    ends = [e for e in (part.start, part.stop) if e is not None]
    if not isinstance(step, int) or step == 0 or not all(map(is_size, ends)):
        raise FormulaError("a range is made of sizes, with a step other than 0")
    start = (0 if step > 0 else size - 1) if part.start is None else part.start
    stop = (size if step > 0 else -1) if part.stop is None else part.stop
    start = size + start if isinstance(start, int) and start < 0 else start
    if step > 0:
        stop = size + stop if isinstance(stop, int) and stop < 0 else stop
        count = (stop - start + step - 1) // step
    else:
        count = (start - stop - step - 1) // -step
    if isinstance(count, int) and count <= 0:
        return 0, 0, step
    for end in (start, start + (count - 1) * step):
        if isinstance(end, int) and isinstance(size, int) and not 0 <= end < size:
            raise ShapeError(f"the range {start}:{stop}:{step} is outside an axis of {size}")
    return start, count, step


def size_arithmetic(fn: str, args: Sequence[Dim]) -> Dim:
    """A sum, difference, product or the negative of sizes."""
    if fn == "neg":
        return -args[0]
    x, y = args
    return x + y if fn == "add" else x - y if fn == "sub" else x * y


def divided(fn: str, x: Dim, y: Dim) -> Dim:
    """The quotient of two sizes rounded down, or what is left."""
    if y == 0:
        raise FormulaError("a size divided by 0")
    return x // y if fn == "floordiv" else x % y
