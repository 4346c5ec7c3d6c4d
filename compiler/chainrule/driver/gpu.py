"""From a graph to kernels for a GPU: the levels of every program, then PTX and what launches it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from functools import lru_cache

from chainrule import config
from chainrule.codegen.cache import object_cache
from chainrule.codegen.ptx import GpuModule, emit_gpu_module
from chainrule.codegen.steps import Call, Copy, Place, Step, calls_in
from chainrule.collector import uncollected
from chainrule.driver.build import program_key
from chainrule.driver.gpu_trust import target_here
from chainrule.driver.kept import named
from chainrule.driver.kept_gpu import packed_gpu, unpacked_gpu
from chainrule.driver.lower import Levels, lower_all
from chainrule.driver.sizes import dim_data
from chainrule.driver.wanted import Clock, Wanted, label
from chainrule.errors import CompileError
from chainrule.ir.graph import Graph
from chainrule.ir.node import Node
from chainrule.ir.size import Size, divide, typical
from chainrule.ir.types import DType, uint8, uint32
from chainrule.loops import minibatch
from chainrule.loops.launch import BLOCK, Launch
from chainrule.records import dataclass
from chainrule.schedule.budget import Budget
from chainrule.schedule.kernel import Form
from chainrule.target import Target
from chainrule.target.gpu import GPUS, OLDEST, gpu
from chainrule_runtime.errors import DeviceError
from chainrule_runtime.gpu import driver
from chainrule_runtime.gpu.commands import (
    PER_LAUNCH,
    Command,
    GpuCode,
    KernelLaunch,
    Repeated,
    Spot,
)
from chainrule_runtime.manifest import Manifest

#: of more launches one kernel would be long in compiling
FEW = 40
_COPY_WORDS, _COPY_BYTES = "copy_words", "copy_bytes"


@dataclass(frozen=True)
class CompiledGpu:
    """A program for a GPU: what it was, and what is launched of which kernels.

    `made` gives what became of it on its way, which a program that was found compiled has not gone.
    """

    source: Graph
    manifest: Manifest
    code: GpuCode = field(repr=False)
    target: Target
    seconds: Mapping[str, float]
    feeds: tuple[Node, ...]
    kept: tuple[Node, ...]
    precision: str | None
    made: Callable[[], tuple[Levels, GpuModule]] = field(repr=False)

    @property
    def levels(self) -> Levels:
        """The program at every level above LLVM's."""
        return self.made()[0]

    @property
    def module(self) -> GpuModule:
        """Its kernels before they were PTX."""
        return self.made()[1]


def gpu_target() -> Target:
    """What to compile for: what CHAINRULE_GPU names, else the GPU that is here, else the oldest,
    whose code every newer one runs.
    """
    wanted = config.GPU.value()
    if wanted:
        if wanted not in GPUS:
            raise CompileError(
                f"{config.GPU.variable}={wanted} names no GPU", f"there are {', '.join(GPUS)}"
            )
        return GPUS[wanted]
    try:
        return target_here(driver.find())[0]
    except DeviceError:
        return gpu(OLDEST)


@uncollected
def build_gpu(
    graph: Graph,
    *,
    feeds: Sequence[Node],
    kept: Sequence[Node] = (),
    outputs: Sequence[str],
    finite: Sequence[int] = (),
    precision: str | None = None,
    epochs: bool = False,
    budget: Budget | None = None,
    target: Target | None = None,
) -> CompiledGpu:
    """Compile a graph for a GPU, which need not be here; the parameters are those of `build`.

    With `epochs` there are the kernels besides that a loop over minibatches needs. A program that
    was compiled before is found, where it was kept. Raises CompileError.
    """
    clock = Clock()
    machine = target or gpu_target()
    wanted = Wanted(
        tuple(feeds), tuple(kept), tuple(finite), epochs, False, machine, precision, budget
    )
    cache = object_cache()
    key = cache and program_key(graph, wanted)
    content = cache.get(key) if cache and key else None
    found = unpacked_gpu(content) if content else None
    clock.lap("key")

    @lru_cache(maxsize=1)
    def made() -> tuple[Levels, GpuModule]:
        levels = lower_all(graph, wanted, clock)
        helpers = {**copies(), **_helpers(graph, wanted)}
        built = [b.launches for b in levels.built]
        module = emit_gpu_module(
            built, helpers, machine, resident=wanted.epochs and _is_tiny(built)
        )
        clock.lap("llvm text")
        return levels, module

    if found is None:
        levels, module = made()
        ptx = module.ptx()
        clock.lap("ptx")
        launches = {id(b.program): b.launches for b in levels.built}
        commands = commands_of(levels.calls, launches, module.names, _parts(levels))
        found = levels.manifest, GpuCode(ptx, commands, (), module.resident, module.row)
        if cache and key:
            cache.put(key, packed_gpu(*found))
    manifest, code = found
    changed = tuple(label(leaf) for leaf, _ in graph.updates)
    return CompiledGpu(
        graph, named(manifest, [*map(label, (*feeds, *kept)), *outputs]),
        replace(code, changed=changed), machine, dict(clock.seconds), wanted.feeds, wanted.kept,
        precision, made,
    )  # fmt: skip


