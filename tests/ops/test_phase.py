"""What differs between training and inference: `phase`, dropout, and the pass that decides."""

from __future__ import annotations

import numpy as np
import pytest

from chainrule.autodiff.reverse import differentiate
from chainrule.errors import DTypeError, ShapeError
from chainrule.ir.evaluate import evaluate
from chainrule.ir.graph import Graph, walk
from chainrule.ir.node import Node, apply
from chainrule.ir.types import TensorType, bool_, float32, float64
from chainrule.ops import build
from chainrule.ops.axes import Sum
from chainrule.ops.phase import Dropout, Phase, Switched, dropout, phase, resolve_phase
from chainrule.ops.source import full, leaf

X, Y = (leaf("input", n, TensorType(float64, (3,))) for n in "xy")


def value(root: Node, training: bool, **feeds: list[float]) -> list[float]:
    (root,) = resolve_phase(Graph((root,)), training).outputs
    assert not any(isinstance(n.op, Switched) for n in walk([root]))
    given = {n: np.array(feeds[n.op.label]) for n in walk([root]) if n in (X, Y)}  # type: ignore[attr-defined]
    return list(evaluate([root], given)[0])


def test_each_phase_takes_its_operand() -> None:
    root = build.call("add", phase(X, build.call("neg", Y)), 1.0)
    assert value(root, True, x=[1, 2, 3], y=[4, 5, 6]) == [2, 3, 4]
    assert value(root, False, x=[1, 2, 3], y=[4, 5, 6]) == [-3, -4, -5]


def test_phases_nest() -> None:
    root = phase(phase(X, Y), phase(Y, X))
    assert value(root, True, x=[1, 2, 3], y=[4, 5, 6]) == [1, 2, 3]
    assert value(root, False, x=[1, 2, 3], y=[4, 5, 6]) == [1, 2, 3]


def test_one_value_needs_no_phase() -> None:
    assert phase(X, X) is X


def test_values_of_two_types_are_refused() -> None:
    with pytest.raises(ShapeError):
        apply(Phase(), X, leaf("input", "z", TensorType(float64, (4,))))
    with pytest.raises(DTypeError):
        apply(Phase(), X, leaf("input", "z", TensorType(float32, (3,))))


def test_the_derivative_is_in_the_same_phase() -> None:
    loss = apply(Sum((0,)), phase(build.call("mul", X, X), Y))
    one = full(1, float64, ())
    dx, dy = differentiate([loss], [one], [X, Y]).gradients
    assert dx is not None and dy is not None
    assert value(dx, True, x=[1, 2, 3], y=[0, 0, 0]) == [2, 4, 6]
    assert value(dx, False, x=[1, 2, 3], y=[0, 0, 0]) == [0, 0, 0]
    assert value(dy, True, x=[1, 2, 3], y=[0, 0, 0]) == [0, 0, 0]
    assert value(dy, False, x=[1, 2, 3], y=[0, 0, 0]) == [1, 1, 1]


def test_updates_are_resolved_too() -> None:
    leaf_ = leaf("state", "s", TensorType(float64, (3,)))
    graph = Graph((), ((leaf_, phase(X, leaf_)),))
    assert resolve_phase(graph, True).updates == ((leaf_, X),)
    assert resolve_phase(graph, False).updates == ((leaf_, leaf_),)


def test_a_graph_of_one_phase_is_left_alone() -> None:
    graph = Graph((X,))
    assert resolve_phase(graph, True) is graph


MASK = leaf("input", "mask", TensorType(bool_, (4,)))
H = leaf("input", "h", TensorType(float32, (4,)))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_what_stays_is_scaled_so_that_the_mean_stays(rate: float) -> None:
    (root,) = resolve_phase(Graph((apply(Dropout(rate), H, MASK),)), True).outputs
    h = np.array([1, -2, np.inf, np.nan], np.float32)
    keep = np.array([True, False, False, False])
    (got,) = evaluate([root], {H: h, MASK: keep})
    np.testing.assert_array_equal(got, [np.float32(1 / (1 - rate)), 0, 0, 0])


def test_rate_0_is_the_identity_and_rate_1_gives_zeros() -> None:
    assert dropout(H, 0.0) is H
    everything = dropout(H, 1.0)
    for training, want in ((True, 0.0), (False, np.inf)):
        (root,) = resolve_phase(Graph((everything,)), training).outputs
        (got,) = evaluate([root], {H: np.full(4, np.inf, np.float32)})
        assert (got == want).all()
    (slope,) = differentiate([everything], [H], [H]).gradients
    assert slope is not None
    (root,) = resolve_phase(Graph((slope,)), True).outputs
    assert (evaluate([root], {H: np.ones(4, np.float32)})[0] == 0).all()


def test_a_mask_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ShapeError):
        apply(Dropout(0.5), H, leaf("input", "m", TensorType(bool_, (3,))))
    with pytest.raises(DTypeError):
        apply(Dropout(0.5), H, H)
    with pytest.raises(DTypeError):
        apply(Dropout(0.5), MASK, MASK)
