"""The chain rule over graphs: shared parts, several paths, total derivatives, dependence."""

from __future__ import annotations

import numpy as np
import pytest

from chainrule.autodiff.reverse import differentiate
from chainrule.errors import GradientError
from chainrule.ir.evaluate import evaluate
from chainrule.ir.graph import walk
from chainrule.ir.node import Node, Op, apply
from chainrule.ir.types import TensorType, float32, float64, int64
from chainrule.ops.axes import Sum
from chainrule.ops.build import call, cast, formula
from chainrule.ops.cast import Cast
from chainrule.ops.elementwise import TABLE
from chainrule.ops.index import Take
from chainrule.ops.source import full, leaf


def scalar(label: str = "x") -> Node:
    return leaf("parameter", label, TensorType(float64, ()))


def gradient(text: str, **at: float) -> dict[str, float]:
    """The derivatives of a formula by each of its variables, at a point."""
    nodes = {name: scalar(name) for name in at}
    return by_hand(formula(text, nodes), nodes, at)


def by_hand(root: Node, nodes: dict[str, Node], at: dict[str, float]) -> dict[str, float]:
    found = differentiate([root], [full(1, float64, ())], list(nodes.values())).gradients
    assert all(g is not None for g in found)
    fed = {nodes[name]: np.float64(v) for name, v in at.items()}
    values = evaluate([g for g in found if g is not None], fed)
    return dict(zip(nodes, map(float, values), strict=True))


def test_shared_parts_are_passed_once_and_added_up() -> None:
    assert gradient("x*x*x", x=2.0) == {"x": 12.0}
    assert gradient("(x + y)*(x + y) + x", x=1.0, y=2.0) == {"x": 7.0, "y": 6.0}
    x = scalar()
    h = call("square", x)
    d = differentiate([call("add", call("mul", h, h), h)], [full(1, float64, ())], [x])
    assert len([s for s in d.steps if s.node is h]) == 1


def test_many_paths_are_not_many_walks() -> None:
    x = scalar()
    h = x
    for _ in range(200):  # 2**200 paths
        h = call("add", h, h)
    d = differentiate([h], [full(1, float64, ())], [x])
    assert len(d.steps) == 400
    (g,) = d.gradients
    assert g is not None
    assert evaluate([g], {})[0] == 2.0**200


def test_derivatives_by_intermediates_are_total() -> None:
    x = scalar()
    h = call("square", x)
    y = call("add", call("mul", h, x), h)  # x**3 + x**2
    dh, dx = differentiate([y], [full(1, float64, ())], [h, x]).gradients
    assert dh is not None
    assert dx is not None
    values = [float(v) for v in evaluate([dh, dx], {x: np.float64(3.0)})]
    assert values == [4.0, 33.0]
    again = differentiate([y], [full(1, float64, ())], [y]).gradients
    assert again == (full(1, float64, ()),)


def test_where_no_path_leads_there_is_no_gradient() -> None:
    x, y, z = scalar("x"), scalar("y"), leaf("input", "z", TensorType(int64, ()))
    chooses = call("where", call("lt", x, y), 1.0, 0.0, like=x)
    through_int = cast(cast(x, int64), float64)
    stopped = call("stop_gradient", x)
    for root in (y, chooses, through_int, stopped, call("add", cast(z, float64), y)):
        assert differentiate([root], [full(1, float64, ())], [x]).gradients == (None,)


def test_a_derivative_that_is_zero_is_no_missing_path() -> None:
    for text in ("sign(x)", "sign(x)*y", "0*x", "x**0", "where(y < 1, 2, x)"):
        nodes = {"x": scalar("x"), "y": scalar("y")}
        root = formula(text, nodes, like=nodes["x"])
        (g,) = differentiate([root], [full(1, float64, ())], [nodes["x"]]).gradients
        assert g is not None, text
        assert evaluate([g], {n: np.float64(0.5) for n in nodes.values()})[0] == 0, text


def test_several_results_and_their_seeds() -> None:
    x = leaf("parameter", "x", TensorType(float64, (3,)))
    first, second = call("square", x), apply(Sum((0,)), call("exp", x))
    seed = leaf("input", "v", TensorType(float64, (3,)))
    (g,) = differentiate([first, second], [seed, full(2, float64, ())], [x]).gradients
    assert g is not None
    at, v = np.array([1.0, 2.0, 3.0]), np.array([1.0, 0.0, -1.0])
    (value,) = evaluate([g], {x: at, seed: v})
    np.testing.assert_allclose(value, v * 2 * at + 2 * np.exp(at))


def test_casts_between_floats_pass_derivatives() -> None:
    x = leaf("parameter", "x", TensorType(float32, (2,)))
    y = apply(Cast(float64), x)
    (g,) = differentiate([y], [full(3, float64, (2,))], [x]).gradients
    assert g is not None
    assert g.type == x.type


