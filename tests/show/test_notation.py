"""Every op renders as text and as LaTeX, with the parentheses that its operands need."""

from __future__ import annotations

import re

import pytest

import chainrule as cr
from chainrule.ir.node import apply
from chainrule.ir.types import TensorType, float64
from chainrule.ops.registry import ops
from chainrule.ops.source import latex_name, leaf
from chainrule.show.latex import latex
from chainrule.show.text import text

SAMPLES = [(e.name, i, s) for e in ops() for i, s in enumerate(e.samples)]
#: what matplotlib's mathtext, which stands in for LaTeX here, has under another name or not at all
_UNKNOWN = re.compile(r"\\begin\{(cases|matrix)\}")


def balanced(tex: str) -> bool:
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", tex):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return False
    return depth == 0 and tex.count(r"\left") == tex.count(r"\right")


def render(tex: str) -> None:
    mathtext = pytest.importorskip("matplotlib.mathtext")
    parser = mathtext.MathTextParser("path")
    body = tex.replace(r"\begin{aligned}", "").replace(r"\end{aligned}", "").replace("&", "")
    for line in [] if _UNKNOWN.search(body) else body.split(r"\\"):
        line = (
            line.strip()
            .replace(r"\operatorname", r"\mathrm")
            .replace(r"\bmod", r"\%")
            .replace(r"\left[", "[")
        )
        line = line.replace(r"\right]", "]")
        if line:
            parser.parse(f"${line}$")


@pytest.mark.parametrize(("name", "number", "sample"), SAMPLES, ids=lambda v: str(v)[:20])
def test_every_op_renders(name: str, number: int, sample: tuple[object, list[TensorType]]) -> None:
    op, types = sample
    inputs = [leaf("input", f"a{i}", t) for i, t in enumerate(types)]
    node = apply(op, *inputs)  # type: ignore[arg-type]
    *steps, shown = text(node).splitlines()
    assert not steps or node.op.bodies, "only a loop says what its steps are"
    if op.role == "scan":  # type: ignore[attr-defined]
        assert [line for line in steps if line.startswith("for t = ")]
        return
    written = node.op.notation(*inputs).shown
    for i in inputs if written is None else written:
        assert text(i) in shown
    tex = latex(node)
    assert balanced(tex)
    render(tex)


@pytest.mark.parametrize(
    "name", ["W1", "dense1.weight", "a_b", "x%", "{x}", "α", "ŷ", "theta2", "1"]
)
def test_every_name_renders(name: str) -> None:
    node = leaf("input", name, TensorType(float64, ()))
    assert text(node) == name
    assert balanced(latex(node)) and balanced(latex_name(name))


def test_names_are_spelled_as_mathematics() -> None:
    assert latex_name("W12") == "W_{12}"
    assert latex_name("ŷ") == r"\hat{y}" and latex_name("β1") == r"\beta_{1}"
    assert latex_name("dense1.weight") == r"\mathrm{dense1.weight}"
    assert latex_name("∂J/∂z2") == r"\frac{\partial J}{\partial z_{2}}"


def test_parentheses_stand_where_they_are_needed() -> None:
    a, b, c = (cr.input(n, ("n", "n")) for n in "abc")
    s = cr.input("s", ())
    for tensor, shown in [
        ((a + b) * c, "(a + b) ⊙ c"),
        (a - (b + c), "a - (b + c)"),
        (a - b - c, "a - b - c"),
        (a / (b * c), "a / (b ⊙ c)"),
        (a * (b / c), "a ⊙ b / c"),
        ((a @ b) * c, "(a @ b) ⊙ c"),
        (a @ (b * c), "a @ (b ⊙ c)"),
        (a.T @ b, "aᵀ @ b"),
        (a @ b.T, "a @ bᵀ"),
        ((a + b).T @ c, "(a + b)ᵀ @ c"),
        (-a + b, "-a + b"),
        (a - -b, "a - -b"),
        (a / -b, "a / (-b)"),
        ((a + b) ** 2.5, "(a + b)**2.5"),
        (-(a**2.5), "-a**2.5"),
        (2.0 * a, "2 * a"),
        (a * 2.0, "2 * a"),
        (s * a, "s * a"),
        (s * s * 3.0, "3 * s * s"),
        (cr.where(a > 0, b, 0.0), "b ⊙ [a > 0]"),
        (cr.where(a > 0, 0.0, b), "b ⊙ [a <= 0]"),
        (cr.where(a > 0, b, c), "where(a > 0, b, c)"),
        (cr.sum(a + b, axis=0) / s, "sum(a + b, axis=0) / s"),
        (cr.abs(a - b), "|a - b|"),
    ]:
        assert str(tensor) == shown
