"""Epochs of minibatches: which rows each step takes, and native calls of many steps each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from chainrule.ops import philox
from chainrule.records import dataclass
from chainrule.train.engine import Engine, cut_rows
from chainrule.train.ensemble import Ensemble
from chainrule.train.plan import SEED, StepPlan
from chainrule.train.updates import STEP
from chainrule_runtime import Lock, Minibatches, Storage

Array = np.ndarray[Any, Any]
#: one native call takes as many epochs as have so many rows together, and at least one
_ROW_LIMIT = 2**16


@dataclass(frozen=True)
class Bound:
    """Data in the element types of a step's inputs, and how it is cut into minibatches."""

    arrays: list[Array]
    cut: Minibatches


class Epochs:
    """The epochs of a step: `begun` counts them. What does not fit raises a RuntimeFault."""

    def __init__(
        self, plan: StepPlan, engine: Engine, storage: Storage, members: Ensemble | None
    ) -> None:
        self._plan, self._engine, self._members = plan, engine, members
        self._arrays = storage.arrays
        self.begun = 0
        self._order: tuple[tuple[int, int], int, Array] | None = None
        self._turn = Lock()  # one run after another: each counts its epochs
        self._last_cut: tuple[tuple[int, list[tuple[int, ...]]], Minibatches] | None = None

    def bind(self, data: Mapping[str, Any], batch_size: int) -> Bound:
        """Data made ready for many calls of `advance`, its shapes and labels checked."""
        arrays = self._engine.binder.arrays(data)
        cut = self._cut(arrays, batch_size)
        self._engine.check(arrays, cut)
        return Bound(arrays, cut)

    def advance(self, data: Bound, first: int, last: int, shuffle: bool) -> list[Array]:
        """Steps `first` to `last` - 1; the loss of each, then each metric.

        They are counted from the beginning of the next epoch, or of the one that is under way if
        `first` is not 0.
        """
        with self._turn.guard:
            return self._go(data, first, last, shuffle)

    def minibatch(self, data: Bound, epoch: int, at: int, shuffle: bool) -> Sequence[Array]:
        """What step `at`, counted from the beginning of epoch number `epoch`, is fed."""
        number, at = divmod(at, data.cut.steps)
        order = self._orders(epoch + number, 1, data.cut) if shuffle else None
        return data.cut.minibatch(data.arrays, at, order)

    @property
    def _steps(self) -> int:
        """How many steps have been made."""
        return int(self._arrays[STEP])

    def _go(self, data: Bound, first: int, last: int, shuffle: bool) -> list[Array]:
        """Native calls of some epochs each; an epoch that was begun counts, whatever ended it."""
        cut, parts = data.cut, list[Sequence[Array]]()
        group = max(1, _ROW_LIMIT // cut.rows)
        begin = self.begun - (first > 0)
        while first < last:
            epoch, at = divmod(first, cut.steps)
            stop = min(last - epoch * cut.steps, group * cut.steps)
            order = self._orders(begin + epoch, -(-stop // cut.steps), cut) if shuffle else None
            before = self._steps
            try:
                outcome = self._engine.loop(data.arrays, cut, at, stop, order)
            except BaseException:
                self.begun = begin + epoch + -(-(at + self._steps - before) // cut.steps)
                raise
            self.begun = begin + epoch + -(-(at + outcome.steps) // cut.steps)
            if outcome.fault is not None:
                raise outcome.fault
            parts.append(outcome.logs)
            first += stop - at
        if len(parts) == 1:
            return list(parts[0])
        each = () if self._members is None else (self._members.count,)
        kinds = [n.type.dtype.numpy for n in self._plan.measured]
        return [
            np.concatenate([np.empty((0, *each), kind), *(logs[i] for logs in parts)])
            for i, kind in enumerate(kinds)
        ]

    def _orders(self, first: int, epochs: int, cut: Minibatches) -> Array:
        """The orders of rows in some epochs.

        They are drawn for twice as many epochs each time that those at hand are used up: drawing
        many together is faster, and a lone epoch need not wait for more.
        """
        seed = int(self._arrays[SEED].flat[0])
        kind = seed, cut.rows
        if self._order is not None and self._order[0] == kind:
            begin, orders = self._order[1:]
            if begin <= first and first + epochs <= begin + len(orders):
                return orders[first - begin : first - begin + epochs]
            more = 2 * len(orders) if first == begin + len(orders) else 1
        else:
            more = 1
        count = max(epochs, min(more, _ROW_LIMIT // cut.rows, 2**32 - first))
        self._order = kind, first, philox.permutations(seed, first, count, cut.rows)
        return self._order[2][:epochs]

    def _cut(self, arrays: Sequence[Array], batch_size: int) -> Minibatches:
        """How the data is cut into minibatches."""
        form = batch_size, [a.shape for a in arrays]
        if self._last_cut is None or self._last_cut[0] != form:
            self._last_cut = form, cut_rows(self._plan.inputs, arrays, batch_size)
        return self._last_cut[1]
