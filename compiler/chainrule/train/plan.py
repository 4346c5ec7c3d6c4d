"""What a training step computes, as a graph: loss and metrics, and the update of each leaf."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import field
from functools import cached_property
from typing import Any

from chainrule import driver
from chainrule.collector import uncollected
from chainrule.errors import CompileError, GradientError, Location, ShapeError, user_location
from chainrule.ir import provenance
from chainrule.ir.describe import Unwritten
from chainrule.ir.graph import Graph, replace
from chainrule.ir.node import Node
from chainrule.ir.size import Size
from chainrule.lang.compiled import check_names
from chainrule.lang.derive import flatten, gradients
from chainrule.lang.tensor import Tensor
from chainrule.nn.optim import Optimizer
from chainrule.ops.phase import resolve_phase
from chainrule.ops.random import SEED_TYPE, bind_draws, step_node
from chainrule.ops.source import Leaf, leaf
from chainrule.records import dataclass
from chainrule.train.told import is_ours, told
from chainrule.train.tracked import tracked_changes
from chainrule.train.updates import Updates, check_next, plan_updates

SEED, EPOCH = "training.seed", "training.epoch"
#: what the names of a training loop's and a model's own entries in a checkpoint begin with
FIT, MODEL = "training.fit.", "training.model."
#: what stands in a checkpoint beside the leaves
_RESERVED = (SEED, EPOCH, "__metadata__")


@dataclass(frozen=True)
class StepPlan:
    """A training step before it is compiled.

    `graph` has the loss and the metrics as outputs, called `names`, as they are in training, its
    draws bound to the kept seed and step; `loss`, and both as `measured`, are as they were written.
    `kept` are the leaves that live between calls, in order of creation: parameters, states, then
    the optimizer's own, which `optimizer` tells about, and the seed. `changes` are those of what is
    not `trained`.

    A step that was compiled before is found by what it is `told` by, so gradients and updates are
    written when somebody asks for them; by rules of ours as at `line`, where the step was made.
    """

    measured: tuple[Node, ...]
    names: tuple[str, ...]
    inputs: tuple[Node, ...]
    parameters: tuple[Node, ...]
    states: tuple[Node, ...]
    trained: tuple[Node, ...]
    optimizer: Updates
    seed: Node
    changes: tuple[tuple[Node, Node], ...]
    line: Location | None = field(repr=False)

    @property
    def loss(self) -> Node:
        """What is minimised."""
        return self.measured[0]

    @cached_property
    def gradients(self) -> Mapping[Node, Node]:
        """The gradient by each parameter that is trained. Raises GradientError."""
        with provenance.written_at(self.line):
            return dict(zip(self.trained, gradients(self.loss, self.trained), strict=True))

    @cached_property
    def graph(self) -> Graph:
        """What a step computes and changes. Raises an error for what does not fit."""
        return self._written()

    @uncollected
    def _written(self) -> Graph:
        slopes = self.gradients
        with provenance.written_at(self.line):
            changes = (*self.optimizer.changes(slopes), *self.changes)
            written = resolve_phase(Graph(self.measured, changes), training=True)
            return bind_draws(written, self.seed, self.optimizer.count)

    @property
    def unwritten(self) -> Unwritten:
        """The same graph, for who may not need it."""
        return Unwritten(self.told, lambda: self.graph)

    def told(self) -> str | None:
        """All that decides the graph, as text; None where that can't be told."""
        given = (*self.inputs, *self.kept)
        return told(self.measured, self.changes, self.trained, self.optimizer, self.seed, given)

    @property
    def kept(self) -> tuple[Node, ...]:
        """Every leaf that lives between calls."""
        return (*self.parameters, *self.states, *self.optimizer.leaves, self.seed)

    def predicted(self, outputs: Sequence[Node], averaged: bool = False) -> Graph:
        """What `outputs` are in inference; should they draw, as if it were the first step.

        Of `averaged` parameters, with their moving averages in their place.
        """
        means = self.optimizer.averages if averaged else {}
        places = {w: Tensor(e).astype(w.type.dtype).node for w, e in means.items()}
        graph = resolve_phase(Graph(tuple(replace(outputs, places))), training=False)
        return bind_draws(graph, self.seed, step_node(0))


def plan_step(
    loss: Tensor,
    optimizer: Optimizer,
    metrics: Mapping[str, Tensor],
    outputs: Sequence[Node],
    updates: Mapping[Tensor, Tensor],
    train: Iterable[Tensor | str] | None,
) -> StepPlan:
    """What a step is made of. Raises an error for what does not fit."""
    _check_loss(loss, optimizer)
    _check_metrics(metrics)
    _check_updates(updates)
    values = [loss.node, *(m.node for m in metrics.values()), *(u.node for u in updates.values())]
    inputs = _of_kind("input", driver.leaves_of(values))
    leaves = driver.leaves_of([*values, *outputs, *(s.node for s in updates)])
    parameters, states = _of_kind("parameter", leaves), _of_kind("state", leaves)
    trained = _trained(loss.node, train)
    seed = leaf("state", SEED, SEED_TYPE)
    own = plan_updates(optimizer, trained)
    changes = _state_changes(updates, set(trained))
    _check_names({*leaves, *own.leaves})
    measured = (loss.node, *(m.node for m in metrics.values()))
    changes += tracked_changes(measured, {s.node for s in updates})
    return StepPlan(
        measured,
        ("loss", *metrics),
        tuple(inputs),
        tuple(parameters),
        tuple(states),
        tuple(trained),
        own,
        seed,
        tuple(changes),
        user_location() if all(map(is_ours, own.rules.values())) else None,
    )


