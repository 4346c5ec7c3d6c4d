"""The certificate against what runs: bytes of every buffer, and of the stack."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("guarded.c")
#: what a function that calls takes itself: a frame, arguments on the stack, makecontext's own
CALLER = 256


@pytest.mark.sampled(2)
@pytest.mark.skipif(sys.platform != "linux", reason="pages are guarded as under Linux")
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler is here")
def test_no_byte_is_touched_beside_what_is_given(any_net, tmp_path: Path) -> None:
    """Every buffer between pages that can't be touched; and the stack's bound holds."""
    art = any_net.artifact
    told, name = art.certificate, art.name
    step = told["functions"]["step"]
    width = math.prod(step["inputs"][0]["shape"][1:])
    classes = told["functions"]["predict"]["outputs"][0]["shape"][1]
    metrics = ", metric" * (len(step["outputs"]) - 1)
    library = art.files[f"lib{name}.a"]
    words = [f'-DHEADER="{name}.h"', f"-DP={name}", f"-DWIDTH={width}", f"-DCLASSES={classes}"]
    words += [
        f"-DMETRICS={metrics}",
        "-std=gnu11",
        "-O1",
        "-Wall",
        "-Werror",
        f"-I{library.parent}",
    ]
    program = tmp_path / "guarded"
    subprocess.run(["cc", *words, SOURCE, library, "-o", program], check=True)
    run = subprocess.run([program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"{run.returncode} {run.stderr}"
    assert 0 < int(run.stdout) <= told["stack_bytes"] + CALLER, told["stack_bytes"]
