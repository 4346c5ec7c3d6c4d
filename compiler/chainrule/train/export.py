"""A training step as a model to export: its graphs lowered, how its state begins, its state now."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from chainrule.codegen.host import host_target
from chainrule.driver import leaves_of
from chainrule.driver.lower import Lowered, lower
from chainrule.errors import CompileError, FeedError
from chainrule.export import (
    Artifact,
    Derivative,
    Drawn,
    Given,
    Model,
    Number,
    Same,
    Size,
    StateTensor,
    Unit,
    Variant,
    about,
    check_examples,
    check_formats,
    check_members,
    compile_kernel,
    formats_of,
    golden_of,
    left_out,
    loss_of,
    narrow,
    state_bytes,
    targets_of,
    with_calls_of,
    write_kernel,
)
from chainrule.given import is_int
from chainrule.ir import provenance
from chainrule.ir.evaluate import evaluate
from chainrule.ir.graph import Graph
from chainrule.ir.node import Node
from chainrule.ir.size import symbols_of
from chainrule.lang import init as initial
from chainrule.lang.derive import gradients
from chainrule.lang.tensor import Tensor
from chainrule.ops import philox
from chainrule.ops.source import Leaf
from chainrule.records import dataclass
from chainrule.show.graph import graph_text
from chainrule.show.text import texts
from chainrule.target import Target
from chainrule.train import checkpoint
from chainrule.train.asked import Export
from chainrule.train.ensemble import Ensemble
from chainrule.train.export_gpu import check_gpu, gpu_named, write_for_gpu
from chainrule.train.plan import EPOCH, SEED, StepPlan, label, nodes_of, rows_of
from chainrule.train.state import static

Array = np.ndarray[Any, Any]


def export(
    wanted: Export,
    plan: StepPlan,
    outputs: Any,
    precision: str | None,
    members: Ensemble | None,
    state: Mapping[str, Array],
    stored: Mapping[str, Array],
    folder: str | os.PathLike[str],
) -> Artifact:
    """Lower, compile and write a step. Raises CompileError and ArtifactError.

    `stored` is the state as it lies in memory, where members of an ensemble stand last.
    """
    wanted.check()
    on_gpu = gpu_named(wanted.target)
    if on_gpu is not None:
        check_gpu(wanted)
        if members is not None:
            raise CompileError("an ensemble can't be exported for a GPU yet", "export one net")
        targets: tuple[Target, ...] = (on_gpu,)
    else:
        strict = wanted.determinism == "strict"
        targets = targets_of(wanted.target, wanted.cpu, wanted.features, strict)
        check_examples(wanted.examples, targets[0])
        if wanted.formats is not None:
            check_formats(wanted.formats)
    small = wanted.optimize == "size" or (wanted.optimize is None and targets[0].bare)
    wanted.check_parts(targets[0], small)
    if members is not None:
        check_members(wanted.formats or (), wanted.examples)
    graphs = _graphs(plan, outputs, members)

    @lru_cache(maxsize=4)
    def lowered(target: Target) -> dict[str, Lowered]:
        return {n: g.lower(target, precision, int(wanted.max_parts)) for n, g in graphs.items()}

    def variant(target: Target) -> Variant:
        shaped = narrow(target) if small else target
        units = {n: Unit(low.calls, low.manifest) for n, low in lowered(shaped).items()}
        if small and graphs["loss"].graph.outputs[0] is plan.graph.outputs[0]:
            units["loss"] = loss_of(units["step"], units["loss"].manifest) or units["loss"]
        if small and "predict" in units:
            units["predict"] = with_calls_of(units["predict"], units["step"])
        return Variant(target, units)

    variants = tuple(map(variant, targets))
    model = Model(
        wanted.name,
        _digest(graphs),
        tuple(_kept(plan, stored, members)),
        SEED,
        tuple(_numbers(plan)),
        tuple(_sizes(plan, graphs, wanted)),
        _sliced(plan),
        variants,
        {},
        small,
        int(wanted.max_parts),
        None if members is None else members.count,
        _derivative(plan, members),
    )
    told = {
        "determinism": wanted.determinism,
        "optimize": "size" if small else "speed",
        "ops": {
            n: [[op.op.name for op in k.nodes] for k in low.kernels]
            for n, low in lowered(targets[0]).items()
        },
        "gradients": {label(w): str(Tensor(g)) for w, g in plan.gradients.items()},
        "mathematics": texts(list(plan.gradients.values())),
    }
    extra = {
        "safetensors": checkpoint.encode(state),
        "state": state_bytes(model, stored, int(state[EPOCH])),
    }
    if on_gpu is not None:
        on_host = replace(model, variants=(variant(host_target()),))
        here = golden_of(on_host, precision in ("tf32", "bfloat16"))
        return write_for_gpu(model, lowered(on_gpu), folder, wanted, extra, told, here)
    model = replace(model, about=about(model, told))
    kernel = compile_kernel(model, lambda v: variant(_on_host(v.target)))
    native = wanted.target == "host"
    examples, formats = wanted.examples, wanted.formats
    if formats is not None:
        return write_kernel(kernel, folder, formats, extra, native, examples)
    formats = formats_of(targets[0], model.members, native)
    art = write_kernel(kernel, folder, formats, extra, native, examples)
    notes = left_out(targets[0], formats)
    return replace(art, notes=tuple(n.replace("NAME", wanted.name) for n in notes))


def _on_host(target: Target) -> Target:
    """This machine, as a target that computes the same bits."""
    here = host_target()
    if target.pairs and not here.pairs:
        raise CompileError(
            f"this machine can't compute what {target.level} does, so the self-test has no result",
            'export it on one that can, or for "x86-64-v4"',
        )
    return replace(here, fma=target.fma and here.fma, pairs=target.pairs, blocks=False)


@dataclass(frozen=True)
class _Function:
    """A graph with its inputs, what it keeps, and what its outputs are called."""

    graph: Graph
    inputs: tuple[Node, ...]
    kept: tuple[Node, ...]
    names: tuple[str, ...]
    trains: bool = False

    def lower(self, target: Target, precision: str | None, parts: int) -> Lowered:
        """What the graph is for a target."""
        return lower(
            self.graph,
            target,
            feeds=self.inputs,
            kept=self.kept,
            outputs=self.names,
            finite=[0] if self.trains else [],
            precision=precision,
            parts=parts,
        )


def _graphs(plan: StepPlan, outputs: Any, members: Ensemble | None) -> dict[str, _Function]:
    """The functions of a kernel: step, loss, and predict where there is something to predict.

    Of an ensemble each gives what all members have.
    """
    nodes = nodes_of(outputs)
    found = {"step": _Function(plan.graph, plan.inputs, plan.kept, plan.names, trains=True)}
    if nodes:
        found["predict"] = _inferred(plan, nodes, _names(outputs, nodes))
    found["loss"] = _inferred(plan, [plan.loss], ["loss"])
    return found if members is None else {n: _of_all(f, members) for n, f in found.items()}


def _of_all(one: _Function, members: Ensemble) -> _Function:
    """A function of all members."""
    graph = members.graph(one.graph, one.kept)
    return replace(one, graph=graph, kept=tuple(map(members.leaf, one.kept)))


def _names(outputs: Any, nodes: Sequence[Node]) -> list[str]:
    """What outputs are called, no two alike: the keys of a dict of them, or their own names."""
    own = [provenance.name_of(n) or f"output{i}" for i, n in enumerate(nodes)]
    if isinstance(outputs, Mapping) and len(outputs) == len(nodes):
        own = list(map(str, outputs))
    names: list[str] = []
    for name in own:
        while name in names:
            name += "_"
        names.append(name)
    return names


def _derivative(plan: StepPlan, members: Ensemble | None) -> Derivative:
    """The gradient of the loss in inference, evaluated in float64; of the first member's loss."""
    (loss,) = plan.predicted([plan.loss]).outputs
    leaves = leaves_of([loss])
    wrt = [w for w in plan.parameters if w in leaves and w.type.dtype.is_float]
    slopes = gradients(loss, wrt, unused="zeros")
    used = [n for n in (*plan.inputs, *plan.kept) if n in leaves_of(slopes)]

    def gradient(arrays: Mapping[str, Array]) -> dict[str, Array]:
        found = evaluate(slopes, {n: arrays[label(n)] for n in used}, widen=True)
        return {label(w): g for w, g in zip(wrt, found, strict=True)}

    def derivative(arrays: Mapping[str, Array]) -> dict[str, Array]:
        if members is None:
            return gradient(arrays)
        kept = {label(n): arrays[label(n)] for n in plan.kept}
        of_first = gradient({**arrays, **members.member(0, kept)})
        return {n: _alone(g, members.count) for n, g in of_first.items()}

    return derivative


