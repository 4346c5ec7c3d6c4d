"""The levels above machine code alone: the calls and buffers of a graph that is exported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from chainrule.codegen.steps import Step
from chainrule.driver.build import Wanted, _Clock, _label, lower_all
from chainrule.driver.kept import named
from chainrule.ir.graph import Graph
from chainrule.ir.node import Node
from chainrule.ir.passes import uncollected
from chainrule.schedule.kernel import Kernel
from chainrule.target import Target
from chainrule_runtime.manifest import PARTS, Manifest, with_size


@dataclass(frozen=True)
class Lowered:
    """A graph lowered for a target: its calls in order, and its buffers."""

    calls: tuple[Step, ...] = field(repr=False)
    manifest: Manifest
    kernels: tuple[Kernel, ...] = field(repr=False)


@uncollected
def lower(
    graph: Graph,
    target: Target,
    *,
    feeds: Sequence[Node],
    kept: Sequence[Node],
    outputs: Sequence[str],
    finite: Sequence[int] = (),
    precision: str | None = None,
    parts: int = 1,
) -> Lowered:
    """Lower a graph, with the parameters of `build`; with several `parts`, there is workspace for
    each. Raises CompileError.
    """
    wanted = Wanted(
        tuple(feeds), tuple(kept), tuple(finite), False, parts > 1, target, precision, None
    )
    levels = lower_all(graph, wanted, _Clock())
    manifest = named(levels.manifest, [*map(_label, (*feeds, *kept)), *outputs])
    arena = tuple(tuple(with_size(d, PARTS, parts) for d in slot) for slot in manifest.arena)
    manifest = replace(manifest, arena=arena, shared=(), stages=())
    return Lowered(tuple(levels.calls), manifest, levels.kernels)
