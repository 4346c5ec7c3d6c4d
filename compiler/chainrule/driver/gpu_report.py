"""What the compiler did for a GPU, as text and in figures."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from chainrule.codegen import ptxas
from chainrule.driver.figures import figures
from chainrule.driver.gpu import CompiledGpu
from chainrule.driver.gpu_trust import target_here
from chainrule.driver.levels import shown
from chainrule.driver.measure import copies_of, made_up
from chainrule.driver.report import Report, figured, micro, sizes_for, table
from chainrule.driver.tuning import Tuning
from chainrule.errors import CompileError
from chainrule.ir.size import evaluate
from chainrule.loops.launch import Launch
from chainrule.loops.text import show as loop_text
from chainrule.loops.walk import factors_of
from chainrule.records import dataclass
from chainrule.target.gpu import occupancy
from chainrule_runtime.errors import DeviceError
from chainrule_runtime.gpu import driver
from chainrule_runtime.gpu.commands import BLOCK, RESIDENT, Command, KernelLaunch, Product
from chainrule_runtime.gpu.driver import Attributes
from chainrule_runtime.gpu.program import GpuProgram
from chainrule_runtime.manifest import evaluate as number

#: calls in which launches are timed; the first is left out
TURNS = 6
#: what stands for a kernel's number
COPY, ALL = -1, -2
#: what launches of cuBLASLt are called, of which nobody tells more
LIBRARY = "cuBLASLt"


def show_gpu(compiled: CompiledGpu, level: str) -> str:
    """A program for a GPU as text at a level."""
    texts = {
        "loops": lambda: "\n".join(launch_text(n, x) for n, x in compiled.module.kernels.items()),
        "llvm": lambda: compiled.module.llvm,
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


@dataclass(frozen=True)
class LaunchFigures:
    """A launch of a kernel, by the kernel's number, COPY for a copy, ALL for what goes through all
    of them step after step: so many blocks of so many threads at the report's sizes.

    What it takes is None where nobody here can tell: registers of a thread, bytes of a block's
    shared memory, of a thread's own slow memory, and the share of a multiprocessor's threads that
    it can fill.
    """

    kernel: int
    name: str
    blocks: int
    threads: int
    registers: int | None = None
    shared: int | None = None
    local: int | None = None
    occupancy: float | None = None


@dataclass(frozen=True)
class GpuReport(Report):
    """A report of a program for a GPU: no times are predicted, `launches` are told beside.

    `told_by` says who knows what launches take: the driver, where a call has loaded them, else
    ptxas, where it is installed; "" where neither is. `level_note` is what a trial said of code for
    this generation of GPUs alone, where there was one, `tuning` what was timed when compiling.
    """

    launches: tuple[LaunchFigures, ...] = ()
    told_by: str = ""
    level_note: str = ""
    tuning: Tuning | None = None

    def achieved(self) -> dict[str, tuple[float, float]]:
        """Bytes and floating-point operations a second of each kernel that was measured."""
        at = dict(self.sizes)
        return {
            k.name: (evaluate(k.bytes, at) / k.measured, evaluate(k.flops, at) / k.measured)
            for k in self.kernels
            if k.measured
        }

    def as_dict(self) -> dict[str, Any]:
        """The figures as plain data; sizes as text."""
        return super().as_dict() | {
            "launches": [asdict(x) for x in self.launches],
            "told_by": self.told_by,
            "level_note": self.level_note,
            "achieved": self.achieved(),
            "tuning": self.tuning and asdict(self.tuning),
        }

    def _times(self) -> list[str]:
        """What launches take, and what kernels have achieved."""
        head = ("launch", "kernel", "blocks", "threads", "registers", "shared", "local", "full")
        rows = [
            (
                x.name,
                {COPY: "a copy", ALL: "all, in a run"}.get(x.kernel, f"kernel{x.kernel}"),
                *("?" if x.name == LIBRARY else str(n) for n in (x.blocks, x.threads)),
                *("?" if n is None else str(n) for n in (x.registers, x.shared, x.local)),
                "?" if x.occupancy is None else f"{x.occupancy:.0%}",
            )
            for x in self.launches
        ]
        whom = self.told_by or "nobody: no call was made on a GPU, and no ptxas is here"
        where = ", ".join(f"{s} {n}" for s, n in self.sizes.items())
        lines = [*table(head, rows), f"told by {whom}{where and '; blocks at '}{where}"]
        lines += [*([self.level_note] if self.level_note else []), *self._timed()]
        rates = self.achieved()
        if not rates:
            return lines
        achieved = [
            (k.name, micro(k.measured), f"{rates[k.name][0] / 1e9:,.1f}",
             f"{rates[k.name][1] / 1e9:,.1f}")
            for k in self.kernels if k.measured
        ]  # fmt: skip
        achieved.append(("all", micro(self.measured or 0.0), "", ""))
        return [*lines, "", *table(("kernel", "µs", "GB/s", "GFLOP/s"), achieved)]

    def _timed(self) -> list[str]:
        """The ways of products that were timed when compiling."""
        tuning = self.tuning
        if tuning is None:
            return []
        if not tuning.products:
            return ["", f"no product was timed: {tuning.why or 'there is none worth it'}"]
        at = ", ".join(f"{s} {n}" for s, n in tuning.sizes)
        told = f"products timed on {tuning.on}{at and f', at {at}'}"
        return ["", *table(("product", "way", "µs", ""), [*tuning.lines()]), told]


def report_gpu(
    compiled: CompiledGpu,
    program: GpuProgram,
    measured: bool = False,
    sizes: Mapping[str, int] | None = None,
) -> GpuReport:
    """The figures of a program for a GPU, which `program` runs; the size of its code is that of its
    PTX.

    If kernels are to be `measured` they run on made-up feeds and copies of what is kept. Raises
    DeviceError then, where there is no GPU, and CompileError for sizes that there are not.
    """
    levels, ptx = compiled.levels, compiled.code.ptx
    at = sizes_for(compiled.manifest, sizes or {})
    code = len(ptx), ptx.count(".entry "), compiled.target.level
    kernels = [
        replace(figures(k, f"kernel{i}"), factors=factors_of(b.program))
        for i, (k, b) in enumerate(zip(levels.kernels, levels.built, strict=True))
    ]
    if measured:
        times = _measured(program, at)
        kernels = [replace(k, measured=times.get(i, 0.0)) for i, k in enumerate(kernels)]
    found = figured(GpuReport, compiled, levels, tuple(kernels), code, at)
    told, by = _resources(compiled, program)
    launches = tuple(_figures(x, at, told.get(x.name)) for x in _all_launches(compiled))
    return replace(
        found, launches=launches, told_by=by, level_note=_level_note(), tuning=compiled.tuned
    )


def _level_note() -> str:
    """What a trial said on the GPU that is here."""
    try:
        return target_here(driver.find())[1]
    except (CompileError, DeviceError):
        return ""


def _measured(program: GpuProgram, sizes: Mapping[str, int]) -> dict[int, float]:
    """Seconds of each kernel in one call, medians over calls."""
    copies = copies_of(program.manifest, program.kept)
    own = GpuProgram(program.manifest, program.code, copies.arrays)
    turns = own.times(made_up(program.manifest, sizes), TURNS)[1:]
    return {k: statistics.median(turn[k] for turn in turns) for k in turns[0]}


def _launches(commands: Sequence[Command]) -> Iterator[KernelLaunch]:
    """Each launch once, those that are repeated too; a library's as one that nobody knows."""
    for command in commands:
        if isinstance(command, KernelLaunch):
            yield command
        elif isinstance(command, Product):
            yield KernelLaunch(LIBRARY, (), (), 0, 0, command.part_of)
        else:
            yield from _launches(command.commands)