def _alone(gradient: Array, count: int) -> Array:
    """The gradient at all members' parameters of what the first one's alone decide."""
    whole = np.zeros((*gradient.shape, count), gradient.dtype)
    whole[..., 0] = gradient
    return whole


def _inferred(plan: StepPlan, outputs: Sequence[Node], names: Sequence[str]) -> _Function:
    graph = plan.predicted(outputs)
    leaves = leaves_of(graph.outputs)
    kept = tuple(n for n in leaves if n in plan.kept)
    inputs = tuple(n for n in leaves if n not in plan.kept)
    return _Function(graph, inputs, kept, tuple(names))


def _sizes(plan: StepPlan, graphs: Mapping[str, _Function], wanted: Export) -> list[Size]:
    """The symbolic sizes in order of first appearance, each with the largest it may be."""
    inputs = dict.fromkeys(n for g in graphs.values() for n in g.inputs)
    names = dict.fromkeys(s for n in inputs for d in n.type.shape for s in sorted(symbols_of(d)))
    if not isinstance(wanted.max_sizes, Mapping):
        raise CompileError(f"max_sizes are numbers by size, a dict, not {wanted.max_sizes!r}")
    unknown = [n for n in wanted.max_sizes if n not in names]
    if unknown:
        raise CompileError(
            f"max_sizes names {unknown[0]!r}, which is no size of this model",
            f"its symbolic sizes are {', '.join(names) or 'none'}",
        )
    batch = rows_of(plan.inputs)
    rows = None if batch is None else str(batch)
    found = []
    for name in names:
        most = wanted.bound(name, rows)
        if most is None:
            raise CompileError(
                f"nothing bounds the size {name}", f"max_sizes={{{name!r}: 128}}, for example"
            )
        if not is_int(most) or most < 1:
            raise CompileError(f"the largest {name} is an int from 1 on, not {most!r}")
        if most >= 2**31:
            raise CompileError(f"the largest {name} is below 2**31, not {most}")
        found.append(Size(name, int(most)))
    return found


