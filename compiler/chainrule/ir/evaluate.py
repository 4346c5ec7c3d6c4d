"""The reference evaluator: what a graph means, one NumPy array a node, slow and obvious."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from chainrule.errors import FeedError
from chainrule.ir.graph import walk
from chainrule.ir.node import Array, Node, Op
from chainrule.ir.size import Dim, coefficient, substitute, symbols_of
from chainrule.ir.size import evaluate as number_of

Feeds = Mapping[Node, Array]


def evaluate(
    roots: Sequence[Node],
    feeds: Feeds,
    *,
    sizes: Mapping[str, int] | None = None,
    widen: bool = False,
) -> list[Array]:
    """The values of roots, given arrays for leaves; each has exactly its node's dtype.

    Any node may be fed, not leaves alone: what lies behind it is then not computed. Symbolic sizes
    are read off the shapes of the arrays; `sizes` gives those that no array tells. With `widen`
    floats are float64 whatever their node's dtype, for finite differences. Raises FeedError where a
    leaf that is needed has no array or where shapes do not fit together.
    """
    known: dict[str, Dim] = {**(sizes or {}), **bind_sizes(feeds)}
    values = {n: np.asarray(a, _dtype(n, widen)) for n, a in feeds.items()}
    with np.errstate(all="ignore"):
        for node in walk(roots, stop=feeds.__contains__):
            if node not in values:
                operands = [values[i] for i in node.inputs]
                value = value_of(node, known, operands, widen)
                values[node] = np.asarray(value, _dtype(node, widen))
    return [values[r] for r in roots]


def _dtype(node: Node, widen: bool) -> np.dtype[np.generic]:
    if widen and node.dtype.is_float:
        return np.dtype(np.float64)
    kind: np.dtype[np.generic] = node.dtype.numpy
    return kind


def value_of(
    node: Node, sizes: dict[str, Dim], operands: Sequence[Array], widen: bool = False
) -> Array:
    """What a node is of its operands' values. With `widen` one that only rounds leaves them."""
    if widen and node.op.rounds and node.dtype.is_float and node.inputs[0].dtype.is_float:
        return operands[0]
    try:
        return meaning(node.op.resolve(sizes), *operands)
    except NotImplementedError:
        raise FeedError(f"{node!r} has no value: it must be fed") from None


def meaning(op: Op, *operands: Array) -> Array:
    """What an op is of arrays. Bfloat16 ones count as float32; the caller rounds what comes out."""
    if op.stepwise or op.bodies():  # its nodes are rounded one by one
        return op.ref(*operands)
    # of numbers bfloat16 alone has this kind: NumPy does not know it
    return op.ref(*[a.astype(np.float32) if a.dtype.kind == "V" else a for a in operands])


def bind_sizes(feeds: Feeds) -> dict[str, int]:
    """The number that each symbolic size is, from the shapes of the arrays fed.

    A size that is linear in one unknown symbol gives it. Raises FeedError where shapes disagree.
    """
    sizes: dict[str, int] = {}
    waiting = [(node, a, axis) for node, a in feeds.items() for axis in _axes(node, a)]
    while waiting:
        left = [w for w in waiting if not _bind(*w, sizes)]
        if len(left) == len(waiting):
            node, array, axis = left[0]
            raise FeedError(f"axis {axis} of {node!r} is {array.shape[axis]}: what is its size?")
        waiting = left
    return sizes


def _axes(node: Node, array: Array) -> range:
    if np.ndim(array) != node.type.rank:
        raise FeedError(f"{node!r} has {node.type.rank} axes, the array fed {np.ndim(array)}")
    return range(node.type.rank)


def _bind(node: Node, array: Array, axis: int, sizes: dict[str, int]) -> bool:
    """Whether the size of an axis is known now; it may add one symbol to `sizes`."""
    have = np.shape(array)[axis]
    dim = substitute(node.shape[axis], dict(sizes))
    unknown = sorted(symbols_of(dim))
    if len(unknown) > 1:
        return False
    if unknown:
        line = coefficient(dim, unknown[0])
        if line is None or not all(isinstance(part, int) for part in line):
            return False
        slope, rest = (number_of(part, {}) for part in line)
        value, over = divmod(have - rest, slope)
        if over == 0 and value >= 0:
            sizes[unknown[0]] = value
            return True
    if unknown or dim != have:
        raise FeedError(f"axis {axis} of {node!r} is {node.shape[axis]}, the array's is {have}")
    return True
