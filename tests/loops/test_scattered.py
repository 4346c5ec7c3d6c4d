"""Adds to places known at run time: vectors, blocks of columns and threads change no bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.codegen.host import host_target
from chainrule.driver import leaves_of
from chainrule.ir.graph import Graph
from chainrule.ir.loop import Loop
from chainrule.ir.node import Node, apply
from chainrule.ir.types import TensorType, float32, int32
from chainrule.loops.build import build_kernels
from chainrule.loops.interpret import interpret
from chainrule.loops.parts import is_split
from chainrule.loops.walk import statements
from chainrule.ops.body import label_of
from chainrule.ops.each import Each
from chainrule.ops.gather import GatherAdd
from chainrule.ops.index import ScatterAdd
from chainrule.ops.source import leaf
from chainrule.schedule.fuse import fuse

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)
MODELS = 3


def given(name: str, of: Any, *shape: int) -> Node:
    return leaf("input", name, TensorType(of, shape))


def scattered(shape: tuple[int, ...], axis: int, rank: int, rows: int) -> Node:
    at = given("at", int32, *shape[axis : axis + rank])
    return apply(ScatterAdd(axis, rows, True), given("x", float32, *shape), at)


def by_two(shape: tuple[int, ...], sizes: tuple[int, int]) -> Node:
    i, j = (given(n, int32, shape[0]) for n in "ij")
    return apply(GatherAdd((0, 1), sizes), given("x", float32, *shape), i, j)


def of_models(own: bool) -> Node:
    x = given("x", float32, 9, 40, MODELS)
    at = given("at", int32, 9, *([MODELS] if own else []))
    return apply(Each(ScatterAdd(0, 5, True), MODELS, (True, own)), x, at)


CASES = {
    "narrow": lambda: scattered((12, 3), 0, 1, 5),
    "one block": lambda: scattered((12, 40), 0, 1, 5),
    "a block and more": lambda: scattered((12, 1300), 0, 1, 5),
    "blocks": lambda: scattered((3, 4, 2048), 0, 2, 5),
    "along a middle axis": lambda: scattered((2, 7, 33), 1, 1, 4),
    "along the last": lambda: scattered((20, 30), 1, 1, 4),
    "rows of two axes": lambda: scattered((11, 20, 30), 0, 1, 4),
    "rows of large pieces": lambda: scattered((6, 3, 2100), 0, 1, 4),
    "two axes at once": lambda: by_two((12, 70), (3, 4)),
    "many models": lambda: of_models(False),
    "many models, each at places of its own": lambda: of_models(True),
}


def feeds(node: Node) -> dict[Node, Array]:
    """Positions of either sign, many of them repeated; values whose sums show their order."""
    found = {}
    for n in leaves_of((node,)):
        if n.dtype.is_integer:
            found[n] = RNG.integers(-3, 3, n.shape).astype(np.int32)
        else:
            found[n] = (RNG.normal(size=n.shape) * 10.0 ** RNG.integers(-3, 4, n.shape)).astype(
                "f4"
            )
    return found


def summed(node: Node, fed: dict[Node, Array]) -> Array:
    """By NumPy, element by element in order."""
    x, *at = (fed[n] for n in node.inputs)
    if isinstance(node.op, Each):
        parts = [(x[..., m], at[0][..., m] if at[0].ndim > 1 else at[0]) for m in range(MODELS)]
        made = []
        for values, places in parts:
            out = np.zeros((5, 40), np.float32)
            np.add.at(out, places, values)
            made.append(out)
        return np.stack(made, axis=-1)
    out = np.zeros(node.shape, np.float32)
    if isinstance(node.op, GatherAdd):
        np.add.at(out, tuple(at), x)
        return out
    assert isinstance(node.op, ScatterAdd)
    axis, rank = node.op.axis, at[0].ndim
    parts_ = np.moveaxis(x, range(axis, axis + rank), range(rank))
    np.add.at(np.moveaxis(out, axis, 0), at[0], parts_)
    return out


@pytest.mark.parametrize("name", CASES)
def test_sums_are_in_order_whoever_makes_them(name: str) -> None:
    node = CASES[name]()
    fed = feeds(node)
    want = summed(node, fed)
    named = {label_of(n): values for n, values in fed.items()}
    for threads in (1, 2):
        got = cr.compile(cr.Tensor(node), threads=threads)(**named)
        np.testing.assert_array_equal(got, want)
    (kernel,) = (k for k in fuse(Graph((node,))) if k.test is None)
    (built,) = build_kernels([kernel], host_target())
    memory = {n: fed.get(n, np.full(n.shape, 7, np.float32)).reshape(-1) for n in built.memory}
    names = (b.name for b in built.program.buffers)
    assert interpret(built.program, dict(zip(names, memory.values(), strict=True)), {}) == 0
    np.testing.assert_array_equal(memory[node].reshape(want.shape), want)


@pytest.mark.parametrize(
    ("name", "divided"),
    [("narrow", False), ("one block", False), ("a block and more", True), ("blocks", True)],
)
def test_blocks_of_columns_are_shared(name: str, divided: bool) -> None:
    (kernel,) = (k for k in fuse(Graph((CASES[name](),))) if k.test is None)
    (built,) = build_kernels([kernel], host_target())
    assert is_split(built.program) or not divided
    blocks = [
        s for s in statements(built.program.body) if isinstance(s, Loop) and s.var == "block'"
    ]
    assert bool(blocks) is divided
    assert all(s.split for s in blocks)


def test_columns_of_an_unknown_number_stay_as_they_were() -> None:
    x, e = cr.input("x", (6, "n")), cr.input("e", (3, "n"))
    slope = cr.grad(cr.sum(cr.take(e, cr.input("at", (6,), dtype="int32"), axis=0) * x), e)
    fed = {"x": RNG.normal(size=(6, 37)).astype("f4"), "at": np.array([0, 1, 2, 1, 1, 0], "i4")}
    want = np.zeros((3, 37), np.float32)
    np.add.at(want, fed["at"], fed["x"])
    np.testing.assert_array_equal(cr.compile(slope, threads=2)(**fed), want)
