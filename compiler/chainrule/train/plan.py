"""What a training step computes, as a graph: loss and metrics, and the update of each leaf."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chainrule import driver
from chainrule.errors import CompileError, DTypeError, GradientError, ShapeError
from chainrule.ir import provenance
from chainrule.ir.graph import Graph
from chainrule.ir.node import Node
from chainrule.ir.size import Size
from chainrule.ir.types import TensorType, float32, float64, int32
from chainrule.lang.compiled import check_names
from chainrule.lang.derive import flatten, gradients
from chainrule.lang.tensor import Tensor
from chainrule.nn.optim import Optimizer
from chainrule.ops.source import Leaf, leaf

STEP, RATE = "optimizer.step", "optimizer.learning_rate"


@dataclass(frozen=True)
class StepPlan:
    """A training step before it is compiled.

    `graph` has the loss and the metrics as outputs, called `names`. `kept` are the leaves that live
    between calls, in order of creation: parameters, states, then the optimizer's own, of which
    `slots` says how each begins, given its parameter.
    """

    graph: Graph
    names: tuple[str, ...]
    inputs: tuple[Node, ...]
    parameters: tuple[Node, ...]
    states: tuple[Node, ...]
    slots: Mapping[Node, tuple[Node, Node]]
    count: Node
    rate: Node
    gradients: Mapping[Node, Node]

    @property
    def kept(self) -> tuple[Node, ...]:
        """Every leaf that lives between calls."""
        return (*self.parameters, *self.states, *self.slots, self.count, self.rate)


def plan_step(
    loss: Tensor,
    optimizer: Optimizer,
    metrics: Mapping[str, Tensor],
    outputs: Sequence[Node],
    updates: Mapping[Tensor, Tensor],
    train: Sequence[Tensor | str] | None,
) -> StepPlan:
    """Derive the gradients and write down every update. Raises an error for what does not fit."""
    _check_loss(loss, metrics, optimizer)
    values = [loss.node, *(m.node for m in metrics.values()), *(u.node for u in updates.values())]
    inputs = _of_kind("input", driver.leaves_of(values))
    leaves = driver.leaves_of([*values, *outputs, *(s.node for s in updates)])
    parameters, states = _of_kind("parameter", leaves), _of_kind("state", leaves)
    trained = _trained(loss.node, parameters, train)
    slopes = dict(zip(trained, gradients(loss.node, trained), strict=True))
    wide = any(p.type.dtype == float64 for p in trained)
    rate = leaf("state", RATE, TensorType(float64 if wide else float32, ()))
    count = leaf("state", STEP, TensorType(int32, ()))
    slots: dict[Node, tuple[Node, Node]] = {}
    changes = [(count, (Tensor(count) + 1).node)]
    for w, g in slopes.items():
        begins = optimizer.init(Tensor(w))
        own = {name: _slot(name, w, begin) for name, begin in begins.items()}
        slots.update({own[name]: (w, begin.node) for name, begin in begins.items()})
        changes += _changes(optimizer, w, g, own, Tensor(rate), Tensor(count) + 1)
    changes += _state_changes(updates, set(trained))
    check_names(sorted({*leaves, *slots, rate, count}, key=_serial))
    outputs_of_step = (loss.node, *(m.node for m in metrics.values()))
    return StepPlan(
        Graph(outputs_of_step, tuple(changes)),
        ("loss", *metrics),
        tuple(inputs),
        tuple(parameters),
        tuple(states),
        slots,
        count,
        rate,
        slopes,
    )


def _check_loss(loss: Tensor, metrics: Mapping[str, Tensor], optimizer: Optimizer) -> None:
    if not isinstance(optimizer, Optimizer):
        made = isinstance(optimizer, type) and issubclass(optimizer, Optimizer)
        hint = f"make one: {optimizer.__name__}(lr=...)" if made else "such as cr.optim.Adam(1e-3)"
        raise CompileError(f"an optimizer is an object of cr.optim, not {optimizer!r}", hint)
    if not isinstance(metrics, Mapping):
        raise CompileError(f"metrics are Tensors by name, a dict, not {metrics!r}")
    if not isinstance(loss, Tensor):
        raise CompileError(f"a loss is a Tensor, not {loss!r}")
    for name, metric in metrics.items():
        if name == "loss" or not isinstance(metric, Tensor):
            raise CompileError(
                f"a metric is a Tensor with a name of its own, not {name}={metric!r}"
            )
        if metric.ndim:
            raise ShapeError(f"a metric is a scalar: {name} is {metric.type}", "cr.mean(...) of it")


def _of_kind(kind: str, leaves: Sequence[Node]) -> list[Node]:
    return [n for n in leaves if isinstance(n.op, Leaf) and n.op.kind == kind]


def label(node: Node) -> str:
    """The name of a leaf."""
    assert isinstance(node.op, Leaf)
    return node.op.label


def _serial(node: Node) -> int:
    assert isinstance(node.op, Leaf)
    return node.op.serial


def _trained(
    loss: Node, parameters: Sequence[Node], train: Sequence[Tensor | str] | None
) -> list[Node]:
    """The parameters to update, in order of creation."""
    reached = _of_kind("parameter", driver.leaves_of([loss]))
    if train is None:
        wanted = set(reached)
    else:
        if isinstance(train, str | Tensor):
            raise CompileError(f"train is a list of parameters or names, not {train!r}")
        by_name = {label(p): p for p in parameters}
        given = [by_name.get(t) if isinstance(t, str) else t.node for t in train]
        for t, node in zip(train, given, strict=True):
            if node is None or node not in parameters:
                raise CompileError(
                    f"train names {t!r}, which is no parameter of this loss",
                    f"its parameters are {', '.join(by_name) or 'none'}",
                )
        wanted = {n for n in given if n is not None}
    if not wanted:
        raise GradientError("there is no parameter to train: the loss depends on none")
    return [p for p in parameters if p in wanted]


def _slot(name: str, w: Node, begin: Tensor) -> Node:
    node = leaf("state", f"optimizer.{name}.{label(w)}", begin.type)
    provenance.set_name(node, f"{name}_{label(w)}")
    return node


def _changes(
    optimizer: Optimizer, w: Node, g: Node, own: Mapping[str, Node], rate: Tensor, t: Tensor
) -> list[tuple[Node, Node]]:
    """The next value of a parameter and of what the optimizer remembers of it."""
    state = {name: Tensor(node) for name, node in own.items()}
    lr = rate.astype(w.type.dtype)
    new, changed = optimizer.update(Tensor(w), Tensor(g), state, lr, t)
    rule = type(optimizer).__name__
    if changed.keys() != own.keys():
        raise CompileError(f"{rule} remembers {sorted(own)}, its update gives {sorted(changed)}")
    pairs = [(w, new), *((own[name], changed[name]) for name in own)]
    for node, value in pairs:
        _check_type(f"{rule}: the next {label(node)}", node, value)
    return [(node, value.node) for node, value in pairs]


def _state_changes(updates: Mapping[Tensor, Tensor], trained: set[Node]) -> list[tuple[Node, Node]]:
    for target, value in updates.items():
        node = target.node
        if node not in _of_kind("state", [node]) + _of_kind("parameter", [node]):
            raise CompileError(f"updates change states and parameters, not {target!r}")
        if node in trained:
            raise CompileError(f"{label(node)} is trained: updates can't change it too")
        _check_type(f"updates: the next {label(node)}", node, value)
    return [(target.node, value.node) for target, value in updates.items()]


def _check_type(what: str, node: Node, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise CompileError(f"{what} is a Tensor, not {value!r}")
    if value.shape != node.type.shape:
        raise ShapeError(f"{what} must stay {node.type}, not {value.type}")
    if value.dtype != node.type.dtype:
        raise DTypeError(f"{what} must stay {node.type}, not {value.type}")


def rows_of(inputs: Sequence[Node]) -> Size | None:
    """The first symbolic size of inputs, in order of creation: how many rows a minibatch has."""
    sizes = (d for n in inputs for d in n.type.shape if isinstance(d, Size))
    symbols = (s for size in sizes for s in sorted(size.symbols()))
    return next((Size.symbol(s) for s in symbols), None)


def nodes_of(outputs: Any) -> list[Node]:
    """The nodes of the `outputs` of a step; none for None."""
    return [] if outputs is None else flatten(outputs)
