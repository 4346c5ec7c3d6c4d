"""What a training step computes, as a graph: loss and metrics, and the update of each leaf."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chainrule import driver
from chainrule.errors import CompileError, DTypeError, GradientError, ShapeError
from chainrule.ir import provenance
from chainrule.ir.graph import Graph
from chainrule.ir.node import Node
from chainrule.ir.size import Size
from chainrule.ir.types import TensorType, float32, float64
from chainrule.lang import functions as f
from chainrule.lang.compiled import check_names
from chainrule.lang.derive import flatten, gradients
from chainrule.lang.tensor import Tensor
from chainrule.nn.optim import Optimizer
from chainrule.ops.phase import resolve_phase
from chainrule.ops.random import SEED_TYPE, STEP_TYPE, bind_draws, step_node
from chainrule.ops.source import Leaf, leaf
from chainrule.train.tracked import tracked_changes

STEP, RATE = "optimizer.step", "optimizer.learning_rate"
SEED, EPOCH = "training.seed", "training.epoch"
#: the count stays here rather than begin anew below 0, where an optimizer's t has no meaning
_LAST_STEP = 2**31 - 1
#: what stands in a checkpoint beside the leaves
_RESERVED = (SEED, EPOCH, "__metadata__")


@dataclass(frozen=True)
class StepPlan:
    """A training step before it is compiled.

    `graph` has the loss and the metrics as outputs, called `names`, as they are in training, its
    draws bound to the kept seed and step; `loss` is as it was written. `kept` are the leaves that
    live between calls, in order of creation: parameters, states, then the optimizer's own, of which
    `slots` says how each begins, given its parameter, and the seed.
    """

    loss: Node
    graph: Graph
    names: tuple[str, ...]
    inputs: tuple[Node, ...]
    parameters: tuple[Node, ...]
    states: tuple[Node, ...]
    slots: Mapping[Node, tuple[Node, Node]]
    count: Node
    rate: Node
    seed: Node
    gradients: Mapping[Node, Node]

    @property
    def kept(self) -> tuple[Node, ...]:
        """Every leaf that lives between calls."""
        own = (self.count, self.rate, self.seed)
        return (*self.parameters, *self.states, *self.slots, *own)

    def predicted(self, outputs: Sequence[Node]) -> Graph:
        """What `outputs` are in inference; should they draw, as if it were the first step."""
        graph = resolve_phase(Graph(tuple(outputs)), training=False)
        return bind_draws(graph, self.seed, step_node(0))


def plan_step(
    loss: Tensor,
    optimizer: Optimizer,
    metrics: Mapping[str, Tensor],
    outputs: Sequence[Node],
    updates: Mapping[Tensor, Tensor],
    train: Iterable[Tensor | str] | None,
) -> StepPlan:
    """Derive the gradients and write down every update. Raises an error for what does not fit."""
    _check_loss(loss, optimizer)
    _check_metrics(metrics)
    _check_updates(updates)
    values = [loss.node, *(m.node for m in metrics.values()), *(u.node for u in updates.values())]
    inputs = _of_kind("input", driver.leaves_of(values))
    leaves = driver.leaves_of([*values, *outputs, *(s.node for s in updates)])
    parameters, states = _of_kind("parameter", leaves), _of_kind("state", leaves)
    trained = _trained(loss.node, train)
    slopes = dict(zip(trained, gradients(loss.node, trained), strict=True))
    wide = any(p.type.dtype == float64 for p in trained)
    rate = leaf("state", RATE, TensorType(float64 if wide else float32, ()))
    count, seed = leaf("state", STEP, STEP_TYPE), leaf("state", SEED, SEED_TYPE)
    slots: dict[Node, tuple[Node, Node]] = {}
    t = f.minimum(Tensor(count), _LAST_STEP - 1) + 1
    changes = [(count, t.node)]
    for w, g in slopes.items():
        begins = _begins(optimizer, Tensor(w))
        own = {name: _slot(name, w, begin) for name, begin in begins.items()}
        slots.update({own[name]: (w, begin.node) for name, begin in begins.items()})
        changes += _changes(optimizer, w, g, own, Tensor(rate), t)
    changes += _state_changes(updates, set(trained))
    _check_names({*leaves, *slots, rate, count})
    measured = (loss.node, *(m.node for m in metrics.values()))
    changes += tracked_changes(measured, {s.node for s in updates})
    written = Graph(measured, tuple(changes))
    return StepPlan(
        loss.node,
        bind_draws(resolve_phase(written, training=True), seed, count),
        ("loss", *metrics),
        tuple(inputs),
        tuple(parameters),
        tuple(states),
        slots,
        count,
        rate,
        seed,
        slopes,
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
        if label(node) in _RESERVED:
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


def _wide(x: Tensor) -> Tensor:
    """A bfloat16 as the float32 that optimizers work in: 0.999 in bfloat16 is 1."""
    return x.astype(x.dtype.wide)


def _begins(optimizer: Optimizer, w: Tensor) -> Mapping[str, Tensor]:
    """What an optimizer remembers of a parameter, as it begins; checked, as users write these."""
    begins = optimizer.init(_wide(w))
    rule = type(optimizer).__name__
    if not isinstance(begins, Mapping):
        raise CompileError(f"{rule}.init gives a dict of Tensors by name, not {begins!r}")
    for name, begin in begins.items():
        if not isinstance(name, str) or not isinstance(begin, Tensor):
            raise CompileError(f"{rule}.init gives Tensors by name, not {name!r}: {begin!r}")
        others = [n for n in driver.leaves_of([begin.node]) if n is not w.node]
        if others:
            raise CompileError(
                f"{rule}.init may use the parameter, not {label(others[0])}: {name} begins as what "
                "is known before anything is fed"
            )
    return begins


def _slot(name: str, w: Node, begin: Tensor) -> Node:
    node = leaf("state", f"optimizer.{name}.{label(w)}", begin.type)
    provenance.set_name(node, f"{name}_{label(w)}")
    return node


def _changes(
    optimizer: Optimizer, w: Node, g: Node, own: Mapping[str, Node], rate: Tensor, t: Tensor
) -> list[tuple[Node, Node]]:
    """The next value of a parameter and of what the optimizer remembers of it."""
    state = {name: Tensor(node) for name, node in own.items()}
    wide, slope = _wide(Tensor(w)), _wide(Tensor(g))
    result = optimizer.update(wide, slope, state, rate.astype(wide.dtype), t)
    rule = type(optimizer).__name__
    pair = isinstance(result, tuple) and len(result) == 2
    if not pair or not isinstance(result[1], Mapping):
        raise CompileError(
            f"{rule}.update gives the new parameter and a dict of the new state, not {result!r}"
        )
    new, changed = result
    if changed.keys() != own.keys():
        raise CompileError(f"{rule} remembers {list(own)}, its update gives {list(changed)}")
    if isinstance(new, Tensor) and new.dtype == wide.dtype:
        new = new.astype(w.type.dtype)
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
