"""Graphs in files: every op comes back as it was, and what is no graph is refused."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.errors import ArtifactError
from chainrule.ir.evaluate import evaluate
from chainrule.ir.graph import walk
from chainrule.ir.node import Node, apply, within
from chainrule.lang.tensor import Tensor
from chainrule.ops.registry import ops
from chainrule.ops.source import leaf
from chainrule.show.stored import read, written

SAMPLES = [
    pytest.param(op, types, id=f"{entry.name}-{i}")
    for entry in ops()
    for i, (op, types) in enumerate(entry.samples)
    if not entry.name.startswith("custom:")
    and entry.name != "each"  # made while an ensemble is compiled, never written
]
SIZES = {"batch": 4, "n": 3, "m": 2}


def stored(*roots: Node) -> tuple[Any, list[int], Any]:
    """What a file would hold, as JSON gives it back."""
    entries, numbers, arrays = written(roots)
    return json.loads(json.dumps(entries)), numbers, arrays


@pytest.mark.parametrize(("op", "types"), SAMPLES)
def test_every_op_comes_back(op: Any, types: Any) -> None:
    node = apply(op, *(leaf("input", f"x{i}", t) for i, t in enumerate(types)))
    (back,) = read(*stored(node))
    assert repr(back.op) == repr(node.op) and back.type == node.type
    assert [i.op.label for i in back.inputs] == [f"x{i}" for i in range(len(types))]


def test_a_whole_net_with_its_gradients_comes_back() -> None:
    x = cr.input("x", ("batch", 7, 8))
    net = cr.nn.Sequential([cr.nn.Dense(6, "gelu"), cr.nn.LayerNorm(), cr.nn.Dropout(0.2)])
    scanned, _ = cr.scan(
        lambda h, row: (cr.tanh(h + row), h),
        cr.zeros((7, 6)),
        net(x),
    )
    odd = cr.elementwise("odd", "x*exp(-x**2)/(1 + k)", params={"k": 0.5})
    loss = cr.sum(odd(scanned) @ cr.constant(np.arange(30.0).reshape(6, 5).astype("float32")))
    roots = [loss, *cr.grad(loss, list(net.parameters.values()))]
    (read_back,) = (Tensor(n) for n in read(*stored(loss.node)))
    leaves = {n.op.label: Tensor(n) for n in walk([read_back.node]) if n.op.name == "parameter"}
    back = [read_back, *cr.grad(read_back, [leaves[n] for n in net.parameters])]
    assert cr.compare(roots, back)
    assert str(back[1]) == str(roots[1])
    one, other = cr.compile(roots), cr.compile(back)
    assert one.inputs == other.inputs
    rng = np.random.default_rng(0)
    feeds = {n: rng.normal(size=t.shape) for n, t in net.parameters.items()}
    feeds = {n: a.astype(np.float32) for n, a in feeds.items()}
    feeds["x"] = rng.normal(size=(3, 7, 8)).astype(np.float32)
    for a, b in zip(one(**feeds), other(**feeds), strict=True):
        assert a.tobytes() == b.tobytes()


def test_a_python_function_is_no_data() -> None:
    f = cr.custom_derivative(lambda x: x * x, lambda ct, out, x: ct)
    with pytest.raises(ArtifactError, match="Python function"):
        written([f(cr.input("x", (3,))).node])


def mutated(value: Any, chance: random.Random) -> Any:
    """An attribute that is nearly what it was."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return chance.choice([value + 1, value - 1, -value, 0, 2 * value, 7, 100, -(2**40)])
    if isinstance(value, float):
        return chance.choice([0.0, -1.0, float("inf"), "1"])
    if isinstance(value, list) and value:
        at = chance.randrange(len(value) + 1)
        if at == len(value):
            return chance.choice([value[:-1], [*value, value[-1]], value[::-1]])
        return [*value[:at], mutated(value[at], chance), *value[at + 1 :]]
    return chance.choice([None, 3, "x", [], {}])


