"""What is computed together: kernels of small graphs as text, as they should be."""

from __future__ import annotations

import time
from collections.abc import Sequence
from textwrap import dedent
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.driver.lower import PASSES
from chainrule.errors import CompileError
from chainrule.ir import provenance
from chainrule.ir.graph import Graph
from chainrule.ir.passes import run_passes
from chainrule.schedule.fuse import MAX_NODES, fuse
from chainrule.schedule.kernel import Form, Kernel, identity, positions_of
from chainrule.schedule.order import order_kernels

Updates = dict[Any, Any]


def kernels_of(
    outputs: Sequence[Any], updates: Updates | None = None, finite: Sequence[int] = ()
) -> list[Kernel]:
    pairs = tuple((leaf.node, value.node) for leaf, value in (updates or {}).items())
    graph, _ = run_passes(Graph(tuple(o.node for o in outputs), pairs), PASSES)
    return fuse(graph, [graph.outputs[i] for i in finite])


def text(kernels: Sequence[Kernel]) -> str:
    """A line for each kernel: form, ops < what it reads > what it writes, and into which leaf."""
    return "\n".join(map(line, kernels))


def line(kernel: Kernel) -> str:
    ops = " ".join(str(n.op.name) for n in kernel.nodes) if kernel.test is None else "test"
    ops = "" if kernel.form is Form.COPY else " " + ops
    writes = [name(n) if n is to else f"{name(n)}->{name(to)}" for n, to in kernel.writes.items()]
    reads = " ".join(map(name, kernel.reads))
    return f"{kernel.form.value}{ops} < {reads} > {' '.join(writes) or 'nothing'}"


def name(node: Any) -> str:
    return provenance.user_name_of(node) or str(node.op.name)


def check(kernels: Sequence[Kernel], expected: str) -> None:
    assert text(kernels) == dedent(expected).strip()


def test_maps_of_one_shape_are_one_kernel() -> None:
    x = cr.input("x", ("n", 3))
    check(kernels_of([cr.exp(x) * cr.sin(x) + 1.0]), "map exp sin mul add < x > add")


def test_a_row_is_read_where_it_repeats() -> None:
    x, b = cr.input("x", ("n", 3)), cr.input("b", (3,))
    check(kernels_of([cr.tanh(x + b)]), "map add tanh < x b > tanh")


def test_softmax_cross_entropy_is_one_pass_over_rows() -> None:
    z, y = cr.input("z", ("n", 10)), cr.input("y", ("n",), dtype="int32")
    loss = cr.losses.cross_entropy(z, y)
    found = kernels_of([cr.grad(loss, z), loss])
    rows = [k for k in found if k.form is Form.ROWS]
    over_classes = [k for k in rows if len(k.space) == 2]
    assert len(over_classes) == 1
    ops = [str(n.op.name) for n in over_classes[0].nodes]
    assert {"max", "exp", "sum", "log"} <= set(ops)
    assert len([k for k in found if k.form is Form.MAP]) == 0


def test_bias_and_activation_belong_to_the_product() -> None:
    x, w, b = cr.input("x", ("n", 4)), cr.parameter("w", (4, 5)), cr.parameter("b", (5,))
    check(kernels_of([cr.relu(x @ w + b)]), "contract contract add relu < x w b > relu")


def test_adam_is_in_the_kernel_of_the_weight_gradient() -> None:
    x, t = cr.input("x", ("n", 4)), cr.input("t", ("n", 5))
    w, m, v, lr = (
        cr.parameter("w", (4, 5)), cr.state("m", (4, 5)), cr.state("v", (4, 5)), cr.input("lr", ())
    )  # fmt: skip
    loss = cr.sum(cr.square(x @ w - t))
    g = cr.grad(loss, w)
    m1, v1 = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    w1 = w - lr * m1 / (cr.sqrt(v1) + 1e-8)
    found = kernels_of([loss], {m: m1, v: v1, w: w1}, finite=[0])
    (update,) = [k for k in found if any(to is w.node for to in k.writes.values())]
    assert update.form is Form.CONTRACT
    assert set(update.writes.values()) == {m.node, v.node, w.node}
    assert not any(k.form is Form.COPY for k in found)
    checks = [i for i, k in enumerate(found) if k.form is Form.CHECK]
    assert checks and max(checks) < found.index(update), "nothing changes before the loss is tested"


def test_an_update_in_place_comes_after_every_reader() -> None:
    a, x = cr.state("a", (3,)), cr.input("x", (7,))
    grown = cr.sum(cr.outer(a, x), axis=1) + a
    found = kernels_of([cr.sum(a * 3.0)], {a: cr.sin(a)})
    assert list(found[-1].writes.values()) == [a.node]
    found = kernels_of([grown, cr.sum(a)], {a: a * 2.0})
    assert [a.node in k.writes.values() for k in found] == [False] * (len(found) - 1) + [True]


