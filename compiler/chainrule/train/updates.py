"""What an optimizer makes of gradients: the next parameters, its memory, its hyper-parameters.

What it keeps is known of the parameters alone; how all of it changes is written when it is asked
for, as a step that is found compiled has no use for that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from inspect import signature
from reprlib import repr as short
from typing import Any

from chainrule import driver
from chainrule.errors import CompileError, DTypeError, ShapeError
from chainrule.ir import provenance
from chainrule.ir.node import Node
from chainrule.ir.types import DType, TensorType, float32, float64
from chainrule.lang import functions as f
from chainrule.lang.tensor import Tensor
from chainrule.nn.optim.groups import Groups
from chainrule.nn.optim.optimizer import COMMON, Optimizer
from chainrule.nn.optim.values import FROM_ZERO, Decay, Range, average
from chainrule.nn.schedules import schedule_of
from chainrule.ops.random import STEP_TYPE
from chainrule.ops.source import Leaf, leaf
from chainrule.records import dataclass

STEP, RATE = "optimizer.step", "learning_rate"
#: the count stays here rather than begin anew below 0, where an optimizer's t has no meaning
_LAST_STEP = 2**31 - 1
#: added to the norm of all gradients before it divides, as in PyTorch's clip_grad_norm_
_NORM_EPS = 1e-6


@dataclass(frozen=True)
class Hyperparameter:
    """A number of an optimizer: how it begins, what it may be, and the leaf that holds it.

    Of a decay the leaf holds what it lacks of 1. One without a leaf is 0 for good: its term was
    left out.
    """

    begins: float
    range: Range
    leaf: Node | None

    def value(self, dtype: DType) -> float | Tensor:
        """What stands for it in an update."""
        if self.leaf is None:
            return self.begins
        kept = Tensor(self.leaf).astype(dtype)
        return Decay(kept) if self.range.decay else kept


@dataclass(frozen=True)
class Rule:
    """An optimizer as it was when the step was made, its rate in a step, and its numbers."""

    optimizer: Optimizer
    rate: Tensor
    numbers: Mapping[str, Hyperparameter]

    def bound(self, dtype: DType) -> Optimizer:
        """The optimizer with Tensors of an element type for its hyper-parameters."""
        bound = copy(self.optimizer)
        for name, number in self.numbers.items():
            object.__setattr__(bound, name, number.value(dtype))  # it may be a frozen dataclass
        return bound


@dataclass(frozen=True)
class Updates:
    """What an optimizer keeps, and what it changes in a step.

    `slots` are its leaves for each parameter, with that parameter and how they begin; `averages`
    those of them that hold the moving average of a parameter, by the parameter, and `sums` those
    that add up gradients over `every` so many minibatches. `own` are what each parameter's rule, of
    `rules`, remembers of it by name; `t` counts updates and `made` steps.
    """

    slots: Mapping[Node, tuple[Node, Node]]
    averages: Mapping[Node, Node]
    sums: Mapping[Node, Node]
    own: Mapping[Node, Mapping[str, Node]]
    count: Node
    hyperparameters: Mapping[str, Hyperparameter]
    rules: Mapping[Node, Rule]
    every: int
    made: Tensor
    t: Tensor

    @property
    def leaves(self) -> tuple[Node, ...]:
        """Every leaf of the optimizer's own."""
        numbers = [h.leaf for h in self.hyperparameters.values() if h.leaf is not None]
        return (*self.slots, self.count, *numbers)

    def changes(self, slopes: Mapping[Node, Node]) -> list[tuple[Node, Node]]:
        """The next value of each leaf that changes, given gradients. Raises CompileError."""
        gradients = {w: _wide(Tensor(g)) for w, g in slopes.items()}
        due = None if self.every == 1 else self.made % self.every == 0
        changes = [(self.count, self.made.node)]
        if due is not None:
            for w, g in gradients.items():
                sums = self.sums[w]
                gradients[w] = total = Tensor(sums) + g / self.every
                changes.append((sums, f.where(due, 0.0, total).node))
        for w, g in self._clipped(gradients).items():
            pairs = _changes(self.rules[w], w, g, self.own[w], self.t)
            if w in self.averages:
                pairs.append(self._averaged(w, pairs[0][1]))
            if due is not None:
                pairs = [(n, f.where(due, Tensor(new), Tensor(n)).node) for n, new in pairs]
            changes += pairs
        return changes

    def _clipped(self, gradients: dict[Node, Tensor]) -> dict[Node, Tensor]:
        """Gradients with each element, then the norm of them all, held to what they may be."""
        numbers = self.hyperparameters
        if "clip_value" in numbers:
            for w, g in gradients.items():
                most = numbers["clip_value"].value(g.dtype)
                gradients[w] = f.minimum(f.maximum(g, -most), most)
        if "clip_norm" in numbers:
            dtype = _dtype_of(gradients)
            squares = [f.sum(f.square(g.astype(dtype))) for g in gradients.values()]
            norm = f.sqrt(sum(squares[1:], squares[0]))
            scale = f.minimum(numbers["clip_norm"].value(dtype) / (norm + _NORM_EPS), 1.0)
            gradients = {w: g * scale.astype(g.dtype) for w, g in gradients.items()}
        return gradients

    def _averaged(self, w: Node, new: Node) -> tuple[Node, Node]:
        """The moving average of a parameter and its next value: at first, what it averages."""
        node, now = self.averages[w], _wide(Tensor(new))
        decay = self.hyperparameters["ema"].value(now.dtype)
        return node, f.where(self.t == 1, now, average(decay, Tensor(node), now)).node


