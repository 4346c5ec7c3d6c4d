"""Checkpoints while training is under way."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from string import Formatter

import numpy as np

from chainrule.errors import ArtifactError, FeedError
from chainrule.train.callbacks.base import Array, Logs, Monitor, path_of

#: what stands for a number in a path: no folder, and none above
_FIELD = r"[^/\\]*[^/\\.]"


class Checkpoint(Monitor):
    """Save the model, and where its training stands, to a file: `fit(..., resume=path)` goes on.

    Every `epochs` epochs, or with `steps` every so many steps. `path` may hold "{epoch}", "{step}"
    and the names of numbers, "{val_loss:.3f}"; of such files the last `keep` are kept, None for
    all. With `save_best_only` only when `monitor` has got better. With `resume` training goes on
    from `path`, if that is there. A file is written whole or not at all, and what was there before
    stays until then. Raises ArtifactError where it can't be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        epochs: int | None = None,
        steps: int | None = None,
        save_best_only: bool = False,
        monitor: str = "val_loss",
        mode: str = "auto",
        keep: int | None = None,
        resume: bool = False,
    ) -> None:
        super().__init__(monitor, mode, 0.0)
        for name, value, least in (("epochs", epochs, 1), ("steps", steps, 1), ("keep", keep, 1)):
            if value is not None and (type(value) is not int or value < least):
                raise FeedError(f"{name} is None or an int from {least} on, not {value!r}")
        self.path = path_of("path", path)
        self.epochs = 1 if epochs is None and steps is None else epochs
        self.every_steps = steps or 0
        self.save_best_only, self.keep = save_best_only, keep
        if resume and "{" in self.path:
            raise FeedError("resume needs a path that is one file", "fit(..., resume=path)")
        self.resume = resume
        self._written: list[str] = []

    def on_batch_end(self, batch: int, logs: Logs) -> None:
        self._save(self.model.epoch, logs)

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        if self.epochs is not None and (epoch + 1) % self.epochs == 0:
            self._save(epoch + 1, logs)

    def _save(self, epoch: int, logs: Logs) -> None:
        if self.save_best_only:
            value = self.value(logs)
            if not self.better(value):
                return
            self.best = value
        path = self.path
        if "{" in path:
            try:
                path = path.format(epoch=epoch, step=self.model.step.steps, **logs)
            except (KeyError, ValueError, IndexError, AttributeError) as error:
                raise ArtifactError(f"{self.path} can't be filled in: {error!r}") from None
        self.model.checkpoint(path)
        if path not in self._written:
            self._written.append(path)
        while self.keep is not None and len(self._written) > self.keep:
            old = self._written.pop(0)
            if os.path.exists(old):
                os.unlink(old)

    def state_dict(self) -> Mapping[str, Array]:
        names = np.frombuffer("\0".join(self._written).encode(), np.uint8)
        return {**super().state_dict(), "written": names}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        super().load_state_dict(state)
        names = state["written"].tobytes().decode()
        # a file names what `keep` deletes: only what this path makes is its to name
        made = re.compile(_pattern(self.path), re.DOTALL)
        self._written = [n for n in names.split("\0") if n and made.fullmatch(n)]


def _pattern(path: str) -> str:
    """The regular expression of the files that a path with fields makes."""
    try:
        parts = list(Formatter().parse(path))
    except ValueError:
        return "(?!)"
    return "".join(re.escape(text) + ("" if name is None else _FIELD) for text, name, _, _ in parts)