def _sliced(plan: StepPlan) -> frozenset[str]:
    """The inputs that minibatches are cut from: those whose axis 0 is the first symbolic size."""
    rows = rows_of(plan.inputs)
    cut = (n for n in plan.inputs if n.type.shape and n.type.shape[0] == rows)
    return frozenset(map(label, cut)) if rows is not None else frozenset()


def _digest(graphs: Mapping[str, _Function]) -> int:
    """64 bits that tell one model from another, whatever file it stands in."""
    import hashlib

    parts = [re.sub(r"(?m)\s*#.*$", "", graph_text(g.graph)) for g in graphs.values()]
    parts += [f"{label(n)} {n.type}" for n in graphs["step"].kept]
    text = "\n".join(parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def _numbers(plan: StepPlan) -> Iterator[Number]:
    """The hyper-parameters that may change, and what is asked of what the state holds of each."""
    for name, number in plan.optimizer.hyperparameters.items():
        if number.leaf is None:
            continue
        kept, range_ = label(number.leaf), number.range
        called = kept.removeprefix("optimizer.")
        low = ("oge", range_.least) if range_.above is None else ("ogt", range_.above)
        high = "olt", range_.below
        if range_.decay:  # from 0 to below 1; what is lacking of 1 from above 0 to 1
            high = ("ole", 1.0 - range_.least)
            if range_.above is not None:
                high = ("olt", 1.0 - range_.above)
            low = ("ogt", 1.0 - range_.below)
        yield Number(name, called, kept, low, high, range_.decay)


def _kept(
    plan: StepPlan, state: Mapping[str, Array], members: Ensemble | None
) -> list[StateTensor]:
    """What lives between calls, and how it begins."""
    own = (*plan.parameters, *plan.states)
    found = []
    for node in plan.kept:
        leaf = node if members is None else members.leaf(node)
        count = None if members is None or leaf is node else members.count
        of, shape = node.type.dtype, static(leaf)
        if node in own:
            role = "parameter" if node in plan.parameters else "state"
            begin: Drawn | Given | Same = _begin(node, own.index(node))
        else:
            role = "optimizer"
            slot = node in plan.optimizer.slots
            begin = _slot(plan, node) if slot else Given(state[label(node)])
            if node in (plan.seed, plan.optimizer.count):
                begin = Given(np.zeros((), of.numpy))
        if isinstance(begin, Given) and begin.array.shape != shape:
            begin = Given(np.broadcast_to(begin.array[..., None], shape))
        found.append(StateTensor(label(node), of, shape, role, begin, count))
    return found


def _begin(node: Node, index: int) -> Drawn | Given:
    assert isinstance(node.op, Leaf)
    shape = static(node)
    try:
        how = initial.rule(node.op.init, shape)
    except FeedError as error:
        raise CompileError(f"{label(node)}: {error.what}", *error.details) from None
    if isinstance(how, np.ndarray):
        wide = np.array(np.broadcast_to(how, shape), node.type.dtype.wide.numpy)
        return Given(wide.astype(node.type.dtype.numpy))
    distribution, scale, shift = how
    if distribution == "orthogonal" and node.type.dtype.wide != node.type.dtype:
        raise CompileError(f"{label(node)}: an orthogonal beginning is float32 or float64")
    return Drawn(distribution, philox.INITIAL_DRAWS + index, scale, shift)


def _slot(plan: StepPlan, slot: Node) -> Given | Same:
    """How what an optimizer remembers begins: as a constant, or as the parameter does."""
    w, value = plan.optimizer.slots[slot]
    if value is w:
        return Same(label(w))
    if w in leaves_of([value]):
        raise CompileError(
            f"{label(slot)} begins as a function of {label(w)}, which an export can't compute yet"
        )
    (array,) = evaluate([value], {})
    return Given(np.broadcast_to(array, static(slot)))