def plan_updates(optimizer: Optimizer, trained: Sequence[Node]) -> Updates:
    """What an optimizer keeps for the parameters that it is to train. Raises CompileError."""
    kept = _Kept(_dtype_of(trained))
    made = f.minimum(Tensor(kept.count), _LAST_STEP - 1) + 1
    every = optimizer.accumulate
    t = made if every == 1 else (made + (every - 1)) // every
    rules = _rules(optimizer, trained, kept, t)
    sums = {}
    if every != 1:
        sums = {w: kept.slot("gradient", w, f.zeros_like(_wide(Tensor(w)))) for w in trained}
    for name in ("clip_value", "clip_norm", "ema"):
        if (value := getattr(optimizer, name)) is not None:
            kept.number(name, value, COMMON[name])
    averages, own = {}, {}
    for w in trained:
        begins = _begins(rules[w].optimizer, Tensor(w))
        own[w] = {name: kept.slot(name, w, begin) for name, begin in begins.items()}
        if optimizer.ema is not None:
            averages[w] = kept.slot("average", w, _wide(Tensor(w)))
    return Updates(kept.slots, averages, sums, own, kept.count, kept.numbers, rules, every, made, t)


def _dtype_of(trained: Iterable[Node]) -> DType:
    """The element type of an optimizer's numbers."""
    return float64 if any(w.type.dtype == float64 for w in trained) else float32


class _Kept:
    """The leaves of an optimizer, as they are found to be needed."""

    def __init__(self, dtype: DType) -> None:
        self.dtype = dtype  # of its numbers
        self.count = leaf("state", STEP, STEP_TYPE)
        self.slots: dict[Node, tuple[Node, Node]] = {}
        self.numbers: dict[str, Hyperparameter] = {}

    def slot(self, name: str, w: Node, begin: Tensor) -> Node:
        """A leaf that belongs to a parameter."""
        node = leaf("state", f"optimizer.{name}.{_label(w)}", begin.type)
        provenance.set_name(node, f"{name}_{_label(w)}")
        self.slots[node] = (w, begin.node)
        return node

    def number(self, name: str, value: Any, kind: Range) -> Hyperparameter:
        """A hyper-parameter, with a leaf unless it is 0. Raises FeedError if out of range."""
        value = kind.check(name, value)
        stem, _, last = name.rpartition(".")
        text = f"optimizer.{stem + '.' if stem else ''}{'one_minus_' * kind.decay}{last}"
        node = leaf("state", text, TensorType(self.dtype, ())) if value or name == RATE else None
        self.numbers[name] = number = Hyperparameter(value, kind, node)
        return number


