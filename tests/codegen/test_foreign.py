"""Code for aarch64 runs, threads and all, and gives the bits of x86-64 with fused multiply-add.

Python and the runtime stay here; each native call is a process under qemu's user emulation, which
is given a copy of the memory and gives it back. qemu keeps x86-64's order of memory accesses,
so what a machine with a weaker order might do is not seen.
"""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chainrule as cr
import chainrule.codegen.module as module
import chainrule.driver.lower as lower
import chainrule_runtime.program as program
from chainrule.codegen.host import host_target
from chainrule.target import TARGETS
from chainrule_runtime import pool, sharing
from chainrule_runtime.manifest import evaluate
from chainrule_runtime.memory import round_up

BUILD = sys.modules["chainrule.driver.build"]  # the package's `build` is the function

QEMU = next(filter(None, map(shutil.which, ("qemu-aarch64", "qemu-aarch64-static"))), None)
GCC = shutil.which("aarch64-linux-gnu-gcc")
SEED = 21

pytestmark = [
    pytest.mark.skipif(QEMU is None, reason="no qemu-aarch64 (Debian: qemu-user)"),
    pytest.mark.skipif(GCC is None, reason="no cross compiler (Debian: gcc-aarch64-linux-gnu)"),
    pytest.mark.skipif(not host_target().fma, reason="this machine has no fused multiply-add"),
]


class Unloaded:
    """Code that this process cannot load."""

    def address(self, name: str) -> int:
        return 0


class Emulated:
    """In a program's place of native code: the same step in a process of its own."""

    def __init__(self, of: program.Program, code: bytes, folder: Path) -> None:
        self.program, self.folder, self.jobs = of, folder, 0
        (folder / "code.o").write_bytes(code)
        names = ("SPIN", "WORKERS", "JOBS", "CLOCK", "SYSCALL", "BOXES", "BOX", "ENTERED")
        block = {name: getattr(pool, name) for name in names}
        assert GCC is not None
        source = Path(__file__).with_name("foreign.c")
        subprocess.run(
            [GCC, "-O1", "-Wall", "-Werror", "-static", "-pthread", source, folder / "code.o",
             "-o", folder / "step", *(f"-D{n}={v}" for n, v in block.items())],
            check=True,
        )  # fmt: skip
        of._step = self  # type: ignore[assignment]
        of._crew = None  # nobody is hired here
        of._direct_address = None

    def __call__(self, table: int, sizes: int) -> int:
        program = self.program
        plan = program._current
        assert plan is not None
        ranges = self.ranges(plan)
        blocks: list[list[int]] = []  # disjoint: where each starts, ends and lies in the copy
        for start, size in sorted((program.table[p] or 0, size) for p, size in ranges.items()):
            if blocks and start < blocks[-1][1]:
                blocks[-1][1] = max(blocks[-1][1], start + size)
            else:
                blocks.append([start, start + size, 0])
        total = 0
        for block in blocks:
            block[2] = total + block[0] % 64
            total = round_up(block[2] + block[1] - block[0])
        memory = bytearray(total + 64)
        for start, end, at in blocks:
            memory[at : at + end - start] = ctypes.string_at(start, end - start)
        offsets = [-1] * program.manifest.places
        for place in ranges:
            here = program.table[place] or 0
            (offsets[place],) = (at + here - s for s, end, at in blocks if s <= here < end)
        numbers = list(plan.native_sizes)
        share, known = plan.sharing, len(program.manifest.sizes)
        head = [len(offsets), known, len(numbers) - known, len(share.worth), len(share.waits)]
        head += [share.parts, len(memory)]
        words = [*head, *offsets, *numbers]
        file = self.folder / "memory"
        file.write_bytes(
            struct.pack(f"<{len(words)}q", *words)
            + bytes(share.worth)
            + bytes(share.waits)
            + memory
        )
        subprocess.run([str(QEMU), self.folder / "step", file], check=True, timeout=120)
        data = file.read_bytes()
        code, jobs = struct.unpack_from("<qq", data)
        self.jobs += jobs
        for start, end, at in blocks:
            if start in self.fixed:
                continue
            ctypes.memmove(start, data[16 + at : 16 + at + end - start], end - start)
        return int(code)

    def ranges(self, plan: program.Plan) -> dict[int, int]:
        """How many bytes each place of the table has."""
        manifest = self.program.manifest
        tensors = [*manifest.feeds, *manifest.kept, *manifest.outputs]
        tensors += [t for t, _ in manifest.constants]
        self.fixed = {self.program.table[t.place] for t, _ in manifest.constants}
        found = {p: plan.slots[slot] for p, slot in manifest.temporaries}
        for t in tensors:
            shape = [evaluate(d, plan.sizes) for d in t.shape]
            found[t.place] = int(np.prod(shape)) * program.element_type(t.dtype).itemsize
        return {place: size for place, size in found.items() if size}


