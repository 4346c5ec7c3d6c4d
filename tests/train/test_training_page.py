"""What docs/training.md shows is what its code prints, and its table names every callback."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

import chainrule as cr

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
_BLOCK = re.compile(r"```python\n(.*?)```\n+```text\n(.*?)```", re.DOTALL)


def test_the_page_shows_what_its_code_prints() -> None:
    pytest.importorskip("sklearn")
    names: dict[str, object] = {}
    page = PAGE.read_text(encoding="utf-8")
    blocks = _BLOCK.findall(page)
    assert len(blocks) == page.count("```python") == 9
    for code, shown in blocks:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(code, "training.py", "exec"), names)
        assert out.getvalue() == shown


def test_the_table_names_every_callback() -> None:
    table = PAGE.read_text(encoding="utf-8")
    for name in cr.callbacks.__all__:
        assert name == "Callback" or f"`{name}(" in table, name
