"""docs/add-an-op.md, followed to the letter in a copy of the sources."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/add-an-op.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
OPS = "compiler/chainrule/ops"


def block(beginning: str) -> str:
    """The one block of the page that begins so."""
    (found,) = [b for b in BLOCKS if b.startswith(beginning)]
    return found


def insert(file: Path, before: str, text: str) -> None:
    """Put text in front of the first place that reads `before`; at the end where that is empty."""
    source = file.read_text(encoding="utf-8")
    at = source.index(before) if before else len(source)
    file.write_text(source[:at] + text + source[at:], encoding="utf-8")


def run(folder: Path, *arguments: str) -> str:
    shelves = os.pathsep.join(str(folder / shelf) for shelf in ("compiler", "runtime"))
    ran = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env={**os.environ, "PYTHONPATH": shelves},
        capture_output=True, encoding="utf-8", timeout=120,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources with both ops of the page."""
    folder = tmp_path_factory.mktemp("sources")
    for shelf in ("compiler", "runtime", "tests"):
        shutil.copytree(ROOT / shelf, folder / shelf, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    insert(folder / OPS / "elementwise.py", '_float("erf", ', block("_float("))
    insert(folder / OPS / "meanings.py", "", "\n\n" + block("def lorentz(x: Array)"))
    insert(folder / OPS / "layout.py", "", "\n\n" + block("@dataclass"))
    lang = folder / "compiler/chainrule/lang/elementary.py"
    insert(lang, "", "\n\n" + block("def lorentz(x: TensorLike"))
    public = folder / "compiler/chainrule/__init__.py"
    insert(public, "    logaddexp,\n", "    lorentz,\n")
    insert(public, '    "losses",\n', '    "lorentz",\n')
    return folder


def test_it_prints_what_the_page_says(extended: Path) -> None:
    (extended / "program.py").write_text(block("import chainrule"), encoding="utf-8")
    printed = "".join(f"    {line}\n" for line in run(extended, "program.py").splitlines())
    assert printed.rstrip() in PAGE


def test_so_many_tests_are_generated_and_pass(extended: Path) -> None:
    found = re.search(r"`pytest (tests/ops\S+) .*` runs (\d+) tests", PAGE)
    assert found
    command, count = found.groups()
    said = run(extended, "-m", "pytest", "-q", command, "-k", "lorentz or skew")
    assert said.splitlines()[-1].startswith(f"{count} passed")
