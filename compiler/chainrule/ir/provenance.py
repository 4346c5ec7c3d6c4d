"""Where nodes come from: the user's name and line for each, beside the graph and not in it.

The first creation wins, and what a pass puts in a node's place inherits both.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from chainrule.errors import Location, user_location

if TYPE_CHECKING:
    from chainrule.ir.node import Node

#: Derivatives of derivatives of ... that still get a name.
MAX_ORDER = 8

_names: weakref.WeakKeyDictionary[Node, str] = weakref.WeakKeyDictionary()
_cotangents: weakref.WeakKeyDictionary[Node, Node | None] = weakref.WeakKeyDictionary()
_lines: weakref.WeakKeyDictionary[Node, Location] = weakref.WeakKeyDictionary()
_current: ContextVar[Location | None] = ContextVar("current", default=None)


def created(node: Node) -> None:
    """Note the line that made a node: the user's, or that of the node it is derived from."""
    line = _current.get() or user_location()
    if line is not None:
        _lines.setdefault(node, line)


@contextmanager
def derived_from(node: Node) -> Iterator[None]:
    """Nodes made inside belong to the line of `node`."""
    token = _current.set(line_of(node) or _current.get())
    try:
        yield
    finally:
        _current.reset(token)


def inherit(new: Node, old: Node) -> Node:
    """Let `new`, put in the place of `old`, keep its name and line."""
    if new is not old:
        if old in _names:
            _names.setdefault(new, _names[old])
        if old in _cotangents:
            _cotangents.setdefault(new, _cotangents[old])
        if old in _lines:
            _lines.setdefault(new, _lines[old])
    return new


def set_name(node: Node, name: str) -> None:
    """Record what the user calls a node; the first name stays."""
    _names.setdefault(node, name)


def set_cotangent(node: Node, of: Node | None) -> None:
    """Record that a node is the cotangent of another, or of none. What is recorded first stays."""
    _cotangents.setdefault(node, of)


def cotangent_of(node: Node) -> Node | None:
    """The node that this one is the cotangent of, or None."""
    return _cotangents.get(node)


def name_of(node: Node) -> str | None:
    """The user's name, else "d" and the name of what it is a cotangent of."""
    of: Node | None = node
    for order in range(MAX_ORDER):
        if of is None:
            break
        if of in _names:
            return "d" * order + _names[of]
        of = _cotangents.get(of)
    return None


def user_name_of(node: Node) -> str | None:
    """The name the user gave, or None."""
    return _names.get(node)


def line_of(node: Node) -> Location | None:
    """The line of the user's file that made a node."""
    return _lines.get(node)
