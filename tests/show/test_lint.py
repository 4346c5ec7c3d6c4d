"""Unstable forms are found and said, with what becomes of them."""

from __future__ import annotations

import chainrule as cr


def test_forms_are_named_with_their_lines() -> None:
    x = cr.input("x", ("batch", 4))
    found = cr.lint(cr.sum(cr.log(1.0 + cr.exp(x))))
    assert len(found) == 1
    assert not found
    (remark,) = found.remarks
    assert (remark.rule, remark.before, remark.after) == (
        "softplus",
        "log(exp(x) + 1)",
        "softplus(x)",
    )
    assert remark.line is not None
    assert remark.line.source == "found = cr.lint(cr.sum(cr.log(1.0 + cr.exp(x))))"
    assert str(found).startswith("softplus: log(exp(x) + 1) -> softplus(x)\n  at ")


def test_shared_parts_are_told() -> None:
    x = cr.input("x", ("batch", 4))
    e = cr.exp(x @ cr.parameter("w", (4, 3)))
    (remark,) = cr.lint(e / cr.sum(e, axis=-1, keepdims=True)).remarks
    assert "softmax(" in remark.after
    assert "exp(" in remark.before


def test_chains_of_forms_are_each_told() -> None:
    x = cr.input("x", ("batch", 4))
    e = cr.exp(x)
    names = [r.rule for r in cr.lint(cr.log(e / cr.sum(e, axis=-1, keepdims=True))).remarks]
    assert names == ["exp_over_its_sum", "log_of_softmax"]
    assert [r.rule for r in cr.lint({"a": cr.log(cr.sigmoid(x)), "b": cr.exp(x)}).remarks] == [
        "log_sigmoid"
    ]


def test_nothing_is_said_of_stable_forms() -> None:
    x, y = cr.input("x", ("batch", 4)), cr.input("y", ("batch",), dtype="int32")
    found = cr.lint(cr.losses.cross_entropy(cr.tanh(x) + 2.0 * x, y))
    assert found
    assert str(found) == "no unstable form found"
