"""The reference evaluator: sizes from shapes, exact element types, feeds in the middle."""

from __future__ import annotations

import numpy as np
import pytest

from chainrule.errors import FeedError
from chainrule.ir.evaluate import bind_sizes, evaluate
from chainrule.ir.node import Node
from chainrule.ir.size import Shape, Size
from chainrule.ir.types import TensorType, float32
from chainrule.ops import build
from chainrule.ops.source import leaf, size_of

N, M = Size.symbol("n"), Size.symbol("m")


def given(name: str, shape: Shape) -> Node:
    return leaf("input", name, TensorType(float32, shape))


def test_sizes_are_solved_for_in_any_order() -> None:
    both, one = given("both", (N + M,)), given("one", (2 * N + 1,))
    assert bind_sizes({both: np.zeros(7), one: np.zeros(5)}) == {"n": 2, "m": 5}


@pytest.mark.parametrize(
    ("shape", "array"),
    [((N, N), (2, 3)), ((4,), (3,)), ((2 * N,), (3,)), ((N,), ()), ((N * M,), (6,))],
)
def test_shapes_that_do_not_fit_are_refused(shape: Shape, array: tuple[int, ...]) -> None:
    with pytest.raises(FeedError):
        bind_sizes({given("x", shape): np.zeros(array)})


def test_values_have_their_nodes_types_unless_widened() -> None:
    x = given("x", (N,))
    root = build.call("div", build.call("exp", x), size_of(N, float32))
    fed = {x: np.array([0.1, 0.2])}
    (narrow,), (wide,) = evaluate([root], fed), evaluate([root], fed, widen=True)
    assert narrow.dtype == np.float32 and wide.dtype == np.float64
    np.testing.assert_allclose(wide, np.exp([0.1, 0.2]) / 2, rtol=1e-15)
    np.testing.assert_allclose(narrow, wide, rtol=1e-6)


def test_what_lies_behind_a_fed_node_is_not_computed() -> None:
    x = given("x", (2,))
    h = build.call("exp", x)
    (value,) = evaluate([build.call("add", h, h)], {h: np.array([1.0, 2.0])})
    np.testing.assert_array_equal(value, [2, 4])


def test_a_leaf_without_an_array_and_a_size_without_a_number() -> None:
    x = given("x", (2,))
    with pytest.raises(FeedError, match="x"):
        evaluate([build.call("exp", x)], {})
    assert evaluate([size_of(N, float32)], {}, sizes={"n": 9})[0] == 9


def test_a_long_chain_takes_no_stack() -> None:
    x = node = given("x", ())
    for _ in range(20_000):
        node = build.call("neg", node)
    assert evaluate([node], {x: np.array(3.0)})[0] == 3
