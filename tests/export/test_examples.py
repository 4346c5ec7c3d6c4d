"""The examples of docs/export.md, run as they say: a page, a microcontroller, processes apart."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples/export"
SOURCES = os.pathsep.join([str(ROOT / "compiler"), str(ROOT / "runtime")])
BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
needs_zig = pytest.mark.skipif(not find_spec("ziglang"), reason="no linker (pip install ziglang)")


def python(*words: object, path: str = SOURCES) -> str:
    """What a program in Python prints."""
    run = subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout


#: draws a one by mouse three times and says so each time; then draws it once more and asks
PROBE = """
<script>
const pad = document.getElementById("pad");
function at(kind, y) {
  const box = pad.getBoundingClientRect();
  const where = { bubbles: true, clientX: box.left + 128, clientY: box.top + y };
  (kind === "pointerup" ? window : pad).dispatchEvent(new PointerEvent(kind, where));
}
function draw() {
  at("pointerdown", 40);
  for (let y = 40; y < 220; y += 10) at("pointermove", y);
  at("pointerup", 220);
}
setTimeout(() => {
  for (let i = 0; i < 3; i++) {
    draw();
    document.querySelectorAll("#labels button")[1].click();
  }
}, 1000);
setTimeout(() => {
  draw();
  const widths = [...document.querySelectorAll(".bar")].map((b) => parseFloat(b.style.width));
  const ink = document.getElementById("curve").getContext("2d").getImageData(0, 0, 640, 160).data;
  const drawn = ink.some((v) => v > 0);
  const said = document.getElementById("said").textContent;
  const fetched = performance.getEntriesByType("resource").length;
  document.title = [widths.indexOf(Math.max(...widths)), drawn, fetched, said].join(";");
}, 4000);
</script>
"""


@needs_zig
@pytest.mark.skipif(BROWSER is None, reason="no browser (Debian: chromium)")
def test_the_page_learns_what_is_drawn(tmp_path: Path) -> None:
    """From a file, with nothing beside it: drawn ones are right, and nothing was fetched."""
    python(FOLDER / "digits.py", "--web", tmp_path)
    text = (tmp_path / "digits.html").read_text(encoding="utf-8")
    assert "http" not in text
    page = tmp_path / "alone" / "page.html"
    page.parent.mkdir()
    page.write_text(text + PROBE, encoding="utf-8")
    run = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=6000",
         f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    title = run.stdout.partition("<title>")[2].partition("</title>")[0]
    guess, drawn, fetched, said = title.split(";")
    assert (guess, drawn, fetched) == ("1", "true", "0"), title
    steps, loss, own = (word for word in said.split() if word.replace(".", "").strip(",").isdigit())
    # a guess among ten is a loss of ln 10 = 2.3
    assert int(steps) > 100 and float(loss.strip(",")) < 0.5 and own == "3", said


@needs_zig
@pytest.mark.skipif(shutil.which("qemu-system-arm") is None, reason="no qemu-system-arm")
def test_a_cortex_m4_learns_a_threshold(tmp_path: Path) -> None:
    python(FOLDER / "sensor.py", tmp_path)
    command = ["qemu-system-arm", "-M", "mps2-an386", "-nographic", "-semihosting", "-kernel"]
    run = subprocess.run(
        [*command, tmp_path / "sensor.elf"], capture_output=True, text=True, check=False, timeout=60
    )
    said = run.stdout + run.stderr  # a debugger's console is either
    assert run.returncode == 0, said
    right, _, total, *_ = said.split()
    assert int(right) > 0.95 * int(total), said


@pytest.mark.skipif(shutil.which("cc") is None, reason="no linker is here")
def test_three_processes_learn_apart_and_are_averaged(tmp_path: Path) -> None:
    """Without the compiler: the runtime alone can be imported."""
    python(FOLDER / "digits.py", tmp_path)
    said = python(FOLDER / "federated.py", tmp_path, path=str(ROOT / "runtime")).splitlines()
    scores = [float(line.split()[2]) for line in said]
    assert len(scores) == 5 and scores[-1] > max(90.0, scores[0]), said
