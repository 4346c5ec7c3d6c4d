"""docs/gradients.md: what it shows is what is printed, reads back, and is the gradient."""

from __future__ import annotations

import importlib.util
import re
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.ir.evaluate import evaluate
from chainrule.ir.graph import walk
from chainrule.ir.node import Node
from chainrule.ops.source import Leaf

DOCS = Path(__file__).parents[2] / "docs"
SIZES = {"n": 5, "m": 4, "k": 3, "T": 6}
Feeds = dict[Node, np.ndarray[Any, Any]]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gradients", DOCS / "gradients.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GRADIENTS = load()
EXAMPLES = [pytest.param(code, by, id=title) for _, title, code, by in GRADIENTS.examples()]
WRITTEN = (DOCS / "gradients.md").read_text(encoding="utf-8")


def test_the_page_is_up_to_date() -> None:
    assert GRADIENTS.page() == WRITTEN, "run python docs/gradients.py"


def feeds_of(nodes: list[Node]) -> Feeds:
    """Random numbers for every leaf: floats off 0, small indices."""
    feeds: Feeds = {}
    for node in walk(nodes):
        if isinstance(node.op, Leaf):
            rng = np.random.default_rng(zlib.crc32(node.op.label.encode()))
            shape = tuple(d if isinstance(d, int) else SIZES[str(d)] for d in node.shape)
            drawn = rng.uniform(0.2, 1.4, shape) * rng.choice([-1, 1], shape)
            whole = rng.integers(0, 2, shape)
            feeds[node] = drawn if node.dtype.is_float else whole.astype(node.dtype.numpy)
            if node.op.label == "Y":  # probabilities, of which logarithms are taken
                feeds[node] = np.abs(drawn)
    return feeds


def value(node: Node, feeds: Feeds) -> np.ndarray[Any, Any]:
    return evaluate([node], feeds, sizes=SIZES, widen=True)[0]


@pytest.mark.parametrize(("code", "by"), EXAMPLES)
def test_every_gradient_reads_back_and_is_the_slope_of_the_loss(code: str, by: str) -> None:
    loss, gradients, wanted = GRADIENTS.derive(code, by)
    leaves = [n for n in walk([loss.node]) if isinstance(n.op, Leaf)]
    inputs = {n.op.label: cr.Tensor(n) for n in leaves if isinstance(n.op, Leaf)}
    feeds = feeds_of([loss.node])
    for gradient, w in zip(gradients, wanted, strict=True):
        again = cr.parse(str(gradient), inputs, like=gradient)
        found = value(gradient.node, feeds)
        # 1e-6: numbers print as float32 has them, and are read so
        np.testing.assert_allclose(value(again.node, feeds), found, rtol=1e-6, atol=1e-6)
        along = np.random.default_rng(1).normal(size=found.shape)
        step = 1e-5
        up, down = (
            value(loss.node, {**feeds, w.node: feeds[w.node] + s * step * along}) for s in (1, -1)
        )
        # central differences: errors of step**2 and of rounding over step, some 1e-10 each
        slope = (up - down) / (2 * step)
        np.testing.assert_allclose(np.sum(found * along), slope, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("code", "by"), EXAMPLES)
def test_lines_are_short_and_nothing_else_is_said(code: str, by: str) -> None:
    _, gradients, wanted = GRADIENTS.derive(code, by)
    for gradient, w in zip(gradients, wanted, strict=True):
        *bindings, last = str(gradient).splitlines()
        assert len(last) < 80, last
        assert all(len(line) < 80 for line in bindings)
        assert last.startswith(f"d{w.name} = ")
        used = " ".join(line.partition(" = ")[2] for line in [*bindings, last])
        for line in bindings:
            if line.startswith("for "):
                continue
            name = re.escape(line.strip().partition(" = ")[0].partition("[")[0])
            assert re.search(rf"(?<!\w){name}(?!(?!ᵀ)\w)", used), line


