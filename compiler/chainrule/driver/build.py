"""The compiler on one page: from a graph to native code, level by level."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

from chainrule.codegen.cache import key_of
from chainrule.codegen.host import host_target
from chainrule.codegen.module import (
    CALL_WORK,
    STEP_WORK,
    describe,
    emit_module,
    shared_calls,
)
from chainrule.codegen.native import Loaded, NativeObject, cached_object, load
from chainrule.codegen.steps import Place, Step
from chainrule.codegen.team import has_threads
from chainrule.driver.order import CallOrder
from chainrule.driver.stages import stages_of
from chainrule.errors import CompileError
from chainrule.ir import provenance
from chainrule.ir.graph import Graph, walk
from chainrule.ir.node import Node, within
from chainrule.ir.passes import Pass, PassRecord, run_passes
from chainrule.ir.size import Dim, Quotient, Size, is_nonnegative, symbols_of
from chainrule.loops.build import Built, build_kernels
from chainrule.loops.parts import work_of
from chainrule.ops.body import is_local
from chainrule.ops.source import Constant, Leaf
from chainrule.rewrite.narrow import PRECISIONS
from chainrule.rewrite.passes import (
    canonicalize,
    drop_unread,
    drop_unused,
    expand_composites,
    lower,
    order_contractions,
    share_steps,
    simplify,
    stabilize,
    widen,
)
from chainrule.schedule.buffers import Plan, plan_buffers
from chainrule.schedule.fuse import fuse
from chainrule.schedule.kernel import Kernel, Test, every
from chainrule.schedule.materialize import materialize
from chainrule.schedule.reading import storage
from chainrule.schedule.recompute import Budget, Fitted, fit
from chainrule.target import Target
from chainrule_runtime import Crew
from chainrule_runtime.manifest import PARTS, Check, DimData, Manifest
from chainrule_runtime.manifest import Tensor as TensorData

#: The passes over the graph, in order; what follows are the levels below it.
PASSES: tuple[Pass, ...] = tuple(
    Pass(p.__name__, p, p.__doc__ or "")
    for p in (
        canonicalize,
        stabilize,
        simplify,
        widen,
        expand_composites,
        order_contractions,
        lower,
        drop_unused,
        share_steps,
        drop_unread,
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
class Compiled:
    """A program at every level, loaded: what it was, what became of it, where its code starts."""

    source: Graph
    graph: Graph
    passes: tuple[PassRecord, ...]
    kernels: tuple[Kernel, ...]
    plan: Plan
    built: tuple[Built, ...]
    manifest: Manifest
    native: NativeObject
    loaded: Loaded = field(repr=False)
    seconds: Mapping[str, float]
    epochs: bool
    feeds: tuple[Node, ...]
    kept: tuple[Node, ...]
    workspace: tuple[tuple[Dim, ...], ...]
    threads: int | None
    calls: tuple[Step, ...] = field(repr=False)
    fitted: Fitted | None
    precision: str | None

    @property
    def shared(self) -> frozenset[int]:
        """The kernels that threads may share, by number."""
        shared = {id(c.program) for c, _ in shared_calls(self.calls)} if self.crew else set()
        return frozenset(i for i, b in enumerate(self.built) if id(b.program) in shared)

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
) -> Compiled:
    """Compile a graph.

    `feeds` are the leaves given at each call and `kept` those that live between calls, in the order
    in which they are wanted; `outputs` names the graph's outputs, of which those numbered in
    `finite` must be finite before any update is made. With `epochs` there is a native loop over
    minibatches too. So many `threads` at most share a step, None for one a CPU, where the target
    has threads. With a `budget` values are computed again for the arena to fit it. `precision` is
    None or a name in PRECISIONS. Raises CompileError.
    """
    clock = _Clock()
    machine = target or host_target()
    final, records = run_passes(graph, passes_for(precision))
    clock.lap("passes")
    kernels = fuse(final, [final.outputs[i] for i in finite])
    clock.lap("fuse")
    fitted = None
    if budget is not None:
        fitted = fit(kernels, _kept_memory(final), budget)
        kernels = list(fitted.kernels)
        clock.lap("recompute")
    plan = fitted.plan if fitted else plan_buffers(kernels, _kept_memory(final))
    clock.lap("plan buffers")
    flat = every(kernels)
    built = build_kernels(flat, machine)
    clock.lap("loops")
    several = threads != 1 and has_threads(machine)
    layout = _Layout(final, graph, kernels, built, plan, feeds, kept, outputs, several)
    module = layout.calls, layout.manifest.sizes, machine
    key = key_of([str(epochs), str(several), *describe(*module)])
    clock.lap("key")
    native = cached_object(key, lambda: emit_module(*module, epochs, several), machine)
    loaded = load(native)
    clock.lap("llvm")
    return Compiled(
        graph, final, records, tuple(flat), plan, tuple(built), layout.manifest, native, loaded,
        clock.seconds, epochs, tuple(feeds), tuple(kept), layout.workspace, threads,
        layout.calls, fitted, precision,
    )  # fmt: skip


class _Clock:
    """Seconds spent in each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage], self.last = now - self.last, now