def _is_tiny(programs: Sequence[Sequence[Launch]]) -> bool:
    """Whether launches are of about a block each at usual sizes, and few: others had better be on
    all of a GPU.
    """
    blocks = [typical(x.blocks) for launches in programs for x in launches]
    return len(blocks) <= FEW and sum(blocks) <= PER_LAUNCH * len(blocks)


def _parts(levels: Levels) -> dict[int, int]:
    """The number of the kernel that each call is, by the call's identity."""
    numbers = [i for i, k in enumerate(levels.kernels) if k.form is not Form.SCAN]
    return {id(c): i for c, i in zip(calls_in(levels.calls), numbers, strict=True)}


def _helpers(graph: Graph, wanted: Wanted) -> dict[str, Launch]:
    """Kernels that a loop over minibatches needs, by name."""
    if not wanted.epochs:
        return {}
    found = {"advance": minibatch.advance()}
    found |= {f"gather_{t}": minibatch.gather(t) for t in _types(wanted.feeds)}
    return found | {f"log_{t}": minibatch.log(t) for t in _types(graph.outputs)}


def copies() -> dict[str, Launch]:
    """The kernels that `commands_of` copies by, by name."""
    return {_COPY_WORDS: minibatch.copy(uint32), _COPY_BYTES: minibatch.copy(uint8)}


def _types(nodes: Sequence[Node]) -> dict[DType, None]:
    return dict.fromkeys(n.type.dtype for n in nodes)


def commands_of(
    steps: Sequence[Step],
    launches: Mapping[int, Sequence[Launch]],
    names: Mapping[int, str],
    parts: Mapping[int, int] = {},
) -> tuple[Command, ...]:
    """What the runtime does in the place of each step; `parts` are what kernels' numbers are, by
    the identity of calls.
    """
    out: list[Command] = []
    for step in steps:
        if isinstance(step, Call):
            spots = tuple(map(_spot, step.buffers))
            for x in launches[id(step.program)]:
                sizes = tuple(dim_data(Size.symbol(s)) for s in x.program.sizes)
                blocks = dim_data(x.blocks)
                part = parts.get(id(step), -1)
                out.append(
                    KernelLaunch(names[id(x)], spots, sizes, blocks, x.threads, part, x.dynamic)
                )
        elif isinstance(step, Copy):
            out.append(_copy(step))
        else:
            inside = commands_of(step.steps, launches, names, parts)
            out.append(Repeated(dim_data(step.length), inside, step.reverse))
    return tuple(out)


def _copy(step: Copy) -> KernelLaunch:
    """A copy by a kernel, as what follows a failed check must change nothing: by words of 4 bytes
    where all places are multiples of them.
    """
    places = (step.source, step.target)
    moves = [place.start for place in places]
    moves += [size for place in places for _, size in place.moves]
    words = divide(step.size, 4)
    if words is None or any(divide(size, 4) is None for size in moves):
        name, count = _COPY_BYTES, step.size
    else:
        name, count = _COPY_WORDS, words
    spots = _spot(step.source), _spot(step.target)
    blocks = (count + BLOCK - 1) // BLOCK
    return KernelLaunch(name, spots, (dim_data(count),), dim_data(blocks), BLOCK)


def _spot(place: int | Place) -> Spot:
    if isinstance(place, int):
        return Spot(place)
    moves = tuple((loop, dim_data(size)) for loop, size in place.moves)
    return Spot(place.entry, moves, dim_data(place.start))
