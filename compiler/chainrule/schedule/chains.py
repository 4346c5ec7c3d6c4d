"""Maps that are full, taken apart again by what depends on each other.

Nodes join kernels by their distance from the leaves, those of equal shapes side by side. Of many
chains, such as the updates of many clipped weights, a kernel so holds the first steps of all, and
another one the next: all that chains come to passes through memory from one to the other. Here each
chain has its steps in one kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from chainrule.ir.node import Node
from chainrule.schedule.kernel import MAX_NODES, Form, Kernel
from chainrule.schedule.order import reads_at_its_index
from chainrule.schedule.reading import bases, sources

T = TypeVar("T", int, Node)


def by_chains(kernels: Sequence[Kernel]) -> list[Kernel]:
    """The kernels, where full maps go on in others with each chain of nodes in one."""
    if not any(k.form is Form.MAP and len(k.nodes) >= MAX_NODES for k in kernels):
        return list(kernels)
    at = {node: i for i, k in enumerate(kernels) if k.test is None for node in k.nodes}
    maps = [i for i, k in enumerate(kernels) if k.form is Form.MAP]
    pairs = [(i, j) for i in maps for j in _goes_on_from(kernels, i, at)]
    found = dict(enumerate(kernels))
    new: dict[int, list[Kernel]] = {}
    for group in _connected(maps, pairs):
        if len(group) > 1 and any(len(kernels[i].nodes) >= MAX_NODES for i in group):
            made = _apart([kernels[i] for i in group])
            if made and _stand_alone(kernels, group, at):
                for i in group:
                    del found[i]
                new[max(group)] = made
    return [k for i in range(len(kernels)) for k in new.get(i, [found[i]] if i in found else [])]


def _goes_on_from(kernels: Sequence[Kernel], i: int, at: Mapping[Node, int]) -> list[int]:
    """The maps of the same shape whose values a map reads."""
    read = {at[base] for node in kernels[i].nodes for base, _ in bases(node) if base in at}
    return [
        j
        for j in sorted(read - {i})
        if kernels[j].form is Form.MAP and kernels[j].space == kernels[i].space
    ]


def _apart(group: Sequence[Kernel]) -> list[Kernel]:
    """Kernels of the same nodes with each chain in one; none where that can't be, as where one
    reads at another place what it would compute itself.
    """
    nodes = [node for kernel in group for node in kernel.nodes]
    mine = set(nodes)
    pairs = [(node, base) for node in nodes for base, _ in bases(node) if base in mine]
    made: list[Kernel] = []
    for chain in _connected(nodes, pairs):
        if len(chain) > MAX_NODES:
            return []
        if not made or len(made[-1].nodes) + len(chain) > MAX_NODES:
            made.append(Kernel(Form.MAP, group[0].space))
        made[-1].nodes += chain
    alike = all(reads_at_its_index(kernel, node) for kernel in made for node in kernel.nodes)
    return made if alike else []


def _stand_alone(kernels: Sequence[Kernel], group: Sequence[int], at: Mapping[Node, int]) -> bool:
    """Whether all that kernels of a group read is there before the first, and nobody reads of them
    before the last, so that it does not matter when each runs.
    """
    first, last, mine = min(group), max(group), set(group)
    for i, kernel in enumerate(kernels):
        read = sources if kernel.test is not None else bases
        for base in (base for node in kernel.nodes for base, _ in read(node)):
            place = at.get(base)
            if place is None or (i in mine and place in mine):
                continue
            if (i in mine and place > first) or (place in mine and i < last):
                return False
    return True


def _connected(items: Sequence[T], pairs: Iterable[tuple[T, T]]) -> list[list[T]]:
    """The items in lists of those that pairs connect, each in the order they come."""
    parent = {item: item for item in items}

    def root(item: T) -> T:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for a, b in pairs:
        parent[root(a)] = root(b)
    lists: dict[T, list[T]] = {}
    for item in items:
        lists.setdefault(root(item), []).append(item)
    return list(lists.values())
