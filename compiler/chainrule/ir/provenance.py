"""Where nodes come from: the user's name and line for each, beside the graph and not in it.

The first creation wins, and what a pass puts in a node's place inherits both.
"""

from __future__ import annotations

import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING

from chainrule.errors import Location, user_location

if TYPE_CHECKING:
    from chainrule.ir.node import Node

#: Derivatives of derivatives of ... that still get a name.
MAX_ORDER = 8
#: Forms after which a node is taken to be in its last.
MAX_FORMS = 8
#: What a loss is called that nobody named.
LOSS = "J"

_names: weakref.WeakKeyDictionary[Node, str] = weakref.WeakKeyDictionary()
_cotangents: weakref.WeakKeyDictionary[Node, Node | None] = weakref.WeakKeyDictionary()
_lines: weakref.WeakKeyDictionary[Node, Location] = weakref.WeakKeyDictionary()
#: the form that a node took which is named or has a cotangent; kept as long as the node is, as it
#: may come back in a derivative
_forms: weakref.WeakKeyDictionary[Node, Node] = weakref.WeakKeyDictionary()
#: what has a cotangent
_origins: weakref.WeakSet[Node] = weakref.WeakSet()
#: for what a step of a loop is given, what the loop is given
_around: weakref.WeakKeyDictionary[Node, tuple[Node, ...]] = weakref.WeakKeyDictionary()
_losses: weakref.WeakKeyDictionary[Node, str] = weakref.WeakKeyDictionary()
_current: ContextVar[Location | None] = ContextVar("current", default=None)


def created(node: Node) -> None:
    """Note the line that made a node: the user's, or that of the node it is derived from."""
    line = _current.get() or user_location()
    if line is not None:
        _lines.setdefault(node, line)


class written_at:
    """A context: nodes made inside belong to a line of the user's file, whoever asks for them.

    A class, as one is entered for each node of each pass and a generator takes twice as long.
    """

    __slots__ = ("line", "token")

    def __init__(self, line: Location | None) -> None:
        self.line = line

    def __enter__(self) -> None:
        self.token = _current.set(self.line)

    def __exit__(self, *error: object) -> None:
        _current.reset(self.token)


class derived_from(written_at):
    """The same of the line of `node`, or of the one it is in already."""

    __slots__ = ()

    def __init__(self, node: Node) -> None:
        super().__init__(_lines.get(node) or _current.get())


def inherit(new: Node, old: Node) -> Node:
    """Let `new`, put in the place of `old`, keep its name and line."""
    if new is not old:
        if old in _names:
            _names.setdefault(new, _names[old])
        if old in _names or old in _origins:
            _forms.setdefault(old, new)
        if old in _cotangents:
            _cotangents.setdefault(new, _cotangents[old])
        if old in _lines:
            _lines.setdefault(new, _lines[old])
    return new


def set_name(node: Node, name: str) -> None:
    """Record what the user calls a node; the first name stays."""
    _names.setdefault(node, name)


def set_cotangent(node: Node, of: Node | None) -> None:
    """Record that a node is the cotangent of another, or of none.

    What is recorded first stays, but of two others one that the user named is preferred.
    """
    if of is not None:
        _origins.add(of)
    known = _cotangents.setdefault(node, of)
    if known is not None and known not in _names and of in _names:
        _cotangents[node] = of


def cotangent_of(node: Node) -> Node | None:
    """The node that this one is the cotangent of, in its last form, or None."""
    of = _cotangents.get(node)
    for _ in range(MAX_FORMS):
        if of is None or of in _names or of not in _forms:
            break
        of = _forms[of]
    return of


def name_of(node: Node) -> str | None:
    """The user's name, else "d" and the name of what it is a cotangent of."""
    of: Node | None = node
    for order in range(MAX_ORDER):
        if of is None:
            break
        if of in _names:
            return differential(_names[of], order)
        of = _cotangents.get(of)
    return None


def differential(name: str, order: int) -> str:
    """What a cotangent is called: dW of W, dense1.dweight of a layer's dense1.weight."""
    owner, dot, own = name.rpartition(".")
    return f"{owner}{dot}{'d' * order}{own}"


def user_name_of(node: Node) -> str | None:
    """The name the user gave, or None."""
    return _names.get(node)


def set_around(node: Node, given: tuple[Node, ...]) -> None:
    """Record of a leaf of a loop's step what the loop is given."""
    _around.setdefault(node, given)


def around(node: Node) -> tuple[Node, ...]:
    """What the loop is given of which a node is a leaf; of any other node nothing."""
    return _around.get(node, ())


def set_loss(gradient: Node, loss: Node) -> None:
    """Record what a node was last asked for as the gradient of, by name."""
    _losses[gradient] = _names.get(loss, LOSS)


def loss_of(gradient: Node) -> str:
    """What a node is a gradient of."""
    return _losses.get(gradient, LOSS)


def line_of(node: Node) -> Location | None:
    """The line of the user's file that made a node."""
    return _lines.get(node)
