"""Gradients against finite differences, in float64."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from chainrule.errors import FeedError, GradientError
from chainrule.ir import provenance
from chainrule.ir.evaluate import evaluate
from chainrule.ir.graph import Graph, walk
from chainrule.ir.node import Array, Node
from chainrule.lang.derive import _node, flatten, gradients
from chainrule.lang.tensor import Tensor
from chainrule.ops.phase import resolve_phase
from chainrule.ops.random import bind_draws, seed_node, step_node
from chainrule.ops.source import Leaf
from chainrule.records import dataclass

#: The cube root of float64's precision: the step at which a central difference is most exact.
STEP = float(np.finfo(np.float64).eps ** (1 / 3))


@dataclass(frozen=True)
class GradientCheck:
    """What was compared and where it deviated most.

    `deviation` is |derived - measured| in units of what the tolerance allows: below 1 holds.
    `index` is an element's place, or None for a random direction. `kinks` counts the points without
    a derivative, at which the derived slope was held to lie between those of both sides.
    """

    deviation: float
    parameter: str
    index: tuple[int, ...] | None
    derived: float
    measured: float
    compared: int
    kinks: int

    def __str__(self) -> str:
        at = f"{self.parameter}{_place(self.index)}"
        worst = f"{self.derived:.8g} derived, {self.measured:.8g} measured at {at}"
        kinks = f", {self.kinks} at kinks" if self.kinks else ""
        used = f"{100 * self.deviation:.2g}% of the tolerance"
        return f"{self.compared} slopes hold{kinks}; the worst is {worst} ({used})"


def check_gradients(
    loss: Tensor,
    wrt: Any,
    feeds: Mapping[Any, Any],
    *,
    tolerance: float = 1e-5,
    directions: int = 3,
    coordinates: int = 20,
    seed: int = 0,
) -> GradientCheck:
    """Hold the gradients of a scalar to central differences in float64.

    `feeds` gives an array for each input and parameter, by name or by Tensor. Of each tensor of
    `wrt` some random directions and some elements are tried, the same for the same `seed`. Raises
    GradientError with parameter, place and both values where they differ by more than `tolerance`,
    relative to the larger, and FeedError where an array is missing. What is random is as in the
    first step of training with seed 0.
    """
    of, nodes = _node(loss), flatten(wrt)
    derived = gradients(of, nodes)
    fed = _fed([of, *derived], feeds)
    (of, *rest), fed = _bound([of, *derived, *nodes], fed)
    derived, nodes = rest[: len(nodes)], rest[len(nodes) :]
    worst: GradientCheck | None = None
    compared = kinks = 0
    for number, (node, gradient) in enumerate(zip(nodes, derived, strict=True)):
        rng = np.random.default_rng([seed, number])
        value, slopes = evaluate([node, gradient], fed, widen=True)
        along = _Slopes(of, node, np.asarray(value, np.float64), fed)
        for index, v in _tries(np.shape(value), directions, coordinates, rng):
            found = along.compare(float(np.sum(slopes * v)), v, index, tolerance)
            compared, kinks = compared + 1, kinks + found.kinks
            if not found.deviation < 1:
                raise _wrong(found, node)
            if worst is None or found.deviation > worst.deviation:
                worst = found
    if worst is None:
        raise GradientError("there is nothing to check: every tensor asked for is empty")
    at = (worst.parameter, worst.index, worst.derived, worst.measured)
    return GradientCheck(worst.deviation, *at, compared, kinks)


@dataclass(frozen=True)
class _Slopes:
    """Differences of a loss as one tensor moves from where it is."""

    loss: Node
    node: Node
    value: Array
    fed: Mapping[Node, Array]

    def at(self, move: Array) -> float:
        moved = {**self.fed, self.node: self.value + move}
        return float(evaluate([self.loss], moved, widen=True)[0])

    def compare(
        self, derived: float, v: Array, index: tuple[int, ...] | None, tolerance: float
    ) -> GradientCheck:
        """One slope against its measure; at a kink the derived one lies between both sides."""
        h = STEP * max(1.0, float(np.max(np.abs(self.value[v != 0]), initial=0.0)))
        here, up, down = self.at(0 * v), self.at(h * v), self.at(-h * v)
        right, left = (up - here) / h, (here - down) / h
        measured = (up - down) / (2 * h)
        noise = 4 * float(np.finfo(np.float64).eps) * (abs(up) + abs(down) + abs(here)) / h
        allowed = tolerance * max(abs(derived), abs(measured), 1e-3) + noise
        is_kink = abs(right - left) > 100 * allowed and self.bends(v, h, right - left)
        off = abs(derived - measured)
        if is_kink:
            low, high = min(left, right), max(left, right)
            off = max(low - derived, derived - high, 0.0)
        deviation = off / allowed
        name = provenance.name_of(self.node) or repr(self.node)
        return GradientCheck(deviation, name, index, derived, measured, 1, int(is_kink))

    def bends(self, v: Array, h: float, bend: float) -> bool:
        """Whether the two sides differ by as much at a tenth of the step: no smooth curve does."""
        h /= 10
        here, up, down = self.at(0 * v), self.at(h * v), self.at(-h * v)
        return abs((up - here) / h - (here - down) / h) > abs(bend) / 2


def _tries(
    shape: tuple[int, ...], directions: int, coordinates: int, rng: np.random.Generator
) -> Iterator[tuple[tuple[int, ...] | None, Array]]:
    """Directions of length 1, then single elements, each once."""
    count = int(np.prod(shape))
    for _ in range(directions if count else 0):
        v = rng.normal(size=shape)
        yield None, np.asarray(v / np.linalg.norm(np.ravel(v)))
    for flat in sorted(rng.permutation(count)[:coordinates].tolist()):
        index = tuple(int(i) for i in np.unravel_index(flat, shape))
        v = np.zeros(shape)
        v[index] = 1.0
        yield index, v


def _fed(roots: list[Node], feeds: Mapping[Any, Any]) -> dict[Node, Array]:
    """The array of each leaf that the roots depend on."""
    leaves = {n for n in walk(roots) if isinstance(n.op, Leaf)}
    by_name = {str(n.op.label): n for n in leaves if isinstance(n.op, Leaf)}
    found: dict[Node, Array] = {}
    if not isinstance(feeds, Mapping):
        raise FeedError(f"feeds are arrays by name or by Tensor, not {feeds!r}")
    for key, array in feeds.items():
        node = key.node if isinstance(key, Tensor) else by_name.get(key)
        if node is None:
            raise FeedError(f"no input is called {key!r}", f"there are {', '.join(by_name)}")
        found[node] = np.asarray(array)
    missing = sorted(n for n, node in by_name.items() if node not in found)
    if missing:
        raise FeedError(f"an array is missing for {', '.join(missing)}")
    return found


def _bound(roots: list[Node], fed: Mapping[Node, Array]) -> tuple[list[Node], dict[Node, Array]]:
    """Everything as it is in the first step of training with seed 0, whatever it draws."""
    graph = resolve_phase(Graph((*roots, *fed)), training=True)
    bound = bind_draws(graph, seed_node(0), step_node(0)).outputs
    values = zip(bound[len(roots) :], fed.values(), strict=True)
    return list(bound[: len(roots)]), dict(values)


def _wrong(found: GradientCheck, node: Node) -> GradientError:
    what = "along a random direction" if found.index is None else f"at {_place(found.index)}"
    return GradientError(
        f"the gradient by {found.parameter} is wrong {what}",
        f"derived {found.derived:.8g}, measured {found.measured:.8g}",
        where=provenance.line_of(node),
    )


def _place(index: tuple[int, ...] | None) -> str:
    return " along a direction" if index is None else f"[{', '.join(map(str, index))}]"