def test_a_swap_keeps_one_old_value_until_the_end() -> None:
    a, b = cr.state("a", (3,)), cr.state("b", (3,))
    found = kernels_of([], {a: b, b: a})
    assert sorted(k.form.value for k in found if k.form is Form.COPY) in ([], ["copy"])
    written = [to for k in found for to in k.writes.values() if not to.inputs]
    assert sorted(map(name, written)) == ["a", "b"]


def test_an_output_that_updates_too_is_kept_apart() -> None:
    a = cr.state("a", (3,))
    check(kernels_of([cr.sin(a)], {a: cr.sin(a)}), """
        map sin < a > sin
        copy < sin > sin->a
    """)  # fmt: skip


def test_an_update_of_another_ones_new_value() -> None:
    a, b = cr.state("a", (3,)), cr.state("b", (3,))
    new = a + 1.0
    check(kernels_of([], {a: new, b: b * new}), "map add mul < a b > add->a mul->b")


def test_a_leaf_read_through_a_transpose_is_copied_at_the_end() -> None:
    w = cr.state("w", (3, 3))
    check(kernels_of([], {w: w + w.T}), """
        map add < w > add
        copy < add > add->w
    """)  # fmt: skip


def test_a_leaf_read_at_positions_is_copied_at_the_end() -> None:
    w, i = cr.state("w", (3,)), cr.input("i", (3,), dtype="int32")
    check(kernels_of([], {w: cr.take(w, i)}), """
        check test < i > nothing
        map take < w i > take
        copy < take > take->w
    """)  # fmt: skip


def test_positions_that_nothing_tests_are_an_error_of_the_compiler() -> None:
    x, i = cr.input("x", (5,)), cr.input("i", (3,), dtype="int32")
    graph, _ = run_passes(Graph(((cr.take(x, i) * 2.0).node,)), PASSES)
    check, take = kernels = fuse(graph)
    assert check.test is not None and check.test.bound is not None
    node, bound = check.test.node, check.test.bound
    assert order_kernels([take, check], graph) == kernels
    assert order_kernels([take], graph, [(node, bound)]) == [take]  # as in a loop
    for tested in ((), [(node, 4)], [(x.node, bound)]):
        with pytest.raises(CompileError, match="nothing tests positions"):
            order_kernels([take], graph, tested)


def test_positions_of_a_loop_are_tested_before_it() -> None:
    w, i = cr.parameter("w", (5, 3)), cr.input("i", (4,), dtype="int32")
    last, _ = cr.scan(lambda h, at: (cr.tanh(h + cr.take(w, at, axis=0)), h), cr.zeros((3,)), i)
    found = kernels_of([last])
    (check,) = [k for k in found if k.test is not None]
    loop = found[-1]
    assert loop.form is Form.SCAN and found.index(check) < len(found) - 1
    assert any(positions_of(n) for k in loop.inside for n in k.nodes)
    assert not any(k.tests for k in loop.inside)


def test_only_the_update_in_the_circle_is_copied() -> None:
    # each of w and v needs the other's old value through a product; u has nothing to do with it
    w, v, u = (cr.state(s, (3, 3)) for s in "wvu")
    found = kernels_of([], {w: w + v @ v, v: v + w @ w, u: u * 2.0})
    assert sum(k.form is Form.COPY for k in found) == 1
    assert {name(to) for k in found if k.form is Form.COPY for to in k.writes.values()} <= {
        "w",
        "v",
    }


def test_what_is_read_at_positions_lies_in_memory() -> None:
    x, i = cr.input("x", ("n", 3)), cr.input("i", (2,), dtype="int32")
    for made in (cr.take(x > 0, i, axis=0), cr.take(cr.one_hot(i, 5), i, axis=0)):
        found = kernels_of([made])
        takes = [k for k in found if any(n.op.name == "take" for n in k.nodes)]
        assert len(takes) == 1 and takes[0].nodes[0].op.name == "take"


def test_cheap_chains_are_not_worked_out_again_without_end() -> None:
    x = cr.input("x", ("n",))
    m = x > 0.0
    for k in range(40):  # as a tree it has some 2**40 parts
        m = cr.logical_xor(m, cr.logical_and(m, x > float(k)))
    assert len(kernels_of([m])) < 80


