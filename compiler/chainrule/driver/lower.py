"""The levels above machine code alone: the calls and buffers of a graph that is exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from chainrule.codegen.steps import Step
from chainrule.driver.build import Wanted, _Clock, _label, lower_all
from chainrule.driver.figures import figures
from chainrule.driver.kept import named
from chainrule.ir.graph import Graph
from chainrule.ir.node import Node
from chainrule.ir.passes import uncollected
from chainrule.loops.launch import Launch
from chainrule.schedule.kernel import Kernel
from chainrule.target import Target
from chainrule_runtime.manifest import Manifest


@dataclass(frozen=True)
class Lowered:
    """A graph lowered for a target, for one thread: its calls in order, and its buffers.

    For a GPU `launches` are what each program is run by, by the program's identity.
    """

    calls: tuple[Step, ...] = field(repr=False)
    manifest: Manifest
    kernels: tuple[Kernel, ...] = field(repr=False)
    launches: Mapping[int, tuple[Launch, ...]] = field(default_factory=dict, repr=False)

    @property
    def flops(self) -> str:
        """The floating-point operations of a call, as a polynomial of the symbolic sizes."""
        total = sum((figures(k, "").flops for k in self.kernels), start=0)
        return str(total)


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
) -> Lowered:
    """Lower a graph, with the parameters of `build`. Raises CompileError."""
    wanted = Wanted(tuple(feeds), tuple(kept), tuple(finite), False, False, target, precision, None)
    levels = lower_all(graph, wanted, _Clock())
    manifest = named(levels.manifest, [*map(_label, (*feeds, *kept)), *outputs])
    launches = {id(b.program): b.launches for b in levels.built}
    return Lowered(tuple(levels.calls), manifest, levels.kernels, launches)
