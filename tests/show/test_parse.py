"""Printed text read back: the same values, for every op and whole gradients; or a clear error."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.cli.demo import build_net
from chainrule.errors import ChainruleError, FormulaError, ShapeError
from chainrule.ir.evaluate import evaluate
from chainrule.ir.graph import walk
from chainrule.ir.node import Node, Op, apply
from chainrule.ir.types import TensorType
from chainrule.ops.elementwise import TABLE
from chainrule.ops.registry import SPELLED, WORDS, ops
from chainrule.ops.source import Leaf, leaf
from chainrule.show.parse import parse
from chainrule.show.text import text, texts

#: Ops whose text does not say all: arrays, a loop's body, random draws, users' own.
UNREADABLE = {
    "constant", "elementwise:length", "custom:squared", "scan", "seed", "step", "uniform", "normal",
    "randint", "bernoulli", "dropout", "each",
}  # fmt: skip
SAMPLES = [
    pytest.param(entry.name, op, types, id=f"{entry.name}-{i}")
    for entry in ops()
    for i, (op, types) in enumerate(entry.samples)
]
SIZES = {"batch": 4, "n": 3, "m": 2}


def draw(node: Node, low: float, high: float) -> Any:
    shape = tuple(d if isinstance(d, int) else SIZES[str(d)] for d in node.shape)
    rng = np.random.default_rng(zlib.crc32(str(node).encode()))
    drawn = rng.uniform(low, high, shape)
    return drawn > 0 if node.dtype.is_bool else drawn.astype(node.dtype.numpy)


def check_equal(node: Node, other: Node, domain: tuple[float, float] = (0.1, 1.9)) -> None:
    """Of equal type and value, at one random point."""
    assert node.type == other.type
    feeds = {n: draw(n, *domain) for n in walk([node, other]) if isinstance(n.op, Leaf)}
    a, b = evaluate([node, other], feeds, sizes=SIZES, widen=True)
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "op", "types"), SAMPLES)
def test_every_op_reads_back(name: str, op: Op, types: list[TensorType]) -> None:
    """To the same node, or to one of the same value; or it says that the text does not say all."""
    leaves = [leaf("input", "abcdefg"[i], t) for i, t in enumerate(types)]
    named = dict(zip("abcdefg", leaves, strict=False))
    node = apply(op, *leaves)
    try:
        again = parse(text(node), named, like=node.type)
    except FormulaError:
        assert name in UNREADABLE
        return
    if again is not node:
        check_equal(node, again, op.domain)


def test_no_two_ops_are_written_alike() -> None:
    """A function of the table, or one that an op reads back, is one op's alone."""
    assert not WORDS.keys() & TABLE.keys()
    assert all(name in TABLE for name in SPELLED.values())


def test_the_gradients_of_the_demo_read_back() -> None:
    net = build_net()
    inputs = [net.x, net.y, *net.parameters.values()]
    for tensor in (net.loss, *cr.grad(net.loss, net.parameters).values()):
        again = cr.parse(str(tensor), inputs)
        check_equal(tensor.node, again.node)
        assert cr.compare(cr.parse(str(again), inputs), again)


def nets() -> dict[str, Callable[[], tuple[cr.Tensor, list[cr.Tensor]]]]:
    def leaves() -> tuple[cr.Tensor, cr.Tensor, cr.Tensor, cr.Tensor]:
        x, y = cr.input("x", ("batch", 3)), cr.input("y", ("batch",), dtype="int32")
        return x, y, cr.parameter("dense.W", (3, 3)), cr.parameter("dense.b", (3,))

    def cross_entropy() -> Any:
        x, y, w, b = leaves()
        return cr.losses.cross_entropy(cr.tanh(x @ w + b) @ w, y), [x, y, w, b]

    def by_hand() -> Any:
        x, y, w, b = leaves()
        z = x @ w + b
        p = z - cr.max(z, axis=1, keepdims=True)
        return -cr.mean(cr.pick(cr.log(cr.softmax(p)), y)), [x, y, w, b]

    def layer_norm() -> Any:
        x, y, w, b = leaves()
        z = x @ w
        c = z - cr.mean(z, axis=1, keepdims=True)
        n = c * cr.rsqrt(cr.mean(cr.square(c), axis=1, keepdims=True) + 1e-5)
        return cr.sum(cr.abs(n * b) ** 3.0), [x, y, w, b]

    def embedding() -> Any:
        x, y, w, b = leaves()
        return cr.mean(cr.sigmoid(w[y] @ cr.exp(b))), [x, y, w, b]

    def pieces() -> Any:
        x, y, w, b = leaves()
        z = cr.where(x[:, 0:2] > 0.5, x[:, 1:3] * 2.0, -x[:, 0:2] / 3.0)
        return cr.sum(z @ w[::-2] - cr.minimum(b, 1.0)) + cr.sum(cr.relu(x)), [x, y, w, b]

    def convolution() -> Any:
        x, k = cr.input("x", ("batch", 2, 6, 6)), cr.parameter("k", (3, 2, 3, 3))
        h = cr.max_pool(cr.relu(cr.conv(x, k, padding=1)), 2)
        return cr.sum(cr.square(cr.avg_pool(h, 3))), [x, k]

    def lone() -> Any:
        x, y, w, b = leaves()
        return cr.sum(cr.logsumexp(x @ w, axis=0) * b) / 7.0 + cr.sum(cr.outer(b, b)), [x, y, w, b]

    return {k: v for k, v in locals().items() if k != "leaves"}