def _all_launches(compiled: CompiledGpu) -> list[KernelLaunch]:
    """Each launch once, and what goes through them in a run, if there is such a kernel."""
    stays = [KernelLaunch(RESIDENT, (), (), 1, BLOCK, ALL)] if compiled.code.resident else []
    return [*_launches(compiled.code.commands), *stays]


def _resources(compiled: CompiledGpu, program: GpuProgram) -> tuple[Mapping[str, Attributes], str]:
    """What kernels take, by name, and who tells it."""
    given = {x.name: (x.threads, x.shared) for x in _all_launches(compiled) if x.name != LIBRARY}
    if known := program.attributes(given):
        return known, "the driver"
    path = ptxas.find()
    if path is None:
        return {}, ""
    level = compiled.target.level
    try:
        assembled = ptxas.assemble(compiled.code.ptx, level).resources
    except CompileError as refused:
        return {}, f"nobody: {refused.what}"
    return {
        name: Attributes(
            r.registers, r.shared + given[name][1], r.stack,
            occupancy(level, given[name][0], r.registers, r.shared + given[name][1]),
        )
        for name, r in assembled.items() if name in given
    }, f"ptxas {ptxas.version(path)}"  # fmt: skip


def _figures(
    launch: KernelLaunch, sizes: Mapping[str, int], takes: Attributes | None
) -> LaunchFigures:
    found = LaunchFigures(
        launch.part_of, launch.name, max(0, number(launch.blocks, sizes)), launch.threads
    )
    if takes is None:
        return found
    return replace(
        found, registers=takes.registers, shared=takes.shared, local=takes.local,
        occupancy=takes.occupancy,
    )  # fmt: skip
