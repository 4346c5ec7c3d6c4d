"""Where a command prints: the screen, and the same as plain text for a report."""

from __future__ import annotations

import io
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from chainrule.errors import ChainruleError

#: columns of a report, and of a screen that is no terminal; a table has its own least
WIDTH = 100
TABLE_WIDTH = 80
INDENT = 2


class Page:
    """The screen, where it is not `quiet`, and a plain copy of all that was shown on it."""

    def __init__(self, quiet: bool = False) -> None:
        width = shutil.get_terminal_size((WIDTH, 24)).columns
        self.screen = Console(
            file=sys.stdout, width=width, quiet=quiet, highlight=False, markup=False, emoji=False
        )
        self._copy = io.StringIO()
        self._paper = Console(
            file=self._copy, width=WIDTH, highlight=False, markup=False, emoji=False
        )

    @property
    def text(self) -> str:
        """All that was shown so far, without colours."""
        return "\n".join(line.rstrip() for line in self._copy.getvalue().splitlines()) + "\n"

    def heading(self, title: str, about: str = "") -> None:
        """A section's title, and in a line what it is about."""
        self.gap()
        self._show(Text(title, style="bold cyan"))
        if about:
            self.say(about, style="dim")

    def say(self, words: str, style: str = "") -> None:
        """Prose; it wraps where the screen ends."""
        for console in (self.screen, self._paper):
            for line in textwrap.wrap(words, max(console.width, 2 * INDENT + 1) - INDENT):
                console.print(Text(" " * INDENT + line, style=style), soft_wrap=True)

    def verbatim(self, lines: str, indent: int = INDENT) -> None:
        """Mathematics or code; its lines are left as they are, however narrow the screen."""
        for line in lines.splitlines():
            text = Text(" " * indent + line if line else "")
            for console in (self.screen, self._paper):
                console.print(text, soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]], right: str = "") -> None:
        """Rows under a head; the columns named in `right` stand right.

        On a screen narrower than TABLE_WIDTH the terminal wraps them: cells cut to a letter or two
        say nothing.
        """
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        for column in columns:
            table.add_column(column, justify="right" if column in right.split() else "left")
        for row in rows:
            table.add_row(*map(Text, row))
        self._show(Padding(table, (0, 0, 0, INDENT), expand=False))

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[], None]]:
        """A bar while the block runs, on a terminal alone; what is given moves it on by one."""
        left = TextColumn(" " * (INDENT - 1) + what)
        shown = self.screen.is_terminal and not self.screen.quiet
        with Progress(
            left, BarColumn(), MofNCompleteColumn(),
            console=self.screen, transient=True, disable=not shown,
        ) as bar:  # fmt: skip
            task = bar.add_task(what, total=total)
            yield lambda: bar.advance(task)

    def gap(self) -> None:
        """An empty line."""
        self._show(Text())

    def _show(self, what: Text | Padding) -> None:
        for console in (self.screen, self._paper):
            columns = console.width
            if isinstance(what, Padding):
                console.width = max(columns, TABLE_WIDTH)
            console.print(what, crop=False)
            console.width = columns


def told(error: ChainruleError) -> str:
    """An error that a command ran into by itself: no file of the user's made it, so no line."""
    return "\n  ".join([f"{type(error).__name__}: {error.what}", *error.details])
