"""Arrays of a training step by name, which stay where they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import numpy as np

from chainrule.errors import FeedError

Array = np.ndarray[Any, Any]


class Arrays(Mapping[str, Array]):
    """Live arrays by name, written to in place: `step.parameters["W"][...] = new`.

    `what` is the attribute of the step that they are. Raises FeedError where another array is to
    take the place of one.
    """

    __slots__ = ("_arrays", "_what")

    def __init__(self, what: str, arrays: Mapping[str, Array]) -> None:
        self._what, self._arrays = what, arrays

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        return repr(dict(self))

    def __setitem__(self, name: str, value: object) -> NoReturn:
        place = f"step.{self._what}[{name!r}]"
        raise FeedError(f"{place} can't become another array", f"write {place}[...] = value")