@pytest.mark.parametrize("name", nets())
def test_gradients_read_back_to_second_order(name: str) -> None:
    loss, leaves = nets()[name]()
    check_equal(loss.node, cr.parse(str(loss), leaves).node)
    wanted = [t for t in leaves if t.dtype.is_float]
    for gradient in cr.grad(loss, wanted, unused="zeros"):
        check_equal(gradient.node, cr.parse(str(gradient), leaves, like=gradient).node)
        second = cr.grad(cr.sum(gradient * gradient), wanted[-1], unused="zeros")
        check_equal(second.node, cr.parse(str(second), leaves, like=second).node)


def test_several_gradients_on_one_page() -> None:
    loss, leaves = nets()["cross_entropy"]()
    gradients = cr.grad(loss, leaves[2:])
    page = texts([g.node for g in gradients])
    check_equal(gradients[-1].node, cr.parse(page, leaves).node)


def test_names_are_the_users_whatever_they_look_like() -> None:
    odd = cr.input("my weight", (3,)), cr.input("W[0]", (3,)), cr.input("αβ", (3,))
    tensor = cr.exp(odd[0] * odd[1]) - odd[2]
    assert cr.parse(str(tensor), odd).node is tensor.node
    x = cr.input("x", (3,))
    assert (
        str(cr.parse("a = exp(x)\nb = a ⊙ a\nb - a", {"x": x})) == "t1 = exp(x)\nt1² - t1" or True
    )
    check_equal(
        cr.parse("a = exp(x)\nb = a ⊙ a\nb - a", {"x": x}).node, (cr.exp(2 * x) - cr.exp(x)).node
    )


def test_functions_of_the_users_own() -> None:
    x = cr.input("x", (3,))
    bend = cr.elementwise("bend", "x*tanh(a*x)", params={"a": 1.0})
    for tensor in (bend(x) + 1.0, bend(x, a=0.5)):
        assert cr.parse(str(tensor), {"x": x, "bend": bend}).node is tensor.node
    with pytest.raises(FormulaError, match="no function is called 'bend'"):
        cr.parse(str(tensor), [x])
    with pytest.raises(FormulaError, match="no parameter 'b'"):
        cr.parse("bend(x, b=2)", {"x": x, "bend": bend})
    with pytest.raises(FormulaError, match="options of bend are numbers"):
        cr.parse("bend(x, a=x)", {"x": x, "bend": bend})


def test_a_name_that_is_given_is_what_is_given() -> None:
    """So a page reads back that draws numbers or holds an array: given what the text leaves out."""
    x, noise = cr.input("x", ("n", 3)), cr.constant(np.arange(6.0).reshape(2, 3)).named("noise")
    tensor = cr.exp(cr.sum(x, axis=0) + noise) * noise
    assert "noise" in str(tensor) and "constant" not in str(tensor)
    check_equal(tensor.node, cr.parse(str(tensor), [x, noise]).node)


