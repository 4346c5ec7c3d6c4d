"""Many members trained at once: the graph of one, with leaves that hold them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from chainrule.errors import CompileError, FeedError
from chainrule.given import is_int
from chainrule.ir import provenance
from chainrule.ir.describe import Unwritten
from chainrule.ir.graph import Graph
from chainrule.ir.graph import replace as substituted
from chainrule.ir.node import Node, apply
from chainrule.ops.each import every, own
from chainrule.ops.source import Leaf
from chainrule.records import dataclass

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Ensemble:
    """`count` members. Of the leaves in `shared` there is one for all of them.

    In storage members stand along the last axis, where vectors go over them; users see it first.
    """

    count: int
    shared: frozenset[Node]

    def leaf(self, one: Node) -> Node:
        """The leaf that holds all members' of a leaf, under its name."""
        if one in self.shared:
            return one
        assert isinstance(one.op, Leaf)
        shape = (*one.type.shape, self.count)
        return provenance.inherit(apply(replace(one.op, type=one.type.with_shape(shape))), one)

    def graph(self, one: Graph, kept: Sequence[Node]) -> Graph:
        """The graph of all members from that of one, which has the leaves `kept`."""
        parts = {n: own(self.leaf(n)) for n in kept if n not in self.shared}
        roots = substituted(one.roots, parts)
        leaves = [None] * len(one.outputs) + [leaf for leaf, _ in one.updates]
        ends = [
            root if leaf in self.shared else every(root, self.count)
            for leaf, root in zip(leaves, roots, strict=True)
        ]
        count = len(one.outputs)
        changed = (self.leaf(leaf) for leaf, _ in one.updates)
        return Graph(tuple(ends[:count]), tuple(zip(changed, ends[count:], strict=True)))

    def unwritten(self, one: Unwritten, kept: Sequence[Node]) -> Unwritten:
        """The same of a graph that may not be needed."""

        def tell() -> str | None:
            text = one.tell()
            return text and f"{self.count} members\n{text}"

        return Unwritten(tell, lambda: self.graph(one.graph, kept))

    def seen(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Views of stored arrays, members first."""
        return {n: a if n in self._names else members_first(a) for n, a in arrays.items()}

    def member(self, number: int, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Views of what one member has of stored arrays."""
        return {n: a if n in self._names else a[..., number] for n, a in arrays.items()}

    def numbers(self, what: str, value: Any) -> list[Any]:
        """A number for each member, given one for all or as many. Raises FeedError."""
        if np.ndim(value) == 0:
            return [value] * self.count
        if np.shape(value) != (self.count,):
            raise FeedError(
                f"{what} is a number, or {self.count} of them, one a member: "
                f"not an array of shape {np.shape(value)}"
            )
        return list(value)

    @property
    def _names(self) -> set[str]:
        return {n.op.label for n in self.shared if isinstance(n.op, Leaf)}


def members_first(array: Array) -> Array:
    """A view of what all members have, with them along the first axis."""
    return np.moveaxis(array, -1, 0)


def check_ensemble(ensemble: int | None, seed: int, share: object) -> int | None:
    """How many members there are. Raises CompileError unless their seeds can follow on `seed`."""
    if ensemble is None:
        return None
    if not is_int(ensemble) or ensemble < 1:
        raise CompileError(f"ensemble is None or an int from 1 on, not {ensemble!r}")
    if share is not None:
        raise CompileError("an ensemble that shares parameters is not built yet", "leave share out")
    if seed + ensemble > 2**64:
        raise CompileError(
            f"the last of {ensemble} members would have a seed above 2**64 - 1",
            "member i has the seed of the first plus i",
        )
    return int(ensemble)
