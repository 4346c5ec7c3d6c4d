"""The examples of docs/export.md, run as they say: a page, a microcontroller, processes apart."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
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


def shown(page: str, folder: Path, milliseconds: int) -> str:
    """The title that a page has in a browser after some time of its own."""
    quiet = ["quic", "background-networking", "component-update", "sync", "gpu", "extensions"]
    run = subprocess.run(
        [str(BROWSER), "--headless", "--no-sandbox", "--no-first-run", "--mute-audio",
         *(f"--disable-{what}" for what in quiet), f"--virtual-time-budget={milliseconds}",
         f"--user-data-dir={folder / 'profile'}", "--dump-dom", page],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout.partition("<title>")[2].partition("</title>")[0]


#: nothing but what stands in the page may be loaded; what is tried is counted
NOTHING = """
<meta http-equiv="Content-Security-Policy" content="default-src 'none';
  style-src 'unsafe-inline'; script-src 'unsafe-inline' 'wasm-unsafe-eval'">
<script>
let tried = 0;
addEventListener("securitypolicyviolation", () => tried++);
</script>
"""
#: draws a one by mouse three times and says so each time; then draws it once more and asks
PROBE = """
<script>
const words = [];
new MutationObserver(() => words.push(document.getElementById("said").textContent))
  .observe(document.getElementById("said"), { childList: true });
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
  const fetched = performance.getEntriesByType("resource").length + tried;
  const guess = widths.indexOf(Math.max(...widths));
  document.title = [guess, drawn, fetched, words[0], said].join(";");
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
    assert text.startswith('<!doctype html>\n<html lang="en">\n')
    page = tmp_path / "alone" / "page.html"
    page.parent.mkdir()
    page.write_text(text.replace("<meta", f"{NOTHING}<meta", 1) + PROBE, encoding="utf-8")
    title = shown(page.as_uri(), tmp_path, 6000)
    guess, drawn, fetched, first, said = title.split(";")
    assert (guess, drawn, fetched) == ("1", "true", "0"), title
    # a guess among ten is a loss of ln 10 = 2.3
    assert numbers(first)[1] > 1.5, title
    steps, loss, own = numbers(said)
    assert steps > 100 and loss < 0.5 and own == 3, title


def numbers(said: str) -> list[float]:
    words = (word.strip(",") for word in said.split())
    return [float(word) for word in words if word.replace(".", "").isdigit()]


@needs_zig
@pytest.mark.skipif(BROWSER is None, reason="no browser (Debian: chromium)")
def test_a_page_that_imports_the_module(lecture_step, tmp_path: Path) -> None:
    """As a newcomer serves it: the module beside the page finds its WebAssembly and trains."""
    lecture_step.export(tmp_path, "net", target="wasm32")
    (tmp_path / "index.html").write_text(
        """<!doctype html><title>…</title><script type="module">
        import { Net } from "./net.js";
        try {
          const net = await Net.load();
          const x = new Float32Array(400).map((_, i) => Math.sin(i));
          const y = new Int32Array(100).map((_, i) => (x[4 * i] > 0 ? 1 : 0));
          const first = net.steps({ x, y, batch: 20 })[0];
          for (let i = 0; i < 50; i++) net.steps({ x, y, batch: 20 }, net.shuffle(100));
          document.title = `${first} ${net.loss({ x: x.slice(0, 80), y: y.slice(0, 20) })}`;
        } catch (error) {
          document.title = error;
        }
        </script>"""
    )
    handler = functools.partial(Quiet, directory=os.fspath(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        title = shown(f"http://127.0.0.1:{server.server_port}/", tmp_path, 6000)
        server.shutdown()
    first, last = map(float, title.split())
    assert last < 0.5 * first


class Quiet(SimpleHTTPRequestHandler):
    """Serves files, and does not talk of it."""

    def log_message(self, *_: object) -> None:
        pass


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
