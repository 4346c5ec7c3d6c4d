"""How a training loop shows where it is: a bar in a terminal, lines, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from chainrule.errors import FeedError
from chainrule.train.source import Logs

#: seconds after which a bar should move again
_MOVE = 0.1


class Progress:
    """Shows nothing, and never wants to look."""

    def begin(self, epoch: int, epochs: int, steps: int | None) -> None:
        """Training begins."""

    def patience(self) -> int | None:
        """How many steps may go before the next look, or None."""
        return None

    def epochs(self, steps: int) -> int | None:
        """How many epochs of so many steps may go before the next look, or None."""
        return None

    def step(self, position: int, logs: Logs) -> None:
        """Steps were made; the epoch stands at `position`."""

    def epoch(self, epoch: int, logs: Mapping[str, float]) -> None:
        """An epoch has ended."""

    def close(self) -> None:
        """Training has ended, one way or another."""


class Lines(Progress):
    """A line an epoch."""

    def begin(self, epoch: int, epochs: int, steps: int | None) -> None:
        self._epochs, self._since = epochs, time.perf_counter()

    def epochs(self, steps: int) -> int | None:
        return 1

    def epoch(self, epoch: int, logs: Mapping[str, float]) -> None:
        now = time.perf_counter()
        took, self._since = now - self._since, now
        print(f"epoch {epoch + 1}/{self._epochs}  {took:.2f} s  {shown(logs)}", flush=True)


class Bar(Progress):
    """A bar that rich draws in a terminal, moved about ten times a second."""

    def begin(self, epoch: int, epochs: int, steps: int | None) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self._steps, self._epochs, self._epoch = steps, epochs, epoch
        self._bars: Any = Bars(
            TextColumn("epoch"),
            MofNCompleteColumn(),
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            refresh_per_second=10,
        )
        self._bars.start()
        self._task = self._bars.add_task("", total=epochs, completed=epoch)
        self._pace, self._since = 1, time.perf_counter()

    def patience(self) -> int | None:
        return self._pace

    def epochs(self, steps: int) -> int | None:
        return max(1, self._pace // steps)

    def step(self, position: int, logs: Logs) -> None:
        now = time.perf_counter()
        took, self._since = now - self._since, now
        self._pace = max(1, min(8 * self._pace, int(len(logs) * _MOVE / max(took, 1e-9))))
        if self._steps:
            self._bars.update(self._task, completed=self._epoch + position / self._steps)

    def epoch(self, epoch: int, logs: Mapping[str, float]) -> None:
        self._epoch = epoch + 1
        self._bars.update(self._task, completed=self._epoch, description=shown(logs))

    def close(self) -> None:
        if hasattr(self, "_bars"):
            self._bars.stop()


def shown(logs: Mapping[str, float]) -> str:
    """Numbers by name, to four digits."""
    return "  ".join(f"{name} {value:.4g}" for name, value in logs.items())


def progress(verbose: Any) -> Progress:
    """What shows it: 0 nothing, 1 a bar where there is a terminal, 2 a line an epoch; "auto" is 1.

    Raises FeedError for anything else.
    """
    if verbose not in ("auto", 0, 1, 2):
        raise FeedError(f'verbose is 0, 1, 2 or "auto", not {verbose!r}')
    if verbose == 2:
        return Lines()
    terminal = sys.stdout is not None and sys.stdout.isatty()
    return Bar() if verbose in ("auto", 1) and terminal else Progress()
