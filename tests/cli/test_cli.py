"""The command line as its users meet it: what it prints, what it exits with, what it leaves."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from chainrule.cli.demo import NEXT, next_steps
from chainrule.cli.page import Page

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "examples" / "digits.py"
# a shell that runs the tests in the background has Ctrl-C ignored, and so has what they start
HEARS = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
MAIN = "from chainrule.cli import main; main()"


def environment(**changes: str) -> dict[str, str]:
    shelves = os.pathsep.join(str(ROOT / shelf) for shelf in ("compiler", "runtime"))
    return {**os.environ, "PYTHONPATH": shelves, **changes}


def chainrule(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run the command with no terminal."""
    return subprocess.run(
        [sys.executable, "-c", MAIN, *arguments],
        env=environment(**changes),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )


def explained(tmp_path: Path, source: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `explain` on a file of this text; {file} in an argument is its path."""
    file = tmp_path / "mine.py"
    file.write_text(source)
    return chainrule("explain", *(a.format(file=file) for a in arguments))


def refused(ran: subprocess.CompletedProcess[str]) -> str:
    """What it said when it failed, which is one clear message and no traceback."""
    assert ran.returncode != 0, ran.stdout
    assert "Traceback" not in ran.stderr and "chainrule/cli" not in ran.stderr, ran.stderr
    return ran.stderr


# demo


@pytest.fixture(scope="module")
def figures() -> Any:
    ran = chainrule("demo", "--json")
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    return json.loads(ran.stdout)


@pytest.mark.smoke
def test_demo_learns_and_says_so_in_json(figures: Any) -> None:
    assert figures["accuracy"] >= 0.97
    assert figures["accuracy"] == figures["accuracies"][-1]
    assert len(figures["losses"]) == len(figures["accuracies"]) == figures["settings"]["epochs"]
    assert figures["losses"][-1] < figures["losses"][0] / 10
    assert figures["total_seconds"] < 10


def test_demo_json_has_the_figures(figures: Any) -> None:
    assert set(figures["gradients"]) == {"W1", "b1", "W2", "b2", "W3", "b3"}
    for text in figures["gradients"].values():
        assert "(softmax(z) - onehot(y)) / batch" in text
        assert max(map(len, text.splitlines())) <= 80
    assert [p["name"] for p in figures["passes"]][:2] == ["canonicalize", "stabilize"]
    assert all(k["form"] and k["flops"] and k["bytes"] for k in figures["kernels"])
    assert figures["memory"] and figures["code_size"] > 0 and figures["compile_seconds"] > 0
    assert figures["versions"]["chainrule"]
    assert "∂" in figures["proof"]


def test_demo_shows_everything_in_order() -> None:
    ran = chainrule("demo", "--epochs", "2")
    assert ran.returncode == 0, ran.stderr
    parts = [
        "1  The model", "h1 = relu(x @ W1 + b1)", "2  Its gradients", "dW1 = ", "3  Why",
        "4  What the compiler did", "canonicalize", "kernel0", "arena", "machine code",
        "compiled in", "5  Training", "epoch   2", "6  Result", "7  What to try next",
    ]  # fmt: skip
    places = [ran.stdout.index(part) for part in parts]
    assert places == sorted(places)
    assert "\x1b" not in ran.stdout and "━" not in ran.stdout  # no terminal: no colours, no bar


def test_demo_saves(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    ran = chainrule("demo", "--epochs", "1", "--save", str(folder))
    assert ran.returncode == 0, ran.stderr
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "digits.safetensors").stat().st_size > 60_000
    report = (folder / "report.txt").read_text(encoding="utf-8")
    assert "What the compiler did" in report and "\x1b" not in report


def test_demo_says_that_matplotlib_is_missing(tmp_path: Path) -> None:
    code = "import sys; sys.modules['matplotlib'] = None; "
    code += "import chainrule.cli.save as s; s.find_spec = lambda name: None; " + MAIN
    ran = subprocess.run(
        [sys.executable, "-c", code, "demo", "--save", str(tmp_path)],
        env=environment(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "pip install matplotlib" in refused(ran)


def test_demo_refuses_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(chainrule("demo", "--save", str(tmp_path / "file" / "below")))


@pytest.mark.skipif(os.name != "posix", reason="permissions as POSIX has them")
def test_demo_refuses_a_folder_that_is_read_only_before_it_trains(tmp_path: Path) -> None:
    code = "import tempfile, chainrule.cli.save as s\n"
    code += "def no(**k): raise PermissionError(13, 'Permission denied')\n"
    code += "s.TemporaryFile = no\n" + MAIN  # even root's own folders refuse
    ran = subprocess.run(
        [sys.executable, "-c", code, "demo", "--save", str(tmp_path)],
        env=environment(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert refused(ran).count("\n") == 1 and "Permission denied" in ran.stderr
    assert ran.stdout == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("command", ["doctor", "demo --json --epochs 1", "--version"])
def test_a_full_disk_is_one_message(command: str) -> None:
    with open("/dev/full", "w") as full:
        ran = subprocess.run(
            [sys.executable, "-c", MAIN, *command.split()],
            env=environment(), stdout=full, stderr=subprocess.PIPE, text=True, timeout=60,
        )  # fmt: skip
    assert ran.returncode == 1
    assert ran.stderr.count("\n") == 1 and "No space left" in ran.stderr


def test_two_demos_at_once_into_one_folder(tmp_path: Path) -> None:
    code = [sys.executable, "-c", MAIN, "demo", "--epochs", "1", "--save", str(tmp_path)]
    both = [subprocess.Popen(code, env=environment(), stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {"digits.safetensors", "loss.png", "report.txt"}


def test_what_to_try_next_can_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    commands = [line.split("   ")[0] for line in next_steps().splitlines()]
    assert len(commands) == len(NEXT)
    for command in commands:
        program, *arguments = command.split()
        assert shutil.which(program) or program in ("chainrule", "python")
        assert all(Path(a).is_file() for a in arguments if a.startswith("examples/"))
    monkeypatch.chdir(tmp_path)  # where the wheel alone is installed
    assert "examples" not in next_steps()


@pytest.mark.parametrize("columns", [1, 20, 79, 200])
def test_tables_are_whole_on_any_screen(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stdout", screen)
    Page().table(("name", "what"), [("canonicalize", "Second spellings disappear")])
    assert "canonicalize  Second spellings disappear" in screen.getvalue()


@pytest.mark.parametrize(
    "changes",
    [
        {"LANG": "C", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"PYTHONIOENCODING": "ascii"},
        {"COLUMNS": "20", "NO_COLOR": "1"},
        {"FORCE_COLOR": "1", "COLUMNS": "60"},
    ],
    ids=["C", "ascii", "narrow", "colours"],
)
def test_demo_prints_wherever_it_is(changes: dict[str, str]) -> None:
    ran = chainrule("demo", "--epochs", "1", **changes)
    assert ran.returncode == 0, ran.stderr
    assert "dW1 = " in ran.stdout


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_ctrl_c_ends_it_quietly() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HEARS + MAIN, "demo", "--epochs", "1000"],
        env=environment(PYTHONUNBUFFERED="1"), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdout
    for line in process.stdout:
        if line.strip().startswith("epoch"):
            break
    start = time.perf_counter()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert time.perf_counter() - start < 5


# explain


def test_explain_derives_every_parameter() -> None:
    ran = chainrule("explain", str(DIGITS))
    assert ran.returncode == 0, ran.stderr
    for name in ("W1", "b1", "W2", "b2", "W3", "b3"):
        assert f"The gradient of {name}" in ran.stdout
    assert "images that it never saw" not in ran.stdout  # main() did not run


def test_explain_as_latex() -> None:
    ran = chainrule("explain", f"{DIGITS}:loss", "--latex")
    assert ran.returncode == 0, ran.stderr
    assert r"\partial" in ran.stdout and "The gradient of W1" not in ran.stdout


SQUARES = "import chainrule as cr\nx = cr.input('x', (3,))\nw = cr.parameter('w', (3,))\n"


def test_explain_takes_a_step_and_a_lone_loss(tmp_path: Path) -> None:
    source = SQUARES + "mine = cr.sum(cr.square(w * x))\n"
    assert explained(tmp_path, source, "{file}").returncode == 0
    source += "trainer = cr.training_step(mine, cr.optim.SGD(0.1))\n"
    ran = explained(tmp_path, source, "{file}:trainer")
    assert ran.returncode == 0, ran.stderr
    assert "The gradient of w" in ran.stdout


def test_explain_says_which_gradient_there_is_not(tmp_path: Path) -> None:
    source = SQUARES + "v = cr.parameter('v', (3,))\n"
    source += "loss = cr.sum(w * x) + cr.sum(cr.stop_gradient(v))\n"
    for option in ([], ["--latex"]):
        ran = explained(tmp_path, source, "{file}", *option)
        assert ran.returncode == 0, ran.stderr
        assert "there is none" in ran.stdout and "does not depend on v" in ran.stdout


def test_explain_asks_which(tmp_path: Path) -> None:
    source = SQUARES + "a = cr.sum(w * x)\nb = cr.sum(w * w)\n"
    said = refused(explained(tmp_path, source, "{file}"))
    assert "a, b" in said
    assert "a, b" in refused(explained(tmp_path, source, "{file}:c"))
    assert "neither a loss" in refused(explained(tmp_path, source, "{file}:w"))


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("x = 1 +\n", "SyntaxError"),
        ("def f():\n    return 1 / 0\n\nf()\n", "ZeroDivisionError"),
        ("import no_such_module\n", "no_such_module"),
        ("raise SystemExit(3)\n", "3"),
        (SQUARES + "loss = cr.sum(w @ cr.parameter('v', (4,)))\n", "inner sizes"),
        (SQUARES + "loss = cr.sum(x * x)\n", "no parameter"),
        ("x = 1\n", "defines no loss"),
        (SQUARES + "if __name__ == '__main__':\n    loss = cr.sum(w)\n", "__name__"),
        ("class R:\n    def __repr__(self): 1 / 0\n\nloss = R()\n", "defines no loss"),
    ],
    ids=["syntax", "error", "module", "exit", "shapes", "no parameter", "no loss", "main", "repr"],
)
def test_explain_shows_the_files_own_error(tmp_path: Path, source: str, said: str) -> None:
    assert said in refused(explained(tmp_path, source, "{file}"))


def test_explain_shows_the_line(tmp_path: Path) -> None:
    source = "def f():\n    return 1 / 0\n\nf()\n"
    assert "mine.py:2    return 1 / 0" in refused(explained(tmp_path, source, "{file}"))


def test_explain_shows_a_line_once(tmp_path: Path) -> None:
    """However often a function called itself on the way to its error."""
    said = refused(explained(tmp_path, "def f():\n    return f()\n\nf()\n", "{file}"))
    assert "RecursionError" in said and said.count("\n") < 6


def test_explain_keeps_the_files_words_apart(tmp_path: Path) -> None:
    """The file sees no arguments, and what it prints is not among what is explained."""
    source = SQUARES + "import sys\nloss = cr.sum(w * x)\nprint('hello', sys.argv[1:])\n"
    ran = explained(tmp_path, source, "{file}:loss", "--latex")
    assert ran.returncode == 0, ran.stderr
    assert "hello" not in ran.stdout and "hello []" in ran.stderr


def test_explain_asks_for_what_it_can_name(tmp_path: Path) -> None:
    source = SQUARES + "loss = cr.sum(w * x)\nclass R:\n    def __repr__(self): 1 / 0\n\nr = R()\n"
    assert "neither a loss" in refused(explained(tmp_path, source, "{file}:r"))
    assert "is a folder" in refused(chainrule("explain", str(tmp_path)))
    assert explained(tmp_path, source, "{file}:").returncode == 0


@pytest.mark.parametrize("name", ["a:b.py", "ä ö.py", "numpy.py", "no_suffix"])
def test_explain_takes_any_name(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_text(SQUARES + "loss = cr.sum(w * x)\n", encoding="utf-8")
    for target in (str(file), f"{file}:loss"):
        assert chainrule("explain", target).returncode == 0


def test_explain_without_a_file() -> None:
    assert "no_such.py" in refused(chainrule("explain", "no_such.py:loss"))
    refused(chainrule("explain", str(ROOT / "LICENSE")))


# doctor and the rest


def test_doctor_is_well() -> None:
    ran = chainrule("doctor")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for word in ("Python", "LLVM", "target", "linkers", "CUDA", "CHAINRULE_TARGET", "passed"):
        assert word in ran.stdout


def test_doctor_says_when_it_is_not() -> None:
    ran = chainrule("doctor", CHAINRULE_TARGET="pdp-11")
    assert ran.returncode == 1
    assert "pdp-11" in ran.stdout and "Traceback" not in ran.stderr


@pytest.mark.parametrize("command", ["", "demo", "explain", "doctor"])
def test_help(command: str) -> None:
    ran = chainrule(*command.split(), "--help")
    assert ran.returncode == 0
    assert "Usage: chainrule" in ran.stdout


def test_version() -> None:
    assert "0.1.0" in chainrule("--version").stdout


@pytest.mark.parametrize(
    "arguments", [["demo", "--epochs", "0"], ["demo", "--seed", "-1"], ["dmeo"], ["explain"]]
)
def test_usage_errors(arguments: list[str]) -> None:
    assert refused(chainrule(*arguments))
