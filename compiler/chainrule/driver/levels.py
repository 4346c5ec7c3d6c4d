"""A program at each level, as text."""

from __future__ import annotations

from collections.abc import Iterable
from textwrap import indent

from chainrule.driver.build import Compiled, passes_for
from chainrule.errors import CompileError
from chainrule.ir import provenance
from chainrule.ir.graph import Graph
from chainrule.ir.node import Node, within
from chainrule.ir.passes import PassRecord, run_passes
from chainrule.loops.build import Built
from chainrule.loops.text import show as loop_text
from chainrule.loops.walk import factors_of
from chainrule.ops.scan import Scan
from chainrule.schedule.kernel import Form, Kernel
from chainrule.show.graph import graph_text

LEVELS = ("graph", "passes", "optimized", "kernels", "loops", "llvm", "asm")


def show(compiled: Compiled, level: str) -> str:
    """A program as text at one of LEVELS; "passes" is the graph after each pass in turn."""
    if not isinstance(level, str):
        raise CompileError(f"a level is a text, not {level!r}", f"there are {', '.join(LEVELS)}")
    if level == "graph":
        return graph_text(compiled.source)
    if level == "passes":
        return _after_each_pass(compiled)
    if level == "optimized":
        return graph_text(compiled.levels.graph)
    if level == "kernels":
        pairs = zip(compiled.levels.kernels, compiled.levels.built, strict=True)
        texts = (_kernel_text(k, f"kernel{i}", b) for i, (k, b) in enumerate(pairs))
        indents = ("    " * k.depth for k in compiled.levels.kernels)
        return "\n".join(indent(t, by) for t, by in zip(texts, indents, strict=True))
    if level == "loops":
        programs = dict.fromkeys(b.program for b in compiled.levels.built)
        return "\n".join(map(loop_text, programs))
    if level == "llvm":
        return compiled.native.llvm
    if level == "asm":
        return compiled.native.asm
    raise CompileError(f"there is no level {level!r}", f"there are {', '.join(LEVELS)}")


def _after_each_pass(compiled: Compiled) -> str:
    pages: list[str] = []

    def keep(record: PassRecord, result: Graph) -> None:
        pages.append(f"{record}\n{graph_text(result)}")

    run_passes(compiled.source, passes_for(compiled.precision), keep)
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
        factors = factors_of(built.program)
        lines += [f"  factors as {factors}"] if factors else []
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
