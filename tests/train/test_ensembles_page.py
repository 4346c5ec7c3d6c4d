"""What docs/ensembles.md shows is what its code prints."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "ensembles.md"
_BLOCK = re.compile(r"```python\n(.*?)```\n+```text\n(.*?)```", re.DOTALL)


def test_the_page_shows_what_its_code_prints() -> None:
    page = PAGE.read_text(encoding="utf-8")
    ((code, shown),) = _BLOCK.findall(page)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(code, "ensembles.py", "exec"), {})
    assert out.getvalue() == shown
