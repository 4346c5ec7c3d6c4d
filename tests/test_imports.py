"""What `import chainrule` loads, and a program found compiled: nothing before it is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHELVES = [str(ROOT / "compiler"), str(ROOT / "runtime")]
HEAVY = ("sympy", "networkx", "llvmlite", "matplotlib", "rich", "click", "scipy", "ml_dtypes")


#: light modules of rooms whose others are not needed by a program that is found compiled
ROOMS = ("show", "loops", "schedule", "export", "rewrite")
LIGHT = {"schedule": {"budget"}, "loops": {"choice"}, "show": {"stored"}}
STEP = """
import chainrule as cr, numpy as np
x, y = cr.input("x", ("batch", 4)), cr.input("y", ("batch",), dtype="int32")
loss = cr.losses.cross_entropy(x @ cr.parameter("W", (4, 3)), y)
cr.training_step(loss, cr.optim.Adam(1e-3))(x=np.ones((2, 4)), y=[0, 1])
"""


def modules_after(statement: str, path: list[str], **variables: str) -> list[str]:
    """All modules loaded by a fresh interpreter that runs one statement."""
    code = f"import sys; sys.path[:0] = {path!r}\n{statement}\nprint(*sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **variables},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.split()


def loaded_after(statement: str, path: list[str]) -> set[str]:
    """The packages loaded by a fresh interpreter that runs one statement."""
    return {name.split(".")[0] for name in modules_after(statement, path)}


@pytest.mark.smoke
def test_import_loads_nothing_heavy() -> None:
    loaded = loaded_after("import chainrule", SHELVES)
    assert "chainrule" in loaded
    assert not loaded & set(HEAVY)


def test_a_program_found_compiled_needs_no_levels(tmp_path: Path) -> None:
    """Neither text, nor loops, nor what emits code, nor export; see LATE in test_layers.py."""
    made, found = (modules_after(STEP, SHELVES, CHAINRULE_CACHE=str(tmp_path)) for _ in range(2))
    assert "chainrule.driver.lower" in made and "chainrule.driver.lower" not in found
    assert not {"chainrule.codegen.module", "chainrule.driver.report"} & set(found)
    for name in found:
        _, room, part, *_ = (*name.split("."), "", "")
        late = name.startswith("chainrule.") and room in ROOMS
        assert not late or part in {"", *LIGHT.get(room, ())}, name


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