@dataclass(frozen=True)
class Run:
    """Something to do, what it gives as arrays, and the engine that does it."""

    results: Callable[[], list[np.ndarray]]
    engine: Any


def mlp(threads: int) -> Run:
    x, t = cr.input("x", ("batch", 30)), cr.input("t", ("batch",), dtype="int32")
    h = cr.relu(x @ cr.parameter("W1", (30, 50)) + cr.parameter("b1", (50,)))
    h = cr.dropout(h, 0.2)
    z = h @ cr.parameter("W2", (50, 5)) + cr.parameter("b2", (5,))
    return training(cr.losses.cross_entropy(z, t), threads, x=(9, 30), t=5)


def lstm(threads: int) -> Run:
    x, t = cr.input("x", (4, "batch", 6)), cr.input("t", ("batch",), dtype="int32")
    W, U = cr.parameter("W", (6, 32)), cr.parameter("U", (8, 32))

    def cell(carry: Any, x: cr.Tensor) -> tuple[Any, None]:
        h, c = carry
        gates = x @ W + h @ U
        i, f, o, g = (gates[:, 8 * k : 8 * k + 8] for k in range(4))
        c = cr.sigmoid(f) * c + cr.sigmoid(i) * cr.tanh(g)
        return (cr.sigmoid(o) * cr.tanh(c), c), None

    (h, _), _ = cr.scan(cell, (cr.zeros(("batch", 8)), cr.zeros(("batch", 8))), x)
    loss = cr.losses.cross_entropy(h @ cr.parameter("V", (8, 5)), t)
    return training(loss, threads, x=(4, 7, 6), t=5)


def convolution(threads: int) -> Run:
    x, t = cr.input("x", ("batch", 2, 9, 9)), cr.input("t", ("batch",), dtype="int32")
    h = cr.relu(cr.conv(x, cr.parameter("K", (6, 2, 3, 3))))
    z = cr.reshape(h, ("batch", 6 * 7 * 7)) @ cr.parameter("W", (6 * 7 * 7, 5))
    return training(cr.losses.cross_entropy(z, t), threads, x=(5, 2, 9, 9), t=5)


def training(loss: cr.Tensor, threads: int, x: tuple[int, ...], t: int) -> Run:
    step = cr.training_step(loss, cr.optim.Adam(1e-2), threads=threads)
    random = np.random.default_rng(SEED)
    batch = x[0] if len(x) != 3 else x[1]
    given = {
        "x": random.standard_normal(x).astype(np.float32),
        "t": random.integers(0, t, batch).astype(np.int32),
    }

    def results() -> list[np.ndarray]:
        return [np.array([step(**given) for _ in range(3)]), *step.parameters.values()]

    return Run(results, step._engine)


def functions(threads: int) -> Run:
    x = cr.input("x", ("rows", 70))
    made = [
        cr.sort(x, axis=1), cr.argsort(x, axis=1), cr.softmax(x), cr.sum(x, axis=0),
        cr.max(x, axis=1), cr.exp(x) + cr.tanh(x) + cr.log(cr.abs(x) + 1.0), cr.floor(x),
        cr.cumulative_sum(x, axis=1), cr.mean(x),
    ]  # fmt: skip
    fn = cr.compile(made, threads=threads)
    values = np.random.default_rng(SEED).standard_normal((13, 70)).astype(np.float32)
    values[0, :4] = (np.inf, -np.inf, -0.0, 1e-42)

    return Run(lambda: list(fn(x=values)), fn._program)


def bits(array: np.ndarray) -> bytes:
    """The bits of an array; those of a NaN, whose sign IEEE 754 leaves open, of one of them."""
    if array.dtype.kind != "f":
        return array.tobytes()
    return np.where(np.isnan(array), np.asarray(np.nan, array.dtype), array).tobytes()


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Everything that can be is shared."""
    for name, room in (("CALL_WORK", module), ("CALL_WORK", lower), ("STEP_WORK", lower)):
        monkeypatch.setattr(room, name, 0)
    monkeypatch.setattr(program, "usable_cpus", lambda: 8)
    monkeypatch.setattr(sharing, "TRIAL", 1 << 60)
    return monkeypatch


@pytest.mark.parametrize("net", [mlp, lstm, convolution, functions], ids=lambda f: f.__name__)
def test_aarch64_has_the_same_bits(
    net: Callable[[int], Run], eager: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wanted = net(1).results()
    eager.setattr(BUILD, "host_target", lambda: TARGETS["aarch64"])
    eager.setattr(BUILD, "load", lambda native: Unloaded())
    for threads in (1, 2, 3):
        run = net(threads)
        folder = tmp_path / str(threads)
        folder.mkdir()
        emulated = Emulated(run.engine._program, run.engine.compiled.native.object, folder)
        for i, (ours, theirs) in enumerate(zip(run.results(), wanted, strict=True)):
            assert bits(ours) == bits(theirs), f"{threads} threads, result {i}"
        assert (emulated.jobs > 0) == (threads > 1)