def _rules(
    optimizer: Optimizer, trained: Sequence[Node], kept: _Kept, t: Tensor
) -> dict[Node, Rule]:
    """The rule of each parameter."""
    if not isinstance(optimizer, Groups):
        rule = _rule(optimizer, "", kept, t)
        return dict.fromkeys(trained, rule)
    rules = [_rule(optimizer.rest, "", kept, t)]
    for i, part in enumerate(optimizer.groups.values(), 1):
        rules.append(_rule(part, f"group{i}.", kept, t))
    places = optimizer.assigned({_label(w): Tensor(w) for w in trained})
    return {w: rules[places[_label(w)]] for w in trained}


def _check_kept(optimizer: Optimizer) -> None:
    """Refuse a rule whose own __init__ takes a rate and forgets it: it would train with another."""
    kind = type(optimizer)
    if "lr" in signature(kind).parameters and "lr" not in getattr(optimizer, "__dict__", "lr"):
        raise CompileError(
            f"{kind.__name__} takes lr and does not keep it: it would train with {optimizer.lr}",
            "call super().__init__(lr) in its __init__",
        )


def _rule(optimizer: Optimizer, prefix: str, kept: _Kept, t: Tensor) -> Rule:
    _check_kept(optimizer)
    schedule = schedule_of(optimizer.lr)
    base = kept.number(prefix + RATE, schedule.base, FROM_ZERO)
    assert base.leaf is not None
    rate = Tensor(base.leaf) * schedule.factor(t, kept.dtype)
    numbers = {}
    for name, kind in optimizer.ranges().items():
        if not hasattr(optimizer, name):
            raise CompileError(
                f"{type(optimizer).__name__} has a hyper-parameter {name!r} without a value",
                f"set self.{name} in its __init__, or {name} = ... in the class",
            )
        numbers[name] = kept.number(prefix + name, getattr(optimizer, name), kind)
    return Rule(copy(optimizer), rate, numbers)


def _label(node: Node) -> str:
    assert isinstance(node.op, Leaf)
    return node.op.label


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
            raise CompileError(
                f"{rule}.init gives Tensors by name, not {name!r}: {short(begin)}",
                "cr.zeros_like(w) is such a Tensor, cr.constant(array) makes one of an array",
            )
        others = [n for n in driver.leaves_of([begin.node]) if n is not w.node]
        if others:
            raise CompileError(
                f"{rule}.init may use the parameter, not {_label(others[0])}: {name} begins as "
                "what is known before anything is fed"
            )
    return begins


def _changes(
    rule: Rule, w: Node, g: Tensor, own: Mapping[str, Node], t: Tensor
) -> list[tuple[Node, Node]]:
    """The next value of a parameter, first, and of what the optimizer remembers of it."""
    state = {name: Tensor(node) for name, node in own.items()}
    wide = _wide(Tensor(w))
    result = rule.bound(wide.dtype).update(wide, g, state, rule.rate.astype(wide.dtype), t)
    name = type(rule.optimizer).__name__
    pair = isinstance(result, tuple) and len(result) == 2
    if not pair or not isinstance(result[1], Mapping):
        raise CompileError(
            f"{name}.update gives the new parameter and a dict of the new state, not {result!r}"
        )
    new, changed = result
    if changed.keys() != own.keys():
        raise CompileError(f"{name} remembers {list(own)}, its update gives {list(changed)}")
    if isinstance(new, Tensor) and new.dtype == wide.dtype:
        new = new.astype(w.type.dtype)
    pairs = [(w, new), *((own[key], changed[key]) for key in own)]
    for node, value in pairs:
        check_next(f"{name}: the next {_label(node)}", node, value)
    return [(node, value.node) for node, value in pairs]


def check_next(what: str, node: Node, value: Any) -> None:
    """Raise an error unless a value can be what a leaf holds next."""
    if not isinstance(value, Tensor):
        raise CompileError(f"{what} is a Tensor, not {value!r}")
    if value.shape != node.type.shape:
        raise ShapeError(f"{what} must stay {node.type}, not {value.type}")
    if value.dtype != node.type.dtype:
        raise DTypeError(f"{what} must stay {node.type}, not {value.type}")
