"""What the compiler did, in figures: what was chosen and why, and how long it should take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, field, replace
from typing import Any, Protocol, TypeVar

from chainrule.codegen.host import about_tiles
from chainrule.driver.build import Compiled
from chainrule.driver.calibrate import calibrate, calibrated, speeds
from chainrule.driver.clock import Array
from chainrule.driver.figures import KernelFigures, kernel_figures, label, total
from chainrule.driver.lower import Levels
from chainrule.driver.measure import measure
from chainrule.driver.predict import predict
from chainrule.driver.sizes import check_number
from chainrule.errors import CompileError
from chainrule.ir.node import Node
from chainrule.ir.passes import PassRecord
from chainrule.ir.size import TYPICAL, Dim, evaluate, substitute, typical
from chainrule.records import dataclass
from chainrule.schedule.kernel import bytes_of
from chainrule.schedule.recompute import Fitted
from chainrule.target.speeds import Speeds
from chainrule_runtime import threads_for
from chainrule_runtime.manifest import PARTS, Manifest, TunedThreads, element_type
from chainrule_runtime.manifest import evaluate as dims
from chainrule_runtime.memory import round_up
from chainrule_runtime.sharing import share


@dataclass(frozen=True)
class Recomputed:
    """What a memory budget did: the bytes of the arena without it and with it, where sizes are as
    given, the values that are computed again, and the operations that takes. Where loops run again
    for their derivative, it is so many `steps` at a time, else 0.
    """

    budget: int
    sizes: Mapping[str, int]
    before: int
    after: int
    values: tuple[str, ...]
    flops: Dim
    steps: int = 0

    def __str__(self) -> str:
        where = ", ".join(f"{s}={n}" for s, n in self.sizes.items())
        loops = f", loops again {self.steps} steps at a time" if self.steps else ""
        return (
            f"budget  {self.budget:,} bytes{where and ' at '}{where}: the arena of {self.before:,} "
            f"has {self.after:,}, {len(self.values)} values computed again{loops}, {self.flops} "
            f"flops more"
        )


@dataclass(frozen=True)
class Report:
    """Passes, kernels, memory, code size and where the time went; `str()` prints it as tables.

    Times of kernels are those at `sizes`, predicted from `speeds`, which are this machine's where
    it has been calibrated, else the usual ones of its instruction level.
    """

    passes: tuple[PassRecord, ...]
    kernels: tuple[KernelFigures, ...]
    memory: Mapping[str, Dim]
    slots: int
    values: int
    code_size: int
    functions: int
    target: str
    threads: int
    seconds: Mapping[str, float] = field(repr=False)
    manifest: Manifest = field(repr=False)
    sizes: Mapping[str, int]
    speeds: Speeds
    calibrated: bool
    recomputed: Recomputed | None = None
    tiles: str = ""

    @property
    def total_seconds(self) -> float:
        """Compile time, from the graph to loaded code."""
        return sum(self.seconds.values())

    @property
    def predicted(self) -> float:
        """Seconds that a call should take on one thread, at the report's sizes."""
        return sum(k.predicted for k in self.kernels)

    @property
    def measured(self) -> float | None:
        """Seconds of all kernels of a call on one thread; None where they were not measured."""
        times = [k.measured for k in self.kernels if k.measured is not None]
        return sum(times) if times else None

    def totals(self, **sizes: int) -> dict[str, int]:
        """Operations and bytes of one call, for given symbolic sizes."""
        return {
            "flops": sum(evaluate(k.flops, sizes) for k in self.kernels),
            "bytes": sum(evaluate(k.bytes, sizes) for k in self.kernels),
        }

    def reserved(self, **sizes: int) -> dict[str, int]:
        """The bytes that a call of given symbolic sizes works in, exactly as they are laid out.

        `state` is what lives between calls, `arena` values on their way from kernel to kernel,
        `workspace` what kernels use for themselves, the share of each thread in it. Each tensor and
        slot begins at a multiple of 64 bytes; a block has up to 64 more in front. Raises
        CompileError where a size is missing or can't be one.
        """
        wanted = self.manifest.sizes
        if sizes.keys() != set(wanted):
            have, given = ", ".join(wanted) or "all known", ", ".join(sizes) or "none"
            raise CompileError(f"the sizes are {have}, not {given}")
        for name, number in sizes.items():
            check_number(name, number, wanted, least=0)
        known = {**sizes, PARTS: share(self.manifest, sizes, self.threads).parts}
        slots = [
            round_up(max([0, *(dims(d, known) for d in slot)])) for slot in self.manifest.arena
        ]
        kept = [
            math.prod(dims(d, sizes) for d in t.shape) * element_type(t.dtype).itemsize
            for t in self.manifest.kept
        ]
        return {
            "state": sum(map(round_up, kept)),
            "arena": sum(slots[: self.slots]),
            "workspace": sum(slots[self.slots :]),
        }

    def _sharing(self) -> str:
        shared = sum(k.shared for k in self.kernels)
        told = f" at most, for {shared} of {len(self.kernels)} kernels" if shared else ""
        return f"{told}{timed_threads(self.manifest.tuned)}"

    def as_dict(self) -> dict[str, Any]:
        """The figures as plain data; sizes as text."""
        return {
            "passes": [
                {
                    "name": p.name,
                    "before": p.nodes_before,
                    "after": p.nodes_after,
                    "seconds": p.seconds,
                }
                for p in self.passes
            ],
            "kernels": [
                {
                    "name": k.name,
                    "form": k.form,
                    "ops": list(k.ops),
                    "flops": str(k.flops),
                    "bytes": str(k.bytes),
                    "shared": k.shared,
                    "again": k.again,
                    "factors": k.factors,
                    "parts": k.parts,
                    "chosen": list(k.chosen),
                    "predicted": k.predicted,
                    "bound": k.bound,
                    "measured": k.measured,
                }
                for k in self.kernels
            ],
            "memory": {name: str(size) for name, size in self.memory.items()},
            "arena": {"slots": self.slots, "values": self.values},
            "recomputed": self.recomputed
            and {
                "budget": self.recomputed.budget,
                "sizes": dict(self.recomputed.sizes),
                "before": self.recomputed.before,
                "after": self.recomputed.after,
                "values": list(self.recomputed.values),
                "flops": str(self.recomputed.flops),
            },
            "code_size": self.code_size,
            "functions": self.functions,
            "target": self.target,
            "tiles": self.tiles,
            "threads": self.threads,
            "tuned_threads": self.manifest.tuned and asdict(self.manifest.tuned),
            "seconds": dict(self.seconds),
            "sizes": dict(self.sizes),
            "speeds": asdict(self.speeds),
            "calibrated": self.calibrated,
            "predicted": self.predicted,
            "measured": self.measured,
        }

    def _times(self) -> list[str]:
        """How long kernels should take, and take, and what was chosen for them."""
        head = ("kernel", "µs predicted", "measured", "bound by", "threads", "chosen")
        rows = [
            (
                k.name,
                micro(k.predicted),
                "" if k.measured is None else micro(k.measured),
                k.bound,
                str(k.parts),
                "; ".join(k.chosen),
            )
            for k in self.kernels
        ]
        total = "" if self.measured is None else micro(self.measured)
        rows.append(("all", micro(self.predicted), total, "", "", ""))
        where = ", ".join(f"{s} {n}" for s, n in self.sizes.items())
        whose = "as measured here" if self.calibrated else f"usual ones of {self.target}"
        return [
            *table(head, rows),
            f"of one thread{where and ' at '}{where}; speeds {whose}: {self.speeds}",
        ]

    def __str__(self) -> str:
        kernels = [
            (
                k.name,
                f"{k.form}{' again' if k.again else ''}{' (shared)' if k.shared else ''}"
                + (f", {k.factors}" if k.factors else ""),
                " ".join(k.ops),
                str(k.flops),
                str(k.bytes),
            )
            for k in self.kernels
        ]
        passes = [
            (p.name, f"{p.nodes_before} -> {p.nodes_after}", f"{p.seconds * 1e3:.1f} ms")
            for p in self.passes
        ]
        memory = [(name, f"{size} bytes") for name, size in self.memory.items()]
        times = ", ".join(f"{name} {s * 1e3:.0f} ms" for name, s in self.seconds.items())
        return "\n".join(
            [
                *table(("pass", "nodes", "time"), passes),
                "",
                *table(("kernel", "form", "ops", "flops", "bytes"), kernels),
                "",
                *self._times(),
                "",
                *table(("memory", "size"), memory),
                f"the arena holds {self.values} values in {self.slots} slots",
                *([str(self.recomputed)] if self.recomputed else []),
                "",
                f"code    {self.code_size} bytes in {self.functions} functions for {self.target}",
                *([f"tiles   {self.tiles}"] if self.tiles else []),
                f"threads {self.threads}" + self._sharing(),
                f"compile {self.total_seconds * 1e3:.0f} ms: {times}",
            ]
        )