def test_repeated_indices_add_up() -> None:
    x = leaf("parameter", "x", TensorType(float64, (3, 2)))
    at = leaf("input", "i", TensorType(int64, (4,)))
    y = apply(Take(0, 1), x, at)
    (g,) = differentiate([y], [full(1, float64, (4, 2))], [x]).gradients
    assert g is not None
    (value,) = evaluate([g], {x: np.zeros((3, 2)), at: np.array([0, 2, 2, 2])})
    np.testing.assert_array_equal(value, [[1, 1], [0, 0], [3, 3]])


def test_an_unchosen_branch_with_derivative_0_takes_no_nan() -> None:
    x, y = scalar("x"), scalar("y")
    root = call("pow", x, y)
    dx, dy = differentiate([root], [full(1, float64, ())], [x, y]).gradients
    assert dx is not None
    assert dy is not None
    fed = {x: np.float64(0.0), y: np.float64(0.0)}
    assert [float(v) for v in evaluate([dx, dy], fed)] == [0.0, 0.0]


KINKS = [  # PyTorch's conventions
    ("abs(x)", {"x": 0.0}, {"x": 0.0}),
    ("relu(x)", {"x": 0.0}, {"x": 0.0}),
    ("maximum(x, y)", {"x": 1.0, "y": 1.0}, {"x": 0.5, "y": 0.5}),
    ("minimum(x, y)", {"x": 1.0, "y": 1.0}, {"x": 0.5, "y": 0.5}),
    ("maximum(x, y)", {"x": float("nan"), "y": 1.0}, {"x": 1.0, "y": 1.0}),
    ("relu(x)", {"x": float("nan")}, {"x": 1.0}),
    ("x**y", {"x": 0.0, "y": 2.0}, {"x": 0.0, "y": 0.0}),
]


@pytest.mark.parametrize(("text", "at", "want"), KINKS)
def test_kinks(text: str, at: dict[str, float], want: dict[str, float]) -> None:
    assert gradient(text, **at) == want


@pytest.mark.parametrize("fn", ["relu", "relu6", "clip", "where"])
def test_a_long_chain_of_choices_takes_time_in_line_with_its_length(fn: str) -> None:
    """Each hands on a cotangent that is 0 by choice: choices would nest as deep as the chain."""
    count = 3000
    x = leaf("parameter", "x", TensorType(float64, (4,)))
    y = x
    for _ in range(count):
        y = call("add", call("mul", y, 0.999), 0.001)
        more = {"clip": (0.5, 5.0), "where": (y, 0.0)}.get(fn, ())
        y = call(fn, *((call("gt", y, 0.9), *more) if fn == "where" else (y, *more)))
    (g,) = differentiate([y], [full(1, float64, (4,))], [x]).gradients
    assert g is not None
    assert len(walk([g])) < 20 * count
    (value,) = evaluate([g], {x: np.array([-3.0, 0.2, 1.0, 2.0])})
    slope = 0.999**count
    first = slope if fn in ("relu", "relu6") else 0.0
    np.testing.assert_allclose(value, [0.0, first, slope, slope], rtol=1e-9)


def test_choices_that_are_joined_keep_what_is_behind_them_out() -> None:
    """sqrt has no derivative at 0, where the inner of six choices does not hold."""
    x = scalar("x")
    y = call("sqrt", call("relu", x))
    for k in range(1, 6):
        y = call("where", call("gt", x, float(-k)), y, 0.0)
        y = call("where", call("lt", x, float(-k - 9)), 0.0, y)
    (g,) = differentiate([y], [full(1, float64, ())], [x]).gradients
    assert g is not None
    slopes = [float(evaluate([g], {x: np.float64(at)})[0]) for at in (-20.0, -0.5, 4.0)]
    assert slopes == [0.0, 0.0, 0.25]


def test_an_op_without_derivative_says_so_and_where() -> None:
    class Opaque(Op):
        name = "opaque"
        undifferentiable = "its elements are drawn by lot"

        def infer(self, *inputs: TensorType) -> TensorType:
            return inputs[0]

    x = scalar()
    y = apply(Opaque(), x)
    with pytest.raises(GradientError, match="opaque has no derivative") as caught:
        differentiate([y], [full(1, float64, ())], [x])
    assert caught.value.where is not None
    assert caught.value.where.filename == __file__
    assert "drawn by lot" in str(caught.value)


def test_steps_are_the_proof() -> None:
    x, y = scalar("x"), scalar("y")
    root = call("mul", call("add", x, y), y)
    d = differentiate([root], [full(1, float64, ())], [x, y])
    assert [s.node.op.name for s in d.steps] == ["mul", "mul", "add", "add"]
    for step in d.steps:
        assert step.contribution.type == step.node.inputs[step.operand].type
        assert d.cotangents[step.node] is step.cotangent
    assert d.cotangents[root] is full(1, float64, ())
    assert TABLE["add"].reaches(0)
