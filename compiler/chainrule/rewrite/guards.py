"""What rules ask of what their variables stand for."""

from __future__ import annotations

import math

from chainrule.ir.node import Node
from chainrule.ops.axes import Expand
from chainrule.ops.source import Full
from chainrule.rewrite.rule import Guard


def above(*names: str) -> Guard:
    """Whether variables are finite numbers above 0, of which there is a logarithm."""
    return lambda bound: all(is_above(bound[name]) for name in names)


def finite(name: str) -> Guard:
    """Whether a variable is a finite number."""
    return lambda bound: _is_within(bound[name], -math.inf)


def is_above(node: Node) -> bool:
    """Whether a node is a finite number above 0."""
    return _is_within(node, 0.0)


def _is_within(node: Node, low: float) -> bool:
    return isinstance(node.op, Full) and bool(low < node.op.value < math.inf)


def behind(node: Node) -> Node:
    """What a node repeats."""
    while isinstance(node.op, Expand):
        (node,) = node.inputs
    return node
