"""docs/rules.md is what `python docs/rules.py` writes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_it_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("rules", DOCS / "rules.py")
    assert spec and spec.loader
    rules = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rules)
    written = (DOCS / "rules.md").read_text(encoding="utf-8")
    assert written == rules.page(), "run python docs/rules.py"
