"""The base of callbacks, and that of those that watch a number."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from chainrule.errors import CompileError, FeedError
from chainrule.nn.numbers import check

if TYPE_CHECKING:
    from chainrule.train.model import Model

Array = np.ndarray[Any, Any]
Logs = Mapping[str, float]


class Callback:
    """The base of callbacks: methods that do nothing.

    `logs` are loss and metrics by name, at the end of an epoch those of validation too, as
    "val_loss". `model.stop_training = True` ends training after the epoch. What a method raises
    goes through `fit` and leaves the model at the end of a step.
    """

    model: Model
    #: of how many steps one calls `on_batch_begin` and `on_batch_end`, where they are there
    every_steps = 1

    def on_train_begin(self, logs: Logs) -> None:
        """Training begins."""

    def on_train_end(self, logs: Logs) -> None:
        """Training has come to its end: not called where an error or Ctrl-C ends it."""

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        """Epoch number `epoch`, from 0 on, begins."""

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """An epoch has ended."""

    def on_batch_begin(self, batch: int, logs: Logs) -> None:
        """Minibatch number `batch` of an epoch, from 0 on, begins."""

    def on_batch_end(self, batch: int, logs: Logs) -> None:
        """A minibatch has been trained on; `logs` are of it alone."""

    def state_dict(self) -> Mapping[str, Array]:
        """What a checkpoint keeps of it, as arrays by name."""
        return {}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Go on from what `state_dict` gave."""

    def close(self) -> None:
        """Let go of files and the like: called however training ends."""


def overrides(callback: Callback, method: str) -> bool:
    """Whether a callback does something at a place."""
    return getattr(type(callback), method, None) is not getattr(Callback, method)


class Monitor(Callback):
    """What watches one number, for whether it gets better."""

    def __init__(self, monitor: str, mode: str, min_delta: float) -> None:
        if not isinstance(mode, str) or mode not in ("auto", "min", "max"):
            raise CompileError(f'mode is "auto", "min" or "max", not {mode!r}')
        if not isinstance(monitor, str):
            raise CompileError(f'monitor is the name of a number, as "val_loss", not {monitor!r}')
        rising = ("acc", "auc", "f1", "precision", "recall", "r2")
        up = mode == "max" or (mode == "auto" and any(w in monitor for w in rising))
        self.monitor, self._sign = monitor, 1.0 if up else -1.0
        self.min_delta = abs(check("min_delta", min_delta, least=-math.inf))
        self.best, self.wait = -self._sign * math.inf, 0

    def on_train_begin(self, logs: Logs) -> None:
        self.best, self.wait = -self._sign * math.inf, 0

    def value(self, logs: Logs) -> float:
        """The number watched. Raises CompileError where there is none of that name."""
        if self.monitor not in logs:
            raise CompileError(
                f"{type(self).__name__} watches {self.monitor!r}, which this training has not",
                f"there are {', '.join(logs)}",
            )
        return float(logs[self.monitor])

    def better(self, value: float) -> bool:
        """Whether a number is better than the best so far by more than `min_delta`."""
        return self._sign * (value - self.best) > self.min_delta

    def state_dict(self) -> Mapping[str, Array]:
        return {"best": np.array(self.best), "wait": np.array(self.wait)}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        self.best, self.wait = float(state["best"]), int(state["wait"])


def path_of(what: str, path: object) -> str:
    """A path as text. Raises FeedError for what is none."""
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(text, str):
        raise FeedError(f"{what} is a path, not {path!r}")
    return text
