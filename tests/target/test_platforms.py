"""Systems other than Linux: code is made for them, on one thread, and needs nothing from outside.

A program runs as on macOS with an Intel processor, whose calling convention is Linux's; what is
made for the others is only looked at.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

import chainrule as cr
from chainrule.codegen import native
from chainrule.codegen.host import _host_target, host_target
from chainrule.codegen.team import has_threads
from chainrule.errors import CompileError
from chainrule.target import TARGETS, Target

BUILD = sys.modules["chainrule.driver.build"]  # the package's `build` is the function
TRIPLES = {
    "x86_64-pc-windows-msvc": "x86-64-v3",
    "x86_64-apple-darwin22.1.0": "x86-64-v3",
    "arm64-apple-darwin23.0.0": "aarch64",
    "aarch64-pc-windows-msvc": "aarch64",
    "x86_64-unknown-linux-musl": "x86-64-v3",
    "aarch64-unknown-linux-gnu": "aarch64",
}


class Unloaded:
    """Code that this process cannot load."""

    def address(self, name: str) -> int:
        return 0


def a_step() -> Any:
    """A training step with products, windows and a loop."""
    x, t = cr.input("x", ("batch", 2, 12, 12)), cr.input("t", ("batch",), dtype="int32")
    h = cr.relu(cr.conv(x, cr.parameter("K", (6, 2, 3, 3))))
    h = cr.reshape(h, ("batch", 600)) @ cr.parameter("W", (600, 40))
    V = cr.parameter("V", (40, 40))
    h, _ = cr.scan(lambda c, _: (cr.tanh(c @ V), None), h, length=3)
    z = cr.softmax(h) @ cr.parameter("U", (40, 5))
    return cr.training_step(cr.losses.cross_entropy(z, t), cr.optim.Adam(1e-2))


def host_of(triple: str, monkeypatch: pytest.MonkeyPatch) -> Target:
    """This machine's target, if its system were that one."""
    from llvmlite import binding

    with monkeypatch.context() as there:
        there.setattr(binding, "get_process_triple", lambda: triple)
        _host_target.cache_clear()
        try:
            return host_target()
        finally:
            _host_target.cache_clear()


