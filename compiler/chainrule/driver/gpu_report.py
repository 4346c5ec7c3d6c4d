"""What the compiler did for a GPU, as text and in figures."""

from __future__ import annotations

from collections.abc import Mapping

from chainrule.driver.figures import figures
from chainrule.driver.gpu import CompiledGpu
from chainrule.driver.levels import shown
from chainrule.driver.report import Report, figured, sizes_for
from chainrule.errors import CompileError
from chainrule.loops.launch import Launch
from chainrule.loops.text import show as loop_text


def show_gpu(compiled: CompiledGpu, level: str) -> str:
    """A program for a GPU as text at a level."""
    module = compiled.module
    texts = {
        "loops": lambda: "\n".join(launch_text(n, x) for n, x in module.kernels.items()),
        "llvm": lambda: module.llvm,
        "ptx": lambda: compiled.code.ptx,
    }
    return shown(compiled.source, lambda: compiled.levels, compiled.precision, level, texts)


def launch_text(name: str, launch: Launch) -> str:
    """A launch: which threads, what lies in shared memory, and its statements."""
    parts = f"{launch.parts} parts of {launch.lanes} lanes, {launch.threads} threads a block"
    shared = ", ".join(f"{b.name}: {b.dtype.short}[{b.size}]" for b in launch.shared)
    body = loop_text(launch.program).partition("\n")
    own = f"\n  # shared memory of a part: {shared}" if shared else ""
    return f"{name}{body[0].removeprefix(launch.program.name)}\n  # {parts}{own}\n{body[2]}"


def report_gpu(
    compiled: CompiledGpu, measured: bool = False, sizes: Mapping[str, int] | None = None
) -> Report:
    """The figures of a program for a GPU; the size of its code is that of its PTX.

    Raises CompileError where kernels should be timed, which a GPU's are not yet.
    """
    if measured:
        raise CompileError(
            "kernels for a GPU can't be timed one by one",
            "report() tells what they do; benchmarks/gpu.py times whole steps",
        )
    module, levels = compiled.module, compiled.levels
    code = len(compiled.code.ptx), len(module.kernels), module.target.level
    kernels = tuple(figures(k, f"kernel{i}") for i, k in enumerate(levels.kernels))
    return figured(compiled, levels, kernels, code, sizes_for(compiled.manifest, sizes or {}))