def _check_loss(loss: Tensor, optimizer: Optimizer) -> None:
    if not isinstance(optimizer, Optimizer):
        made = isinstance(optimizer, type) and issubclass(optimizer, Optimizer)
        hint = f"make one: {optimizer.__name__}(lr=...)" if made else "such as cr.optim.Adam(1e-3)"
        raise CompileError(f"an optimizer is an object of cr.optim, not {optimizer!r}", hint)
    if not isinstance(loss, Tensor):
        raise CompileError(f"a loss is a Tensor, not {loss!r}")


def _check_metrics(metrics: Mapping[str, Tensor]) -> None:
    if not isinstance(metrics, Mapping):
        raise CompileError(f"metrics are Tensors by name, a dict, not {metrics!r}")
    for name, metric in metrics.items():
        if not isinstance(name, str) or name in ("", "loss") or not isinstance(metric, Tensor):
            raise CompileError(
                f"a metric is a Tensor with a name of its own, not {name}={metric!r}"
            )
        if metric.ndim:
            raise ShapeError(f"a metric is a scalar: {name} is {metric.type}", "cr.mean(...) of it")


def _check_updates(updates: Mapping[Tensor, Tensor]) -> None:
    if not isinstance(updates, Mapping):
        raise CompileError(f"updates are Tensors by the state they change, not {updates!r}")
    for target, value in updates.items():
        for tensor in (target, value):
            if not isinstance(tensor, Tensor):
                raise CompileError(f"updates are Tensors: {target!r} can't become {value!r}")


def _check_names(leaves: Collection[Node]) -> None:
    for node in leaves:
        if label(node) in _RESERVED or label(node).startswith((FIT, MODEL)):
            raise CompileError(
                f"checkpoints have a use of their own for the name {label(node)!r}",
                where=provenance.line_of(node),
            )
    check_names(sorted(leaves, key=_serial))


def _of_kind(kind: str, leaves: Sequence[Node]) -> list[Node]:
    return [n for n in leaves if isinstance(n.op, Leaf) and n.op.kind == kind]


def label(node: Node) -> str:
    """The name of a leaf."""
    assert isinstance(node.op, Leaf)
    return node.op.label


def _serial(node: Node) -> int:
    assert isinstance(node.op, Leaf)
    return node.op.serial


def _trained(loss: Node, train: Iterable[Tensor | str] | None) -> list[Node]:
    """The parameters to update, in order of creation."""
    reached = _of_kind("parameter", driver.leaves_of([loss]))
    if not reached:
        raise GradientError("there is no parameter to train: the loss depends on none")
    if train is None:
        return reached
    if isinstance(train, str | Tensor) or not isinstance(train, Iterable):
        raise CompileError(f"train is a list of parameters or names, not {train!r}")
    by_name = {label(p): p for p in reached}
    wanted = set()
    for given in train:
        node = given.node if isinstance(given, Tensor) else by_name.get(given)
        if node not in reached:
            raise CompileError(
                f"train names {given!r}, which is no parameter of this loss",
                f"its parameters are {', '.join(by_name)}",
            )
        wanted.add(node)
    if not wanted:
        raise CompileError("train is an empty list: there is nothing to update")
    return [p for p in reached if p in wanted]


def _state_changes(updates: Mapping[Tensor, Tensor], trained: set[Node]) -> list[tuple[Node, Node]]:
    for target, value in updates.items():
        node = target.node
        if node not in _of_kind("state", [node]) + _of_kind("parameter", [node]):
            raise CompileError(f"updates change states and parameters, not {target!r}")
        if node in trained:
            raise CompileError(f"{label(node)} is trained: updates can't change it too")
        check_next(f"updates: the next {label(node)}", node, value)
    return [(target.node, value.node) for target, value in updates.items()]


def rows_of(inputs: Sequence[Node]) -> Size | None:
    """The first symbolic size of inputs, in order of creation: how many rows a minibatch has."""
    sizes = (d for n in inputs for d in n.type.shape if isinstance(d, Size))
    symbols = (s for size in sizes for s in sorted(size.symbols()))
    return next((Size.symbol(s) for s in symbols), None)


def nodes_of(outputs: Any) -> list[Node]:
    """The nodes of the `outputs` of a step; none for None."""
    return [] if outputs is None else flatten(outputs)
