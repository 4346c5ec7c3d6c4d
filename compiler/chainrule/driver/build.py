"""A program made, or found as it was made before: from a graph to native code in this process.

The levels between are imported when a program is made: one that is found starts without them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from chainrule.codegen.cache import key_of, object_cache
from chainrule.codegen.host import host_target
from chainrule.codegen.native import Loaded, NativeObject, compile_object, load
from chainrule.codegen.team import has_threads
from chainrule.collector import uncollected
from chainrule.driver.calibrate import calibrate, calibrated, worth_sharing
from chainrule.driver.kept import named, packed, unpacked
from chainrule.driver.wanted import Clock, Wanted, label
from chainrule.errors import CompileError
from chainrule.ir import provenance
from chainrule.ir.describe import Unwritten, described, written
from chainrule.ir.graph import Graph, walk
from chainrule.ir.node import Node
from chainrule.ops.body import is_local
from chainrule.ops.source import Leaf
from chainrule.records import dataclass
from chainrule.target import Target
from chainrule.target.speeds import Speeds
from chainrule_runtime import Crew, threads_for
from chainrule_runtime.manifest import Manifest, TunedThreads

if TYPE_CHECKING:
    from chainrule.driver.lower import Levels
    from chainrule.schedule.budget import Budget


@dataclass(frozen=True)
class Compiled:
    """A program, loaded: what it was, what calls it, where its code starts.

    `made` gives what became of it on its way, which a program that was found compiled has not gone.
    """

    manifest: Manifest
    native: NativeObject
    loaded: Loaded = field(repr=False)
    seconds: Mapping[str, float]
    feeds: tuple[Node, ...]
    kept: tuple[Node, ...]
    threads: int | None
    precision: str | None
    write: Callable[[], Graph] = field(repr=False)
    made: Callable[[], Levels] = field(repr=False)

    @property
    def source(self) -> Graph:
        """What was compiled, which one that was found may have yet to write."""
        return self.write()

    @cached_property
    def levels(self) -> Levels:
        """The program at every level above machine code."""
        return self.made()

    @property
    def shared(self) -> frozenset[int]:
        """The kernels that threads may share, by number."""
        shared = {id(s.call.program) for s in self.levels.shared} if self.crew else set()
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


@uncollected
def build(
    graph: Graph | Unwritten,
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
    """Compile a graph, or find it compiled; one that is unwritten is written to be compiled.

    `feeds` are the leaves given at each call and `kept` those that live between calls, in the order
    in which they are wanted; `outputs` names the graph's outputs, of which those numbered in
    `finite` must be finite before any update is made. With `epochs` there is a native loop over
    minibatches too. So many `threads` at most share a step, None for one a CPU, where the target
    has threads. With a `budget` values are computed again for the arena to fit it. `precision` is
    None or a name in PRECISIONS. With `tune` products and numbers of threads are timed at some
    sizes, and what is fastest is kept with the program. Raises CompileError.
    """
    clock = Clock()
    machine = target or host_target()
    several = threads != 1 and has_threads(machine)
    wanted = Wanted(
        tuple(feeds), tuple(kept), tuple(finite), epochs, several, machine, precision, budget,
        None if tune is None else tuple(sorted(tune.items())),
        threads_for(threads) if tune is not None and several else 1,
        _speeds(machine, tune is not None),
    )  # fmt: skip
    cache = object_cache()
    key = cache and program_key(graph, wanted)
    content = cache.get(key) if cache and key else None
    found = unpacked(content) if content else None
    clock.lap("key")

    @lru_cache(maxsize=1)
    def made() -> Levels:
        from chainrule.driver.lower import lower_all

        return lower_all(written(graph), wanted, clock, found[2] if found else None)

    def text() -> str:
        from chainrule.codegen.module import emit_module

        levels = made()
        return emit_module(levels.calls, levels.manifest.sizes, machine, epochs, levels.shared)

    if found is not None:
        manifest, code, _ = found
        native = NativeObject(code, text, machine, cached=True)
    else:
        manifest = made().manifest
        native = compile_object(text(), machine)
        clock.lap("llvm")
    loaded = load(native)
    clock.lap("load")
    if found is None:
        if manifest.shared and wanted.tune is not None:
            manifest = replace(manifest, tuned=_tuned(manifest, loaded, wanted))
            clock.lap("tune threads")
        if cache and key:
            cache.put(key, packed(manifest, native.object, made().choices))
    manifest = _here(manifest) if several else manifest
    labels = [*map(label, (*feeds, *kept)), *outputs]
    return Compiled(
        named(manifest, labels), native, loaded, dict(clock.seconds), wanted.feeds, wanted.kept,
        threads, precision, lambda: written(graph), made,
    )  # fmt: skip


def _here(manifest: Manifest) -> Manifest:
    """A manifest with as much work asked of what threads share as they need on this machine."""
    call_work, step_work = worth_sharing(manifest.call_work, manifest.step_work)
    return replace(manifest, call_work=call_work, step_work=step_work)


def _speeds(machine: Target, measured: bool) -> Speeds | None:
    """What is known of the speeds of this machine, which are `measured` if they are needed."""
    if machine != host_target():
        return None
    return calibrated() or (calibrate() if measured else None)


def _tuned(manifest: Manifest, loaded: Loaded, wanted: Wanted) -> TunedThreads:
    """How many threads are fastest at the sizes that a program is tuned at."""
    from chainrule.driver.crews import tuned_threads

    return tuned_threads(_here(manifest), loaded, dict(wanted.tune or ()), wanted.threads)


def program_key(graph: Graph | Unwritten, wanted: Wanted) -> bytes | None:
    """A digest of all that decides what a program becomes; None where that can't be told."""
    content = None if isinstance(graph, Graph) else graph.tell()
    if content is None:
        content = _told(written(graph), wanted)
    if content is None:
        return None
    options = replace(wanted, feeds=(), kept=())  # which are told by their places
    return key_of([content, repr((len(wanted.feeds), options))])


def _told(graph: Graph, wanted: Wanted) -> str | None:
    """A graph as text that no other has; None where that can't be told."""
    given = (*wanted.feeds, *wanted.kept)
    content = described(graph.roots, given)
    place = {node: i for i, node in enumerate(given)}
    changed = [place.get(leaf) for leaf, _ in graph.updates]
    return content and f"graph {len(graph.outputs)} {changed}\n{content}"


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
