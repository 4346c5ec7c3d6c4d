"""Callbacks that write numbers to files."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

from chainrule.train.callbacks.base import Callback, Logs, path_of


class _LineLog(Callback):
    """A file of lines, one an epoch or a step; `append` goes on with what is there.

    Where training goes on from a checkpoint, lines of epochs that are made again are taken out.
    """

    def __init__(self, path: str | os.PathLike[str], append: bool = False) -> None:
        self.path, self.append = path_of("path", path), append

    def on_train_begin(self, logs: Logs) -> None:
        lines = self._lines() if self.append or self.model.epoch else []
        if self.model.epoch and not self.append:
            lines = [line for line in lines if self._epoch_of(line) < self.model.epoch]
        with open(self.path, "w", encoding="utf-8") as file:
            file.writelines(lines)

    def _lines(self) -> list[str]:
        if not os.path.exists(self.path):
            return []
        with open(self.path, encoding="utf-8") as file:
            return [line for line in file if line.endswith("\n")]

    def _epoch_of(self, line: str) -> int:
        raise NotImplementedError

    def _add(self, line: str) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(line + "\n")


class CSVLog(_LineLog):
    """Write a line of numbers an epoch to a CSV file, anew unless `append`.

    The columns are those of the first line; a number that has none is left out.
    """

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        lines = self._lines()
        if not lines:
            self._add(",".join(["epoch", *logs]))
        columns = lines[0].strip().split(",")[1:] if lines else list(logs)
        self._add(",".join([str(epoch), *(str(logs.get(c, "")) for c in columns)]))

    def _epoch_of(self, line: str) -> int:
        first = line.split(",")[0]
        return int(first) if first.isdigit() else -1  # the header


class JSONLog(_LineLog):
    """Write a JSON object a line: epoch and numbers, and with `steps` those of every so many steps.

    A number that is not finite is null.
    """

    def __init__(
        self, path: str | os.PathLike[str], steps: int | None = None, append: bool = False
    ) -> None:
        super().__init__(path, append)
        self.every_steps = steps or 0

    def on_batch_end(self, batch: int, logs: Logs) -> None:
        self._write({"epoch": self.model.epoch, "step": self.model.step.steps, **logs})

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        self._write({"epoch": epoch, **logs})

    def _write(self, record: Mapping[str, float]) -> None:
        import json

        self._add(json.dumps({n: v if math.isfinite(v) else None for n, v in record.items()}))

    def _epoch_of(self, line: str) -> int:
        import json

        return int(json.loads(line)["epoch"])