def test_latex_is_balanced_and_names_the_partial_derivatives() -> None:
    blocks = re.findall(r"\$\$\n(.*?)\n\$\$", WRITTEN, re.DOTALL)
    assert len(blocks) == len(EXAMPLES) + len(GRADIENTS.DERIVATIVES)
    for block in blocks:
        assert block.count("{") == block.count("}")
        assert block.count(r"\left") == block.count(r"\right")
        assert block.count(r"\begin{") == block.count(r"\end{")
    assert sum(r"\frac{\partial J}{\partial " in block for block in blocks) >= len(EXAMPLES)


def test_latex_renders() -> None:
    """By matplotlib's mathtext, which has no environments and fewer commands."""
    mathtext = pytest.importorskip("matplotlib.mathtext").MathTextParser("path")
    for block in re.findall(r"\$\$\n(.*?)\n\$\$", WRITTEN, re.DOTALL):
        if r"\begin{cases}" in block:
            continue
        body = re.sub(r"\\(begin|end)\{aligned\}|&", "", block)
        body = body.replace(r"\operatorname", r"\mathrm").replace(r"\bmod", r"\%")
        body = body.replace(r"\left[", "[").replace(r"\right]", "]")
        for line in filter(None, (row.strip() for row in body.split(r"\\"))):
            mathtext.parse(f"${line}$")


@pytest.mark.parametrize("code", GRADIENTS.DERIVATIVES.values(), ids=list(GRADIENTS.DERIVATIVES))
def test_every_derivative_reads_back(code: str) -> None:
    found = GRADIENTS.derivative(code)
    leaves = [n for n in walk([found.node]) if isinstance(n.op, Leaf)]
    again = cr.parse(str(found), [cr.Tensor(n) for n in leaves], like=found)
    feeds = feeds_of([found.node])
    # 1e-6: numbers print as float32 has them
    np.testing.assert_allclose(
        value(again.node, feeds), value(found.node, feeds), rtol=1e-6, atol=1e-6
    )


def test_the_anchors_of_papers() -> None:
    """The forms that textbooks and papers give, found on the page."""
    for form in (
        "dz1 = (softmax(z1) - onehot(t)) / n\ndW = xᵀ @ dz1\ndc = sum(dz1, axis=0)",
        "dz1 = (sigmoid(x @ w + b) - y) / n\ndw = xᵀ @ dz1",
        "dz2 = (dz3 @ Uᵀ) ⊙ [h2 > 0]",
        "dz1 = (dz2 @ Vᵀ) ⊙ h1 ⊙ (1 - h1)",
        "dV = Pᵀ @ O\ndP = O @ Vᵀ\n",  # Vaswani et al.: the cotangents of attention
        "P ⊙ (dP - sum(dP ⊙ P, axis=1))",
        "dW = S @ W + Sᵀ @ W",  # matrixcalculus.org: tr(Wᵀ S W)
        "dE = scatter_add(g1, s, n=20)",
        "dk = correlate(s, dz1)",
        "dU = Σ_t h[t-1]ᵀ @ dz1[t]\ndW = Σ_t X[t]ᵀ @ dz1[t]",  # Goodfellow et al., 10.2.2
        "dc[t] = gc[t+1] + gh[t+1] ⊙ o[t] ⊙ (1 - tanh(c[t])²)",  # Hochreiter and Schmidhuber
        "J[t] = softmax(w) ⊙ (onehot(t) - sum(onehot(t) ⊙ softmax(w)))",
        "(softmax(z1) - onehot(t)) ⊙ r",  # Williams 1992: REINFORCE
        "dU = h2ᵀ @ dz3 + h1ᵀ @ dz2 + h0ᵀ @ dz1",
        "dv = a ⊙ (1 - tanh(v)²)",
        "dv = softmax(v) ⊙ (a - sum(a ⊙ softmax(v)))",
    ):
        assert form in WRITTEN, form
