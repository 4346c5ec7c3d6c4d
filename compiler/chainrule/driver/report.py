"""What the compiler did, in figures and, level by level, as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chainrule.show.graph import graph_text

from chainrule.driver.build import Compiled
from chainrule.errors import CompileError
from chainrule.ir import provenance
from chainrule.ir.node import Node
from chainrule.ir.passes import PassRecord
from chainrule.ir.size import Dim, evaluate, product, symbols_of
from chainrule.loops.text import show as loop_text
from chainrule.ops.contract import Contract
from chainrule.schedule.buffers import TYPICAL, bytes_of
from chainrule.schedule.kernel import Form, Kernel

LEVELS = ("graph", "optimized", "kernels", "loops", "llvm", "asm")


@dataclass(frozen=True)
class KernelFigures:
    """A kernel: its form, the ops in it, floating-point operations and bytes moved, as sizes.

    An elementwise op counts as one operation an element, whatever its polynomial; a product as two
    for each multiply-add. Bytes are those of each tensor read or written, once.
    """

    name: str
    form: str
    ops: tuple[str, ...]
    writes: tuple[str, ...]
    flops: Dim
    bytes: Dim


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
    seconds: Mapping[str, float] = field(repr=False)

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

    def as_dict(self) -> dict[str, Any]:
        """The figures as plain data; sizes as text."""
        return {
            "passes": [
                {"name": p.name, "before": p.nodes_before, "after": p.nodes_after, "seconds": p.seconds}
                for p in self.passes
            ],
            "kernels": [
                {"name": k.name, "form": k.form, "ops": list(k.ops), "flops": str(k.flops), "bytes": str(k.bytes)}
                for k in self.kernels
            ],
            "memory": {name: str(size) for name, size in self.memory.items()},
            "arena": {"slots": self.slots, "values": self.values},
            "code_size": self.code_size,
            "functions": self.functions,
            "target": self.target,
            "seconds": dict(self.seconds),
        }

    def __str__(self) -> str:
        kernels = [(k.name, k.form, " ".join(k.ops), str(k.flops), str(k.bytes)) for k in self.kernels]
        passes = [(p.name, f"{p.nodes_before} -> {p.nodes_after}", f"{p.seconds * 1e3:.1f} ms") for p in self.passes]
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
                "",
                f"code    {self.code_size} bytes in {self.functions} functions for {self.target}",
                f"compile {self.total_seconds * 1e3:.0f} ms: {times}",
            ]
        )


def report(compiled: Compiled) -> Report:
    """The figures of a compiled program."""
    largest = [max(slot, key=_typical) for slot in compiled.plan.slots]
    memory = {
        "inputs": _sum(bytes_of(n) for n in compiled.feeds),
        "parameters and state": _sum(bytes_of(n) for n in compiled.kept),
        "arena": _sum(largest),
        "workspace": _sum(max(sizes, key=_typical) for sizes in compiled.workspace),
    }
    return Report(
        compiled.passes,
        tuple(figures(k, b.program.name) for k, b in zip(compiled.kernels, compiled.built, strict=True)),
        memory,
        len(compiled.plan.slots),
        len(compiled.plan.slot),
        compiled.native.code_size,
        compiled.native.llvm.count("\ndefine "),
        compiled.native.target.level,
        compiled.seconds,
    )


def figures(kernel: Kernel, name: str) -> KernelFigures:
    """A kernel's operations and bytes, as sizes."""
    ops = () if kernel.form in (Form.CHECK, Form.COPY) else tuple(str(n.op.name) for n in kernel.nodes)
    touched = {*kernel.reads, *kernel.writes}
    written = tuple(provenance.name_of(n) or str(n.op.name) for n in kernel.writes)
    flops = _sum(_flops(n) for n in kernel.nodes) if ops else 0
    return KernelFigures(name, kernel.form.value, ops or (kernel.form.value,), written, flops, _sum(map(bytes_of, touched)))


def _flops(node: Node) -> Dim:
    if isinstance(node.op, Contract):
        sizes = dict(zip(node.op.a, node.inputs[0].type.shape, strict=True))
        return 2 * product(node.type.shape) * product(tuple(sizes[c] for c in node.op.summed))
    source = node.inputs[0] if node.op.role == "reduce" else node
    return product(source.type.shape)


def _sum(sizes: Iterable[Dim]) -> Dim:
    total: Dim = 0
    for size in sizes:
        total = total + size
    return total


def _typical(size: Dim) -> int:
    return evaluate(size, dict.fromkeys(symbols_of(size), TYPICAL))


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(r[i]) for r in (head, *rows)) for i in range(len(head))]
    return ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in (head, *rows)]


def show(compiled: Compiled, level: str) -> str:
    """A program as text at one level: graph, optimized, kernels, loops, llvm or asm."""
    if level == "graph":
        return graph_text(compiled.source)
    if level == "optimized":
        return graph_text(compiled.graph)
    if level == "kernels":
        return "\n".join(_kernel_text(k, b.program.name) for k, b in zip(compiled.kernels, compiled.built, strict=True))
    if level == "loops":
        return "\n".join(loop_text(b.program) for b in compiled.built)
    if level == "llvm":
        return compiled.native.llvm
    if level == "asm":
        return compiled.native.asm
    raise CompileError(f"there is no level {level!r}", f"there are {', '.join(LEVELS)}")


def _kernel_text(kernel: Kernel, name: str) -> str:
    def names(nodes: Iterable[Node]) -> str:
        return ", ".join(f"{provenance.name_of(n) or n.op.name}: {n.type}" for n in nodes) or "nothing"

    space = ", ".join(map(str, kernel.space))
    lines = [f"{name}: {kernel.form.value} over [{space}]", f"  reads  {names(kernel.reads)}"]
    if kernel.test is not None:
        bound = "is finite" if kernel.test.bound is None else f"is in [0, {kernel.test.bound})"
        return "\n".join([*lines, f"  leaves with {kernel.test.code} unless each element {bound}"])
    lines += [f"  {' '.join(str(n.op.name) for n in kernel.nodes)}", f"  writes {names(kernel.writes)}"]
    return "\n".join(lines)
