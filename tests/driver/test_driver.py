"""The whole compiler: passes, levels, figures, sizes, and what it refuses."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.driver import build, leaves_of
from chainrule.driver.levels import LEVELS, show
from chainrule.driver.lower import PASSES
from chainrule.driver.report import report
from chainrule.ir.graph import Graph

ORDER = (
    "canonicalize",
    "stabilize",
    "simplify",
    "widen",
    "attend",
    "expand_composites",
    "multiply_tables",
    "order_contractions",
    "lower",
    "drop_unused",
    "share_steps",
    "drop_unread",
    "look_up_inside",
    "spread",
    "lighten",
    "materialize",
)


def net() -> tuple[cr.Tensor, dict[str, Any]]:
    x = cr.input("x", ("n", 4))
    w, b = cr.parameter("w", (4, 3)), cr.parameter("b", (3,))
    return cr.tanh(x @ w + b), {"x": x, "w": w, "b": b}


def compiled(*outputs: cr.Tensor) -> Any:
    roots = [o.node for o in outputs]
    names = [f"o{i}" for i in range(len(roots))]
    return build(Graph(tuple(roots)), feeds=leaves_of(roots), outputs=names, threads=1)


def test_passes_are_recorded_in_order() -> None:
    found = compiled(net()[0]).levels.passes
    assert tuple(p.name for p in found) == ORDER == tuple(p.name for p in PASSES)
    assert all(p.doc for p in PASSES)
    for before, after in itertools.pairwise(found):
        assert before.nodes_after == after.nodes_before


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_shows(level: str) -> None:
    program = compiled(net()[0])
    text = show(program, level)
    assert "tanh" in text or level in ("llvm", "asm")
    expected = {"kernels": "kernel0: contract over [n, 3]", "loops": "vector for",
                "llvm": "define i32 @step(ptr %table, ptr %sizes)", "asm": "step:"}  # fmt: skip
    assert expected.get(level, "") in text


def test_no_other_level() -> None:
    with pytest.raises(cr.errors.CompileError, match="no level 'ptx'"):
        show(compiled(net()[0]), "ptx")


def test_kernels_as_text() -> None:
    h, _ = net()
    text = show(compiled(cr.sum(cr.square(h), axis=1)), "kernels")
    assert text.splitlines() == [
        "kernel0: contract over [n, 3]",
        "  reads  x: f32[n, 4], w: f32[4, 3], b: f32[3]",
        "  contract add tanh square",
        "  writes square: f32[n, 3]",
        "kernel1: rows over [n, 3]",
        "  reads  square: f32[n, 3]",
        "  sum",
        "  writes sum: f32[n]",
    ]


def test_equal_layers_say_so() -> None:
    h = cr.input("x", ("n", 4))
    for i in range(3):
        h = cr.tanh(h @ cr.parameter(f"w{i}", (4, 4)))
    program = compiled(h)
    heads = [s for s in show(program, "kernels").splitlines() if s.startswith("kernel")]
    assert heads[1:] == [f"kernel{i}: contract over [n, 4], the loops of kernel0" for i in (1, 2)]
    assert report(program).functions == 2, "one kernel, and the step that calls it"
    assert show(program, "loops").count("(b0: f32") == 1


def test_figures_of_a_small_net() -> None:
    """By hand: 2·4·3 for the product, 3 for the bias and 3 for tanh, a row."""
    h, _ = net()
    found = report(compiled(h))
    (kernel,) = found.kernels
    assert (kernel.name, kernel.form, kernel.ops) == (
        "kernel0",
        "contract",
        ("contract", "add", "tanh"),
    )
    assert str(kernel.flops) == "30*n"
    assert str(kernel.bytes) == "28*n + 60"  # x and the result: 16 + 12 a row; w and b: 48 + 12
    assert found.totals(n=10) == {"flops": 300, "bytes": 340}
    assert {k: str(v) for k, v in found.memory.items()} == {
        "inputs": "16*n + 60",
        "parameters and state": "0",
        "arena": "0",
        "workspace": "0",
    }
    assert found.code_size > 0 and found.total_seconds > 0
    assert set(found.as_dict()) >= {"passes", "kernels", "memory", "code_size", "target", "seconds"}
    assert re.search(r"kernel0 +contract +contract add tanh +30\*n +28\*n \+ 60", str(found))


def test_figures_of_folds_and_views() -> None:
    x = cr.input("x", ("n", 8))
    (kernel,) = report(compiled(cr.sum(x, axis=1))).kernels
    assert str(kernel.flops) == "8*n"
    (kernel,) = report(compiled(x.T)).kernels
    assert kernel.flops == 0, "moving elements computes nothing"


def test_arena_of_a_chain() -> None:
    h = cr.input("x", ("n", 8))
    for i in range(5):
        h = cr.tanh(h @ cr.parameter(f"w{i}", (8, 8)))
    found = report(compiled(cr.sum(h)))
    assert (found.values, found.slots) == (5, 2)
    assert str(found.memory["arena"]) == "64*n"


def test_a_size_no_input_has_can_not_be_known() -> None:
    x = cr.input("x", ("m",))
    with pytest.raises(cr.errors.CompileError, match=r"the size m .* can't be known") as error:
        cr.compile(cr.zeros_like(x) + 1.0)
    assert "test_driver.py" in str(error.value)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_an_index_out_of_range_is_named(backend: str) -> None:
    x, i = cr.input("x", ("n", 3)), cr.input("i", ("m",), dtype="int32")
    fn = cr.compile(cr.take(x, i, axis=1), backend=backend)
    good = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(fn(x=good, i=[2, 0]), good[:, [2, 0]])
    np.testing.assert_array_equal(fn(x=good, i=[-1, -3]), good[:, [2, 0]])
    for bad in ([0, 3], [-4, 0]):
        with pytest.raises(cr.errors.FeedError, match=f"i holds {bad[1] if 3 in bad else -4}"):
            fn(x=good, i=bad)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_size_zero(backend: str) -> None:
    x = cr.input("x", ("n", 3))
    fn = cr.compile([cr.sum(x), cr.mean(x), cr.sum(x, axis=0), cr.exp(x), x @ x.T], backend=backend)
    total, mean, columns, same, gram = fn(x=np.zeros((0, 3)))
    assert total == 0 and np.isnan(mean)
    np.testing.assert_array_equal(columns, np.zeros(3))
    assert same.shape == (0, 3) and gram.shape == (0, 0)
    largest = cr.compile(cr.max(x, axis=0), backend=backend)
    with pytest.raises(cr.errors.FeedError):
        largest(x=np.zeros((0, 3)))
    with pytest.raises(cr.errors.ShapeError):
        cr.max(cr.input("z", (0, 3)))


def test_two_leaves_of_one_name_are_named_with_their_lines() -> None:
    first = cr.input("x", (2,))
    second = cr.input("x", (3,))
    with pytest.raises(cr.errors.CompileError, match="two leaves are called 'x'") as error:
        cr.compile([first + 1.0, second + 1.0])
    lines = re.findall(r"one at .*test_driver\.py:(\d+)", str(error.value))
    assert len(set(lines)) == 2


def test_a_compiled_graph_does_not_depend_on_what_was_compiled_before() -> None:
    h, _ = net()
    first = show(compiled(h), "llvm")
    compiled(cr.sin(cr.input("other", (5,))))
    again, _ = net()
    assert show(compiled(again), "llvm") == first


@pytest.mark.parametrize("depth", [20])
def test_code_does_not_grow_with_equal_layers(depth: int) -> None:
    def mlp(layers: int) -> Any:
        h = cr.input("x", ("n", 16))
        weights = [cr.parameter(f"w{i}", (16, 16)) for i in range(layers)]
        for w in weights:
            h = cr.tanh(h @ w)
        loss = cr.mean(cr.square(h))
        return report(compiled(loss, *cr.grad(loss, weights)))

    assert mlp(depth).functions == mlp(2 * depth).functions


def test_the_graph_after_each_pass_is_shown() -> None:
    x = cr.input("x", ("n",))
    pages = show(compiled(cr.sum(cr.log(1 + cr.exp(2 * x)))), "passes").split("\n\n")
    assert [page.split(":")[0] for page in pages] == [p.name for p in PASSES]
    assert "= log" in pages[0] and "= softplus" in pages[1]
