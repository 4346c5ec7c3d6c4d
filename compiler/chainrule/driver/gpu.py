"""From a graph to kernels for a GPU: the levels of every program, then PTX and what launches it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from functools import lru_cache

from chainrule import config
from chainrule.codegen.cache import object_cache
from chainrule.codegen.ptx import GpuModule, emit_gpu_module
from chainrule.codegen.steps import calls_in
from chainrule.collector import uncollected
from chainrule.driver.build import program_key
from chainrule.driver.gpu_commands import commands_of, copies, is_tiny
from chainrule.driver.gpu_trust import target_here
from chainrule.driver.gpu_tune import Tuner
from chainrule.driver.kept import named
from chainrule.driver.kept_gpu import packed_gpu, unpacked_gpu
from chainrule.driver.lower import Levels, lower_all
from chainrule.driver.tuning import Tuning
from chainrule.driver.wanted import Clock, Wanted, label
from chainrule.errors import CompileError
from chainrule.ir.graph import Graph
from chainrule.ir.node import Node
from chainrule.ir.types import DType
from chainrule.loops import minibatch
from chainrule.loops.launch import Launch
from chainrule.records import dataclass
from chainrule.schedule.budget import Budget
from chainrule.schedule.kernel import Form
from chainrule.target import Target
from chainrule.target.gpu import GPUS, OLDEST, gpu
from chainrule_runtime.errors import DeviceError
from chainrule_runtime.gpu import driver
from chainrule_runtime.gpu.commands import GpuCode
from chainrule_runtime.manifest import Manifest


@dataclass(frozen=True)
class CompiledGpu:
    """A program for a GPU: what it was, and what is launched of which kernels.

    `made` gives what became of it on its way, which a program that was found compiled has not gone.
    `tuned` tells what was timed for it, if it was asked for.
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
    tuned: Tuning | None = None

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
    tune: Mapping[str, int] | None = None,
) -> CompiledGpu:
    """Compile a graph for a GPU, which need not be here; the parameters are those of `build`.

    With `epochs` there are the kernels besides that a loop over minibatches needs. With `tune` the
    dearest products are timed in several ways on the GPU that is here, at some sizes, and the
    fastest of each is kept, for that GPU, its driver and cuBLASLt. A program that was compiled
    before is found, where it was kept. Raises CompileError.
    """
    clock = Clock()
    machine = target or gpu_target()
    tuner = None if tune is None else Tuner(machine, tune, epochs)
    wanted = Wanted(
        tuple(feeds), tuple(kept), tuple(finite), epochs, False, machine, precision, budget,
        tuner.asked if tuner else None, device=tuner.device if tuner else "",
    )  # fmt: skip
    cache = object_cache()
    key = cache and program_key(graph, wanted)
    content = cache.get(key) if cache and key else None
    found = unpacked_gpu(content) if content else None
    clock.lap("key")

    @lru_cache(maxsize=1)
    def made() -> tuple[Levels, GpuModule]:
        known = found[2] if found else None
        levels = lower_all(graph, wanted, clock, known, tuner)
        helpers = {**copies(), **_helpers(graph, wanted)}
        built = [b.launches for b in levels.built]
        stays = wanted.epochs and is_tiny(levels.built)
        module = emit_gpu_module(built, helpers, machine, resident=stays)
        clock.lap("llvm text")
        return levels, module

    if found is None:
        levels, module = made()
        ptx = module.ptx()
        clock.lap("ptx")
        commands = commands_of(levels.calls, levels.built, module.names, _parts(levels))
        code = GpuCode(ptx, commands, (), module.resident, module.row)
        found = levels.manifest, code, dict(levels.choices), tuner.found if tuner else None
        if cache and key and (tuner is None or tuner.found.lasts):
            cache.put(key, packed_gpu(*found))
    manifest, code, _, tuned = found
    tuned = tuner.found if tuner and not tuner.device else tuned
    changed = tuple(label(leaf) for leaf, _ in graph.updates)
    return CompiledGpu(
        graph, named(manifest, [*map(label, (*feeds, *kept)), *outputs]),
        replace(code, changed=changed), machine, dict(clock.seconds), wanted.feeds, wanted.kept,
        precision, made, tuned,
    )  # fmt: skip


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


def _types(nodes: Sequence[Node]) -> dict[DType, None]:
    return dict.fromkeys(n.type.dtype for n in nodes)