@pytest.mark.parametrize("length", [10, 1000])
def test_kernels_are_capped(length: int) -> None:
    h = cr.input("x", ("n",))
    for _ in range(length):
        h = cr.sin(h)
    found = kernels_of([h])
    assert max(len(k.nodes) for k in found) <= MAX_NODES
    assert sum(len(k.nodes) for k in found) == length
    assert len(found) == -(-length // MAX_NODES)


def clipped(count: int) -> tuple[list[cr.Tensor], Updates]:
    """Momentum for many weights of one shape, by gradients that are scaled by the norm of all."""
    weights = [cr.parameter(f"w{i}", (8, 16)) for i in range(count)]
    speeds = [cr.parameter(f"v{i}", (8, 16)) for i in range(count)]
    x = cr.input("x", ("batch", 8))
    loss = cr.sum(cr.square(sum((cr.tanh(x @ w) for w in weights), start=cr.sum(x))))
    slopes = cr.grad(loss, weights)
    norms = [cr.sum(cr.square(g)) for g in slopes]
    scale = 1 / cr.sqrt(sum(norms[1:], start=norms[0]))
    moved = [0.9 * v + scale * g for v, g in zip(speeds, slopes, strict=True)]
    steps = {w: w - 0.1 * v for w, v in zip(weights, moved, strict=True)}
    return [loss], {**steps, **dict(zip(speeds, moved, strict=True))}


def test_each_chain_of_full_maps_is_in_one_kernel() -> None:
    """Kernels of a step of each chain wrote all that chains come to, and read it again."""
    found = kernels_of(*clipped(40))
    maps = [k for k in found if k.form is Form.MAP and k.space == (8, 16)]
    assert sum(len(k.nodes) for k in maps) > 2 * MAX_NODES
    made = {node for k in maps for node in k.nodes}
    assert not any(made.intersection(k.reads) for k in maps)
    assert all(len(k.nodes) <= MAX_NODES for k in maps)


@pytest.mark.parametrize(
    "other",
    [lambda y: cr.flip(y, axis=0), cr.matrix_transpose, lambda y: cr.take(y, [3, 1, 0, 2], axis=0)],
    ids=["flip", "transpose", "take"],
)
def test_chains_that_read_each_other_elsewhere_are_not_one(other: Any) -> None:
    """What a kernel computes is there at its own index alone: at another one it was not yet."""
    starts = [cr.input(f"x{i}", (4, 4)) for i in range(MAX_NODES)]
    ends = [y + other(y) for y in map(cr.exp, starts)]
    rng = np.random.default_rng(1)
    feeds = {f"x{i}": rng.normal(size=(4, 4)) for i in range(MAX_NODES)}
    fn, want = cr.compile(ends), cr.compile(ends, backend="reference")
    for got, expected in zip(fn(**feeds), want(**feeds), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6)  # of exp, and a sum


def test_chains_that_others_read_halfway_stay_where_they_are() -> None:
    """Products read what chains have come to, and the last steps read them: they must be apart."""
    starts = [cr.input(f"x{i}", (8, 8)) for i in range(MAX_NODES)]
    middles = [cr.sin(cr.exp(x)) for x in starts]
    product = middles[0] @ middles[-1]
    for m in middles[1:-1:21]:
        product = product @ m
    found = kernels_of([m * product for m in middles])
    assert sum(k.form is Form.MAP and len(k.nodes) == MAX_NODES for k in found) > 0
    assert max(len(k.nodes) for k in found) <= MAX_NODES
    ready: set[Any] = {x.node for x in starts}
    for kernel in found:
        assert ready.issuperset(kernel.reads)
        ready.update(kernel.writes)


def test_equal_layers_have_one_identity() -> None:
    h = cr.input("x", ("n", 4))
    for i in range(6):
        h = cr.tanh(h @ cr.parameter(f"w{i}", (4, 4)) + cr.parameter(f"b{i}", (4,)))
    assert len({identity(k) for k in kernels_of([h])}) == 1
    h = h @ cr.parameter("last", (4, 4))
    assert len({identity(k) for k in kernels_of([h])}) == 2


def test_what_is_made_of_leaves_alone_is_made_together() -> None:
    a, b, c, d = (cr.input(s, ("n",)) for s in "abcd")
    check(kernels_of([a * b + c * d]), "map mul mul add < a b c d > add")


def test_fusing_what_waits_for_a_wide_node_takes_linear_time() -> None:
    """Thousands of tensors made of leaves alone, all of which wait for the one that joins them."""
    x = cr.input("x", ("n",))
    graph = Graph((cr.concat([x * float(i) for i in range(3000)]).node,))
    start = time.process_time()
    kernels = fuse(graph)
    assert time.process_time() - start < 3, "some ten times what it takes"
    assert kernels[-1].form is Form.NEST and len(kernels) < 60
