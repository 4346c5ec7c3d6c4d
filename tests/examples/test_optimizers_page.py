"""What docs/optimizers.md shows runs, and prints what it says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

import chainrule as cr

PAGE = (Path(__file__).parents[2] / "docs/optimizers.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_each_block_runs(number: int) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(BLOCKS[number], "docs/optimizers.md", "exec"), {})
    for line in printed.getvalue().splitlines():
        assert f"prints `{line}`" in PAGE


def test_its_tables_name_what_there_is() -> None:
    """Every optimizer, schedule, loss and metric stands on the page."""
    for table in (cr.optim, cr.schedules, cr.losses, cr.metrics):
        for name in table.BY_NAME:
            made = table.BY_NAME[name].__name__
            named = re.search(rf"`{made}[(`]", PAGE) or table is cr.losses
            assert named, made