def report(
    compiled: Compiled,
    measured: bool = False,
    sizes: Mapping[str, int] | None = None,
    kept: Mapping[str, Array] | None = None,
) -> Report:
    """The figures of a compiled program.

    Times are those where symbolic sizes are as given, others TYPICAL. If they are to be `measured`,
    the machine is calibrated unless it has been, and kernels run on copies of what is `kept`.
    """
    levels = compiled.levels
    at = sizes_for(compiled.manifest, sizes or {})
    if measured and calibrated() is None:
        calibrate()
    threads = threads_for(compiled.threads) if compiled.manifest.shared else 1
    native = compiled.native
    predicted = predict(levels.kernels, levels.built, at, native.target, speeds())
    times = measure(compiled, at, kept or {}) if measured else [None] * len(levels.kernels)
    kernels = kernel_figures(compiled, at, threads, predicted, times)
    code = native.code_size, native.llvm.count("\ndefine "), native.target.level
    found = figured(Report, compiled, levels, kernels, code, at, threads)
    return replace(found, tiles=about_tiles() if compiled.precision else "")


class Reported(Protocol):
    """What a report asks of a compiled program, for whichever machine."""

    @property
    def seconds(self) -> Mapping[str, float]: ...

    @property
    def manifest(self) -> Manifest: ...

    @property
    def feeds(self) -> tuple[Node, ...]: ...

    @property
    def kept(self) -> tuple[Node, ...]: ...


