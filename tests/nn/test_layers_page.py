"""What docs/layers.md shows is what its code prints, and its table names every layer."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
from pathlib import Path

import chainrule as cr

PAGE = Path(__file__).parents[2] / "docs" / "layers.md"
_BLOCK = re.compile(r"```python\n(.*?)```\n+```text\n(.*?)```", re.DOTALL)


def test_the_page_shows_what_its_code_prints() -> None:
    names: dict[str, object] = {}
    page = PAGE.read_text(encoding="utf-8")
    blocks = _BLOCK.findall(page)
    assert len(blocks) == page.count("```python") == 6
    for code, shown in blocks:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(code, "layers.py", "exec"), names)
        assert out.getvalue() == shown


def test_the_table_names_every_layer() -> None:
    page = PAGE.read_text(encoding="utf-8")
    table = page[page.index("| layer |") :]
    for name in cr.nn.__all__:
        if inspect.isclass(getattr(cr.nn, name)) and name != "Layer":
            assert f"`{name}(" in table or f"`{name}`" in table, name
