"""What the README shows is what comes out."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def block(language: str) -> str:
    """The first fenced block in a language."""
    found = re.search(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return found.group(1)


def test_the_first_program_prints_what_it_says() -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block("python"), str(README), "exec"), {})
    *gradient, training, size = printed.getvalue().splitlines()
    *shown_gradient, shown_training, shown_size = block("text").splitlines()
    assert gradient == shown_gradient
    assert training.split(",")[0] == shown_training.split(",")[0]
    assert size.split(" ", 1)[1] == shown_size.split(" ", 1)[1]  # how many depends on the machine
