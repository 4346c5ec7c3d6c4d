"""What `import chainrule` costs: nothing heavy is loaded before it is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHELVES = [str(ROOT / "compiler"), str(ROOT / "runtime")]
HEAVY = ("sympy", "networkx", "llvmlite", "matplotlib", "rich", "click", "scipy", "ml_dtypes")


def loaded_after(statement: str, path: list[str]) -> set[str]:
    """The top-level modules loaded by a fresh interpreter that runs one statement."""
    code = f"import sys; sys.path[:0] = {path!r}; {statement}; print(*sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return {name.split(".")[0] for name in ran.stdout.split()}


@pytest.mark.smoke
def test_import_loads_nothing_heavy() -> None:
    loaded = loaded_after("import chainrule", SHELVES)
    assert "chainrule" in loaded
    assert not loaded & set(HEAVY)


def test_runtime_needs_no_compiler() -> None:
    """With chainrule off the path, the runtime imports and loads nothing heavy."""
    loaded = loaded_after("import chainrule_runtime", [str(ROOT / "runtime")])
    assert not loaded & {"chainrule", *HEAVY}


def test_import_does_nothing_twice() -> None:
    """Importing neither prints, nor warns, nor starts a thread."""
    code = (
        f"import sys, threading; sys.path[:0] = {SHELVES!r}; import chainrule; "
        "assert threading.active_count() == 1"
    )
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, timeout=60, check=False
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"", b"")
