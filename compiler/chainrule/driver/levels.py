"""A program at each level, as text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from textwrap import indent

from chainrule.driver.build import Compiled
from chainrule.driver.lower import Levels, passes_for
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
