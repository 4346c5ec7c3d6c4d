"""Kernels as loops: each form means what the reference means, and no choice changes a bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.codegen.host import host_target
from chainrule.driver import leaves_of
from chainrule.driver.lower import PASSES
from chainrule.ir.evaluate import evaluate
from chainrule.ir.graph import Graph
from chainrule.ir.node import Node
from chainrule.ir.passes import run_passes
from chainrule.ir.size import Size
from chainrule.ir.size import evaluate as number_of
from chainrule.loops.build import Built, build_kernels
from chainrule.loops.choice import Choice
from chainrule.loops.interpret import interpret
from chainrule.schedule.fuse import fuse
from chainrule.schedule.kernel import Form, Kernel
from chainrule.schedule.reading import storage

Array = np.ndarray[Any, Any]


def x(*shape: int | str) -> Any:
    return cr.input(f"x{len(shape)}", shape, dtype="float64")


def numbers() -> Any:
    return cr.input("i", ("n",), dtype="int32")


def placed() -> Any:
    t = x("n", 3)
    return cr.grad(cr.sum(cr.square(t[1:])), t)


CASES: dict[str, tuple[Form, Callable[[], Any]]] = {
    "straight map": (Form.MAP, lambda: cr.tanh(x("n", 3)) * 2.0),
    "map through a view": (Form.MAP, lambda: x("n", 3).T + 1.0),
    "map by index": (Form.MAP, lambda: x("n", 3) + cr.arange(3, dtype="float64")),
    "map of one number": (Form.MAP, lambda: cr.sin(x()) + 1.0),
    "rows": (Form.ROWS, lambda: cr.softmax(x("n", 19))),
    "rows of two axes": (Form.ROWS, lambda: cr.sum(cr.square(x("n", 3, 5)), axis=(1, 2))),
    "rows through a view": (Form.ROWS, lambda: cr.sum(cr.square(x("n", 3).T), axis=1)),
    "one row": (Form.ROWS, lambda: cr.mean(x("n", 3))),
    "largest": (Form.ROWS, lambda: cr.max(x("n", 3), axis=1)),
    "columns": (Form.COLUMNS, lambda: cr.sum(x("n", 70), axis=0) * 2.0),
    "symbolic columns": (Form.COLUMNS, lambda: cr.min(x(3, "n"), axis=0)),
    "columns in the middle": (Form.COLUMNS, lambda: cr.sum(x(3, "n", 5), axis=1)),
    "product": (Form.CONTRACT, lambda: cr.tanh(x("n", 3) @ x(3, 20)[:, :18])),
    "product of transposes": (Form.CONTRACT, lambda: x("n", 3).T @ x("n", 3)),
    "stack of products": (Form.CONTRACT, lambda: x(2, "n", 3) @ x(3, 4)),
    "groups": (Form.CONTRACT, lambda: cr.einsum("gij,gkj->gik", x(2, "n", 3), x(2, "n", 3))),
    "group last": (
        Form.CONTRACT,
        lambda: cr.einsum("kg,kmg->mg", x("n", 3), x("n", 4, 3)),
    ),
    "one_hot product": (Form.CONTRACT, lambda: cr.one_hot(numbers(), 3, dtype="float64") @ x(3, 4)),
    "integers": (Form.CONTRACT, lambda: cr.arange(3) @ cr.astype(x(3, 4), "int64")),
    "nest": (Form.NEST, placed),
}


def run(built: list[Built], kernels: list[Kernel], memory: dict[Node, Array], n: int) -> None:
    """Interpret kernel after kernel."""
    for b, kernel in zip(built, kernels, strict=True):
        for node in b.memory:
            shape = tuple(number_of(d, {"n": n}) for d in node.type.shape)
            memory.setdefault(node, np.full(shape, 77).astype(node.type.dtype.numpy))
        given = [memory[node].reshape(-1) for node in b.memory]
        given += [np.zeros(number_of(s.size, {"n": n}), s.dtype.numpy) for s in b.scratch]
        names = (buffer.name for buffer in b.program.buffers)
        code = interpret(b.program, dict(zip(names, given, strict=True)), {"n": n})
        assert code == 0, kernel.form


@pytest.mark.parametrize("name", CASES)
def test_forms_mean_what_the_reference_means(name: str) -> None:
    form, make = CASES[name]
    graph, _ = run_passes(Graph((make().node,)), PASSES)
    kernels = fuse(graph)
    assert form in [k.form for k in kernels]
    built = build_kernels(kernels, host_target())
    rng = np.random.default_rng(0)
    for n in (2, 19):
        memory: dict[Node, Array] = {}
        for leaf in leaves_of(graph.roots):
            shape = tuple(number_of(d, {"n": n}) for d in leaf.type.shape)
            integer = leaf.type.dtype.is_integer
            values = rng.integers(0, 3, shape) if integer else rng.standard_normal(shape)
            memory[leaf] = values.astype(leaf.type.dtype.numpy)
        feeds = dict(memory)
        (want,) = evaluate(graph.outputs, feeds)
        memory.update({node: node.op.ref() for node in graph.nodes if node.op.name == "constant"})
        run(built, kernels, memory, n)
        got = memory[storage(graph.outputs[0])].reshape(want.shape)
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def test_equal_kernels_share_a_program() -> None:
    h = x("n", 4)
    for i in range(5):
        h = cr.tanh(h @ cr.parameter(f"w{i}", (4, 4), dtype="float64"))
    graph, _ = run_passes(Graph((h.node,)), PASSES)
    built = build_kernels(fuse(graph), host_target())
    assert len(built) == 5
    assert len({id(b.program) for b in built}) == 1
    assert len({b.memory for b in built}) == 5


WIDTHS = (1, 10, 33)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_row_has_the_same_bits_in_every_batch(width: int) -> None:
    a, w = cr.input("a", ("n", 37)), cr.input("w", (37, width))
    z = a @ w
    fn = cr.compile([z, cr.softmax(z), cr.sum(a, axis=1), cr.log_softmax(a @ w * 0.5)])
    rng = np.random.default_rng(width)
    values = {"a": rng.standard_normal((67, 37)), "w": rng.standard_normal((37, width))}
    whole = fn(**values)
    for n in (1, 2, 3, 7, 8, 9, 16, 31, 33, 66):
        for part, full in zip(fn(a=values["a"][:n], w=values["w"]), whole, strict=True):
            np.testing.assert_array_equal(part, full[:n], err_msg=f"{n} rows")


BLOCKED = {f"contract.{name}": 1 for name in ("NEAR_BYTES", "BLOCKED_ROWS", "BLOCKED_TERMS",
                                              "BLOCKED_COLUMNS", "BLOCK_BYTES")}  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        {"tiles.CHAINS": 2},
        {"tiles.CHAINS": 16},
        {"contract.NEAR_BYTES": 8},
        {**BLOCKED, "contract.BLOCKED_ROWS": 24},
        {**BLOCKED, "contract.STRETCH": 7},
        {**BLOCKED, "contract.STRETCH": 28, "contract.BLOCK_BYTES": 2**12},
        {**BLOCKED, "contract.STRETCH": 7, "contract.WHOLE_BYTES": 1},
        {**BLOCKED, "contract.STRETCH": 28, "contract.WHOLE_BYTES": 1},
    ],
)
def test_no_choice_of_tiles_changes_a_bit(
    settings: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(5)
    a, w = cr.input("a", ("n", 40)), cr.input("w", (50, 40))
    v = cr.input("v", (23, 40))
    outputs = [cr.relu(a @ w.T), v @ w.T, a.T @ a]
    feeds = {"a": rng.standard_normal((29, 40)), "w": rng.standard_normal((50, 40)),
             "v": rng.standard_normal((23, 40))}  # fmt: skip
    want = cr.compile(outputs)(**feeds)
    for name, value in settings.items():
        monkeypatch.setattr(f"chainrule.loops.{name}", value)
    for got, expected in zip(cr.compile(outputs)(**feeds), want, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_sum_of_no_terms_is_0(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in BLOCKED:
        monkeypatch.setattr(f"chainrule.loops.{name}", 1)
    a = cr.input("a", ("n", 70))
    feeds = {"a": np.zeros((0, 70), np.float32)}
    np.testing.assert_array_equal(cr.compile(a.T @ a)(**feeds), np.zeros((70, 70)))


def test_a_sum_over_several_axes_one_of_nothing_is_0() -> None:
    """Known to be nothing, it is no run of places, of which one could be told by dividing."""
    x = cr.input("x", (0, 64, 2, 48))
    at = cr.input("at", (0, 64, 2), dtype="int32")
    table = cr.input("table", (100, 48))
    z = cr.tanh(cr.take(table, at, axis=0)) @ table.T
    (slope,) = cr.vjp([z], [table], [cr.input("d", z.shape)])
    feeds = {"at": np.zeros((0, 64, 2), np.int32), "table": np.ones((100, 48), np.float32)}
    got = cr.compile(slope)(d=np.zeros((0, 64, 2, 100), np.float32), **feeds)
    np.testing.assert_array_equal(got, np.zeros((100, 48)))
    sums = cr.compile(cr.einsum("abcd,abce->de", x, x))
    np.testing.assert_array_equal(sums(x=np.zeros((0, 64, 2, 48), np.float32)), np.zeros((48, 48)))


@pytest.mark.parametrize("rows", ["n", 1000])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_weights_gradient_over_some_stretches(rows: str | int, threads: int) -> None:
    """One block of all rows, which are copied line by line; the same bits in several blocks."""
    x, d = cr.input("x", (rows, 75)), cr.input("d", (rows, 130))
    rng = np.random.default_rng(9)
    fed = {"x": rng.standard_normal((1000, 75)), "d": rng.standard_normal((1000, 130))}
    fed = {name: a.astype(np.float32) for name, a in fed.items()}
    found = cr.compile(x.T @ d, threads=threads)(**fed)
    # sums of 1000 products of about 1, each rounded to 2**-24
    np.testing.assert_allclose(found, fed["x"].T.astype(float) @ fed["d"], atol=1e-2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("chainrule.loops.contract.WHOLE_BYTES", 1)
        patch.setattr("chainrule.loops.contract.BLOCK_BYTES", 2**16)
        patch.setenv("CHAINRULE_CACHE", "0")
        several = cr.compile(x.T @ d, threads=threads)(**fed)
    np.testing.assert_array_equal(found, several)


def test_a_packed_factor_for_few_rows_has_room() -> None:
    """Asked for by a choice: a transposed factor whose panels are all there at once."""
    rng = np.random.default_rng(10)
    x, w = cr.input("x", (5, 900)), cr.input("w", (70, 900))
    kernels = fuse(run_passes(Graph(((x @ w.T).node,)), PASSES)[0])
    built = build_kernels(kernels, host_target(), {0: Choice(packed=True)})
    memory = {
        node: rng.standard_normal([number_of(d, {}) for d in node.type.shape]).astype(np.float32)
        for node in (x.node, w.node)
    }
    given, (out,) = dict(memory), kernels[0].writes.values()
    memory[out] = np.full((5, 70), np.nan, np.float32)
    run(built, kernels, memory, 0)
    want = given[x.node].astype(float) @ given[w.node].T
    np.testing.assert_allclose(memory[out].reshape(5, 70), want, atol=1e-2)


def test_no_row_is_left_out_of_tiles_of_known_height() -> None:
    """19 tiles of 9 rows and one of 1, where the number of rows is a multiple of 4."""
    rng = np.random.default_rng(8)
    x, w = cr.input("x", (172, 100)), cr.input("w", (100, 96))
    kernels = fuse(run_passes(Graph(((x @ w).node,)), PASSES)[0])
    built = build_kernels(kernels, host_target(), {0: Choice(9, 3, True)})
    memory = {
        node: rng.standard_normal([number_of(d, {}) for d in node.type.shape]).astype(np.float32)
        for node in (x.node, w.node)
    }
    given, (out,) = dict(memory), kernels[0].writes.values()
    memory[out] = np.full((172, 96), np.nan, np.float32)
    run(built, kernels, memory, 0)
    # sums of 100 products of about 1, each rounded to 2**-24
    np.testing.assert_allclose(
        memory[out].reshape(172, 96), given[x.node].astype(float) @ given[w.node], atol=1e-3
    )


def test_a_known_batch_has_the_bits_of_a_symbolic_one() -> None:
    rng = np.random.default_rng(6)
    feeds = {"a": rng.standard_normal((29, 40)), "w": rng.standard_normal((40, 12))}
    results = []
    for batch in ("n", 29):
        a, w = cr.input("a", (batch, 40)), cr.input("w", (40, 12))
        z = cr.tanh(a @ w)
        results.append(cr.compile([z, cr.sum(z, axis=0), cr.mean(z), a.T @ z])(**feeds))
    for symbolic, known in zip(*results, strict=True):
        np.testing.assert_array_equal(symbolic, known)


def test_sizes_of_a_program_are_those_it_needs() -> None:
    graph, _ = run_passes(Graph((cr.sum(x("n", 3), axis=1).node,)), PASSES)
    (built,) = build_kernels(fuse(graph), host_target())
    assert built.program.sizes == ("n",)
    assert built.program.buffers[0].size == 3 * Size.symbol("n")
