"""The compiler on one page: from a graph to native code, level by level."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

from chainrule.codegen.cache import key_of, object_cache
from chainrule.codegen.host import host_target
from chainrule.codegen.module import (
    CALL_WORK,
    STEP_WORK,
    emit_module,
    shared_calls,
)
from chainrule.codegen.native import Loaded, NativeObject, compile_object, load
from chainrule.codegen.steps import Place, Step
from chainrule.codegen.team import has_threads
from chainrule.driver.budget import fused, kept_memory, made_to_fit
from chainrule.driver.calibrate import calibrate, calibrated, worth_sharing
from chainrule.driver.kept import computed, named, packed, unpacked
from chainrule.driver.order import CallOrder
from chainrule.driver.sizes import all_nodes, check_sizes, demands_of, dim_data, sizes_of
from chainrule.driver.stages import stages_of
from chainrule.driver.tune import tuned
from chainrule.driver.workspace import workspace_of
from chainrule.errors import CompileError
from chainrule.ir import provenance
from chainrule.ir.describe import described
from chainrule.ir.graph import Graph, walk
from chainrule.ir.node import Node, within
from chainrule.ir.passes import Pass, PassRecord, run_passes, uncollected
from chainrule.ir.size import Dim
from chainrule.loops.build import Built, build_kernels
from chainrule.loops.choice import Choice
from chainrule.loops.parts import work_of
from chainrule.ops.body import is_local
from chainrule.ops.source import Constant, Leaf
from chainrule.rewrite.narrow import PRECISIONS
from chainrule.rewrite.passes import (
    attend,
    canonicalize,
    drop_unread,
    drop_unused,
    expand_composites,
    lower,
    order_contractions,
    share_steps,
    simplify,
    spread,
    stabilize,
    widen,
)
from chainrule.schedule.buffers import Plan, plan_buffers, plan_loops
from chainrule.schedule.kernel import Kernel, Test, every
from chainrule.schedule.lighten import lighten
from chainrule.schedule.materialize import materialize
from chainrule.schedule.reading import storage
from chainrule.schedule.recompute import Budget, Fitted
from chainrule.target import Target
from chainrule_runtime import Crew
from chainrule_runtime.manifest import Check, Manifest
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
        order_contractions,
        lower,
        drop_unused,
        share_steps,
        drop_unread,
        spread,
        lighten,
        materialize,
    )
)


def passes_for(precision: str | None, threads: bool = False) -> tuple[Pass, ...]:
    """The passes in order; with a precision, products get its factors once their order is known,
    those of attention too. For a GPU, whose lanes are `threads`, attention is its products as well.
    """
    if precision is None:
        return tuple(p for p in PASSES if p.run is not attend) if threads else PASSES
    narrow = PRECISIONS[precision]
    passes = [p for p in PASSES if p.run is not attend]
    after = [p.name for p in passes].index("order_contractions") + 1
    here = Pass(narrow.__name__, narrow, narrow.__doc__ or "")
    return (*passes[:after], here, *passes[after:])


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
    manifest: Manifest  # without names, see driver.kept
    fitted: Fitted | None
    choices: Mapping[int, Choice]


@dataclass(frozen=True)
class Compiled:
    """A program, loaded: what it was, what calls it, where its code starts.

    `made` gives what became of it on its way, which a program that was found compiled has not gone.
    """

    source: Graph
    manifest: Manifest
    native: NativeObject
    loaded: Loaded = field(repr=False)
    seconds: Mapping[str, float]
    feeds: tuple[Node, ...]
    kept: tuple[Node, ...]
    threads: int | None
    precision: str | None
    made: Callable[[], Levels] = field(repr=False)

    @cached_property
    def levels(self) -> Levels:
        """The program at every level above machine code."""
        return self.made()

    @property
    def shared(self) -> frozenset[int]:
        """The kernels that threads may share, by number."""
        calls = shared_calls(self.levels.calls) if self.crew else []
        shared = {id(call.program) for call, _ in calls}
        return frozenset(i for i, b in enumerate(self.levels.built) if id(b.program) in shared)

    @property
    def crew(self) -> Crew | None:
        """What threads that share a step run; None where nothing is to be shared."""
        if not self.manifest.shared:
            return None
        return Crew(self.threads, self.loaded.address("work"), self.loaded.address("dismiss"))

    @property
    def step_address(self) -> int:
        """Where `i32 step(table, sizes)` starts."""
        return self.loaded.address("step")

    @property
    def direct_address(self) -> int:
        """Where the call on array headers starts."""
        return self.loaded.address("direct")

    @property
    def run_address(self) -> int:
        """Where the native loop over minibatches starts."""
        return self.loaded.address("run")


@dataclass(frozen=True)
class Wanted:
    """All that decides what a graph becomes, beside the graph itself; see `build`."""

    feeds: tuple[Node, ...]
    kept: tuple[Node, ...]
    finite: tuple[int, ...]
    epochs: bool
    several: bool
    machine: Target
    precision: str | None
    budget: Budget | None
    tune: tuple[tuple[str, int], ...] | None = None


@uncollected
def build(
    graph: Graph,
    *,
    feeds: Sequence[Node],
    kept: Sequence[Node] = (),
    outputs: Sequence[str],
    finite: Sequence[int] = (),
    epochs: bool = False,
    target: Target | None = None,
    threads: int | None = None,
    precision: str | None = None,
    budget: Budget | None = None,
    tune: Mapping[str, int] | None = None,
) -> Compiled:
    """Compile a graph, or find it compiled.

    `feeds` are the leaves given at each call and `kept` those that live between calls, in the order
    in which they are wanted; `outputs` names the graph's outputs, of which those numbered in
    `finite` must be finite before any update is made. With `epochs` there is a native loop over
    minibatches too. So many `threads` at most share a step, None for one a CPU, where the target
    has threads. With a `budget` values are computed again for the arena to fit it. `precision` is
    None or a name in PRECISIONS. With `tune` products are timed at some sizes, and what is faster
    than what sizes say is kept with the program. Raises CompileError.
    """
    clock = _Clock()
    machine = target or host_target()
    several = threads != 1 and has_threads(machine)
    wanted = Wanted(
        tuple(feeds), tuple(kept), tuple(finite), epochs, several, machine, precision, budget,
        None if tune is None else tuple(sorted(tune.items())),
    )  # fmt: skip
    cache = object_cache()
    key = cache and program_key(graph, wanted)
    content = cache.get(key) if cache and key else None
    found = unpacked(content) if content else None
    clock.lap("key")

    @lru_cache(maxsize=1)
    def made() -> Levels:
        return lower_all(graph, wanted, clock, found[2] if found else None)

    def text() -> str:
        return emit_module(made().calls, made().manifest.sizes, machine, epochs, several)

    if found is not None:
        manifest, code, _ = found
        native = NativeObject(code, text, machine, cached=True)
    else:
        manifest = made().manifest
        native = compile_object(text(), machine)
        clock.lap("llvm")
        if cache and key:
            cache.put(key, packed(manifest, native.object, made().choices))
    loaded = load(native)
    clock.lap("load")
    if several:
        call_work, step_work = worth_sharing(manifest.call_work, manifest.step_work)
        manifest = replace(manifest, call_work=call_work, step_work=step_work)
    labels = [*map(_label, (*feeds, *kept)), *outputs]
    return Compiled(
        graph, named(manifest, labels), native, loaded, dict(clock.seconds), wanted.feeds,
        wanted.kept, threads, precision, made,
    )  # fmt: skip


def lower_all(
    graph: Graph, wanted: Wanted, clock: _Clock, choices: Mapping[int, Choice] | None = None
) -> Levels:
    """A graph at every level above machine code, each made of the one before; `choices` are those
    that had been made for it.
    """
    final, records = run_passes(graph, passes_for(wanted.precision, wanted.machine.threads))
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
    built = build_kernels(flat, wanted.machine, choices)
    clock.lap("loops")
    if choices is None and wanted.tune is not None:
        choices = tuned(flat, built, dict(wanted.tune), wanted.machine, calibrated() or calibrate())
        built = build_kernels(flat, wanted.machine, choices)
        clock.lap("tune")
    layout = _Layout(final, graph, kernels, built, plan, wanted)
    clock.lap("layout")
    return Levels(
        final, records, tuple(flat), plan, tuple(built), layout.workspace, layout.loops,
        layout.calls, layout.manifest, fitted, choices or {},
    )  # fmt: skip


def program_key(graph: Graph, wanted: Wanted) -> bytes | None:
    """A digest of all that decides what a program becomes; None where that can't be told."""
    given = (*wanted.feeds, *wanted.kept)
    content = described(graph.roots, given)
    if content is None:
        return None
    place = {node: i for i, node in enumerate(given)}
    changed = [place.get(leaf) for leaf, _ in graph.updates]
    options = replace(wanted, feeds=(), kept=())  # which are told by their places
    return key_of([content, repr((len(wanted.feeds), len(graph.outputs), changed, options))])