@pytest.mark.parametrize("triple", TRIPLES)
def test_code_is_made_for(triple: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAINRULE_TARGET", "")
    target = host_of(triple, monkeypatch)
    assert target.triple == (triple if "linux" in triple else f"{triple}-elf")
    assert (target.level == "aarch64") == (TRIPLES[triple] == "aarch64")
    assert has_threads(target) == ("linux" in triple)
    target = replace(TARGETS[TRIPLES[triple]], triple=target.triple)
    monkeypatch.setattr(BUILD, "host_target", lambda: target)
    monkeypatch.setattr(BUILD, "load", lambda native: Unloaded())
    report = a_step().report()  # a CompileError, if the code called anything outside
    assert report.code_size > 10_000
    if not has_threads(target):
        assert report.threads == 1


@pytest.mark.parametrize("triple", [t for t in TRIPLES if "linux" not in t])
def test_objects_in_the_system_s_own_format(triple: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For linkers there: the same text, as COFF or Mach-O, without a name it does not define."""
    target = replace(TARGETS[TRIPLES[triple]], triple=triple)
    monkeypatch.setattr(BUILD, "host_target", lambda: replace(target, triple=f"{triple}-elf"))
    monkeypatch.setattr(BUILD, "load", lambda native: Unloaded())
    text = a_step().show("llvm").replace(f"{triple}-elf", triple)
    assert f'"{triple}"' in text
    data = emitted(text, target)
    names = coff_symbols(data) if "windows" in triple else macho_symbols(data)
    assert any(name.lstrip("_") == "step" for name, defined in names if defined)
    assert [name for name, defined in names if not defined] == ["_fltused"] * (
        "x86_64-pc-windows" in triple
    )


def emitted(text: str, target: Target) -> bytes:
    return bytes(native._machine(target).emit_object(native._parsed(text)))


def coff_symbols(data: bytes) -> list[tuple[str, bool]]:
    """External symbols, and whether they are defined: Microsoft PE/COFF, COFF Symbol Table."""
    start, count = struct.unpack_from("<II", data, 8)
    strings, found, skip = start + 18 * count, [], 0
    for i in range(count):
        if skip:
            skip -= 1
            continue
        raw, value, section, _, storage, skip = struct.unpack_from("<8sIhHBB", data, start + 18 * i)
        name = raw.rstrip(b"\0")
        if raw[:4] == bytes(4):
            at = strings + int.from_bytes(raw[4:], "little")
            name = data[at : data.index(b"\0", at)]
        if storage == 2:  # IMAGE_SYM_CLASS_EXTERNAL
            found.append((name.decode(), section != 0 or value != 0))
    return found


def macho_symbols(data: bytes) -> list[tuple[str, bool]]:
    """External symbols, and whether they are defined: <mach-o/nlist.h>."""
    (commands,) = struct.unpack_from("<I", data, 16)
    at, found = 32, []
    for _ in range(commands):
        kind, size = struct.unpack_from("<II", data, at)
        if kind == 2:  # LC_SYMTAB
            start, count, strings, _ = struct.unpack_from("<IIII", data, at + 8)
            for i in range(count):
                name, what, _, _, _ = struct.unpack_from("<IBBHQ", data, start + 16 * i)
                if what & 0x01:  # N_EXT
                    end = data.index(b"\0", strings + name)
                    found.append((data[strings + name : end].decode(), bool(what & 0x0E)))
        at += size
    return found


def test_other_processors_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CompileError, match="no native code for riscv64"):
        host_of("riscv64-unknown-linux-gnu", monkeypatch)


SCRIPT = """
import ctypes, os, sys, tempfile, pathlib
import numpy as np
from llvmlite import binding
import sysconfig; sysconfig.get_config_vars()  # before the system changes
for name in {missing!r}:
    if hasattr(os, name):
        delattr(os, name)
sys.platform = "darwin"
binding.get_process_triple = lambda: "x86_64-apple-darwin22.1.0"
import chainrule as cr
x, t = cr.input("x", ("batch", 64)), cr.input("t", ("batch",), dtype="int32")
z = cr.relu(x @ cr.parameter("W", (64, 100))) @ cr.parameter("V", (100, 5))
step = cr.training_step(cr.losses.cross_entropy(z, t), cr.optim.Adam(1e-2), outputs=z)
r = np.random.default_rng(0)
d = dict(x=r.standard_normal((500, 64)).astype("f4"), t=r.integers(0, 5, 500).astype("i4"))
first = step(**d)
losses = step.run(**d, epochs=20, batch_size=32)
assert losses[-1] < 0.5 * first, losses
assert step.predict(x=d["x"]).shape == (500, 5)
file = pathlib.Path(tempfile.mkdtemp()) / "state"
step.save(file)
step.load(file)
assert step.report().threads == 1
print(step.parameters["V"].tobytes().hex())
"""


@pytest.mark.skipif(not host_target().level.startswith("x86"), reason="no x86-64")
def test_a_program_runs_as_on_macos() -> None:
    """With none of what Linux alone has, and the same bits."""
    linux_only = ["sched_getaffinity", "sched_setaffinity", "register_at_fork", "O_NOFOLLOW"]
    found = []
    for script in (
        SCRIPT.format(missing=linux_only),
        SCRIPT.format(missing=[])
        .replace('sys.platform = "darwin"', "")
        .replace('binding.get_process_triple = lambda: "x86_64-apple-darwin22.1.0"', "")
        .replace("cr.optim.Adam(1e-2), ", "cr.optim.Adam(1e-2), threads=1, "),
    ):
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            timeout=120,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "CHAINRULE_CACHE": "off"},
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        found.append(done.stdout)
    assert found[0] == found[1]
