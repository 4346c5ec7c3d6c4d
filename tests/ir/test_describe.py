"""What ops and graphs are as text: the same in every process, another for whatever differs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import chainrule as cr
from chainrule.ir.describe import described
from chainrule.ir.node import Node, Op, apply
from chainrule.ir.types import TensorType, float32
from chainrule.ops.registry import ops
from chainrule.ops.source import Leaf, leaf
from chainrule.target import target

ROOT = Path(__file__).parents[2]


def contents() -> list[str]:
    """Of each sample of each op, its text."""
    found = []
    for entry in ops():
        for op, types in entry.samples:
            given = [leaf("input", f"x{i}", t) for i, t in enumerate(types)]
            found.append(
                f"{entry.name} {op.content(*types)} {described([apply(op, *given)], given)}"
            )
    return found


def test_another_process_says_the_same() -> None:
    """With another seed of Python's hashes, and leaves that were made before."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_describe as t, chainrule as cr\n"
        "cr.input('before', (3,)); cr.random.normal((2,)); print('\\n'.join(t.contents()))"
    )
    roots = os.pathsep.join(str(ROOT / r) for r in ("compiler", "runtime"))
    ran = subprocess.run(
        [sys.executable, "-c", script, str(Path(__file__).parent)],
        env={**os.environ, "PYTHONPATH": roots, "PYTHONHASHSEED": "7"},
        capture_output=True, encoding="utf-8", timeout=120, check=True,
    )  # fmt: skip
    assert ran.stdout.splitlines() == "\n".join(contents()).splitlines()


def test_ops_that_differ_say_so() -> None:
    said: dict[tuple[str, str | None], Op] = {}
    for entry in ops():
        for op, types in entry.samples:
            text = op.content(*types)
            assert text is not None and " at 0x" not in text, entry.name
            assert said.setdefault((type(op).__module__, text), op) == op


def one(build: Callable[..., cr.Tensor], *names: str) -> str | None:
    given = [cr.input(name, ("n", 3)) for name in names]
    return described([build(*given).node], [t.node for t in given])


def scanned(factor: float) -> Callable[[cr.Tensor], cr.Tensor]:
    def loop(x: cr.Tensor) -> cr.Tensor:
        return cr.scan(lambda c, row: (c * factor + row, None), x[0], x)[0]

    return loop


def own(factor: float) -> Callable[[cr.Tensor], cr.Tensor]:
    return cr.custom_derivative(lambda x: x * factor, vjp=lambda ct, out, x: ct)  # type: ignore[no-any-return]


def array(last: float) -> Callable[[cr.Tensor], cr.Tensor]:
    return lambda x: x + cr.constant(np.array([1, 2, last], np.float32))


PAIRS = {
    "number": (lambda x: x * 2.0, lambda x: x * 3.0),
    "sign of zero": (lambda x: x + 0.0, lambda x: x + -0.0),
    "op": (cr.sin, cr.cos),
    "operand": (lambda x: x - cr.sin(x), lambda x: cr.sin(x) - x),
    "axis": (lambda x: cr.sum(x, axis=0), lambda x: cr.sum(x, axis=1)),
    "constant": (array(3), array(4)),
    "loop": (scanned(2), scanned(3)),
    "custom": (own(2), own(3)),
    "custom and plain": (own(2), lambda x: x * 2),
    "formula": (cr.elementwise("f", "x*tanh(x)"), cr.elementwise("f", "x*sin(x)")),
    "parameter": (
        lambda x: cr.elementwise("g", "a*x", params={"a": 1.0})(x, a=2.0),
        lambda x: cr.elementwise("g", "a*x", params={"a": 1.0})(x, a=3.0),
    ),
    "draw": (lambda x: x + cr.random.normal((3,)), lambda x: x + cr.random.uniform((3,))),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=list(PAIRS))
def test_what_differs_is_told(pair: tuple[Callable[..., cr.Tensor], ...]) -> None:
    first, second = pair
    assert one(first, "x") is not None
    assert one(first, "x") != one(second, "x")


@pytest.mark.parametrize("build", [scanned(2), own(2), array(3), lambda x: cr.tanh(x).named("h")])
def test_what_is_the_same_is_the_same_text_under_any_name(
    build: Callable[[cr.Tensor], cr.Tensor],
) -> None:
    assert one(build, "x") == one(build, "another")


def test_names_of_positions_are_told_as_errors_say_them() -> None:
    def taken(name: str) -> str | None:
        x, i = cr.input("x", (5,)), cr.input("i", (3,), dtype="int32")
        node = cr.take(x, (i + 1).named(name), axis=0).node
        return described([node], [x.node, i.node])

    assert taken("rows") == taken("rows") != taken("places")


def test_an_op_from_outside_can_t_be_told() -> None:
    @dataclass(frozen=True)
    class Foreign(Op):
        name = "foreign"

        def infer(self, *inputs: TensorType) -> TensorType:
            return inputs[0]

    x = leaf("input", "x", TensorType(float32, (3,)))
    assert described([apply(Foreign(), x)], [x]) is None


def test_a_leaf_that_is_not_given_can_t_be_told() -> None:
    x = leaf("input", "x", TensorType(float32, (3,)))
    assert isinstance(x.op, Leaf)
    assert described([x], []) is None


def test_targets_are_told_apart() -> None:
    levels = ("x86-64-v2", "x86-64-v3", "x86-64-v4", "aarch64", "generic")
    assert len({repr(target(level)) for level in levels}) == len(levels)


def test_it_does_not_recurse() -> None:
    x = leaf("input", "x", TensorType(float32, (3,)))
    node: Node = x
    for i in range(20_000):
        node = cr.tanh(cr.Tensor(node) + float(i % 7)).node
    text = described([node], [x])
    assert text is not None and text.count("\n") > 20_000