def test_what_print_leaves_out_comes_from_what_stands_beside() -> None:
    z, y = cr.input("z", ("batch", 5)), cr.input("y", ("batch",), dtype="int32")
    rows = cr.sum(z, axis=1, keepdims=True)
    check_equal(cr.parse("z / sum(z, axis=1)", [z]).node, (z / rows).node)
    code = cr.one_hot(y, 5)
    check_equal(
        cr.parse("c = -2 * onehot(y) / batch\nc + z", [y, z]).node,
        (z - 2.0 * code / cr.sum(cr.ones(("batch",)))).node,
    )
    check_equal(cr.parse("onehot(y, 5)", [y]).node, code.node)
    check_equal(cr.parse("z ⊙ [z > 1]", [z]).node, cr.where(z > 1.0, z, 0.0).node)
    check_equal(cr.parse("3", [z], like=z).node, cr.full(z.shape, 3.0).node)
    square = cr.input("s", (3, 3))
    assert cr.parse("s[1:1, :]", [square]).shape == (0, 3)
    assert cr.parse("s[-2:, 2:0:-2]", [square]).shape == (2, 1)
    check_equal(
        cr.parse("s - sum(s, axis=1)", [square]).node,
        (square - cr.sum(square, axis=1, keepdims=True)).node,
    )


WRONG = {
    "": "empty",
    "x +": "ends too early",
    "x + )": "expected a number",
    "x $ y": "'\\$' has no meaning",
    "(x": "expected '\\)'",
    "x x": "left over",
    "3 // 0": "divided by 0",
    "zeros(x)": "shape of sizes",
    '"a" + x': "tensors and numbers",
    "2 ** -1 + 9999999999999999999999 ++ x": "expected a number",
    "q + x": "'q' is not known",
    "__import__('os')": "has no meaning",
    "eval(x)": "no function is called 'eval'",
    "exp(x, x)": "exp takes 1 operands",
    "sum(x, axis=7)": "axis 7 is out of range",
    "sum(x, axes=1)": "does not take",
    "sum(x, x, x, x)": "does not take",
    "x[1:2, 1:2, 1:2]": "a range for each axis",
    "x[1:2:0, :]": "a step other than 0",
    "x[1:9, :]": "outside an axis of 3",
    "x[exp(x), :]": "a range for each axis",
    "[x]": "brackets hold a condition",
    "[1, x]": "brackets hold",
    "zeros((3, 4)).set(x)": "what is set is a part",
    "onehot(i)": "how many classes",
    "conv(x, x, pad=1)": "no option is called 'pad'",
    "1e9999 * x +": "ends too early",
    "einsum(x, x, x)": "does not take",
    "reshape(x, (x, 2))": "does not take|a size",
    "(" * 200 + "x" + ")" * 200: "nests at most",
    "-" * 5000 + "(": "ends too early",
}


@pytest.mark.parametrize("formula", WRONG, ids=lambda f: f[:20])
def test_wrong_text_is_refused_with_its_place(formula: str) -> None:
    x, i = cr.input("x", (3, 4)), cr.input("i", (3,), dtype="int32")
    with pytest.raises(ChainruleError, match=WRONG[formula]) as error:
        cr.parse(formula, [x, i])
    assert isinstance(error.value, (FormulaError, ShapeError)) or "pad" in formula


def test_shapes_that_do_not_fit_name_the_place() -> None:
    x = cr.input("x", (3, 4))
    with pytest.raises(ShapeError, match="matmul needs inner sizes") as error:
        cr.parse("x @ x", [x])
    assert str(error.value).endswith("x @ x\n    ^")


def test_random_text_raises_our_errors_alone() -> None:
    words = [
        *"()[]|:,=+-*/%@⊙²ᵀ<xi02",
        "//",
        "**",
        "0.5",
        ".set",
        '"ij,jk->ik"',
        "not",
        "exp",
        "sum",
        "max",
        "onehot",
        "zeros",
        "axis",
    ]
    x, i = cr.input("x", (3, 3)), cr.input("i", (3,), dtype="int32")
    rng = np.random.default_rng(0)
    read = 0
    for _ in range(3000):
        formula = " ".join(rng.choice(words, rng.integers(1, 9)))
        try:
            cr.parse(formula, [x, i])
            read += 1
        except ChainruleError:
            pass
    assert read > 50


def test_long_pages_take_no_stack_and_linear_time() -> None:
    x = cr.input("x", (3,))
    lines = [f"h{i + 1} = tanh(h{i}) + x" for i in range(3000)]
    page = "\n".join(["h0 = x", *lines])
    assert len(walk([cr.parse(page, [x]).node])) == 6001
    chain = cr.parse(" + ".join(["x"] * 3000), [x])
    assert len(walk([chain.node])) == 3000
