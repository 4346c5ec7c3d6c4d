"""Callbacks that end training, or slow it down, by how a number goes."""

from __future__ import annotations

from collections.abc import Callable as Function
from collections.abc import Mapping
from inspect import signature

import numpy as np

from chainrule.errors import CompileError
from chainrule.nn.numbers import check, check_int
from chainrule.nn.schedules import Schedule
from chainrule.train.callbacks.base import Array, Callback, Logs, Monitor


class EarlyStopping(Monitor):
    """End training when a number has not got better for more than `patience` epochs in a row.

    Better is by more than `min_delta`; `mode` is "min", "max" or, by the number's name, "auto".
    With `restore_best_weights` the model ends with the parameters and states of the best epoch.
    `stopped_epoch` and `best_epoch` say what happened; the first is None where nothing did.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        min_delta: float = 0.0,
        patience: int = 0,
        mode: str = "auto",
        restore_best_weights: bool = False,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        self.patience = check_int("patience", patience, least=0)
        self.restore_best_weights = restore_best_weights
        self.stopped_epoch: int | None = None
        self.best_epoch = 0
        self._weights: dict[str, Array] = {}

    def on_train_begin(self, logs: Logs) -> None:
        super().on_train_begin(logs)
        self.stopped_epoch, self.best_epoch, self._weights = None, 0, {}

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        value = self.value(logs)
        self.wait += 1
        if self.better(value) or not epoch:
            self.best, self.wait, self.best_epoch = value, 0, epoch
            if self.restore_best_weights:
                self._weights = self.model.weights()
        elif self.wait >= self.patience:
            self.stopped_epoch, self.model.stop_training = epoch, True

    def on_train_end(self, logs: Logs) -> None:
        if self._weights:
            self.model.set_weights(self._weights)

    def state_dict(self) -> Mapping[str, Array]:
        best = {f"weights.{n}": a for n, a in self._weights.items()}
        return {**super().state_dict(), "best_epoch": np.array(self.best_epoch), **best}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        super().load_state_dict(state)
        self.best_epoch = int(state["best_epoch"])
        kept = {n: a for n, a in state.items() if n.startswith("weights.")}
        self._weights = {n.removeprefix("weights."): a for n, a in kept.items()}


class LRSchedule(Callback):
    """Set the learning rate at the begin of each epoch: `schedule(epoch)`, or `(epoch, rate)` for a
    function that needs two.

    Raises CompileError for what is no such function, and, in training, FeedError for a rate that is
    no number from 0 on. A schedule of steps, of `cr.schedules`, is given to an optimizer.
    """

    def __init__(self, schedule: Function[..., float]) -> None:
        if isinstance(schedule, Schedule):
            raise CompileError(
                "LRSchedule takes a function of the epoch, not a schedule of steps",
                "give that to the optimizer: cr.optim.SGD(cr.schedules.cosine(0.1, steps=1000))",
            )
        self.schedule, self._takes_rate = schedule, not _takes(schedule, 1)
        if self._takes_rate and not _takes(schedule, 2):
            raise CompileError(
                f"LRSchedule takes a function of the epoch, or of epoch and rate, not {schedule!r}",
                "such as lambda epoch: 0.1 / (epoch + 1)",
            )

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        step = self.model.step
        given = (epoch, step.learning_rate) if self._takes_rate else (epoch,)
        rate = self.schedule(*given)
        rate = rate.item() if isinstance(rate, np.ndarray) and not rate.ndim else rate
        step.learning_rate = check(f"the rate that LRSchedule gave for epoch {epoch}", rate)


def _takes(function: object, count: int) -> bool:
    """Whether something can be called with so many operands."""
    if not callable(function):
        return False
    try:
        signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # a builtin that tells nothing of itself
        return count == 1
    return True


class ReduceLROnPlateau(Monitor):
    """Multiply the learning rate by `factor` when a number has not got better in `patience` epochs.

    After that it waits `cooldown` epochs; the rate does not fall below `min_lr`.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        factor: float = 0.1,
        patience: int = 10,
        mode: str = "auto",
        min_delta: float = 1e-4,
        cooldown: int = 0,
        min_lr: float = 0.0,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        self.factor = check("factor", factor, above=0.0, below=1.0)
        self.patience = check_int("patience", patience, least=0)
        self.cooldown = check_int("cooldown", cooldown, least=0)
        self.min_lr, self._cooling = check("min_lr", min_lr), 0

    def on_train_begin(self, logs: Logs) -> None:
        super().on_train_begin(logs)
        self._cooling = 0

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        value = self.value(logs)
        if self._cooling:
            self._cooling, self.wait = self._cooling - 1, 0
        if self.better(value):
            self.best, self.wait = value, 0
        elif not self._cooling:
            self.wait += 1
            step = self.model.step
            if self.wait >= self.patience and step.learning_rate > self.min_lr:
                step.learning_rate = max(step.learning_rate * self.factor, self.min_lr)
                self._cooling, self.wait = self.cooldown, 0

    def state_dict(self) -> Mapping[str, Array]:
        return {**super().state_dict(), "cooling": np.array(self._cooling)}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        super().load_state_dict(state)
        self._cooling = int(state["cooling"])
