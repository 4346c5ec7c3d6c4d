"""Printed gradients: the textbook's form, short lines, nothing inlined across layers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

import chainrule as cr
from chainrule.show.page import WIDTH, arrange
from chainrule.show.text import text

Net = tuple[cr.Tensor, cr.Tensor, dict[str, cr.Tensor], cr.Tensor]


def net(sizes: tuple[int, ...] = (64, 128, 64, 10)) -> Net:
    x, y = cr.input("x", ("batch", sizes[0])), cr.input("y", ("batch",), dtype="int32")
    parameters, h = {}, x
    for i, (a, b) in enumerate(pairwise(sizes), 1):
        w = parameters[f"W{i}"] = cr.parameter(f"W{i}", (a, b))
        c = parameters[f"b{i}"] = cr.parameter(f"b{i}", (b,))
        h = h @ w + c
        h = cr.relu(h) if i < len(sizes) - 1 else h
    return x, y, parameters, cr.losses.cross_entropy(h, y)


FORWARD = """\
h1 = relu(x @ W1 + b1)
h2 = relu(h1 @ W2 + b2)
z3 = h2 @ W3 + b3
dz3 = (softmax(z3) - onehot(y)) / batch
"""
BACK_2 = FORWARD + "dz2 = (dz3 @ W3ᵀ) ⊙ [h2 > 0]\n"
BACK_1 = BACK_2 + "dz1 = (dz2 @ W2ᵀ) ⊙ [h1 > 0]\n"


@pytest.mark.smoke
def test_the_gradients_of_the_demo_net() -> None:
    _, _, p, loss = net()
    grads = cr.grad(loss, p)
    assert str(grads["W3"]) == FORWARD + "dW3 = h2ᵀ @ dz3"
    assert str(grads["b3"]) == FORWARD + "db3 = sum(dz3, axis=0)"
    assert str(grads["W2"]) == BACK_2 + "dW2 = h1ᵀ @ dz2"
    assert str(grads["b2"]) == BACK_2 + "db2 = sum(dz2, axis=0)"
    assert str(grads["W1"]) == BACK_1 + "dW1 = xᵀ @ dz1"
    assert str(grads["b1"]) == BACK_1 + "db1 = sum(dz1, axis=0)"
    assert all(len(line) <= 80 for g in grads.values() for line in str(g).splitlines())


def test_names_of_the_user_stand() -> None:
    x, y = cr.input("x", ("n", 4)), cr.input("y", ("n", 2))
    w, v = cr.parameter("w", (4, 3)), cr.parameter("v", (3, 2))
    hidden = cr.tanh(x @ w).named("hidden")
    loss = cr.losses.mse(hidden @ v, y).named("J")
    assert str(cr.grad(loss, w)).splitlines()[-1] == "dw = xᵀ @ dz1"
    lines = str(cr.grad(loss, w)).splitlines()
    assert lines[0] == "hidden = tanh(x @ w)"
    assert "dz1 = dhidden ⊙ (1 - hidden²)" in lines


def test_a_name_that_is_taken_is_not_given_again() -> None:
    z1, w = cr.input("z1", ("n", 3)), cr.parameter("h1", (3, 3))
    loss = cr.sum(cr.tanh(cr.tanh(z1 @ w) @ w) * cr.input("dh1", ("n", 3)))
    names = [line.split(" = ")[0] for line in str(cr.grad(loss, w)).splitlines()]
    assert len(set(names)) == len(names)
    assert not {"z1", "h1"} & set(names[:-1])


def test_two_hundred_layers_print_in_length_and_work_linear_in_depth() -> None:
    def cost(depth: int) -> tuple[int, int, int]:
        _, _, p, loss = net((8,) * depth + (3,))
        grad = cr.grad(loss, p["W1"])
        shown = str(grad)
        assert all(len(line) <= 80 for line in shown.splitlines())
        return len(shown), shown.count("\n"), len(arrange([grad.node]).order)

    (_, lines_1, nodes_1), (_, lines_2, nodes_2) = cost(100), cost(200)
    assert lines_2 == 400  # h1..h199, z200, dz200..dz1, dW1
    assert lines_2 - lines_1 == 200
    assert nodes_2 - nodes_1 == 100 * (nodes_1 // 100)


def test_a_chain_that_is_shared_at_every_step_prints_each_step_once() -> None:
    x = cr.input("x", (3,))
    for _ in range(2000):
        x = x * x + x
    shown = str(x)
    assert len(shown.splitlines()) <= 2000
    assert max(map(len, shown.splitlines())) <= WIDTH + 20


def test_a_chain_of_views_does_not_recurse() -> None:
    x = cr.input("x", ("n", 4))
    for i in range(3000):
        x = cr.permute_dims(x, (1, 0)) if i % 2 else cr.reshape(x, (4, -1))
    assert len(str(x)) < 1_000_000


def test_printing_says_only_what_the_result_needs() -> None:
    _, _, p, loss = net()
    grads = cr.grad(loss, p)
    assert "b1" in str(grads["W3"]) and "dz2" not in str(grads["W3"])
    assert str(p["W1"]) == "W1"
    assert str(2.5 * cr.input("a", ())) == "2.5 * a"


def test_names_can_be_given_for_one_printing() -> None:
    x = cr.input("x", ("n", 4))
    e = cr.exp(x)
    assert text((e * 2.0).node, {e.node: "growth"}) == "growth = exp(x)\n2 * growth"


def test_latex_of_a_gradient_names_the_partial_derivative() -> None:
    _, _, p, loss = net()
    tex = cr.grad(loss, p["W1"]).latex()
    assert tex.startswith(r"\begin{aligned}") and tex.endswith(r"\end{aligned}")
    assert r"\frac{\partial J}{\partial W_{1}} &= x^{\top} \, \mathrm{d}z_{1}" in tex
    assert r"\frac{\operatorname{softmax}\left(z_{3}\right)" in tex


@pytest.mark.parametrize(
    ("write", "want"),
    [
        (lambda z: 0.5 * cr.sum(z**2), "z"),
        (lambda z: cr.sum((z / 2) ** 2), "z / 2"),
        (lambda z: cr.sum(0.3 * z**2), "0.6 * z"),
        (lambda z: cr.sum(z**3) / 3, "z²"),
        (lambda z: cr.sum((3 * z) ** 2) / 6, "3 * z"),
        (lambda z: cr.sum(cr.log(1 + cr.exp(-2 * z))), "-2 * sigmoid(-2 * z)"),
        (lambda z: cr.sum(cr.softplus(-(-3 * z))), "3 * sigmoid(3 * z)"),
    ],
)
def test_numbers_in_a_gradient_are_one(write: Any, want: str) -> None:
    """Where that is exact: by hand, from the power and the chain rule."""
    z = cr.input("z", (4,))
    assert str(cr.grad(write(z), z)).splitlines()[-1].removeprefix("dz = ") == want
