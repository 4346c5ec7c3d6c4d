"""Products of float32 tensors whose factors are bfloat16: what `precision=` asks for.

A factor is rounded to nearest, ties to even; products of two bfloat16 are exact in float32, and are
added up there. Everything else, parameters and optimizer too, stays float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from chainrule.ir import provenance
from chainrule.ir.graph import Graph
from chainrule.ir.node import Node, apply, rebuild
from chainrule.ir.types import bfloat16, float32
from chainrule.ops.attend import Attend, AttendBack
from chainrule.ops.cast import Cast, cast, widens
from chainrule.ops.contract import Contract
from chainrule.rewrite.canonical import product_through_permute
from chainrule.rewrite.rule import Rules, rewrite


def narrow_products(graph: Graph) -> Graph:
    """Factors in float32 disappear from products; the same rounded to bfloat16 appear. Attention
    whose factors a GPU may round to TF32 appears.
    """
    return _over_products(graph, lambda op, x, y: apply(op, _rounded(x), _rounded(y)), True)


def split_products(graph: Graph) -> Graph:
    """Products of float32 factors disappear; those appear that take a factor as two bfloat16 where
    that is faster: as its rounding, and the rounding of what that leaves.

    Two bfloat16 hold 17 bits, so each factor errs by 2**-17 of itself at most. All four products of
    parts are added up: that of the lower ones is at most 2**-16 of the whole, and without it the
    errors could be twice as large. Where the upper parts' sum is not finite it is the result, as
    what inf leaves is NaN. Elsewhere the product is that of float32.
    """
    return _over_products(graph, _split)


def round_products(graph: Graph) -> Graph:
    """Products of float32 factors disappear; those appear whose factors a GPU may round to TF32:
    to float32's range with 10 bits behind the point, those of attention too. Elsewhere the product
    is that of float32.
    """
    return _over_products(graph, _for_tensor_cores, True)


#: what each precision makes of a graph
PRECISIONS: dict[str, Callable[[Graph], Graph]] = {
    "bfloat16": narrow_products,
    "bfloat16x3": split_products,
    "tf32": round_products,
}


#: equal products of permuted factors are one before conversions stand between
_STRAIGHT = Rules([product_through_permute])


def _over_products(
    graph: Graph, made: Callable[[Contract, Node, Node], Node], tf32: bool = False
) -> Graph:
    """A graph with other products, and with `tf32` attention that a GPU may round so."""
    if not any(_is_product(node) or _is_attention(node) for node in graph.nodes):
        return graph
    graph = rewrite(graph, _STRAIGHT)
    memo: dict[Node, Node] = {}
    for node in graph.nodes:
        inputs = [memo[i] for i in node.inputs]
        if isinstance(node.op, Contract) and _is_product(node):
            with provenance.derived_from(node):
                new = made(node.op, *inputs)
        elif isinstance(node.op, Attend | AttendBack) and tf32 and _is_attention(node):
            with provenance.derived_from(node):
                new = apply(replace(node.op, tf32=True), *inputs)
        else:
            new = rebuild(node, inputs)
        memo[node] = provenance.inherit(new, node)
    return graph.with_roots([memo[r] for r in graph.roots])


def _is_product(node: Node) -> bool:
    return isinstance(node.op, Contract) and node.dtype == float32


def _is_attention(node: Node) -> bool:
    return isinstance(node.op, Attend | AttendBack) and node.dtype == float32


def _rounded(x: Node) -> Node:
    """`x` rounded to bfloat16, as float32. What only moves elements moves rounded ones."""
    if widens(x):
        return x
    moves: list[Node] = []
    while x.op.role in ("view", "alias") and len(x.inputs) == 1 and x.inputs[0].dtype == float32:
        moves.append(x)
        x = x.inputs[0]
    narrow = x.inputs[0] if widens(x) else cast(x, bfloat16)
    for move in reversed(moves):
        narrow = rebuild(move, [narrow])
    return apply(Cast(float32, role="light"), narrow)


def _split(op: Contract, x: Node, y: Node) -> Node:
    return apply(op if widens(x) and widens(y) else replace(op, parts=2), x, y)


def _for_tensor_cores(op: Contract, x: Node, y: Node) -> Node:
    return apply(op if widens(x) and widens(y) else replace(op, tf32=True), x, y)
