"""What the compiler did, in figures and, level by level, as text."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from textwrap import indent
from typing import Any, Protocol

from chainrule.driver.build import Compiled, Levels, passes_for
from chainrule.errors import CompileError
from chainrule.ir import provenance
from chainrule.ir.graph import Graph
from chainrule.ir.node import Node, within
from chainrule.ir.passes import PassRecord, run_passes
from chainrule.ir.size import Dim, evaluate, substitute
from chainrule.loops.build import Built
from chainrule.loops.text import show as loop_text
from chainrule.ops.scan import Scan
from chainrule.schedule.buffers import bytes_of, typical
from chainrule.schedule.kernel import Form, Kernel
from chainrule.schedule.recompute import Fitted
from chainrule.show.graph import graph_text
from chainrule_runtime import threads_for
from chainrule_runtime.manifest import PARTS, Manifest, element_type
from chainrule_runtime.manifest import evaluate as dims
from chainrule_runtime.memory import round_up
from chainrule_runtime.sharing import share

LEVELS = ("graph", "passes", "optimized", "kernels", "loops", "llvm", "asm")


@dataclass(frozen=True)
class KernelFigures:
    """A kernel: its form, the ops in it, what it writes (a leaf that it updates by the leaf's
    name), floating-point operations and bytes moved, as sizes.

    An elementwise op counts as one operation an element, whatever its polynomial; a product as two
    for each multiply-add. Bytes are those of each tensor read or written, once. A kernel in a loop
    counts as often as it runs. A `shared` one is split among threads where it is large enough.
    """

    name: str
    form: str
    ops: tuple[str, ...]
    writes: tuple[str, ...]
    flops: Dim
    bytes: Dim
    shared: bool = False
    again: bool = False


@dataclass(frozen=True)
class Recomputed:
    """What a memory budget did: the bytes of the arena without it and with it, where sizes are as
    given, the values that are computed again, and the operations that takes.
    """

    budget: int
    sizes: Mapping[str, int]
    before: int
    after: int
    values: tuple[str, ...]
    flops: Dim

    def __str__(self) -> str:
        where = ", ".join(f"{s}={n}" for s, n in self.sizes.items())
        return (
            f"budget  {self.budget:,} bytes{where and ' at '}{where}: the arena of {self.before:,} "
            f"has {self.after:,}, {len(self.values)} values computed again, {self.flops} flops more"
        )


@dataclass(frozen=True)
class Report:
    """Passes, kernels, memory, code size and where the time went; `str()` prints it as tables."""

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
    recomputed: Recomputed | None = None

    @property
    def total_seconds(self) -> float:
        """Compile time, from the graph to loaded code."""
        return sum(self.seconds.values())

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
        CompileError where a size is missing.
        """
        wanted = self.manifest.sizes
        if sizes.keys() != set(wanted):
            have, given = ", ".join(wanted) or "all known", ", ".join(sizes) or "none"
            raise CompileError(f"the sizes are {have}, not {given}")
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
        return f" at most, for {shared} of {len(self.kernels)} kernels" if shared else ""

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
            "threads": self.threads,
            "seconds": dict(self.seconds),
        }

    def __str__(self) -> str:
        kernels = [
            (
                k.name,
                k.form + (" again" if k.again else "") + (" (shared)" if k.shared else ""),
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
                *_table(("pass", "nodes", "time"), passes),
                "",
                *_table(("kernel", "form", "ops", "flops", "bytes"), kernels),
                "",
                *_table(("memory", "size"), memory),
                f"the arena holds {self.values} values in {self.slots} slots",
                *([str(self.recomputed)] if self.recomputed else []),
                "",
                f"code    {self.code_size} bytes in {self.functions} functions for {self.target}",
                f"threads {self.threads}" + self._sharing(),
                f"compile {self.total_seconds * 1e3:.0f} ms: {times}",
            ]
        )


def report(compiled: Compiled) -> Report:
    """The figures of a compiled program."""
    native = compiled.native
    threads = threads_for(compiled.threads) if compiled.manifest.shared else 1
    code = native.code_size, native.llvm.count("\ndefine "), native.target.level
    return figured(compiled, compiled.levels, code, threads, compiled.shared)


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


def figured(
    compiled: Reported,
    levels: Levels,
    code: tuple[int, int, str],
    threads: int = 1,
    shared: Collection[int] = (),
) -> Report:
    """The figures of a program, whose code has so many bytes, so many functions, and a target."""
    largest = [max(slot, key=typical) for slot in levels.plan.slots]
    workspace = [[substitute(s, {PARTS: threads}) for s in sizes] for sizes in levels.workspace]
    memory = {
        "inputs": _sum(bytes_of(n) for n in compiled.feeds),
        "parameters and state": _sum(bytes_of(n) for n in compiled.kept),
        "arena": _sum(largest),
        "workspace": _sum(max(sizes, key=typical) for sizes in workspace),
    }
    kernels = (
        replace(figures(k, f"kernel{i}"), shared=i in shared) for i, k in enumerate(levels.kernels)
    )
    return Report(
        levels.passes, tuple(kernels), memory, len(levels.plan.slots), len(levels.plan.slot),
        *code, threads, compiled.seconds, compiled.manifest,
        _recomputed(levels.fitted) if levels.fitted else None,
    )  # fmt: skip