@pytest.mark.parametrize("seed", range(3))
def test_what_is_accepted_has_a_meaning(seed: int) -> None:
    """Changed attributes are refused, or make a node that NumPy gives the inferred shape.

    Positions are fed the largest that their bounds allow, so that one beyond its axis would show.
    """
    chance = random.Random(seed)
    accepted = 0
    for sample in SAMPLES:
        op, types = sample.values
        node = apply(op, *(leaf("input", f"x{i}", t) for i, t in enumerate(types)))  # type: ignore[arg-type]
        entries, roots, arrays = stored(node)
        kind, said, *rest = entries[-1]
        if not isinstance(said, dict) or not said:
            continue
        for _ in range(8):
            name = chance.choice(list(said))
            changed = {**said, name: mutated(said[name], chance)}
            try:
                (made,) = read([*entries[:-1], [kind, changed, *rest]], roots, arrays)
            except ArtifactError:
                continue
            if any(isinstance(d, int) and d > 10**6 for d in made.shape):
                continue
            accepted += 1
            _held_to_numpy(made, f"seed {seed}: {kind} {changed}")
    assert accepted > 100


def _held_to_numpy(node: Node, what: str) -> None:
    feeds = {}
    bounds = dict(node.op.bounds(*(i.type for i in node.inputs)))
    for at, operand in enumerate(node.inputs):
        shape = [d if isinstance(d, int) else 4 for d in operand.shape]
        value = 0
        if at in bounds:
            _, above = within(bounds[at])
            value = above - 1 if isinstance(above, int) else 3
            if value < 0 and np.prod(shape):
                return  # nothing can be fed
        limit = np.iinfo(operand.dtype.numpy).max if operand.dtype.is_integer else 1
        feeds[operand] = np.full(shape, min(value, limit), operand.dtype.numpy)
    (got,) = evaluate([node], feeds, sizes=SIZES)
    assert got.shape == tuple(d if isinstance(d, int) else 4 for d in node.shape), what


@pytest.mark.parametrize(
    "entry",
    [
        3,
        [],
        ["input"],
        ["input", ["x", ["float32", [-1]], None], []],
        ["input", ["x", ["float33", [1]], None], []],
        ["local", ["x", ["float32", [1]], 5], []],
        ["elementwise.nothing", None, [0]],
        ["elementwise.add", None, [0]],
        ["elementwise.add", None, [0, 7]],
        ["elementwise.add", None, [0, -1]],
        ["Custom", {}, [0]],
        ["Op", {}, [0]],
        ["__class__", {}, [0]],
        ["Sum", {"axes": [0, 0]}, [0]],
        ["Sum", {"axes": "0"}, [0]],
        ["Sum", {}, [0]],
        ["Sum", {"axes": [0], "more": 1}, [0]],
        ["Full", {"data": "zz", "dtype": "float32", "shape": [2]}, []],
        ["Full", {"data": "00", "dtype": "float32", "shape": [2]}, []],
        ["Full", {"data": "00000000", "dtype": "float32", "shape": [2**61, 8]}, []],
        ["Slice", {"starts": [0], "counts": [4], "steps": [1]}, [0]],
        ["Slice", {"starts": [[[1, ["batch"]]]], "counts": [1], "steps": [0]}, [0]],
        ["Cast", {"to": "float32", "role": "alias"}, [0]],
        ["array", "nowhere", []],
    ],
)
def test_what_is_no_entry(entry: Any) -> None:
    first = ["input", ["x", ["float32", [3]], None], []]
    with pytest.raises(ArtifactError):
        read([first, entry], [1], {})


def test_a_body_that_reads_what_it_is_not_given() -> None:
    first = ["input", ["x", ["float32", []], None], []]
    local = ["local", ["h", ["float32", []], -1], []]
    body = [[1], [], [], [0], []]
    scan = ["Scan", {"body_of_step": body, "length": 3, "reverse": False, "output": 0}, [0]]
    with pytest.raises(ArtifactError, match="not given"):
        read([first, local, scan], [2], {})
