"""docs/house.md: what it shows of `x @ W` is what comes out, and the files it names are there."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from chainrule.codegen.host import host_target

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/house.md").read_text(encoding="utf-8")
LIFE = PAGE[PAGE.index("## The life of") : PAGE.index("## Kernels")]
LEVELS = {"Graph": "graph", "Kernels": "kernels", "Loops": "loops", "LLVM": "llvm"}


def shown(title: str) -> list[str]:
    """The lines of the indented block after a bold title."""
    after = LIFE.split(f"**{title}.**", 1)[1].split("\n\n")
    block = next(part for part in after if part.startswith("    "))
    return [line[4:] for line in block.split("\n")]


@pytest.fixture(scope="module")
def levels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    found = re.search(r"```python\n(.*?)```", LIFE, re.DOTALL)
    assert found
    file = tmp_path_factory.mktemp("life") / "life.py"
    file.write_text(found.group(1), encoding="utf-8")
    fn = runpy.run_path(str(file))["fn"]
    text = {level: fn.show(level) for level in (*LEVELS.values(), "asm")}
    text["report"] = str(fn.report())
    return {k: re.sub(r"\S*life\.py", "life.py", t).split("\n") for k, t in text.items()}


@pytest.mark.parametrize("title", [*LEVELS, "Machine code"])
def test_the_page_shows_what_comes_out(title: str, levels: dict[str, list[str]]) -> None:
    level = LEVELS.get(title, "asm")
    if level in ("llvm", "asm") and not host_target().level.startswith("x86-64-v4"):
        pytest.skip("what is shown there is for AVX-512")
    lines = [" ".join(line.split()) for line in levels[level]]
    at = 0
    for line in shown(title):
        if line.strip() == "...":
            break
        wanted = " ".join(line.split())
        cut = wanted.removesuffix(" ...")
        while not (lines[at] == wanted or (cut != wanted and lines[at].startswith(cut))):
            at += 1
            assert at < len(lines), f"{line!r} is not there, or not in this place"


def test_the_code_is_as_large_as_the_page_says(levels: dict[str, list[str]]) -> None:
    if not host_target().level.startswith("x86-64-v4"):
        pytest.skip("what is shown there is for AVX-512")
    said = re.search(r"The whole program is (\d+) bytes in two functions", LIFE)
    assert said
    assert any(f"{said.group(1)} bytes in 2 functions" in line for line in levels["report"])


def test_the_files_it_names_are_all_there_are() -> None:
    rows = re.findall(r"^\| `(\w+)/` \| (.*) \|$", PAGE, re.MULTILINE)
    assert rows
    for room, cells in rows:
        named = set(re.findall(r"`(\w+)`", cells))
        files = (ROOT / "compiler/chainrule" / room).glob("*.py")
        assert named == {f.stem for f in files} - {"__init__"}, room
