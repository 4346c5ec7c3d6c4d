"""What a loop does at each step: a graph whose leaves are its own.

A body is closed: all it reads is handed to it, at each step the carried values and a slice of each
stack, and `constants`, which are the same at every step and computed once, outside. Leaves are
numbered, so that two bodies that do the same are the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import field, replace
from functools import cached_property, lru_cache

from chainrule.ir import provenance
from chainrule.ir.describe import described
from chainrule.ir.graph import Graph, walk
from chainrule.ir.node import Bound, Node, apply, next_serial, rebuild
from chainrule.ir.size import Dim, substitute
from chainrule.ir.types import TensorType
from chainrule.ops.source import Leaf
from chainrule.records import dataclass

#: What is worked out anew at each step rather than kept in memory outside.
_FREE = ("view", "light", "alias")


@dataclass(frozen=True)
class Body:
    """One step: `nexts` are the carried values after it, `ys` what it adds to each stack."""

    carries: tuple[Node, ...]
    slices: tuple[Node, ...]
    constants: tuple[Node, ...]
    nexts: tuple[Node, ...]
    ys: tuple[Node, ...]
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        parts = (self.carries, self.slices, self.constants, self.nexts, self.ys)
        object.__setattr__(self, "_hash", hash(parts))

    def __hash__(self) -> int:
        return self._hash

    @property
    def leaves(self) -> tuple[Node, ...]:
        """All that a step is given, in the order in which a loop takes it."""
        return (*self.carries, *self.slices, *self.constants)

    @property
    def roots(self) -> tuple[Node, ...]:
        """All that a step computes."""
        return (*self.nexts, *self.ys)

    @cached_property
    def graph(self) -> Graph:
        """The step as a graph: ys are its outputs, carried values its updates."""
        pairs = zip(self.carries, self.nexts, strict=True)
        return Graph(self.ys, tuple((leaf, new) for leaf, new in pairs if leaf is not new))

    @cached_property
    def content(self) -> str | None:
        """A digest of what a step computes of what it is given, and what it is given as what."""
        text = described(self.roots, self.leaves)
        names = [provenance.user_name_of(n) for n in self.leaves if n.type.dtype.is_integer]
        counts = [len(part) for part in (self.carries, self.slices, self.constants, self.ys)]
        return text and hashlib.sha256(f"{counts} {names}\n{text}".encode()).hexdigest()

    @cached_property
    def positions(self) -> tuple[tuple[int, Bound], ...]:
        """The leaves, by number, that are slices of stacks and read at just as they are given, with
        their bounds.
        """
        first = len(self.carries)
        numbers = {leaf: first + i for i, leaf in enumerate(self.slices)}
        read = [
            (node.inputs[operand], bound)
            for node in walk(self.roots)
            for operand, bound in node.op.bounds(*[i.type for i in node.inputs])
        ]
        return tuple(dict.fromkeys((numbers[n], bound) for n, bound in read if n in numbers))

    def with_graph(self, graph: Graph) -> Body:
        """The body that computes the same by another graph; what that does not update, stays."""
        nexts = dict(graph.updates)
        return replace(self, nexts=tuple(nexts.get(c, c) for c in self.carries), ys=graph.outputs)

    def renamed(self, values: Mapping[Node, Node]) -> Body:
        """The body on other leaves."""
        roots = substituted(self.roots, values)
        count = len(self.nexts)
        carries, slices, constants = (
            tuple(values[leaf] for leaf in group)
            for group in (self.carries, self.slices, self.constants)
        )
        return Body(carries, slices, constants, tuple(roots[:count]), tuple(roots[count:]))

    def opened(self) -> Body:
        """The body on new leaves, which no other graph has: to be taken apart."""
        return self.renamed({n: local(label_of(n), n.type) for n in self.leaves})

    @cached_property
    def influence(self) -> Mapping[Node, int]:
        """For each node, the leaves its derivative reaches: bit i is the i-th of `leaves`."""
        bits = {leaf: 1 << i for i, leaf in enumerate(self.leaves)}
        for node in walk(self.roots):
            if node not in bits:
                bits[node] = 0
                for i, source in enumerate(node.inputs):
                    floats = node.type.dtype.is_float and source.type.dtype.is_float
                    if floats and node.op.reaches(i):
                        bits[node] |= bits[source]
        return bits

    @cached_property
    def reach(self) -> tuple[int, ...]:
        """For each of `nexts` then `ys`, the leaves its derivative reaches over any steps."""
        count = len(self.carries)
        found = [self.influence[root] for root in self.roots]
        changed = True
        while changed:
            changed = False
            for i, bits in enumerate(found):
                more = bits
                for c in range(count):
                    if bits >> c & 1:
                        more |= found[c]
                changed, found[i] = changed or more != bits, more
        return tuple(found)


def local(label: str, type: TensorType, number: int | None = None) -> Node:
    """What a step is given; without a number, a leaf of its own."""
    node = apply(Leaf("local", label, type, next_serial() if number is None else -1 - number))
    provenance.set_name(node, label)
    return node


def is_local(node: Node) -> bool:
    """Whether a node is what a step is given."""
    return isinstance(node.op, Leaf) and node.op.kind == "local"


def label_of(node: Node) -> str:
    """The name of a leaf."""
    assert isinstance(node.op, Leaf)
    return node.op.label


def close(
    carries: Sequence[Node],
    slices: Sequence[Node],
    nexts: Sequence[Node],
    ys: Sequence[Node],
    outer: Collection[Node] = (),
) -> tuple[Body, tuple[Node, ...]]:
    """The body that computes `nexts` and `ys`, and the nodes outside that are its constants.

    Whatever does not depend on the leaves given is computed outside, once; views of it, and what is
    cheaper to compute again than to keep, at each step. `outer` are nodes known to be outside.
    """
    own = {*carries, *slices}
    inside, known = set(own), own | set(outer)
    outside: dict[Node, None] = {}
    for node in walk((*nexts, *ys), stop=known.__contains__):
        if node not in known and any(i in inside for i in node.inputs):
            inside.add(node)
            outside.update(dict.fromkeys(_kept(i for i in node.inputs if i not in inside)))
    outside.update(dict.fromkeys(_kept(root for root in (*nexts, *ys) if root not in inside)))
    constants = tuple(outside)
    taken: set[str] = set()
    names = [
        provenance.user_name_of(new) or label_of(n) for n, new in zip(carries, nexts, strict=True)
    ]
    names += [label_of(n) for n in slices]
    names += [provenance.name_of(n) or "c" for n in constants]
    given = (*carries, *slices, *constants)
    leaves = {
        n: local(_claim(name, taken), n.type, i)
        for i, (n, name) in enumerate(zip(given, names, strict=True))
    }
    body = Body(tuple(carries), tuple(slices), constants, tuple(nexts), tuple(ys))
    return body.renamed(leaves), constants


def _kept(nodes: Iterable[Node]) -> list[Node]:
    """The nodes, or what is kept in memory behind them where they are views."""
    found: list[Node] = []
    pending = list(nodes)[::-1]
    while pending:
        node = pending.pop()
        if node.op.role in _FREE:
            pending.extend(node.inputs[::-1])
        else:
            found.append(node)
    return found


def _claim(name: str, taken: set[str]) -> str:
    number, claimed = 1, name
    while claimed in taken:
        number, claimed = number + 1, f"{name}_{number + 1}"
    taken.add(claimed)
    return claimed


def substituted(roots: Sequence[Node], values: Mapping[Node, Node]) -> list[Node]:
    """The roots with some nodes replaced by others; names and lines stay."""
    memo = dict(values)
    for node in walk(roots, stop=memo.__contains__):
        if node not in memo:
            new = rebuild(node, [memo[i] for i in node.inputs])
            memo[node] = provenance.inherit(new, node)
    return [memo[r] for r in roots]


def resolved(body: Body, sizes: Mapping[str, Dim]) -> Body:
    """The body with symbolic sizes replaced."""
    return _resolved(body, tuple(sorted(sizes.items())))


@lru_cache(maxsize=64)
def _resolved(body: Body, sizes: tuple[tuple[str, Dim], ...]) -> Body:
    known = dict(sizes)
    memo: dict[Node, Node] = {}
    for node in (*body.leaves, *walk(body.roots)):
        if isinstance(node.op, Leaf):
            shape = tuple(substitute(d, known) for d in node.type.shape)
            memo[node] = apply(replace(node.op, type=node.type.with_shape(shape)))
        elif node not in memo:
            memo[node] = apply(node.op.resolve(known), *[memo[i] for i in node.inputs])
    carries, slices, constants, nexts, ys = (
        tuple(memo[n] for n in group)
        for group in (body.carries, body.slices, body.constants, body.nexts, body.ys)
    )
    return Body(carries, slices, constants, nexts, ys)
