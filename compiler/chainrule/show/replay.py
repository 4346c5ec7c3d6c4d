"""Proofs in numbers: each step against finite differences, in float64, at random points."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from chainrule.autodiff.reverse import Derivation
from chainrule.ir.evaluate import evaluate, value_of
from chainrule.ir.graph import walk
from chainrule.ir.node import Array, Node
from chainrule.ir.size import Dim, symbols_of
from chainrule.ir.size import evaluate as number_of
from chainrule.ops.elementwise import chosen_branch
from chainrule.ops.source import Leaf
from chainrule.records import dataclass

#: Random points at which a step may be tried: one may fall on a kink, where there is no derivative.
TRIES = 3


@dataclass(frozen=True)
class Check:
    """Whether a proof holds; if not, the place in `steps` that does not and what is wrong."""

    holds: bool
    step: int | None = None
    reason: str = ""

    def __bool__(self) -> bool:
        return self.holds


Results = Sequence[tuple[Node, Node]]


def check_step(results: Results, operand: int, contribution: Node) -> bool:
    """Whether `contribution` is the cotangent of an operand, of `results` with their cotangents:
    <contribution, v> is the derivative of <cotangent, op(x)>, summed over the results, along v, for
    random x, cotangents and v.
    """
    return any(_step_holds(results, operand, contribution, k) for k in range(TRIES))


def _step_holds(results: Results, operand: int, contribution: Node, seed: int) -> bool:
    node = results[0][0]
    rng = _generator(seed, node)
    every = [n for pair in results for n in pair]
    sizes = _sizes([*every, contribution])
    fixed = _fixed(every)
    feeds: dict[Node, Array] = {}
    for source in dict.fromkeys(node.inputs):
        given = source in fixed and source is not node.inputs[operand]
        feeds[source] = _value(source, sizes) if given else _random(source, sizes, rng, node)

    def result_at(result: Node, *operands: Array) -> Array:
        return np.asarray(value_of(result, dict(sizes), operands, widen=True))

    inputs = [feeds[i] for i in node.inputs]
    x, v = inputs[operand], rng.normal(size=inputs[operand].shape)
    for result, ct in results:
        _draw_cotangent(ct, sizes, fixed, rng, feeds)
        feeds.setdefault(result, result_at(result, *inputs))
    (found,) = evaluate([contribution], feeds, sizes=sizes, widen=True)

    def along(step: float) -> float:
        moved = [x + step * v if k == operand else a for k, a in enumerate(inputs)]
        values = (feeds[ct] * np.asarray(result_at(n, *moved), float) for n, ct in results)
        return float(sum(np.sum(value) for value in values))

    return _agree(float(np.sum(found * v)), *_slope(along, feeds[node]))


def _draw_cotangent(
    ct: Node,
    sizes: Mapping[str, int],
    fixed: set[Node],
    rng: np.random.Generator,
    feeds: dict[Node, Array],
) -> None:
    """Give a cotangent values; of a choice between something and 0 what it is made of, since what
    follows from it is chosen the same way.
    """
    if ct in feeds:
        return
    branch = chosen_branch(ct)
    if branch is None or ct in fixed:
        feeds[ct] = _value(ct, sizes) if ct in fixed else _normal(ct, sizes, rng)
        return
    condition, something = ct.inputs[0], ct.inputs[branch]
    if condition not in feeds:
        feeds[condition] = rng.integers(0, 2, _shape(condition, sizes)).astype(bool)
    _draw_cotangent(something, sizes, fixed, rng, feeds)
    feeds[ct] = evaluate([ct], feeds, sizes=sizes, widen=True)[0]


def check_gradient(derivation: Derivation, wrt: Node, gradient: Node, step: int) -> Check:
    """Whether a gradient is the one that was derived, and is the derivative of the result."""
    reason = ""
    for seed in range(TRIES):
        reason = _gradient_fault(derivation, wrt, gradient, seed)
        if not reason:
            return Check(True)
    return Check(False, step, reason)


def _gradient_fault(derivation: Derivation, wrt: Node, gradient: Node, seed: int) -> str:
    result, raw = derivation.result, derivation.cotangents[wrt]
    rng = _generator(seed, result)
    roots = [result, raw, gradient, derivation.cotangents[result]]
    sizes = _sizes(roots)
    nodes = walk(roots, stop={wrt}.__contains__)
    leaves = [n for n in nodes if n is wrt or isinstance(n.op, Leaf)]
    feeds = {n: _random(n, sizes, rng) for n in leaves}
    values = evaluate(roots, feeds, sizes=sizes, widen=True)
    if not all(np.all(np.isfinite(v)) for v in values):
        feeds = {n: np.abs(a) + 0.5 if n.dtype.is_float else a for n, a in feeds.items()}
        values = evaluate(roots, feeds, sizes=sizes, widen=True)
    value, derived, simple, ct = values
    scale = float(np.max(np.abs(derived), initial=1e-6))
    if not np.allclose(simple, derived, rtol=1e-5, atol=1e-5 * scale, equal_nan=True):
        return "the simplified gradient is not the one that was derived"
    v = rng.normal(size=np.shape(feeds[wrt]))

    def along(step: float) -> float:
        moved = {**feeds, wrt: feeds[wrt] + step * v}
        (there,) = evaluate([result], moved, sizes=sizes, widen=True)
        return float(np.sum(ct * there))

    if not _agree(float(np.sum(simple * v)), *_slope(along, value)):
        return "the gradient is not the derivative of the result"
    return ""


def _generator(seed: int, node: Node) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(str(node.op.name).encode())])


def _slope(along: object, result: Array) -> tuple[float, float]:
    """The central difference of a function of one number, and how exact it can be."""
    assert callable(along)
    kind = np.asarray(result).dtype
    eps = float(np.finfo(kind if kind.kind == "f" else np.float64).eps)
    step = eps ** (1 / 3)
    up, down = along(step), along(-step)
    noise = eps * (abs(up) + abs(down)) / step
    return (up - down) / (2 * step), max(1e-6, 100 * step * step) + noise


def _agree(a: float, b: float, tolerance: float) -> bool:
    return abs(a - b) <= tolerance * max(1.0, abs(a), abs(b))


def _sizes(roots: Sequence[Node]) -> dict[str, int]:
    """A small number for every symbolic size, no two alike where they are few."""
    nodes = walk(roots)
    names = {s for n in nodes for d in n.shape for s in symbols_of(d)}
    names |= {s for n in nodes for s in symbols_of(getattr(n.op, "size", 0))}
    return {s: 3 + i % 5 for i, s in enumerate(sorted(names))}


def _fixed(roots: Sequence[Node]) -> set[Node]:
    """The nodes that no leaf changes."""
    fixed: set[Node] = set()
    for node in walk(roots):
        if not isinstance(node.op, Leaf) and all(i in fixed for i in node.inputs):
            fixed.add(node)
    return fixed


def _value(node: Node, sizes: Mapping[str, int]) -> Array:
    return evaluate([node], {}, sizes=sizes, widen=True)[0]


def _shape(node: Node, sizes: Mapping[str, int]) -> tuple[int, ...]:
    def known(dim: Dim) -> int:
        return number_of(dim, sizes)

    return tuple(known(d) for d in node.shape)


def _random(
    node: Node, sizes: Mapping[str, int], rng: np.random.Generator, reader: Node | None = None
) -> Array:
    """Values that the op reading them takes: floats in its domain, small indices."""
    low, high = reader.op.domain if reader is not None else (-1.0, 1.0)
    shape = _shape(node, sizes)
    if node.dtype.is_float:
        return rng.uniform(low, high, shape)
    values = rng.integers(0, 2, shape)
    return np.asarray(values, node.dtype.numpy)


def _normal(node: Node, sizes: Mapping[str, int], rng: np.random.Generator) -> Array:
    return rng.normal(size=_shape(node, sizes))
