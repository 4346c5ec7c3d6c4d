"""Names for layers: which are taken, and in which scope a layer stands.

Layers that work on what comes from the same inputs are named side by side: "dense1", "dense2". So
two models on inputs of their own both begin at 1, whatever was made before.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from weakref import WeakKeyDictionary

from chainrule.ir import provenance
from chainrule.ir.graph import walk
from chainrule.ir.node import Node
from chainrule.ops.source import Leaf


class Scope:
    """Names of layers that stand side by side; `prefix` stands before each."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self._taken: set[str] = set()
        self._next: dict[str, int] = {}  # below it, no number of a kind is free
        self._joined: Scope | None = None

    @property
    def root(self) -> Scope:
        """The scope itself, or the one that it became part of."""
        scope = self
        while scope._joined is not None:
            scope = scope._joined
        return scope

    def fresh(self, kind: str) -> str:
        """A kind and the lowest number with which it is free."""
        root = self.root
        number = root._next.get(kind, 1)
        while f"{kind}{number}" in root._taken:
            number += 1
        root._next[kind] = number
        return f"{kind}{number}"

    def take(self, names: Iterable[str]) -> None:
        """Let names be taken; two layers may be given the same."""
        self.root._taken.update(names)

    def free(self, name: str) -> None:
        """Let a name be free again."""
        self.root._taken.discard(name)
        self.root._next.clear()

    def join(self, other: Scope) -> Scope:
        """One scope of two: what is taken in one is taken in both."""
        into, part = self.root, other.root
        if into is part:
            return into
        if len(into._taken) < len(part._taken):
            into, part = part, into
        into._taken |= part._taken
        part._joined = into
        return into


#: inputs, and what layers took and gave; a layer's operands are followed back to these and no
#: further, so that a deep net takes linear time
_scopes: WeakKeyDictionary[Node, Scope] = WeakKeyDictionary()


def scope_of(nodes: Sequence[Node]) -> Scope:
    """The scope of the inputs that nodes come from: one, if they come from several, from now on."""
    scope: Scope | None = None
    pending: Sequence[Node] = nodes
    while pending:
        outside: list[Node] = []
        for node in walk(pending, stop=_scopes.__contains__):
            if node not in _scopes:
                outside += provenance.around(node)
            if node in _scopes or (isinstance(node.op, Leaf) and node.op.kind == "input"):
                own = _scopes.setdefault(node, Scope())
                scope = own.root if scope is None else scope.join(own)
        pending = outside
    found = scope or Scope()
    remember(nodes, found)
    return found


def remember(nodes: Iterable[Node], scope: Scope) -> None:
    """Note that what layers make of these nodes is named in a scope.

    Not of what comes from no input, such as zeros, which other nets may have too.
    """
    for node in nodes:
        if any(map(_is_scoped, walk([node], stop=_scopes.__contains__))):
            _scopes.setdefault(node, scope)


def _is_scoped(node: Node) -> bool:
    given = isinstance(node.op, Leaf) and node.op.kind not in ("parameter", "state")
    return given or node in _scopes


def kind_of(cls: type) -> str:
    """What layers of a class are called, before their number: BatchNorm's are batch_norm1, ..."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z0-9])(?=[A-Z][a-z])", "_", cls.__name__)
    return words.lower().strip("_")
