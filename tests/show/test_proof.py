"""Proofs: what they say, and that their replay finds a wrong step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import chainrule as cr
from chainrule.ir.node import Node, apply
from chainrule.ops.elementwise import TABLE
from chainrule.ops.source import full
from chainrule.show.proof import Proof


def net() -> tuple[cr.Tensor, dict[str, cr.Tensor]]:
    x, y = cr.input("x", ("batch", 4)), cr.input("y", ("batch",), dtype="int32")
    p = {"W1": cr.parameter("W1", (4, 5)), "b1": cr.parameter("b1", (5,))}
    p |= {"W2": cr.parameter("W2", (5, 3))}
    h = cr.relu(x @ p["W1"] + p["b1"])
    return cr.losses.cross_entropy(h @ p["W2"], y).named("J"), p


def test_the_proof_reads_as_the_lecture_writes_it() -> None:
    loss, p = net()
    shown = str(cr.explain(loss, p["W1"]))
    assert shown.startswith("∂J/∂W1 = ∂J/∂z2 · ∂z2/∂h1 · ∂h1/∂z1 · ∂z1/∂W1\n")
    for part in (
        "J = -mean(log_softmax(z2)[y])",
        "out = log_softmax(x)  ⇒  dx = dout - softmax(x) ⊙ sum(dout, axis=1)",
        "∂J/∂z2 = (softmax(z2) - onehot(y)) / batch",
        "out = x @ y  ⇒  dx = dout @ yᵀ",
        "∂J/∂h1 = ∂J/∂z2 @ W2ᵀ",
        "out = relu(x)  ⇒  dx = dout ⊙ [out > 0]",
        "∂J/∂z1 = ∂J/∂h1 ⊙ [h1 > 0]",
        "∂J/∂W1 = xᵀ @ ∂J/∂z1",
        "test_proof.py:",
    ):
        assert part in shown
    assert shown.endswith("\n    dW1 = xᵀ @ dz1")


def test_only_the_steps_on_the_way_are_in_it() -> None:
    loss, p = net()
    through_w1, through_w2 = cr.explain(loss, p["W1"]), cr.explain(loss, p["W2"])
    assert "relu" in {s.node.op.name for s in through_w1.steps}
    assert "relu" not in {s.node.op.name for s in through_w2.steps}


def test_proofs_of_a_net_hold() -> None:
    loss, p = net()
    for w in p.values():
        check = cr.explain(loss, w).check()
        assert check, check.reason


@pytest.mark.parametrize("name", [n for n, op in TABLE.items() if op.accepts == "float"])
def test_the_proof_of_every_float_op_holds(name: str) -> None:
    op = TABLE[name]
    inputs = [cr.input(f"a{i}", (3,), dtype="float64") for i in range(len(op.params))]
    out = cr.sum(cr.Tensor(apply(op, *[i.node for i in inputs])))
    for k, x in enumerate(inputs):
        if not op.reaches(k):
            continue
        proof = cr.explain(out, x)
        assert all(s.holds() for s in proof.steps)


def _tampered(proof: Proof, k: int) -> Proof:
    step = proof.steps[k]
    wrong: Node = apply(
        TABLE["mul"],
        step.contribution,
        full(1.01, step.contribution.dtype, step.contribution.shape),
    )
    steps = [replace(s, contribution=wrong) if i == k else s for i, s in enumerate(proof.steps)]
    return replace(proof, steps=tuple(steps))


def test_a_wrong_step_is_found_and_named() -> None:
    loss, p = net()
    proof = cr.explain(loss, p["W1"])
    for k in range(len(proof.steps)):
        check = _tampered(proof, k).check()
        assert not check and check.step == k
        assert proof.steps[k].rule in check.reason


def test_a_wrong_result_is_found() -> None:
    loss, p = net()
    proof = cr.explain(loss, p["W1"])
    twice = apply(TABLE["add"], proof.gradient, proof.gradient)
    check = replace(proof, gradient=twice).check()
    assert not check and check.step == len(proof.steps)


def test_paths_add_up() -> None:
    x, w = cr.input("x", ("n", 3)), cr.parameter("w", (3, 3))
    h = cr.tanh(x @ w).named("h")
    loss = cr.sum((h + cr.tanh(h @ w).named("g")).named("r") ** 2).named("J")
    proof = cr.explain(loss, w)
    assert " + " in str(proof).splitlines()[0]
    assert proof.check()


def test_many_paths_are_counted_not_written() -> None:
    x = h = cr.parameter("x", (3,))
    for i in range(40):
        h = (h + cr.sin(h).named(f"s{i}")).named(f"h{i}")
    proof = cr.explain(cr.sum(h).named("J"), x)
    assert str(proof).startswith(f"∂J/∂x = the sum over {2**40} paths")
    assert len(str(proof)) < 40_000


def test_a_deep_proof_is_linear_in_depth() -> None:
    def length(depth: int) -> int:
        x, h = cr.input("x", ("n", 4)), None
        w = [cr.parameter(f"W{i}", (4, 4)) for i in range(depth)]
        h = x
        for v in w:
            h = cr.tanh(h @ v)
        return len(str(cr.explain(cr.sum(h).named("J"), w[0])))

    a, b = length(50), length(100)
    assert b < 2.3 * a


def test_latex_has_the_same_steps() -> None:
    loss, p = net()
    tex = cr.explain(loss, p["W1"]).latex()
    assert r"\frac{\partial J}{\partial z_{2}} \cdot \frac{\partial z_{2}}{\partial h_{1}}" in tex
    assert tex.count(r"\begin{aligned}") == tex.count(r"\end{aligned}") == 2
    assert tex.count("{") == tex.count("}")


def test_what_the_loss_does_not_depend_on_has_no_proof() -> None:
    loss, _ = net()
    with pytest.raises(cr.errors.GradientError):
        cr.explain(loss, cr.parameter("other", (2,)))


def test_the_gradient_of_a_proof_is_the_gradient() -> None:
    loss, p = net()
    assert cr.explain(loss, p["W1"]).gradient is cr.grad(loss, p["W1"]).node
    assert np.all([s.line is not None for s in cr.explain(loss, p["W1"]).steps])


def loops_choices_and_gathers() -> dict[str, tuple[cr.Tensor, cr.Tensor]]:
    x, w = cr.input("x", ("n", 4)), cr.parameter("W", (4, 3))
    u, e = cr.parameter("U", (3, 3)), cr.parameter("E", (5, 4))
    at, t = cr.input("at", ("n",), dtype="int32"), cr.input("t", ("n",), dtype="int32")
    z = (x @ w).named("z")
    final, ys = cr.scan(lambda h, row: (cr.tanh(h @ u + row), 2.0 * h), cr.zeros((3,)), z)
    return {
        "scan": (cr.sum(final**2) + cr.sum(cr.sin(ys)), u),
        "scan's rows": (cr.sum(final**2) + cr.sum(cr.sin(ys)), w),
        "where": (cr.sum(cr.where(z > 0, z * cr.exp(z), cr.sin(z) / 2.0)), w),
        "log where it is one": (cr.sum(cr.where(z > 0, cr.log(z) / z, 0.0)), w),
        "huber": (cr.losses.huber(z, z * z), w),
        "take": (cr.losses.cross_entropy(cr.take(e, at, axis=0) @ w, t), e),
        "max": (cr.sum(cr.max(z, axis=1) ** 2), w),
    }


@pytest.mark.parametrize("name", loops_choices_and_gathers())
def test_loops_choices_and_gathers_are_proved(name: str) -> None:
    loss, by = loops_choices_and_gathers()[name]
    proof = cr.explain(loss.named("J"), by)
    check = proof.check()
    assert check, check.reason
    assert str(proof).startswith(f"∂J/∂{by.name} = ")
    assert proof.latex().count("{") == proof.latex().count("}")
    for k in range(len(proof.steps)):
        assert _tampered(proof, k).check().step == k


def test_the_loss_is_called_as_the_user_calls_it() -> None:
    """In text and LaTeX alike; J where nobody did."""
    x, w = cr.input("x", ("n", 4)), cr.parameter("w", (4,))
    for name in ("loss", None):
        loss = cr.sum(cr.sin(x @ w))
        loss = loss.named(name) if name else loss + 0.5
        tex = r"\mathrm{loss}" if name else "J"
        assert str(cr.explain(loss, w)).startswith(f"∂{name or 'J'}/∂w = ")
        assert rf"\frac{{\partial {tex}}}{{\partial w}}" in cr.explain(loss, w).latex()
        assert rf"\frac{{\partial {tex}}}{{\partial w}} &= " in cr.grad(loss, w).latex()