def _kept_memory(graph: Graph) -> list[Node]:
    """Values with memory of their own: what the caller reads after the call."""
    return [storage(o) for o in graph.outputs]


class _Layout:
    """The table of buffers: each value's place in it, and the calls that use them."""

    def __init__(
        self,
        graph: Graph,
        written: Graph,
        kernels: Sequence[Kernel],
        built: Sequence[Built],
        plan: Plan,
        feeds: Sequence[Node],
        kept: Sequence[Node],
        names: Sequence[str],
        several: bool,
    ) -> None:
        self.place: dict[Node, int] = {}
        given = [n for n in graph.nodes if n.op.role == "leaf" and not isinstance(n.op, Constant)]
        missing = [n for n in given if n not in set(feeds) | set(kept)]
        if missing:
            raise CompileError(f"nothing gives {missing[0]!r} a value")
        for node in (*feeds, *kept):
            self.next(node)
        constants = [n for n in _all_nodes(graph) if isinstance(n.op, Constant)]
        for node in constants:
            self.next(node)
        for node in graph.outputs:
            self.next(storage(node))
        places = {node: Place(i) for node, i in self.place.items()}
        slots = {made: Place(len(places) + i) for i, made in enumerate(plan.slot)}
        temporaries = [(slots[made].entry, slot) for made, slot in plan.slot.items()]
        work = _workspace(built, several)
        workspace, begin = work.slots, len(places) + len(slots)
        order = CallOrder(
            dict(zip(every(kernels), built, strict=True)),
            {id(b): [begin + i for i in used] for b, used in zip(built, work.used, strict=True)},
            {node: places[node] for node in constants},
            begin + len(workspace),
        )
        self.calls = order.steps(kernels, places, slots)
        self.place = {node: place.entry for node, place in places.items()}
        self.workspace = (*workspace, *map(tuple, order.slots))
        arena = [*plan.slots, *self.workspace]
        own = range(begin, order.first + len(order.slots))
        temporaries += [(place, len(plan.slots) + i) for i, place in enumerate(own)]
        shared = shared_calls(self.calls) if several else []
        private = {begin + i for i in work.private}
        slot_of = dict(temporaries)

        def memory(place: int) -> int | None:
            if place in private:
                return None
            return -1 - slot_of[place] if place in slot_of else place

        sizes = sizes_of(feeds)
        _check_sizes(graph, sizes)
        self.manifest = Manifest(
            sizes=sizes,
            feeds=tuple(self.tensor(_label(n), n) for n in feeds),
            kept=tuple(self.tensor(_label(n), n) for n in kept),
            constants=tuple((self.tensor("constant", n), n.op.ref()) for n in constants),
            outputs=tuple(self.tensor(s, n) for s, n in zip(names, graph.outputs, strict=True)),
            arena=tuple(tuple(map(dim_data, slot)) for slot in arena),
            temporaries=tuple(temporaries),
            checks=tuple(_check(test) for k in kernels for test in k.tests),
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

    def tensor(self, name: str, node: Node) -> TensorData:
        shape = tuple(map(dim_data, node.type.shape))
        return TensorData(name, node.type.dtype.name, shape, self.place[storage(node)])


class _Workspace(NamedTuple):
    """Sizes in bytes that slots hold in turn, those that each of the built uses, in its order, and
    those of which each thread has a stretch of its own.
    """

    slots: tuple[tuple[Dim, ...], ...]
    used: list[list[int]]
    private: frozenset[int]


def _workspace(built: Sequence[Built], several: bool) -> _Workspace:
    """What kernels use in turn: their i-th scratch buffers share one slot.

    With `several` threads each has a private buffer of its own, of a multiple of 64 bytes, and only
    those of one size share a slot: so a thread's stretch of it is the same for all of them.
    """
    number: dict[object, int] = {}
    slots: list[dict[Dim, None]] = []
    private: set[int] = set()

    def slot(key: object, size: Dim) -> int:
        at = number.setdefault(key, len(slots))
        slots.extend({} for _ in range(at + 1 - len(slots)))
        slots[at][size] = None
        return at

    def one(b: Built) -> Iterator[int]:
        common, own = count(), Counter[Dim]()
        for buffer in b.scratch:
            size = buffer.size * buffer.dtype.itemsize
            if several and buffer.private:
                each = (size + 63) // 64 * 64
                own[each] += 1
                at = slot((each, own[each]), each * Size.symbol(PARTS))
                private.add(at)
            else:
                at = slot(next(common), size)
            yield at

    used = [list(one(b)) for b in built]
    return _Workspace(tuple(map(tuple, slots)), used, frozenset(private))


def _label(node: Node) -> str:
    assert isinstance(node.op, Leaf)
    return node.op.label


def called(node: Node) -> str:
    """What a computed tensor is called; one that only repeats or cuts another, as that is."""
    while provenance.name_of(node) is None and node.op.role == "view" and len(node.inputs) == 1:
        (node,) = node.inputs
    return provenance.name_of(node) or str(node.op.name)


def _check(test: Test) -> Check:
    leaf = test.node.op
    feed = leaf.label if isinstance(leaf, Leaf) and not is_local(test.node) else None
    what = feed or called(test.node)
    if test.bound is None:
        return Check(test.code, what, feed, None)
    least, above = within(test.bound)
    return Check(test.code, what, feed, dim_data(above), dim_data(least))


def sizes_of(leaves: Sequence[Node]) -> tuple[str, ...]:
    """The symbolic sizes that the shapes of leaves speak of, sorted."""
    return tuple(sorted({s for leaf in leaves for d in leaf.type.shape for s in symbols_of(d)}))


def _check_sizes(graph: Graph, known: Sequence[str]) -> None:
    for node in _all_nodes(graph):
        for name in sorted({s for d in node.type.shape for s in symbols_of(d)} - set(known)):
            raise CompileError(
                f"the size {name} of {node!r} can't be known: no input that is needed has it",
                "let an output depend on an input with that size",
                where=provenance.line_of(node),
            )


def demands_of(graph: Graph, written: Graph | None = None) -> list[Dim]:
    """Sizes that must be at least 1 for a graph to have a meaning.

    Those that its ops ask for, and n + 1 for each n that could be below 0 in a shape of it, or of
    what was `written` before passes made this of it.
    """
    found: dict[Dim, None] = {}
    nodes = _all_nodes(graph)
    for node in nodes:
        found.update(dict.fromkeys(node.op.demands(*[i.type for i in node.inputs])))
    before = [] if written is None else _all_nodes(written)
    shapes = dict.fromkeys(node.type.shape for node in (*nodes, *before))
    found.update((d + 1, None) for shape in shapes for d in shape if not is_nonnegative(d))
    return list(found)


def _all_nodes(graph: Graph) -> list[Node]:
    """The nodes of a graph, and those of the bodies of loops in it."""
    bodies = dict.fromkeys(body for node in graph.nodes for body in node.op.bodies())
    return [*graph.nodes, *(node for body in bodies for node in _all_nodes(body))]


def dim_data(dim: Dim) -> DimData:
    """A size as plain data, for the runtime."""
    if not isinstance(dim, Size):
        return dim
    terms = []
    for monomial, c in dim.terms:
        factors: list[object] = []
        for atom in monomial:
            if isinstance(atom, str):
                factors.append(atom)
            else:
                kind = "//" if isinstance(atom, Quotient) else "%"
                factors.append([kind, dim_data(atom.numerator), dim_data(atom.denominator)])
        terms.append([c, factors])
    return {"terms": terms}


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
