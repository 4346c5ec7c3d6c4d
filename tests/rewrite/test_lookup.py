"""Products of rows that are looked up: the table is multiplied, and nothing else changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.driver.lower import PASSES
from chainrule.errors import FeedError
from chainrule.ir.graph import Graph, walk
from chainrule.ir.node import Node
from chainrule.ir.passes import run_passes
from chainrule.ir.size import known, product
from chainrule.ops.contract import Contract
from chainrule.ops.index import ScatterAdd, Take
from chainrule.ops.scan import Scan
from chainrule.rewrite.lookup import multiply_tables

ROWS, WIDTH, OUT = 7, 64, 5
RNG = np.random.default_rng(0)


def positions(*shape: int, rows: int = ROWS) -> np.ndarray[Any, Any]:
    """Positions of either sign, many of them repeated, of which none is 3."""
    at = RNG.integers(-rows, rows, shape)
    return np.where(at % rows == 3, 1, at).astype(np.int32)


def products(graph: Graph) -> list[Node]:
    return [n for n in graph.nodes if isinstance(n.op, Contract)]


def optimized(*tensors: cr.Tensor) -> Graph:
    return run_passes(Graph(tuple(t.node for t in tensors)), PASSES)[0]


def multiplied(graph: Graph) -> int:
    """Multiplications of the products of a graph."""
    total = 0
    for n in products(graph):
        assert isinstance(n.op, Contract)
        sizes = dict(zip(n.op.a, n.inputs[0].shape, strict=True))
        sizes |= dict(zip(n.op.b, n.inputs[1].shape, strict=True))
        total += int(np.prod(known(tuple(sizes.values()))))
    return total


# positions, the table's axis of rows, the product's letters: x has those of its positions at axis
CASES = [
    ((16,), 0, "tk,kn->tn"),
    ((16,), 0, "tk,nk->nt"),
    ((16,), 1, "kt,kn->tn"),
    ((4, 5), 0, "stk,kn->stn"),
    ((4, 5), 0, "stk,kn->tns"),
    ((4, 5), 1, "kst,nk->nts"),
    ((4, 5), 0, "stk,kn->nst"),
]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("shape", "axis", "letters"), CASES)
def test_values_and_gradients(shape: tuple[int, ...], axis: int, letters: str, bias: bool) -> None:
    table_shape = (ROWS, WIDTH) if axis == 0 else (WIDTH, ROWS)
    (a, b), out = letters.split("->")[0].split(","), letters.split("->")[1]
    w_shape = tuple(WIDTH if c == "k" else OUT for c in b)
    e = cr.parameter("e", table_shape, dtype="float64")
    w = cr.parameter("w", w_shape, dtype="float64")
    sizes = dict(zip(out, [0] * len(out), strict=True)) | dict(n=OUT, s=shape[0], t=shape[-1])
    free = cr.parameter("b", (OUT,), dtype="float64")
    at = cr.input("at", shape, dtype="int32")
    z = cr.einsum(letters, cr.take(e, at, axis=axis), w)
    spread = tuple(OUT if c == "n" else 1 for c in out)
    z = z + cr.reshape(free, spread) if bias else z
    wrt = [e, w, *([free] if bias else [])]
    grads = cr.grad(cr.sum(cr.tanh(z)), wrt)

    fed = {"e": RNG.normal(size=table_shape), "w": RNG.normal(size=w_shape) / 9}
    fed |= {"b": RNG.normal(size=OUT)} if bias else {}
    where = positions(*shape)
    got = cr.compile([z, *grads], threads=1)(at=where, **fed)

    x = np.take(fed["e"], where, axis=axis)
    want = np.einsum(letters, x, fed["w"]) + (fed["b"].reshape(spread) if bias else 0)
    dz = 1 - np.tanh(want) ** 2
    assert want.shape == tuple(sizes[c] for c in out)
    dx = np.einsum(f"{out},{b}->{a}", dz, fed["w"])
    de = np.zeros(table_shape)
    parts = np.moveaxis(dx, range(axis, axis + len(shape)), range(len(shape)))
    np.add.at(np.moveaxis(de, axis, 0), where, parts)
    dw = np.einsum(f"{out},{a}->{b}", dz, x)
    wants = [want, de, dw, *([np.einsum(f"{out}->n", dz)] if bias else [])]
    for mine, theirs in zip(got, wants, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-12)

    graph = optimized(z, *grads)
    per_product = ROWS * WIDTH * OUT
    assert multiplied(graph) == 3 * per_product  # not once for each position
    assert all(not np.isnan(np.asarray(v)).any() for v in got)


@pytest.mark.parametrize(
    ("rows", "count", "fires"),
    [
        (8, (16,), True),
        (16, (16,), False),  # nothing saved
        (17, (16,), False),
        (10_000, (256, 64), False),  # a large table is itself long to read
        (64, (64, "batch"), True),  # a batch has 1 at least
        (65, (64, "batch"), False),
        (4, ("batch",), False),
        ("batch", ("batch", 3), True),
        ("vocabulary", ("batch", 3), False),
    ],
)
def test_only_where_rows_are_looked_up_at_least_as_often_as_there_are(
    rows: int | str, count: tuple[int | str, ...], fires: bool
) -> None:
    e, w = cr.input("e", (rows, WIDTH)), cr.parameter("w", (WIDTH, OUT))
    x = cr.take(e, cr.input("at", count, dtype="int32"), axis=0)
    (root,) = multiply_tables(Graph(((x @ w).node,))).outputs
    assert isinstance(root.op, Take) is fires
    grads = cr.grad(cr.sum(cr.tanh(x @ w)), [e, w])
    of_e, of_w = (n.node for n in grads)
    graph = multiply_tables(Graph((of_e, of_w)))
    assert any(isinstance(n.op, Contract) for n in graph.outputs[:1]) is fires
    assert any(isinstance(n.op, ScatterAdd) for n in graph.outputs[1].inputs) is fires


def left_alone(*tensors: cr.Tensor) -> bool:
    graph = Graph(tuple(t.node for t in tensors))
    return multiply_tables(graph).roots == graph.roots


def test_what_depends_on_the_place_is_left_alone() -> None:
    e, at = cr.input("e", (4, WIDTH)), cr.input("at", (16, 3), dtype="int32")
    x = cr.take(e, at, axis=0)
    each = cr.input("w", (16, WIDTH, OUT))
    assert left_alone(cr.einsum("stk,skn->stn", x, each))
    assert left_alone(cr.einsum("stk,stk->st", x, cr.input("y", (16, 3, WIDTH))))
    assert left_alone(cr.einsum("stk,sn->tkn", x, cr.input("y", (16, OUT))))


def test_narrow_rows_are_left_alone() -> None:
    e, w = cr.parameter("e", (4, 8)), cr.parameter("w", (8, OUT))
    z = cr.take(e, cr.input("at", (64,), dtype="int32"), axis=0) @ w
    assert left_alone(z, *cr.grad(cr.sum(cr.tanh(z)), [e, w]))


def test_rows_of_a_stack_of_tables() -> None:
    e = cr.input("e", (2, 4, WIDTH), dtype="float64")
    w = cr.input("w", (2, WIDTH, OUT), dtype="float64")
    at = cr.input("at", (3, 8), dtype="int32")
    z = cr.einsum("gstk,gkn->gstn", cr.take(e, at, axis=1), w)
    d = cr.grad(cr.sum(cr.tanh(z)), [e, w])
    fed = {"e": RNG.normal(size=(2, 4, WIDTH)), "w": RNG.normal(size=(2, WIDTH, OUT)) / 9}
    where = positions(3, 8, rows=4)
    got = cr.compile([z, *d], threads=1)(at=where, **fed)
    x = np.take(fed["e"], where, axis=1)
    want = np.einsum("gstk,gkn->gstn", x, fed["w"])
    dz = 1 - np.tanh(want) ** 2
    de = np.zeros_like(fed["e"])
    np.add.at(np.moveaxis(de, 1, 0), where, np.einsum("gstn,gkn->stgk", dz, fed["w"]))
    wants = (want, de, np.einsum("gstk,gstn->gkn", x, dz))
    for mine, theirs in zip(got, wants, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-12)
    assert multiplied(optimized(z, *d)) == 3 * 2 * 4 * WIDTH * OUT


def test_a_table_looked_up_for_two_products() -> None:
    e = cr.parameter("e", (4, WIDTH), dtype="float64")
    v, w = (cr.parameter(n, (WIDTH, OUT), dtype="float64") for n in "vw")
    x = cr.take(e, cr.input("at", (16,), dtype="int32"), axis=0)
    loss = cr.sum(cr.tanh(x @ v) * cr.sigmoid(x @ w))
    grads = cr.grad(loss, [e, v, w])
    assert multiplied(optimized(loss, *grads)) == 6 * 4 * WIDTH * OUT
    fed = {"e": RNG.normal(size=(4, WIDTH))}
    fed |= {n: RNG.normal(size=(WIDTH, OUT)) / 9 for n in "vw"}
    where = positions(16, rows=4)
    got = cr.compile(list(grads), threads=1)(at=where, **fed)
    x_ = fed["e"][where]
    t, s = np.tanh(x_ @ fed["v"]), 1 / (1 + np.exp(-(x_ @ fed["w"])))
    dv, dw = s * (1 - t**2), t * s * (1 - s)
    de = np.zeros((4, WIDTH))
    np.add.at(de, where, dv @ fed["v"].T + dw @ fed["w"].T)
    for mine, theirs in zip(got, (de, x_.T @ dv, x_.T @ dw), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_is_in_a_row_that_is_not_looked_up_reaches_nothing(bad: float) -> None:
    e, w, b = (
        cr.parameter("e", (ROWS, WIDTH)),
        cr.parameter("w", (WIDTH, OUT)),
        cr.parameter("b", (OUT,)),
    )
    z = cr.take(e, cr.input("at", (4, 8), dtype="int32"), axis=0) @ w + b
    loss = cr.mean(cr.tanh(z))
    run = cr.compile([z, *cr.grad(loss, [e, w, b])], threads=1)
    fed = {
        "e": RNG.normal(size=(ROWS, WIDTH)),
        "w": RNG.normal(size=(WIDTH, OUT)),
        "b": np.ones(OUT),
    }
    fed = {k: v.astype(np.float32) for k, v in fed.items()}
    where = positions(4, 8)
    good = run(at=where, **fed)
    fed["e"][3] = bad
    for before, after in zip(good, run(at=where, **fed), strict=True):
        assert np.isfinite(before).all()
        np.testing.assert_array_equal(after, before)
    fed["e"][1] = np.nan  # one that is looked up is not hidden
    assert np.isnan(run(at=np.ones_like(where), **fed)[2]).all()


@pytest.mark.parametrize("threads", [1, 2])
def test_each_row_has_the_bits_of_the_product_row_by_row(threads: int) -> None:
    e, w = cr.parameter("e", (ROWS, 96)), cr.parameter("w", (96, 33))
    rows = cr.input("x", (32, 96))
    at = cr.input("at", (32,), dtype="int32")
    fed = {"e": RNG.normal(size=(ROWS, 96)), "w": RNG.normal(size=(96, 33))}
    fed = {k: v.astype(np.float32) for k, v in fed.items()}
    where = positions(32)
    mine = cr.compile(cr.take(e, at, axis=0) @ w, threads=threads)(at=where, **fed)
    plain = cr.compile(rows @ w, threads=threads)(x=fed["e"][where], w=fed["w"])
    np.testing.assert_array_equal(mine, plain)


def cell(width: int, w: cr.Tensor) -> Any:
    def step(carry: Any, given: cr.Tensor) -> Any:
        (h,) = carry
        h = cr.tanh(given + h @ w)
        return (h,), h

    return step


def loop(batch: int | str = "batch", steps: int = 6) -> tuple[cr.Tensor, list[cr.Tensor]]:
    """A recurrent net over words, and what it is of."""
    e, u = cr.parameter("e", (ROWS, WIDTH)), cr.parameter("u", (WIDTH, 32))
    w, b = cr.parameter("w", (32, 32)), cr.parameter("b", (32,))
    at = cr.input("at", (batch, steps), dtype="int32")
    gates = cr.take(e, cr.permute_dims(at, (1, 0)), axis=0) @ u + b
    start = cr.zeros((at.shape[0], 32))
    _, hs = cr.scan(cell(32, w), (start,), gates)
    return cr.sum(hs * hs), [e, u, w, b]


def numbers() -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(3)
    shapes = {"e": (ROWS, WIDTH), "u": (WIDTH, 32), "w": (32, 32), "b": (32,)}
    return {k: (rng.normal(size=s) / 5).astype(np.float32) for k, s in shapes.items()}


def backward(
    fed: dict[str, np.ndarray[Any, Any]], at: np.ndarray[Any, Any]
) -> Sequence[np.ndarray[Any, Any]]:
    """The net's loss and gradients by hand, in float64."""
    e, u, w, b = (fed[k].astype(np.float64) for k in "euwb")
    hs = [np.zeros((len(at), 32))]
    for t in range(at.shape[1]):
        hs.append(np.tanh(e[at[:, t]] @ u + b + hs[-1] @ w))
    de, du, dw, db = (np.zeros_like(v) for v in (e, u, w, b))
    dh = np.zeros_like(hs[0])
    for t in reversed(range(at.shape[1])):
        dz = (dh + 2 * hs[t + 1]) * (1 - hs[t + 1] ** 2)
        x = e[at[:, t]]
        np.add.at(de, at[:, t], dz @ u.T)
        du, dw, db, dh = du + x.T @ dz, dw + hs[t].T @ dz, db + dz.sum(0), dz @ w.T
    return sum(float((h**2).sum()) for h in hs), de, du, dw, db  # type: ignore[return-value]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch", [3, 16])
