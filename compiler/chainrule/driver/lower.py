"""The levels above machine code alone: the calls and buffers of a graph that is exported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from chainrule.codegen.steps import Step
from chainrule.driver.build import PASSES, _kept_memory, _Layout
from chainrule.driver.report import figures
from chainrule.ir.graph import Graph
from chainrule.ir.node import Node
from chainrule.ir.passes import run_passes
from chainrule.loops.build import build_kernels
from chainrule.schedule.buffers import plan_buffers
from chainrule.schedule.fuse import fuse
from chainrule.schedule.kernel import Kernel, every
from chainrule.target import Target
from chainrule_runtime.manifest import Manifest


@dataclass(frozen=True)
class Lowered:
    """A graph lowered for a target, for one thread: its calls in order, and its buffers."""

    calls: tuple[Step, ...] = field(repr=False)
    manifest: Manifest
    kernels: tuple[Kernel, ...] = field(repr=False)

    @property
    def flops(self) -> str:
        """The floating-point operations of a call, as a polynomial of the symbolic sizes."""
        total = sum((figures(k, "").flops for k in self.kernels), start=0)
        return str(total)


def lower(
    graph: Graph,
    target: Target,
    *,
    feeds: Sequence[Node],
    kept: Sequence[Node],
    outputs: Sequence[str],
    finite: Sequence[int] = (),
) -> Lowered:
    """Lower a graph, with the parameters of `build`. Raises CompileError."""
    final, _ = run_passes(graph, PASSES)
    kernels = fuse(final, [final.outputs[i] for i in finite])
    plan = plan_buffers(kernels, _kept_memory(final))
    flat = every(kernels)
    built = build_kernels(flat, target)
    layout = _Layout(final, graph, kernels, built, plan, feeds, kept, outputs, several=False)
    return Lowered(tuple(layout.calls), layout.manifest, tuple(flat))
