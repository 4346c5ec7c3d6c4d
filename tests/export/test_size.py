"""Kernels in little code: how many bytes, and programs that are one but for numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import chainrule as cr
from chainrule.codegen.alike import merged
from chainrule.codegen.formats import code_size
from chainrule.ir.loop import Apply, Buffer, Load, Loop, Program, Store
from chainrule.ir.size import Size
from chainrule.ir.types import float32
from chainrule.loops.interpret import interpret

EXAMPLE = Path(__file__).parents[2] / "examples/export/digits.py"
CALLED = ("init", "step", "predict", "strerror")


@pytest.mark.parametrize("target", ["x86-64-v4", "x86-64-v3", "x86-64-v2"])
def test_the_lectures_net_is_small_on_x86(target: str, lecture_step, tmp_path: Path) -> None:
    """Below 8.25 KB, with everything."""
    options = {"formats": ("o", "json"), "optimize": "size"}
    art = lecture_step.export(tmp_path, name="net", target=target, **options)
    assert code_size(art.files["net.o"].read_bytes()) < 8.25 * 1024


def test_the_lectures_net_is_smaller_on_a_microcontroller(lecture_step, tmp_path: Path) -> None:
    """6 KB with everything: training, epochs, saving, shuffling, the self-test."""
    formats = ("o", "json")
    art = lecture_step.export(tmp_path, name="net", target="thumbv7em-none-eabihf", formats=formats)
    assert art.certificate["optimize"] == "size", "nobody asked for speed"
    text = code_size(art.files["net.o"].read_bytes())
    assert text == art.certificate["code_bytes"] < 6 * 1024


@pytest.mark.skipif(
    not find_spec("ziglang"), reason="nothing links for Cortex-M (pip install ziglang)"
)
def test_linkers_leave_out_what_nobody_calls(lecture_step, tmp_path: Path) -> None:
    """What a program calls that begins, trains and predicts."""
    formats = ("a", "json")
    art = lecture_step.export(tmp_path, name="net", target="thumbv7em-none-eabihf", formats=formats)
    image = tmp_path / "image"
    words = ["--gc-sections", "-e", "net_step", *(w for c in CALLED for w in ("-u", f"net_{c}"))]
    linker = [sys.executable, "-m", "ziglang", "ld.lld"]
    subprocess.run([*linker, *words, art.files["libnet.a"], "-o", image], check=True)
    assert code_size(image.read_bytes()) < 4.25 * 1024


@pytest.mark.skipif(
    not find_spec("ziglang"), reason="no linker for WebAssembly (pip install ziglang)"
)
def test_the_digits_net_is_small_in_a_page(tmp_path: Path) -> None:
    import runpy

    step: cr.TrainingStep = runpy.run_path(os.fspath(EXAMPLE))["step"]
    for optimize, most in (("speed", 40_000), ("size", 20_000)):
        options = {"formats": ("so",), "optimize": optimize}
        art = step.export(tmp_path, name="digits", target="wasm32", **options)
        assert art.files["digits.wasm"].stat().st_size < most
    said = (EXAMPLE.parents[2] / "docs/export.md").read_text(encoding="utf-8")
    assert f"`{art.certificate['flops']}` for the\ndigits' net" in said


def scaled(rows: int, columns: int, name: str) -> Program:
    """b[i, j] = a[i, j] + a[i, j], for all n blocks of rows."""
    n, i, j, k = (Size.symbol(s) for s in "nijk")
    a, b = (Buffer(f"{name}{x}", float32, n * rows * columns) for x in "ab")
    at = k * (rows * columns) + i * columns + j
    value = Load(a, at)
    body = (Loop("j", columns, (Store(b, at, Apply("add", (value, value), float32)),), "vector"),)
    return Program(name, (a, b), ("n",), (Loop("k", n, (Loop("i", rows, body),)),))


def test_programs_that_differ_in_numbers_are_one() -> None:
    programs = [scaled(3, 4, "p"), scaled(5, 7, "q"), scaled(5, 7, "r")]
    found = merged(programs)
    shared = {id(found[id(p)].program) for p in programs}
    assert len(shared) == 1
    assert found[id(programs[1])].numbers == found[id(programs[2])].numbers
    rng = np.random.default_rng(0)
    for program, size in zip(programs, (12, 35, 35), strict=True):
        alike = found[id(program)]
        data = rng.standard_normal(2 * size).astype(np.float32)
        out = np.zeros_like(data)
        extra = alike.program.sizes[len(program.sizes) :]
        sizes = {"n": 2, **dict(zip(extra, alike.numbers, strict=True))}
        names = [b.name for b in alike.program.buffers]
        assert interpret(alike.program, dict(zip(names, (data, out), strict=True)), sizes) == 0
        np.testing.assert_array_equal(out, 2 * data)


def test_a_program_without_a_like_keeps_its_numbers() -> None:
    program = scaled(3, 4, "p")
    found = merged([program])[id(program)]
    assert found.program is program and found.numbers == ()
