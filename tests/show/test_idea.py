"""What docs/idea.md shows is what its code prints."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

IDEA = Path(__file__).parents[2] / "docs" / "idea.md"
_BLOCK = re.compile(r"```python\n(.*?)```\n+```\n(.*?)```", re.DOTALL)


def without_lines(text: str) -> str:
    """The text less the places in files that rules were used at."""
    return re.sub(r" {3}# \S+:\d+$", "", text, flags=re.MULTILINE).strip()


def test_the_page_shows_what_its_code_prints() -> None:
    names: dict[str, object] = {}
    blocks = _BLOCK.findall(IDEA.read_text(encoding="utf-8"))
    assert len(blocks) == 5
    for code, shown in blocks:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(code, "idea.py", "exec"), names)
        assert without_lines(out.getvalue()) == without_lines(shown)
