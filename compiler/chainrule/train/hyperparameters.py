"""The numbers of an optimizer, which may change between steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from difflib import get_close_matches
from typing import Any, NoReturn

import numpy as np

from chainrule.errors import FeedError
from chainrule.train.ensemble import Ensemble
from chainrule.train.plan import label
from chainrule.train.updates import Hyperparameter

Array = np.ndarray[Any, Any]


class Hyperparameters(MutableMapping[str, Any]):
    """Hyper-parameters by name: `step.hyperparameters["momentum"] = 0.95`.

    Of an ensemble each is an array of as many as there are `members`, and is set to such or to one
    number for all.

    Raises FeedError for a number out of the range that the optimizer's own constructor holds it to,
    also once it is rounded to the type that the step computes in; for a name that is none; and for
    one that was 0 when the step was made, whose term is not in the step.
    """

    def __init__(
        self,
        numbers: Mapping[str, Hyperparameter],
        arrays: Mapping[str, Array],
        members: Ensemble | None = None,
    ) -> None:
        self._numbers, self._members = numbers, members
        self._arrays = {n: arrays[label(h.leaf)] for n, h in numbers.items() if h.leaf is not None}

    def __getitem__(self, name: str) -> Any:
        number, members = self._number(name), self._members
        if name not in self._arrays:
            return number.begins if members is None else np.full(members.count, number.begins)
        if members is None:
            return self._shown(name, self._arrays[name][()])
        return np.array([self._shown(name, kept) for kept in self._arrays[name]])

    def _shown(self, name: str, kept: Any) -> float:
        """The shortest number that is this one in its type: 0.001."""
        shown = float(str(kept))
        return 1.0 - shown if self._numbers[name].range.decay else shown

    def __setitem__(self, name: str, value: Any) -> None:
        number, members = self._number(name), self._members
        given = [value] if members is None else members.numbers(name, value)
        values = [number.range.check(name, v) for v in given]
        if name not in self._arrays:
            if not any(values):
                return
            raise FeedError(
                f"{name} was 0 when the step was made, so its term is not in the step",
                f"make the optimizer with a {name} above 0; that may be set to 0 afterwards",
            )
        array = self._arrays[name]
        for value in values:
            if abs(value) > float(np.finfo(array.dtype).max):
                raise FeedError(f"{name} {value} is infinite as {array.dtype}")
        kept = [1.0 - value if number.range.decay else value for value in values]
        for value, rounded in zip(values, np.array(kept, array.dtype), strict=True):
            told = 1.0 - float(rounded) if number.range.decay else float(rounded)
            try:
                number.range.check(name, told)
            except FeedError as error:
                raise FeedError(
                    f"{name} {value} is {told} as {array.dtype}: {error.what}"
                ) from None
        array[...] = kept[0] if members is None else kept

    def begin(self) -> None:
        """Set each to what the optimizer was made with. FeedError where that rounds to 0."""
        for name, array in self._arrays.items():
            begins = self._numbers[name].begins
            self[name] = begins
            if begins and not array.all():
                raise FeedError(f"{name} {begins} is 0 as {array.dtype}")

    def problem(self, given: Mapping[str, Array]) -> str | None:
        """What is wrong with the numbers of a state, by the names of their leaves; or None."""
        for name, number in self._numbers.items():
            if number.leaf is None:
                continue
            for kept in map(float, np.ravel(given[label(number.leaf)])):
                try:
                    number.range.check(name, 1.0 - kept if number.range.decay else kept)
                except FeedError as error:
                    return error.what
        return None

    def __delitem__(self, name: str) -> NoReturn:
        raise FeedError(f"the step needs its {name}: it can be set, not removed")

    def __contains__(self, name: object) -> bool:
        return name in self._numbers

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def __repr__(self) -> str:
        return repr(dict(self))

    def _number(self, name: str) -> Hyperparameter:
        if name in self._numbers:
            return self._numbers[name]
        near = get_close_matches(str(name), self._numbers, n=1) or self._numbers
        raise FeedError(f"no hyper-parameter is called {name!r}", f"there is {', '.join(near)}")