def test_a_loop_looks_up_its_rows_itself(threads: int, batch: int) -> None:
    loss, wrt = loop("batch" if batch == 3 else batch, 8)
    grads = cr.grad(loss, wrt)
    graph = optimized(loss, *grads)
    loops = [n for n in graph.nodes if isinstance(n.op, Scan)]
    assert loops and not any(isinstance(i.op, Take) for n in loops for i in n.inputs)
    bodies = {n.op.body_of_step for n in loops if isinstance(n.op, Scan)}
    assert sum(isinstance(n.op, Take) for b in bodies for n in walk(b.roots)) == 1
    fed, at = numbers(), positions(batch, 8)
    got = cr.compile([loss, *grads], threads=threads)(at=at, **fed)
    for mine, theirs in zip(got, backward(fed, at), strict=True):
        # sums of 128 x 32 squares and products of float32 at most, in any order: 4096 * 2**-24
        np.testing.assert_allclose(mine, theirs, rtol=2e-4, atol=2e-4)


def test_threads_do_not_change_a_bit() -> None:
    loss, wrt = loop()
    both = [loss, *cr.grad(loss, wrt)]
    fed, at = numbers(), positions(64, 6)
    one, two = (cr.compile(both, threads=n)(at=at, **fed) for n in (1, 2))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_sum_of_all_rows_is_that_of_the_sums() -> None:
    loss, wrt = loop(16)
    grads = cr.grad(loss, wrt)
    graph = optimized(grads[-1], *grads[:-1])  # the sum is met before the sums of rows
    largest = max(
        int(product(i.shape)) for n in graph.nodes if n.op.name == "sum" for i in n.inputs
    )
    assert largest == ROWS * 32


def test_a_position_outside_is_told_of_the_feed_before_the_loop() -> None:
    loss, _ = loop()
    at = positions(4, 6)
    at[2, 3] = ROWS
    with pytest.raises(FeedError, match=r"^at holds "):
        cr.compile(loss, threads=1)(at=at, **numbers())


def test_stacks_that_others_read_stay() -> None:
    e, at = cr.parameter("e", (4, 32)), cr.input("at", (6, 3), dtype="int32")
    rows = cr.take(e, at, axis=0)
    _, hs = cr.scan(cell(32, cr.parameter("w", (32, 32))), (cr.zeros((3, 32)),), rows)
    graph = optimized(hs, rows)
    assert any(
        isinstance(i.op, Take) for n in graph.nodes if isinstance(n.op, Scan) for i in n.inputs
    )
