"""Products get bfloat16 factors: what the passes put in, what they leave, and that it stays."""

from __future__ import annotations

from typing import Any

import pytest

import chainrule as cr
from chainrule.driver.lower import passes_for
from chainrule.ir.graph import Graph
from chainrule.ir.node import Node
from chainrule.ir.passes import run_passes
from chainrule.rewrite.narrow import narrow_products, split_products

FACTOR = ("to f32", ("to bf16", "input"))


def names(node: Node) -> Any:
    """An expression as nested names, casts with the type they make."""
    name = f"to {node.dtype.short}" if node.op.name == "cast" else node.op.name
    return (name, *map(names, node.inputs)) if node.inputs else name


def matrices(dtype: str = "float32") -> tuple[cr.Tensor, cr.Tensor]:
    return cr.input("x", ("m", 32), dtype=dtype), cr.input("w", (32, 24), dtype=dtype)


def narrowed(z: cr.Tensor) -> Node:
    return narrow_products(Graph((z.node,))).outputs[0]


def test_both_factors_are_rounded() -> None:
    x, w = matrices()
    assert names(narrowed(x @ w + 1))[1] == ("contract", FACTOR, FACTOR)


def test_a_factor_is_rounded_where_it_is_made_and_moved_as_bfloat16() -> None:
    x, w = matrices()
    moved = ("to f32", ("slice", ("permute", ("to bf16", "input"))))
    assert names(narrowed(w.T[3:9] @ x.T)) == ("contract", moved, FACTOR)


def test_equal_products_of_permuted_factors_stay_one() -> None:
    """One of them names its axes otherwise; conversions must not come between."""
    x, w = matrices()
    graph = narrow_products(Graph(((w.T @ x.T).node, cr.einsum("kn,mk->nm", w, x).node)))
    assert graph.outputs[0] is graph.outputs[1]


def test_one_rounding_serves_all_products() -> None:
    x, w = matrices()
    graph = narrow_products(Graph(((x @ w).node, (x.T @ x).node, (w.T @ w).node)))
    assert sum(n.op.name == "cast" and n.dtype == "bfloat16" for n in graph.nodes) == 2


@pytest.mark.parametrize("narrow", [narrow_products, split_products])
def test_what_is_no_product_of_float32_stays(narrow: Any) -> None:
    x, w = matrices("float64")
    for z in (x @ w, cr.exp(x) * 2, cr.sum(matrices()[0] * 3)):
        graph = Graph((z.node,))
        assert narrow(graph).outputs == graph.outputs


def test_two_parts_are_left_to_the_loops() -> None:
    x, w = matrices()
    product = split_products(Graph(((x @ w).node,))).outputs[0]
    assert names(product) == ("contract", "input", "input") and product.op.parts == 2


def test_later_passes_keep_parts_and_roundings() -> None:
    x, w = matrices()
    for precision, kept in (("bfloat16", 2), ("bfloat16x3", 0)):
        final, _ = run_passes(Graph(((x @ cr.exp(w.T).T).node,)), passes_for(precision))
        narrow = [n for n in final.nodes if n.op.name == "cast" and n.dtype == "bfloat16"]
        assert len(narrow) == kept
        (product,) = (n for n in final.nodes if n.op.name == "contract")
        assert product.op.parts == (1 if kept else 2)


def test_where_the_pass_stands() -> None:
    """Products have their order by then, and none has become a sum of elements yet."""
    order = [p.name for p in passes_for("bfloat16")]
    at = order.index("narrow_products")
    assert "order_contractions" in order[:at] and "expand_composites" in order[:at]
    assert "lower" in order[at:]
