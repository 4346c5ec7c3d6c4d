"""The passes over graphs that rewrite: rule sets with a name and a place in the order.

`opaque` nodes are kept as they are: nothing looks through them, so that what a derivative is asked
for is not lost. (A node behind one may change; then so does the node, in its operands alone.)
"""

from __future__ import annotations

from collections.abc import Collection

from chainrule.ir.graph import Graph
from chainrule.ir.node import Node
from chainrule.rewrite.attend import attend
from chainrule.rewrite.canonical import CANONICAL
from chainrule.rewrite.clean import drop_unused
from chainrule.rewrite.expand import expand_composites
from chainrule.rewrite.inside import look_up_inside
from chainrule.rewrite.lookup import multiply_tables
from chainrule.rewrite.loops import drop_unread
from chainrule.rewrite.lower import LOWERING
from chainrule.rewrite.order import order_contractions
from chainrule.rewrite.outward import OUTWARD
from chainrule.rewrite.recognition import RECOGNITION
from chainrule.rewrite.rule import rewrite
from chainrule.rewrite.simplify import SIMPLIFY
from chainrule.rewrite.spread import spread
from chainrule.rewrite.stability import STABILITY
from chainrule.rewrite.steps import share_steps
from chainrule.rewrite.widen import widen

__all__ = [
    "attend", "canonicalize", "drop_unread", "drop_unused", "expand_composites", "look_up_inside",
    "lower", "multiply_tables", "order_contractions", "share_steps", "simplify", "spread",
    "stabilize", "widen",
]  # fmt: skip

_STABLE = CANONICAL + STABILITY + RECOGNITION
_SIMPLE = CANONICAL + OUTWARD + SIMPLIFY
_LOW = LOWERING + _SIMPLE


def canonicalize(graph: Graph, opaque: Collection[Node] = ()) -> Graph:
    """Second spellings disappear: numbers stand right, signs outside, powers as products."""
    return rewrite(graph, CANONICAL, opaque)


def stabilize(graph: Graph, opaque: Collection[Node] = ()) -> Graph:
    """Formulas that overflow or cancel disappear; sigmoid, softplus, log_softmax, ... appear.

    What is spelled out by hand (a gelu, a layer norm, attention) becomes the function it is. The
    canonical rules run along, since each set makes work for the other.
    """
    return rewrite(graph, _STABLE, opaque)


def simplify(graph: Graph, opaque: Collection[Node] = ()) -> Graph:
    """What the chain rule spelled at length disappears: sums of one-hot codes, equal divisors."""
    return rewrite(graph, _SIMPLE, opaque)


def lower(graph: Graph, opaque: Collection[Node] = ()) -> Graph:
    """Products without a summed or a free axis disappear, and folds over axes that lie apart.

    The simplifying rules run along, on what composites were made of.
    """
    return rewrite(graph, _LOW, opaque)
