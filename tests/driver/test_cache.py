"""Compiled code that was kept: the same bits, no LLVM, and never another program's code."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import chainrule as cr
from chainrule import config
from chainrule.codegen import native

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CHAINRULE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def trained(width=5, rate=0.1, target=None, batch="batch"):
    x, w = cr.input("x", (batch, width)), cr.parameter("w", (width, 3))
    step = cr.training_step(cr.mean(cr.tanh(x @ w) ** 2), cr.optim.Adam(rate), seed=3)
    rows = np.linspace(-1, 1, 40 * width, dtype=np.float32).reshape(40, width)
    losses = step.run(x=rows, batch_size=8, epochs=3)
    return step, losses


def found(step):
    return step._engine.compiled.native.cached


def test_a_program_is_compiled_once(folder, monkeypatch):
    first, losses = trained()
    assert not found(first)
    monkeypatch.setattr(native, "compile_object", None)  # LLVM is not asked again
    second, again = trained()
    assert found(second)
    np.testing.assert_array_equal(losses, again)
    np.testing.assert_array_equal(first.parameters["w"], second.parameters["w"])
    assert second.show("llvm") == first.show("llvm")


@pytest.mark.parametrize("other", [{"width": 6}, {"batch": 40}])
def test_another_program_is_another_file(folder, other):
    trained()
    assert not found(trained(**other)[0])
    assert len(list(folder.glob("*.object"))) == 2


def test_a_number_fed_at_run_time_is_the_same_program(folder):
    trained(rate=0.1)
    assert found(trained(rate=0.01)[0])


def test_another_target_is_another_file(folder, monkeypatch):
    trained()
    monkeypatch.setenv(config.TARGET.variable, "generic")
    assert not found(trained()[0])


def test_off_keeps_nothing(folder, monkeypatch):
    monkeypatch.setenv("CHAINRULE_CACHE", "off")
    assert not found(trained()[0])
    assert not folder.exists()


def test_what_is_damaged_is_compiled_again(folder):
    _, losses = trained()
    (kept,) = folder.glob("*.object")
    data = bytearray(kept.read_bytes())
    data[len(data) // 2] ^= 0xFF
    kept.write_bytes(data)
    step, again = trained()
    assert not found(step)
    np.testing.assert_array_equal(losses, again)
    assert found(trained()[0])


def test_processes_that_race_get_the_same_numbers(folder):
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_cache as t\n"
        "step, losses = t.trained(); print(losses.tobytes().hex())"
    )
    roots = os.pathsep.join(str(ROOT / r) for r in ("compiler", "runtime"))
    command = [sys.executable, "-c", script, str(Path(__file__).parent)]
    env = {**os.environ, "PYTHONPATH": roots}
    running = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE) for _ in range(4)]
    running[0].kill()  # one dies on its way
    results = {p.communicate(timeout=120)[0] for p in running[1:]}
    running[0].communicate()
    assert len(results) == 1
    assert results != {b""}
    assert not [f for f in folder.iterdir() if f.stat().st_mode & 0o077]