R = TypeVar("R", bound=Report)


def figured(
    kind: type[R],
    compiled: Reported,
    levels: Levels,
    kernels: tuple[KernelFigures, ...],
    code: tuple[int, int, str],
    at: Mapping[str, int],
    threads: int = 1,
) -> R:
    """A report of a program, whose code has so many bytes and functions, and a target."""
    slots = (*levels.plan.slots, *levels.loops)
    largest = [max(slot, key=typical) for slot in slots]
    workspace = [[substitute(s, {PARTS: threads}) for s in sizes] for sizes in levels.workspace]
    memory = {
        "inputs": total(bytes_of(n) for n in compiled.feeds),
        "parameters and state": total(bytes_of(n) for n in compiled.kept),
        "arena": total(largest),
        "workspace": total(max(sizes, key=typical) for sizes in workspace),
    }
    return kind(
        levels.passes, kernels, memory, len(slots), len(levels.plan.slot), *code, threads,
        compiled.seconds, compiled.manifest, at, speeds(), calibrated() is not None,
        _recomputed(levels.fitted) if levels.fitted else None,
    )  # fmt: skip


def timed_threads(tuned: TunedThreads | None) -> str:
    """What timing said of the number of threads, to follow it."""
    if tuned is None:
        return ""
    at = ", ".join(f"{s} {n}" for s, n in tuned.sizes)
    where = f" at {at} and below" if at else ""
    if not tuned.most:
        return f"; none timed{where}: {tuned.why}"
    took = ", ".join(f"{micro(s)} µs on {n}" for n, s in tuned.seconds)
    return f"; {tuned.most}{where}, the fastest of those timed: {took}"


def sizes_for(manifest: Manifest, given: Mapping[str, int]) -> dict[str, int]:
    """All symbolic sizes of a program: those given, others TYPICAL. Raises CompileError."""
    for name, number in given.items():
        check_number(name, number, manifest.sizes)
    return {name: int(given.get(name, TYPICAL)) for name in manifest.sizes}


def micro(seconds: float) -> str:
    """Seconds as microseconds, of small ones the hundredths."""
    return f"{seconds * 1e6:,.2f}" if seconds < 1e-4 else f"{seconds * 1e6:,.0f}"


def _recomputed(fitted: Fitted) -> Recomputed:
    budget, values = fitted.budget, tuple(map(label, fitted.again))
    return Recomputed(
        budget.bytes, budget.sizes, fitted.before, fitted.after, values, fitted.flops, fitted.steps
    )


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows in columns, under a head."""
    widths = [max(len(r[i]) for r in (head, *rows)) for i in range(len(head))]
    return [
        "  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip()
        for r in (head, *rows)
    ]
