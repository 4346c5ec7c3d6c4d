"""Bfloat16 becomes memory: what the pass puts in, what it leaves, and that nothing undoes it."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import chainrule as cr
from chainrule.driver.lower import PASSES
from chainrule.ir.evaluate import evaluate
from chainrule.ir.graph import Graph
from chainrule.ir.node import Node, apply
from chainrule.ir.passes import run_passes
from chainrule.ir.types import TensorType, bfloat16, float32
from chainrule.ops.build import call, cast
from chainrule.ops.custom import Custom
from chainrule.ops.source import leaf
from chainrule.rewrite.passes import widen

BF16 = np.dtype(ml_dtypes.bfloat16)
TYPE = TensorType(bfloat16, (4, 3))


def var(label: str = "x", type: TensorType = TYPE) -> Node:
    return leaf("parameter", label, type)


def names(node: Node) -> Any:
    """An expression as nested names, casts with the type they make."""
    name = f"to {node.dtype.short}" if node.op.name == "cast" else node.op.name
    return (name, *map(names, node.inputs)) if node.inputs else name


def widened(node: Node) -> Node:
    return widen(Graph((node,))).outputs[0]


def test_operands_are_widened_and_the_result_is_rounded() -> None:
    x, y = var("x"), var("y")
    assert names(widened(call("add", x, y))) == (
        "to bf16", ("add", ("to f32", "parameter"), ("to f32", "parameter")),
    )  # fmt: skip


def test_no_rounding_is_left_out_between_two_ops() -> None:
    x = var()
    two = widened(call("tanh", call("exp", x)))
    inner = ("to bf16", ("exp", ("to f32", "parameter")))
    assert names(two) == ("to bf16", ("tanh", ("to f32", inner)))


def test_other_types_are_left_alone() -> None:
    graph = Graph((call("exp", var("x", TensorType(float32, (3,)))),))
    assert widen(graph) is graph


def test_a_number_is_written_in_float32() -> None:
    product = widened(call("mul", var(), 0.1))
    (wide,) = product.inputs
    assert wide.inputs[1].op.value == float(np.float32(BF16.type(0.1)))


def test_a_comparison_is_not_rounded() -> None:
    x = var()
    assert names(widened(call("lt", x, x))) == ("lt", *[("to f32", "parameter")] * 2)


def test_composites_are_whole() -> None:
    x = cr.parameter("x", (4, 3), dtype="bfloat16")
    assert names(widened(cr.softmax(x).node)) == (
        "to bf16", ("softmax", ("to f32", "parameter")),
    )  # fmt: skip


def test_what_users_wrote_is_rounded_step_by_step() -> None:
    def twice(x: Node) -> Node:
        return call("exp", call("exp", x))

    x = var()
    op = Custom("twice", twice, lambda ct, out, x: (ct,))
    inner = ("to bf16", ("exp", ("to f32", "parameter")))
    assert names(widened(apply(op, x))) == ("to bf16", ("exp", ("to f32", inner)))
    a = np.linspace(-1, 1, 12).reshape(4, 3).astype(BF16)
    before, after = (evaluate([n], {x: a})[0] for n in (apply(op, x), widened(apply(op, x))))
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    "move",
    [
        lambda x: x.T,
        lambda x: x[1:, ::2],
        lambda x: cr.reshape(x, (12,)),
        lambda x: cr.broadcast_to(x, (2, 4, 3)),
        lambda x: cr.concat([x, x], axis=0),
        lambda x: cr.flip(x),
        lambda x: cr.take(x, cr.constant(np.array([1, 0])), axis=0),
    ],
)
def test_moves_move_bfloat16(move: Any) -> None:
    node = move(cr.parameter("x", (4, 3), dtype="bfloat16")).node
    graph = widen(Graph((node,)))
    assert all(n.op.name != "cast" for n in graph.nodes)


def test_no_pass_cancels_a_rounding() -> None:
    x = var()
    rounded = cast(cast(var("w", TensorType(float32, (4, 3))), bfloat16), float32)
    graph = Graph((rounded, call("add", call("neg", call("neg", call("exp", x))), x)))
    final, _ = run_passes(graph, PASSES)
    kinds = [n.dtype for n in final.nodes if n.op.name == "cast"]
    assert kinds.count(bfloat16) == 3  # of w, of exp, of the sum
    # in memory, or computed of float32: no op but moves and casts has bfloat16 operands
    for node in final.nodes:
        if any(i.dtype == bfloat16 for i in node.inputs):
            assert node.op.name == "cast"


def test_an_update_stays_of_its_leafs_type() -> None:
    w = var()
    graph = widen(Graph((), ((w, call("mul", w, 0.5)),)))
    ((target, value),) = graph.updates
    assert target is w and value.dtype == bfloat16


def test_sums_of_many_count_exactly() -> None:
    """257 is no bfloat16: a size must not be rounded before it is multiplied or divided by."""
    x = cr.input("x", (3,), dtype="bfloat16")
    total = cr.compile(cr.sum(cr.broadcast_to(x, (257, 3)), axis=0))(x=np.full(3, 3.0, BF16))
    assert total.tolist() == [float(BF16.type(771))] * 3
    mean = cr.compile(cr.mean(cr.input("y", (257,), dtype="bfloat16")))
    assert float(mean(y=np.full(257, 3.0, BF16))) == 3.0


def test_the_reference_rounds_each_op_and_widened_nothing() -> None:
    x = var()
    a = np.linspace(0.1, 2, 12).reshape(4, 3).astype(BF16)
    root = call("sub", call("exp", x), 1.0)
    (got,) = evaluate([root], {x: a})
    step = np.exp(a.astype(np.float32)).astype(BF16).astype(np.float32) - 1
    np.testing.assert_array_equal(got, step.astype(BF16))
    (wide,) = evaluate([cast(cast(root, float32), bfloat16)], {x: a}, widen=True)
    assert wide.dtype == np.float64
    np.testing.assert_allclose(wide, np.expm1(a.astype(np.float64)), rtol=1e-14)
