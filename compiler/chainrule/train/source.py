"""Where a training loop takes its steps: whole data in native calls, or minibatches one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from chainrule.errors import FeedError
from chainrule.ops import philox
from chainrule.records import dataclass
from chainrule.train.data import Table, minibatch, weighed
from chainrule.train.epochs import Bound
from chainrule.train.plan import label
from chainrule.train.prefetch import Prefetch
from chainrule.train.step import TrainingStep

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Logs:
    """What some steps measured: for loss and metrics an element a step, and the rows of each."""

    columns: tuple[Array, ...]
    rows: Array

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, first: int, last: int) -> Logs:
        """Those of some of the steps."""
        return Logs(tuple(c[first:last] for c in self.columns), self.rows[first:last])

    def means(self) -> list[float]:
        """The mean of each over the rows."""
        total = self.rows.sum()
        return [float((c * self.rows).sum() / total) for c in self.columns]


def read(step: TrainingStep, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Those of the feeds that a step reads: a loss need not look at its labels."""
    names = {label(n) for n in step.plan.inputs}
    return {n: a for n, a in feeds.items() if n in names}


def joined(parts: list[Logs], kinds: int) -> Logs:
    """The logs of one span after another."""
    if len(parts) == 1:
        return parts[0]
    empty = np.empty(0)
    columns = (np.concatenate([empty, *(p.columns[i] for p in parts)]) for i in range(kinds))
    return Logs(tuple(columns), np.concatenate([empty, *(p.rows for p in parts)]))


class Source(Protocol):
    """Steps of training on some data.

    `steps` are those of an epoch, None where only its end will tell; `spans` says whether one call
    of `advance` may go on into further epochs.
    """

    steps: int | None
    spans: bool

    def begin_epoch(self, skip: int, past: int, left: int) -> None:
        """An epoch begins, or goes on after `skip` steps.

        `past` epochs of this training came before, `left` are still to come, this one among them.
        """

    def advance(self, first: int, last: int) -> Logs:
        """Steps `first` to `last` - 1 of the epoch; fewer where it ends before."""

    def feeds(self, at: int) -> Mapping[str, Array] | None:
        """What step `at` of the epoch that was begun last was, or is to be, fed."""

    def close(self) -> None:
        """Let go of threads."""


class Whole:
    """Arrays in memory, trained on in native calls of many steps."""

    spans = True

    def __init__(self, step: TrainingStep, data: Table, size: int, shuffle: bool) -> None:
        self._step, self._shuffle = step, shuffle
        self._data: Bound = step.bind(read(step, data.feeds), size)
        cut = self._data.cut
        self._count = cut.steps
        self.steps: int | None = cut.steps
        self._rows = np.full(cut.steps, float(cut.size))
        self._rows[-1] = cut.rows - cut.size * (cut.steps - 1)
        self._number = step.epochs

    def begin_epoch(self, skip: int, past: int, left: int) -> None:
        """There is nothing to prepare."""

    def advance(self, first: int, last: int) -> Logs:
        """Native calls of many steps."""
        self._number = self._step.epochs - (first > 0)
        columns = self._step.advance(self._data, first, last, self._shuffle)
        return Logs(
            tuple(c.astype(np.float64) for c in columns),
            self._rows[np.arange(first, last) % self._count],
        )

    def feeds(self, at: int) -> Mapping[str, Array]:
        """The rows of a minibatch."""
        return self._step.minibatch(self._data, self._number, at, self._shuffle)

    def close(self) -> None:
        """There is nothing to let go of."""


class OneByOne:
    """Minibatches that a thread makes ready while the step before is at work."""

    spans = False

    def __init__(
        self,
        step: TrainingStep,
        open_epoch: Callable[[int], Iterator[Any]],
        classes: Mapping[Any, float] | None,
        weighted: bool,
        steps: int | None,
        lasting: bool = False,
        owns: bool = False,
    ) -> None:
        """`open_epoch` gives the minibatches of an epoch, by its number; `owns`: to be closed.

        With `lasting` there is one iterator for all epochs.
        """
        self._step, self._open, self._classes = step, open_epoch, classes
        self._weighted, self.steps = weighted, steps
        self._lasting, self._owns = lasting, owns
        self._items: Prefetch[tuple[Mapping[str, Array], int]] | None = None
        self._last: Mapping[str, Array] | None = None

    def begin_epoch(self, skip: int, past: int, left: int) -> None:
        """Open the epoch's minibatches, and leave out those that were trained on before."""
        number = self._step.begin_epoch(goes_on=skip > 0)
        if self._lasting and self._items is not None:
            return
        self.close()
        items, limit = self._open(number), self.steps and self.steps - skip
        if self._lasting and self.steps:
            skip, limit = past * self.steps + skip, left * self.steps - skip
        for _ in range(skip):
            next(items, None)
        self._items = Prefetch(items, self._ready, limit, self._owns)
        self._items.start()

    def _ready(self, item: Any) -> tuple[Mapping[str, Array], int]:
        data = weighed(item if isinstance(item, Table) else minibatch(item), self._classes)
        if self._weighted and data.weight is None:
            data = Table(data.inputs, data.target, np.ones(data.rows, np.float32), data.alone)
        elif data.weight is not None and not self._weighted:
            raise FeedError(
                "this minibatch has weights, the first one had none",
                "give weights with each of them: 1 for rows that count as before",
            )
        return self._step.converted(read(self._step, data.feeds)), data.rows

    def advance(self, first: int, last: int) -> Logs:
        """Steps one by one."""
        assert self._items is not None
        rows: list[float] = []
        found: list[list[float]] = []
        for at in range(first, last):
            got = next(self._items, None)
            if got is None:
                if self.steps is not None:
                    raise FeedError(
                        f"the data ended after {at} minibatches of an epoch of {self.steps}",
                        "steps_per_epoch is how many there are; what was trained stays",
                    )
                break
            self._last, count = got
            loss = self._step(**self._last)
            found.append([loss, *self._step.metrics.values()])
            rows.append(float(count))
        shape = len(found), len(self._step.log_names)
        columns = np.array(found, np.float64).reshape(shape).T
        return Logs(tuple(columns), np.array(rows))

    def feeds(self, at: int) -> Mapping[str, Array] | None:
        """The minibatch that came last."""
        return self._last

    def close(self) -> None:
        """End the thread."""
        if self._items is not None:
            self._items.close()
            self._items = None


def by_rows(
    data: Table, step: TrainingStep, size: int, shuffle: bool
) -> Callable[[int], Iterator[Table]]:
    """Minibatches of arrays that are too large to be copied whole, in the order `Whole` has."""
    rows = data.rows

    def of_epoch(number: int) -> Iterator[Table]:
        order = philox.permutations(step.seed, number, 1, rows)[0] if shuffle else None
        for start in range(0, rows, size):
            part = slice(start, min(start + size, rows))
            yield data.part(part if order is None else order[part])

    return of_epoch
