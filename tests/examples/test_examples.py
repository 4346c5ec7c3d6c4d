"""The examples run as they stand, and say what they promise."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
#: what takes long runs for a moment; tests/examples/test_texts.py sees whether it learns
SHORT = {"gpt": ["--steps", "10"], "lstm_text": ["--steps", "10"]}
SHELVES = [str(EXAMPLES.parent / shelf) for shelf in ("compiler", "runtime")]


#: too long for every day; tests/examples/test_gallery.py runs them for a moment
LONG = {"cnn", "gpt"}
PATHS = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.long] if path.stem in LONG else [])
    for path in sorted(EXAMPLES.glob("*.py"))
]


@pytest.mark.parametrize("path", PATHS)
def test_it_runs_from_anywhere(path: Path, tmp_path: Path) -> None:
    code = f"import sys, runpy; sys.path[:0] = {SHELVES!r}; "
    code += f"runpy.run_path({str(path)!r}, run_name='__main__')"
    command = [sys.executable, "-c", code, *SHORT.get(path.stem, [])]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"\d", ran.stdout.splitlines()[-1])


def test_the_digits_are_read() -> None:
    assert runpy.run_path(str(EXAMPLES / "digits.py"))["main"](epochs=15) > 0.96


def test_the_neuron_learns_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    example = runpy.run_path(str(EXAMPLES / "perceptron.py"))
    assert example["trained"](epochs=60)["right"] > 0.97
    example["by_hand"](3)
    errors = [float(line.split("J = ")[1].split(",")[0]) for line in steps(capsys)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > errors[-1]


def steps(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
