"""NVIDIA's assembler, where it is installed: PTX to a cubin, and what each kernel takes of a GPU.

It is a program beside us, `ptxas`, which comes with CUDA; nothing here needs it to train.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from chainrule.errors import CompileError
from chainrule.records import dataclass


@dataclass(frozen=True)
class Resources:
    """What a kernel takes: registers of a thread, bytes of a block's shared memory, bytes of a
    thread's own in slow memory: its stack, and what registers had no room for (`spilled`).
    """

    registers: int
    shared: int
    stack: int = 0
    spilled: int = 0


@dataclass(frozen=True)
class Assembled:
    """A module for one GPU, and what its kernels take, by name."""

    cubin: bytes
    resources: Mapping[str, Resources]


def find() -> str | None:
    """Where ptxas is; None where it is not."""
    return shutil.which("ptxas")


def needed() -> str:
    """Where ptxas is. Raises CompileError where it is not."""
    path = find()
    if path is None:
        raise CompileError(
            "a cubin is made by ptxas, which is not found here",
            "install CUDA's, or leave it out: the driver reads PTX as well",
        )
    return path


def version(path: str) -> str:
    """What ptxas says of itself, such as "13.0"; "of no known version" where it says nothing."""
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"release ([\d.]+)", done.stdout)
    return found[1] if found else "of no known version"


def assemble(ptx: str, level: str) -> Assembled:
    """A module of PTX for GPUs of a level, such as "sm_80".

    Raises CompileError where there is no ptxas, or it refuses the code.
    """
    path = needed()
    with tempfile.TemporaryDirectory(prefix="chainrule-") as folder:
        source, result = Path(folder, "module.ptx"), Path(folder, "module.cubin")
        source.write_text(ptx)
        command = [path, "-arch", level, "-v", "-o", str(result), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CompileError(
                f"ptxas {version(path)} refuses the code for {level}",
                *(done.stderr or done.stdout).strip().splitlines()[:5],
            )
        return Assembled(result.read_bytes(), resources(done.stderr))


def resources(said: str) -> dict[str, Resources]:
    """What kernels take, by name, from what `ptxas -v` says."""
    found: dict[str, Resources] = {}
    for part in said.split("Compiling entry function ")[1:]:
        name = re.match(r"'([^']+)'", part)
        frame = re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part
        )
        registers, shared = (re.search(p, part) for p in (r"Used (\d+) reg", r"(\d+) bytes smem"))
        if name and registers:
            stack, stores, loads = map(int, frame.groups()) if frame else (0, 0, 0)
            found[name[1]] = Resources(
                int(registers[1]), int(shared[1]) if shared else 0, stack, stores + loads
            )
    return found
