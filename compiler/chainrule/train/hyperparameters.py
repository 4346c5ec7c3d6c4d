"""The numbers of an optimizer, which may change between steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from difflib import get_close_matches
from typing import Any, NoReturn

import numpy as np

from chainrule.errors import FeedError
from chainrule.train.plan import label
from chainrule.train.updates import Hyperparameter

Array = np.ndarray[Any, Any]


class Hyperparameters(MutableMapping[str, float]):
    """Hyper-parameters by name: `step.hyperparameters["momentum"] = 0.95`.

    Raises FeedError for a number out of the range that the optimizer's own constructor holds it to,
    or infinite in the type that the step computes in; for a name that is none; and for one that was
    0 when the step was made, whose term is not in the step.
    """

    def __init__(self, numbers: Mapping[str, Hyperparameter], arrays: Mapping[str, Array]) -> None:
        self._numbers = numbers
        self._arrays = {n: arrays[label(h.leaf)] for n, h in numbers.items() if h.leaf is not None}

    def __getitem__(self, name: str) -> float:
        if name not in self._arrays:
            return self._number(name).begins
        # the shortest number that is this one in its type: 0.001
        kept = float(str(self._arrays[name][()]))
        return 1.0 - kept if self._numbers[name].range.decay else kept

    def __setitem__(self, name: str, value: float) -> None:
        number = self._number(name)
        value = number.range.check(name, value)
        if name not in self._arrays:
            if value == 0:
                return
            raise FeedError(
                f"{name} was 0 when the step was made, so its term is not in the step",
                f"make the optimizer with a {name} above 0; that may be set to 0 afterwards",
            )
        array = self._arrays[name]
        if abs(value) > float(np.finfo(array.dtype).max):
            raise FeedError(f"{name} {value} is infinite as {array.dtype}")
        array[...] = 1.0 - value if number.range.decay else value

    def begin(self) -> None:
        """Set each to what the optimizer was made with."""
        for name in self._arrays:
            self[name] = self._numbers[name].begins

    def problem(self, given: Mapping[str, Array]) -> str | None:
        """What is wrong with the numbers of a state, by the names of their leaves; or None."""
        for name, number in self._numbers.items():
            if number.leaf is None:
                continue
            kept = float(given[label(number.leaf)])
            try:
                number.range.check(name, 1.0 - kept if number.range.decay else kept)
            except FeedError as error:
                return error.what
        return None

    def __delitem__(self, name: str) -> NoReturn:
        raise FeedError(f"the step needs its {name}: it can be set, not removed")

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