def _recomputed(fitted: Fitted) -> Recomputed:
    budget, values = fitted.budget, tuple(map(_label, fitted.again))
    return Recomputed(budget.bytes, budget.sizes, fitted.before, fitted.after, values, fitted.flops)


def figures(kernel: Kernel, name: str) -> KernelFigures:
    """A kernel's operations and bytes, as sizes, of all the times it runs in a call."""
    ops = (
        ()
        if kernel.form in (Form.CHECK, Form.COPY)
        else tuple(str(n.op.name) for n in kernel.nodes)
    )
    written = tuple(map(_label, kernel.writes.values()))
    return KernelFigures(
        name,
        kernel.form.value,
        ops or (kernel.form.value,),
        written,
        kernel.flops,
        _moved(kernel) * kernel.times,
        again=kernel.again,
    )


def _moved(kernel: Kernel) -> Dim:
    """The bytes of what a kernel reads and writes, once each.

    Of a loop those that it copies itself: what it carries, as it begins and as each step does.
    """
    op = kernel.anchor.op
    if kernel.patch is not None:
        return 2 * bytes_of(kernel.patch)
    if not isinstance(op, Scan):
        return _sum(map(bytes_of, {*kernel.reads, *kernel.writes}))
    body = op.body_of_step
    kept = (n for n in kernel.writes if _output(n) >= len(body.carries) + len(body.ys))
    return 2 * _sum(map(bytes_of, (*body.carries, *kept)))


def _output(node: Node) -> int:
    assert isinstance(node.op, Scan)
    return node.op.output


def _sum(sizes: Iterable[Dim]) -> Dim:
    total: Dim = 0
    for size in sizes:
        total = total + size
    return total


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(r[i]) for r in (head, *rows)) for i in range(len(head))]
    return [
        "  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip()
        for r in (head, *rows)
    ]


def show(compiled: Compiled, level: str) -> str:
    """A program as text at one of LEVELS; "passes" is the graph after each pass in turn."""
    texts = {"llvm": lambda: compiled.native.llvm, "asm": lambda: compiled.native.asm}
    return shown(compiled.source, lambda: compiled.levels, compiled.precision, level, texts)


def shown(
    source: Graph,
    levels: Callable[[], Levels],
    precision: str | None,
    level: str,
    code: Mapping[str, Callable[[], str]],
) -> str:
    """A program as text at a level, those of its `code` among them."""
    texts: dict[str, Callable[[], str]] = {
        "graph": lambda: graph_text(source),
        "passes": lambda: _after_each_pass(source, precision),
        "optimized": lambda: graph_text(levels().graph),
        "kernels": lambda: _kernels_text(levels()),
        "loops": lambda: "\n".join(
            map(loop_text, dict.fromkeys(b.program for b in levels().built))
        ),
        **code,
    }
    if not isinstance(level, str):
        raise CompileError(f"a level is a text, not {level!r}", f"there are {', '.join(texts)}")
    if level not in texts:
        raise CompileError(f"there is no level {level!r}", f"there are {', '.join(texts)}")
    return texts[level]()


def _kernels_text(levels: Levels) -> str:
    pairs = zip(levels.kernels, levels.built, strict=True)
    texts = (_kernel_text(k, f"kernel{i}", b) for i, (k, b) in enumerate(pairs))
    indents = ("    " * k.depth for k in levels.kernels)
    return "\n".join(indent(t, by) for t, by in zip(texts, indents, strict=True))


def _after_each_pass(source: Graph, precision: str | None) -> str:
    pages: list[str] = []

    def keep(record: PassRecord, result: Graph) -> None:
        pages.append(f"{record}\n{graph_text(result)}")

    run_passes(source, passes_for(precision), keep)
    return "\n\n".join(pages)


def _kernel_text(kernel: Kernel, name: str, built: Built) -> str:
    space = ", ".join(map(str, kernel.space))
    op = kernel.anchor.op
    if isinstance(op, Scan):
        space = f"{op.length}, from the last" if op.reverse else str(op.length)
    alike = "" if built.program.name == name else f", the loops of {built.program.name}"
    again = " again" if kernel.again else ""
    lines = [f"{name}: {kernel.form.value}{again} over [{space}]{alike}"]
    lines += [f"  reads  {_listed(map(_shown, kernel.reads))}"]
    if kernel.test is not None:
        bound = kernel.test.bound
        asked = "is finite" if bound is None else "is in [{}, {})".format(*within(bound))
        return "\n".join([*lines, f"  leaves with {kernel.test.code} unless each element {asked}"])
    if kernel.form is not Form.COPY:
        lines.append(f"  {' '.join(str(node.op.name) for node in kernel.nodes)}")
    written = (
        _shown(node) if node is target else f"{_shown(node)} into {_label(target)}"
        for node, target in kernel.writes.items()
    )
    return "\n".join([*lines, f"  writes {_listed(written)}"])


def _listed(parts: Iterable[str]) -> str:
    return ", ".join(parts) or "nothing"


def _label(node: Node) -> str:
    return provenance.name_of(node) or str(node.op.name)


def _shown(node: Node) -> str:
    return f"{_label(node)}: {node.type}"