class _Clock:
    """Seconds spent in each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage], self.last = now - self.last, now


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
        shared = shared_calls(self.calls) if several else []
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
            shared=tuple(
                (dim_data(work_of(call.program)), dim_data(times)) for call, times in shared
            ),
            call_work=CALL_WORK,
            step_work=STEP_WORK,
            stages=stages_of(self.calls, [call for call, _ in shared], memory) if shared else (),
        )

    def next(self, node: Node) -> int:
        return self.place.setdefault(node, len(self.place))

    def tensor(self, number: int, node: Node) -> TensorData:
        shape = tuple(map(dim_data, node.type.shape))
        return TensorData(str(number), node.type.dtype.name, shape, self.place[storage(node)])


def _label(node: Node) -> str:
    assert isinstance(node.op, Leaf)
    return node.op.label


def called(node: Node) -> str:
    """What a computed tensor is called; one that only repeats or cuts another, as that is."""
    node = _behind_views(node)
    return provenance.name_of(node) or str(node.op.name)


def _behind_views(node: Node) -> Node:
    while provenance.name_of(node) is None and node.op.role == "view" and len(node.inputs) == 1:
        (node,) = node.inputs
    return node


def _check(test: Test, number: Mapping[Node, int]) -> Check:
    """What a test is to the runtime, its tensors called by their numbers."""
    home = _behind_views(test.node)
    what = str(number[home]) if home in number else computed(called(home))
    if test.bound is None:
        return Check(test.code, what, None, None)
    feed = what if home is test.node and isinstance(home.op, Leaf) and home in number else None
    least, above = within(test.bound)
    return Check(test.code, what, feed, dim_data(above), dim_data(least))


def leaves_of(roots: Sequence[Node]) -> list[Node]:
    """The leaves that roots depend on, in order of creation."""
    found = [n for n in walk(roots) if isinstance(n.op, Leaf)]
    for node in filter(is_local, found):
        raise CompileError(
            f"{node!r} belongs to the body of a scan and means nothing outside",
            "let the body return what is needed, as its carry or its y",
            where=provenance.line_of(node),
        )
    return sorted(found, key=lambda n: n.op.serial)  # type: ignore[attr-defined]
