"""What a step keeps between calls: how it begins, and whether another state fits it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from chainrule import driver
from chainrule.errors import ArtifactError, CompileError
from chainrule.ir.evaluate import evaluate
from chainrule.ir.node import Node
from chainrule.ir.types import float32
from chainrule.lang import init as initial
from chainrule.ops import philox
from chainrule.ops.source import Full, Leaf
from chainrule.train.plan import EPOCH, FIT, MODEL, SEED, StepPlan, label
from chainrule.train.updates import STEP

Array = np.ndarray[Any, Any]


def lent(plan: StepPlan, other: StepPlan, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays of another step for the parameters and states that both have.

    Raises CompileError where there are none.
    """
    theirs = {*other.parameters, *other.states}
    common = [n for n in (*plan.parameters, *plan.states) if n in theirs]
    if not common:
        raise CompileError("the step to share with has none of this one's parameters")
    return {label(n): arrays[label(n)] for n in common}


def begin(
    plan: StepPlan,
    arrays: Mapping[str, Array],
    seed: int,
    lent: Collection[str],
    natively: bool = False,
) -> None:
    """Give every array its initial value, many of them `natively`; those that are lent keep theirs.

    The bits are equal either way.
    """
    arrays[SEED][...] = seed
    leaves = [
        (i, n) for i, n in enumerate((*plan.parameters, *plan.states)) if label(n) not in lent
    ]
    rules = {n: _rule(n) for _, n in leaves}
    native = driver.drawings(_counts(rules)) if natively else {}
    for index, node in leaves:
        assert isinstance(node.op, Leaf)
        shape, array = static(node), arrays[label(node)]
        name, *line = rules[node] or ("",)
        if name in native and array.size:
            out = array if array.flags.c_contiguous else np.empty(shape, np.float32)
            native[name].fill(out, seed, philox.INITIAL_DRAWS + index, *line)
            if out is not array:
                array[...] = out
        else:
            kind = node.type.dtype.wide.numpy
            array[...] = initial.draw(node.op.init, shape, kind, seed, index)
    for slot, (w, value_of) in plan.optimizer.slots.items():
        if isinstance(value_of.op, Full):  # most are 0: no array is made for that
            arrays[label(slot)][...] = value_of.op.scalar
        else:
            (arrays[label(slot)][...],) = evaluate([value_of], {w: arrays[label(w)]})


def _rule(node: Node) -> tuple[str, float, float] | None:
    """How a leaf of float32 is drawn; None of any other, and where numbers are given."""
    assert isinstance(node.op, Leaf)
    if node.type.dtype != float32:
        return None
    rule = initial.rule(node.op.init, static(node))
    return rule if isinstance(rule, tuple) else None


def _counts(rules: Mapping[Node, tuple[str, float, float] | None]) -> dict[str, tuple[int, int]]:
    """How many tensors and numbers are drawn of each distribution."""
    found: dict[str, tuple[int, int]] = {}
    for node, rule in rules.items():
        if rule is not None:
            tensors, numbers = found.get(rule[0], (0, 0))
            found[rule[0]] = tensors + 1, numbers + math.prod(static(node))
    return found


def of_step(state: Mapping[str, Array]) -> dict[str, Array]:
    """What a file says of a step, without what a model or a training loop has put beside it."""
    return {n: a for n, a in state.items() if not n.startswith((FIT, MODEL))}


def static(node: Node) -> tuple[int, ...]:
    """The shape of a leaf that lives between calls, whose sizes are known."""
    return tuple(int(d) for d in node.type.shape if isinstance(d, int))


def differences(own: Mapping[str, Array], given: Mapping[str, Any]) -> list[str]:
    """What `given` has and `own` has not, the other way round, or as another kind, in words."""
    found = [f"{name} is missing" for name in own if name not in given]
    found += [f"{name} is unknown here" for name in given if name not in own]
    for name in own:
        if name in given and _kind(given[name]) != _kind(own[name]):
            found.append(f"{name} is {_kind(given[name])}, not {_kind(own[name])}")
    return found


def _kind(value: Any) -> str:
    try:
        array = np.asarray(value)
    except Exception:  # whatever a foreign __array__ raises
        return f"a {type(value).__name__}"
    return f"{array.dtype.name} of shape {array.shape}"


def check_counts(state: Mapping[str, Array]) -> None:
    """Raise ArtifactError for numbers that no training leads to."""
    steps, epochs = int(state[STEP]), int(state[EPOCH])
    if steps < 0 or not 0 <= epochs < 2**32:
        raise ArtifactError(f"no training is at step {steps} of epoch {epochs}")


def like(own: Array, given: Any) -> Array:
    """A value in the element type of what it replaces, where it is of that kind."""
    array = np.asarray(given)
    if not np.can_cast(array.dtype, own.dtype, "same_kind"):
        return array
    return array.astype(own.dtype, copy=False)
