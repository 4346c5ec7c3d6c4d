"""The levels above machine code on one page: from a graph to calls, loops and buffers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace

from chainrule.codegen.module import CALL_WORK, STEP_WORK, Shared, shared_calls
from chainrule.codegen.steps import Place, Step
from chainrule.collector import uncollected
from chainrule.driver.budget import fused, kept_memory, made_to_fit
from chainrule.driver.decide import decided
from chainrule.driver.kept import computed, named
from chainrule.driver.order import CallOrder
from chainrule.driver.sizes import all_nodes, check_sizes, demands_of, dim_data, sizes_of
from chainrule.driver.stages import stages_of
from chainrule.driver.tune import tuned
from chainrule.driver.wanted import Clock, Wanted, behind_moves, behind_views, called, label
from chainrule.driver.workspace import workspace_of
from chainrule.errors import CompileError
from chainrule.ir.graph import Graph
from chainrule.ir.node import Node, within
from chainrule.ir.passes import Pass, PassRecord, run_passes
from chainrule.ir.size import Dim
from chainrule.loops.build import Built, build_kernels
from chainrule.loops.choice import BY_SIZES, GUESSED, Choice
from chainrule.loops.launch import Launch
from chainrule.ops.source import Constant, Leaf
from chainrule.records import dataclass
from chainrule.rewrite.narrow import PRECISIONS
from chainrule.rewrite.passes import (
    attend,
    canonicalize,
    drop_unread,
    drop_unused,
    expand_composites,
    look_up_inside,
    multiply_tables,
    order_contractions,
    share_steps,
    simplify,
    spread,
    stabilize,
    widen,
)
from chainrule.rewrite.passes import (
    lower as lowered,
)
from chainrule.schedule.buffers import Plan, plan_buffers, plan_loops
from chainrule.schedule.kernel import Kernel, Test, every
from chainrule.schedule.lighten import lighten
from chainrule.schedule.materialize import materialize
from chainrule.schedule.reading import storage
from chainrule.schedule.recompute import Fitted
from chainrule.target import Target
from chainrule.target.speeds import usual_speeds
from chainrule_runtime.manifest import PARTS, Check, Manifest, with_size
from chainrule_runtime.manifest import Tensor as TensorData

#: The passes over the graph, in order; what follows are the levels below it.
PASSES: tuple[Pass, ...] = tuple(
    Pass(p.__name__, p, p.__doc__ or "")
    for p in (
        canonicalize,
        stabilize,
        simplify,
        widen,
        attend,
        expand_composites,
        multiply_tables,
        order_contractions,
        lowered,
        drop_unused,
        share_steps,
        drop_unread,
        look_up_inside,
        spread,
        lighten,
        materialize,
    )
)


def passes_for(precision: str | None) -> tuple[Pass, ...]:
    """The passes in order; with a precision, products get its factors once their order is known."""
    if precision is None:
        return PASSES
    narrow = PRECISIONS[precision]
    after = [p.name for p in PASSES].index("order_contractions") + 1
    here = Pass(narrow.__name__, narrow, narrow.__doc__ or "")
    return (*PASSES[:after], here, *PASSES[after:])


@dataclass(frozen=True)
class Levels:
    """A program at every level above machine code, and what its buffers and calls are."""

    graph: Graph
    passes: tuple[PassRecord, ...]
    kernels: tuple[Kernel, ...]
    plan: Plan
    built: tuple[Built, ...]
    workspace: tuple[tuple[Dim, ...], ...]
    loops: tuple[tuple[Dim, ...], ...]
    calls: tuple[Step, ...]
    shared: tuple[Shared, ...]
    manifest: Manifest  # without names, see driver.kept
    fitted: Fitted | None
    choices: Mapping[int, Choice]


@dataclass(frozen=True)
class Lowered:
    """A graph lowered for a target: its calls in order, and its buffers.

    For a GPU `launches` are what each program is run by, by the program's identity.
    """

    calls: tuple[Step, ...] = field(repr=False)
    manifest: Manifest
    kernels: tuple[Kernel, ...] = field(repr=False)
    launches: Mapping[int, tuple[Launch, ...]] = field(default_factory=dict, repr=False)


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
    levels = lower_all(graph, wanted, Clock())
    manifest = named(levels.manifest, [*map(label, (*feeds, *kept)), *outputs])
    arena = tuple(tuple(with_size(d, PARTS, parts) for d in slot) for slot in manifest.arena)
    manifest = replace(manifest, arena=arena, shared=(), stages=())
    launches = {id(b.program): b.launches for b in levels.built}
    return Lowered(tuple(levels.calls), manifest, levels.kernels, launches)


def lower_all(
    graph: Graph,
    wanted: Wanted,
    clock: Clock,
    choices: Mapping[int, Choice] | None = None,
    tuner: Callable[[Sequence[Kernel], Sequence[Built]], Mapping[int, Choice]] | None = None,
) -> Levels:
    """A graph at every level above machine code, each made of the one before; `choices` are those
    that had been made for it. If it is to be tuned, `tuner` times its kernels where they are not
    the CPU's.
    """
    final, records = run_passes(graph, passes_for(wanted.precision))
    clock.lap("passes")
    kernels = fused(final, wanted.finite)
    clock.lap("fuse")
    fitted = None
    if wanted.budget is not None:
        final, fitted = made_to_fit(final, wanted.finite, kernels, wanted.budget)
        kernels = list(fitted.kernels)
        clock.lap("recompute")
    plan = fitted.plan if fitted else plan_buffers(kernels, kept_memory(final))
    clock.lap("plan buffers")
    flat = every(kernels)
    usual = BY_SIZES if wanted.speeds else GUESSED
    built = build_kernels(flat, wanted.machine, choices, usual)
    clock.lap("loops")
    if choices is None:
        choices = decided(flat, built, wanted.machine, wanted.speeds) if wanted.speeds else {}
        built = build_kernels(flat, wanted.machine, choices, usual) if choices else built
        if wanted.tune is not None:
            if tuner:
                timed = tuner(flat, built)
            else:
                known = wanted.speeds or usual_speeds(wanted.machine.level)
                timed = tuned(flat, built, dict(wanted.tune), wanted.machine, known)
            choices = {**choices, **timed}
            built = build_kernels(flat, wanted.machine, choices, usual)
            clock.lap("tune")
    layout = _Layout(final, graph, kernels, built, plan, wanted)
    clock.lap("layout")
    return Levels(
        final, records, tuple(flat), plan, tuple(built), layout.workspace, layout.loops,
        layout.calls, tuple(layout.shared), layout.manifest, fitted, choices or {},
    )  # fmt: skip


class _Layout:
    """The table of buffers: each value's place in it, and the calls that use them."""

    def __init__(
        self,
        graph: Graph,
        written: Graph,
        kernels: Sequence[Kernel],
        built: Sequence[Built],
        plan: Plan,
        wanted: Wanted,
    ) -> None:
        feeds, kept, several = wanted.feeds, wanted.kept, wanted.several
        self.place: dict[Node, int] = {}
        given = [n for n in graph.nodes if n.op.role == "leaf" and not isinstance(n.op, Constant)]
        missing = [n for n in given if n not in set(feeds) | set(kept)]
        if missing:
            raise CompileError(f"nothing gives {missing[0]!r} a value")
        for node in (*feeds, *kept):
            self.next(node)
        constants = [n for n in all_nodes(graph) if isinstance(n.op, Constant)]
        for node in constants:
            self.next(node)
        for node in graph.outputs:
            self.next(storage(node))
        places = {node: Place(i) for node, i in self.place.items()}
        slots = {
            made: Place(len(places) + i, start=plan.start.get(made, 0))
            for i, made in enumerate(plan.slot)
        }
        temporaries = [(slots[made].entry, slot) for made, slot in plan.slot.items()]
        loops, self.loops = plan_loops(kernels)
        work, first = workspace_of(built, several), len(places) + len(slots)
        self.workspace, begin = work.slots, first + len(self.loops)
        order = CallOrder(
            dict(zip(every(kernels), built, strict=True)),
            {id(b): [begin + i for i in used] for b, used in zip(built, work.used, strict=True)},
            {node: places[node] for node in constants},
            loops,
            first,
        )
        self.calls = order.steps(kernels, places, slots)
        self.place = {node: place.entry for node, place in places.items()}
        arena = [*plan.slots, *self.loops, *self.workspace]
        own = range(len(plan.slots), len(arena))
        temporaries += [(first + i, slot) for i, slot in enumerate(own)]
        self.shared = shared = shared_calls(self.calls) if several else []
        private = {begin + i for i in work.private}
        slot_of = dict(temporaries)

        def memory(place: int) -> int | None:
            if place in private:
                return None
            return -1 - slot_of[place] if place in slot_of else place

        sizes = sizes_of(feeds)
        check_sizes(graph, sizes)
        leaves = (*feeds, *kept)
        number: dict[Node, int] = {}
        for i, node in enumerate((*leaves, *graph.outputs)):
            number.setdefault(node, i)
        self.manifest = Manifest(
            sizes=sizes,
            feeds=tuple(self.tensor(i, n) for i, n in enumerate(feeds)),
            kept=tuple(self.tensor(i, n) for i, n in enumerate(kept, len(feeds))),
            constants=tuple((self.tensor(i, n), n.op.ref()) for i, n in enumerate(constants)),
            outputs=tuple(self.tensor(i, n) for i, n in enumerate(graph.outputs, len(leaves))),
            arena=tuple(tuple(map(dim_data, slot)) for slot in arena),
            temporaries=tuple(temporaries),
            checks=tuple(_check(test, number) for k in kernels for test in k.tests),
            nonempty=tuple(map(dim_data, demands_of(graph, written))),
            shared=tuple((dim_data(work), dim_data(times)) for _, times, work in shared),
            call_work=CALL_WORK,
            step_work=STEP_WORK,
            stages=stages_of(self.calls, [s.call for s in shared], memory) if shared else (),
        )

    def next(self, node: Node) -> int:
        return self.place.setdefault(node, len(self.place))

    def tensor(self, number: int, node: Node) -> TensorData:
        shape = tuple(map(dim_data, node.type.shape))
        return TensorData(str(number), node.type.dtype.name, shape, self.place[storage(node)])


def _check(test: Test, number: Mapping[Node, int]) -> Check:
    """What a test is to the runtime, its tensors called by their numbers."""
    home = behind_views(test.node)
    what = str(number[home]) if home in number else computed(called(home))
    if test.bound is None:
        return Check(test.code, what, None, None)
    given = behind_moves(test.node)  # what is fed can be tested before anything is done
    feed = str(number[given]) if isinstance(given.op, Leaf) and given in number else None
    least, above = within(test.bound)
    return Check(test.code, what, feed, dim_data(above), dim_data(least))
