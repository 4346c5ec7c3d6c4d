"""What decides a training step before its gradients are derived, as text: the loss with all that is
measured and changed beside it, which parameters are trained, and by which rule of ours.

What a rule's numbers are is not in it, as they are kept in leaves; of those without a leaf it is. A
rate is told by its expression, so that a schedule may be any function.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from inspect import isfunction, isroutine
from typing import Any

from chainrule.ir.describe import described
from chainrule.ir.graph import Graph, walk
from chainrule.ir.node import Node
from chainrule.nn.optim.optimizer import COMMON
from chainrule.ops.random import bind_draws
from chainrule.train.updates import Rule, Updates

_OURS = "chainrule."
_PLAIN = (bool, int, float, str, type(None))
#: modules whose functions every rule is written with, beside those of its own classes
_WRITING = ("chainrule.lang.functions", "chainrule.nn.optim.values", "chainrule.train.updates")
#: what an op says of its derivative
_SLOPES = ("vjp", "pull", "reaches")


def told(
    measured: Sequence[Node],
    changes: Sequence[tuple[Node, Node]],
    trained: Sequence[Node],
    updates: Updates,
    seed: Node,
    given: Sequence[Node],
) -> str | None:
    """All that decides a step on the leaves that are `given`; None where that can't be told.

    It can't where a derivative, an optimizer or an op is not of ours, nor where a function that
    writes them was replaced by another.
    """
    rules = list({id(rule): rule for rule in updates.rules.values()}.values())
    settings = [_settings(rule) for rule in rules]
    roots = (*measured, *(new for _, new in changes), *(rule.rate.node for rule in rules))
    graph = bind_draws(Graph(roots), seed, updates.count)
    if None in settings or not _ours(graph.roots):
        return None
    content = described(graph.roots, given)
    place, number = ({x: i for i, x in enumerate(xs)} for xs in (given, map(id, rules)))
    plan = (
        len(measured),
        [place[leaf] for leaf, _ in changes],
        [(place[w], number[id(updates.rules[w])]) for w in trained],
        [
            (n, h.begins if h.leaf is None else place[h.leaf])
            for n, h in updates.hyperparameters.items()
        ],
        updates.every,
        settings,
    )
    return content and f"training step {plan!r}\n{content}"


def _ours(roots: Iterable[Node]) -> bool:
    """Whether every derivative is one of ours, in bodies of loops too."""
    pending, kinds = [tuple(roots)], set()
    while pending:
        for node in walk(pending.pop()):
            if node.op.own_derivative:
                return False
            kinds.add(type(node.op))
            pending += [body.roots for body in node.op.bodies()]
    return all(_is_our_function(getattr(kind, name)) for kind in kinds for name in _SLOPES)


def is_ours(rule: Rule) -> bool:
    """Whether an optimizer is one of ours."""
    return type(rule.optimizer).__module__.startswith(_OURS)


def _is_our_function(value: Any) -> bool:
    """Whether a routine was written by us: its body, and what a decorator of ours may stand for."""
    return _are_ours(*_homes(value))


def _homes(routine: Any) -> tuple[str, str]:
    """The modules of a routine's body, which `functools.wraps` does not change, and of its name."""
    space = getattr(routine, "__globals__", {})
    return str(space.get("__name__")), str(getattr(routine, "__module__", None))


def _are_ours(*homes: str) -> bool:
    return all(home.startswith(_OURS) for home in homes)


def _is_as_written(module: str) -> bool:
    """Whether none of a module's functions was replaced by one from outside."""
    if module not in sys.modules:
        return False  # a class that only says so is of no module of ours
    found = {_homes(value) for value in vars(sys.modules[module]).values() if isfunction(value)}
    others = (name.partition(".")[0] for body, name in found if not _are_ours(body, name))
    return all(other in sys.stdlib_module_names for other in others)


def _settings(rule: Rule) -> str | None:
    """What an optimizer of ours is, but for its numbers and what all have in common; else None."""
    if not is_ours(rule):
        return None
    optimizer, kind = rule.optimizer, type(rule.optimizer)
    own = {k.__module__ for k in kind.__mro__ if k is not object}
    if not all(map(_is_as_written, own.union(_WRITING))):
        return None
    found = []
    for name in dir(optimizer):
        value = getattr(optimizer, name)
        if name.startswith("__") or name in rule.numbers or name in ("lr", *COMMON):
            continue
        if isroutine(value):
            if name in vars(optimizer) or not _is_our_function(value):
                return None  # the first may be another optimizer's method
        elif isinstance(value, _PLAIN):
            found.append((name, value))
        elif name != "hyperparameters":
            return None
    return f"{kind.__module__}.{kind.__qualname__} {found}"
