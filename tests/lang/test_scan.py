"""`cr.scan` held to the same loop unrolled, to finite differences, and to PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.lang.derive import flatten, rebuilt

Array = np.ndarray[Any, Any]
T, B, N, M = 4, 3, 2, 5
#: both backends sum in float64, in orders that differ in the last bits
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def unrolled(
    body: Callable[..., Any], init: Any, xs: Any, length: int, reverse: bool = False
) -> tuple[Any, Any]:
    """The loop written out: what a scan means."""
    rows: dict[int, Any] = {}
    carry = init
    for t in reversed(range(length)) if reverse else range(length):
        x = None if xs is None else mapped(lambda v, t=t: v[t], xs)
        carry, rows[t] = body(carry, x)
    if rows[0] is None:
        return carry, None
    columns = [
        cr.stack([tensors_in(rows[t])[i] for t in range(length)]) for i in range(width(rows))
    ]
    return carry, rebuilt(rows[0], columns)


def mapped(function: Callable[[cr.Tensor], cr.Tensor], structure: Any) -> Any:
    return rebuilt(structure, map(function, tensors_in(structure)))


def tensors_in(structure: Any) -> list[cr.Tensor]:
    return list(map(cr.Tensor, flatten(structure)))


def width(rows: dict[int, Any]) -> int:
    return len(flatten(rows[0]))


def fed(*tensors: cr.Tensor, seed: int = 0, **sizes: int) -> dict[str, Array]:
    """Random values for leaves, a number for each symbolic size."""
    rng = np.random.default_rng(seed)
    known = {"time": T, "batch": B, **sizes}
    shapes = {str(t.name): [known.get(str(d), d) for d in t.shape] for t in tensors}
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def f64(name: str, *shape: Any) -> cr.Tensor:
    return cr.input(name, shape, dtype="float64")


def called(outputs: Any, backend: str, feeds: dict[str, Array]) -> list[Array]:
    fn = cr.compile(tensors_in(outputs), backend=backend)
    return list(fn(**{name: feeds[name] for name in fn.inputs}))


def agree(ours: Any, other: Any, feeds: dict[str, Array], backends: Sequence[str]) -> None:
    want = called(other, "reference", feeds)
    for backend in backends:
        got = called(ours, backend, feeds)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, **CLOSE)


W, U, b = f64("W", N, M), f64("U", M, M), f64("b", M)


def rnn(h: cr.Tensor, x: cr.Tensor) -> tuple[cr.Tensor, cr.Tensor]:
    h = cr.tanh(x @ W + h @ U + b)
    return h, h * 2


def lstm(state: dict[str, cr.Tensor], x: cr.Tensor) -> tuple[dict[str, cr.Tensor], cr.Tensor]:
    z = x @ L + state["h"] @ R
    i, f, g, o = (z[:, k * M : (k + 1) * M] for k in range(4))
    c = cr.sigmoid(f) * state["c"] + cr.sigmoid(i) * cr.tanh(g)
    h = cr.sigmoid(o) * cr.tanh(c)
    return {"h": h, "c": c}, h


L, R = f64("L", N, 4 * M), f64("R", M, 4 * M)


def rotation(carry: tuple[cr.Tensor, ...], x: cr.Tensor) -> Any:
    """Carried values that change places, one that stays, ys that are a leaf and twice the same."""
    a, c, kept = carry
    return (c * x, a + kept[0], kept), (x, a, [a * c, a * c])


def counted(carry: cr.Tensor, _: None) -> tuple[cr.Tensor, None]:
    return carry * 0.5 + cr.sin(carry @ U), None


def nested(h: cr.Tensor, x: cr.Tensor) -> tuple[cr.Tensor, cr.Tensor]:
    """A loop in a loop, over rows of the outer slice, with both loops' values and a weight."""
    inner, ys = cr.scan(lambda g, row: (cr.tanh(g * row + h * b), g * b), h, x)
    return inner + h, cr.sum(ys, axis=0)


def nested_by_hand(h: cr.Tensor, x: cr.Tensor) -> tuple[cr.Tensor, cr.Tensor]:
    inner, ys = unrolled(lambda g, row: (cr.tanh(g * row + h * b), g * b), h, x, 3)
    return inner + h, cr.sum(ys, axis=0)


X, H = f64("x", T, B, N), f64("h", B, M)
CASES: dict[str, tuple[Any, Any, Any, Any, list[cr.Tensor]]] = {
    "rnn": (rnn, rnn, H, X, [H, X, W, U, b]),
    "lstm": (lstm, lstm, {"h": H, "c": H * 0.5}, X, [H, X, L, R]),
    "rotation": (
        rotation,
        rotation,
        (f64("p", 3), f64("q", 3), f64("r", 2, 3)),
        f64("s", T, 3),
        [],
    ),
    "no xs": (counted, counted, H, None, [H, U]),
    "nested": (nested, nested_by_hand, f64("k", M), f64("z", T, 3, M), [b]),
}


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("name", CASES)
def test_a_scan_is_its_loop_unrolled_and_so_are_its_derivatives(name: str, reverse: bool) -> None:
    body, by_hand, init, xs, leaves = CASES[name]
    leaves = leaves or tensors_in([init, xs])
    leaves = list(dict.fromkeys([*leaves, *(t for t in tensors_in(init) if t.name)]))
    count = T if xs is None else None
    ours = cr.scan(body, init, xs, length=count, reverse=reverse)
    hand = unrolled(by_hand, init, xs, T, reverse)
    agree_in_all(ours, hand, leaves, ["cpu", "reference"])


def agree_in_all(ours: Any, hand: Any, leaves: list[cr.Tensor], backends: Sequence[str]) -> None:
    """Values, gradients, and gradients of a function of the gradients."""
    feeds = fed(*{t.name: t for t in [*leaves, *leaves_of(ours)]}.values())
    results, firsts, seconds = [], [], []
    for found in (ours, hand):
        parts = [t for t in tensors_in([p for p in found if p is not None])]
        results.append(parts)
        loss = sum((cr.sum(cr.sin(p) * p) for p in parts[1:]), cr.sum(parts[0] ** 2))
        firsts.append(cr.grad(loss, leaves, unused="zeros"))
        total = sum((cr.sum(g * cr.cos(g)) for g in firsts[-1]), 0.0 * loss)
        seconds.append(cr.grad(total, leaves, unused="zeros"))
    agree([*results[0], *firsts[0]], [*results[1], *firsts[1]], feeds, backends)
    agree(seconds[0], seconds[1], feeds, backends)


def leaves_of(found: Any) -> list[cr.Tensor]:
    from chainrule.driver import leaves_of as leaves

    return list(map(cr.Tensor, leaves(flatten([p for p in found if p is not None]))))


FUNCTIONS = [cr.tanh, cr.sigmoid, cr.sin, cr.square, lambda x: x * 0.5, lambda x: 1 - x]


def random_body(seed: int) -> Callable[[Any, Any], Any]:
    """A body of random operations on two carried values, a slice and two weights."""

    def body(carry: tuple[cr.Tensor, cr.Tensor], x: cr.Tensor) -> Any:
        rng = np.random.default_rng(seed)  # the same operations at each step written out
        pool = [*carry, x, b, cr.tanh(b)]
        for _ in range(rng.integers(3, 9)):
            p, q = (pool[i] for i in rng.integers(len(pool), size=2))
            kind = rng.integers(4)
            if kind == 0:
                pool.append(cr.tanh(p @ U))
            elif kind == 1:
                pool.append(p * cr.sigmoid(q))
            elif kind == 2:
                pool.append(p - cr.mean(q))
            else:
                pool.append(FUNCTIONS[rng.integers(len(FUNCTIONS))](p))
        chosen = [pool[i] for i in rng.integers(3, len(pool), size=4)]
        return (chosen[0], cr.tanh(chosen[1])), (chosen[2], cr.sum(chosen[3]))

    return body


@pytest.mark.parametrize("seed", range(8))
def test_random_bodies_are_their_loops_unrolled(seed: int) -> None:
    body, reverse = random_body(seed), bool(seed % 2)
    init, xs = (f64("p", M), f64("q", M)), f64("x", T, M)
    ours = cr.scan(body, init, xs, reverse=reverse)
    hand = unrolled(body, init, xs, T, reverse)
    agree_in_all(ours, hand, [*init, xs, U, b], ["cpu"])


# sizes


@pytest.mark.parametrize("time", [0, 1, 2, 7])
@pytest.mark.parametrize("batch", [1, 9])
def test_one_compilation_serves_every_length(time: int, batch: int) -> None:
    x, h = f64("x", "time", "batch", N), f64("h", "batch", M)
    final, ys = cr.scan(rnn, h, x)
    assert [str(d) for d in ys.shape] == ["time", "batch", str(M)]
    loss = cr.sum(final**2) + cr.sum(ys)
    grads = cr.grad(loss, [x, h, W, U, b])
    feeds = fed(x, h, W, U, b, time=time, batch=batch)
    got = compiled_once(final, ys, loss, *grads)(**feeds)
    fixed, begin = f64("x", time, batch, N), f64("h", batch, M)
    if time == 0:
        np.testing.assert_array_equal(got[0], feeds["h"])
        assert got[1].shape == (0, batch, M)
        np.testing.assert_allclose(got[4], 2 * feeds["h"])  # final is init: d final² = 2 init
        assert all(not g.any() for g in got[5:])
        return
    hand, rows = unrolled(rnn, begin, fixed, time)
    by_hand = cr.sum(hand**2) + cr.sum(rows)
    want = [hand, rows, by_hand, *cr.grad(by_hand, [fixed, begin, W, U, b])]
    for a, e in zip(got, cr.compile(want, backend="reference")(**feeds), strict=True):
        np.testing.assert_allclose(a, e, **CLOSE)


_compiled: dict[str, Any] = {}


def compiled_once(*outputs: cr.Tensor) -> Any:
    return _compiled.setdefault("rnn", cr.compile(list(outputs)))


def test_a_length_is_given_where_there_is_no_xs() -> None:
    final, ys = cr.scan(lambda c, _: (c + 1, c), 0.0, length=5)
    got = cr.compile([final, ys])()
    assert got[0] == 5
    np.testing.assert_array_equal(got[1], np.arange(5, dtype=np.float32))
    n = cr.input("v", ("n", 2))
    _, rows = cr.scan(lambda c, _: (c * 2, c), cr.sum(n, axis=0), length="n")
    np.testing.assert_array_equal(cr.compile(rows)(v=np.ones((3, 2))), [[3, 3], [6, 6], [12, 12]])


def test_integers_and_bools_are_carried_too() -> None:
    y = cr.input("y", (6,), dtype="int32")

    def body(carry: Any, v: cr.Tensor) -> Any:
        count, seen = carry
        return (count + v, seen | (v > 3)), (count, seen)

    found = cr.scan(body, (cr.constant(np.int32(0)), cr.constant(np.bool_(False))), y)
    (total, seen), (counts, before) = cr.compile(found)(y=np.arange(6))
    assert (total, seen) == (15, True)
    np.testing.assert_array_equal(counts, [0, 0, 1, 3, 6, 10])
    np.testing.assert_array_equal(before, [False] * 5 + [True])


def test_what_a_step_reads_may_be_any_structure() -> None:
    xs = {"a": f64("a", T, 2), "b": (f64("c", T), None)}

    def body(carry: list[cr.Tensor], x: Any) -> Any:
        assert x["b"][1] is None
        return [carry[0] + x["a"] * x["b"][0]], {"y": (carry[0],)}

    final, ys = cr.scan(body, [f64("k", 2)], xs)
    assert isinstance(final, list)
    assert isinstance(ys["y"], tuple)
    feeds = {"a": np.ones((T, 2)), "c": np.arange(4.0), "k": np.zeros(2)}
    got = cr.compile({"final": final, "ys": ys})(**feeds)
    np.testing.assert_array_equal(got["final"][0], [6, 6])
    np.testing.assert_array_equal(got["ys"]["y"][0][:, 0], [0, 0, 1, 3])


# derivatives


def test_forward_mode_and_hessian_vectors() -> None:
    x, h = f64("x", "time", "batch", N), f64("h", "batch", M)
    final, ys = cr.scan(rnn, h, x)
    v, u = f64("v", N, M), f64("u", "batch", M)
    loss = cr.sum(cr.sin(ys)) + cr.sum(final**2)
    feeds = fed(x, h, W, U, b, v, u)
    tangents = cr.jvp([final, ys], [W, h], [v, u])
    step = 1e-6
    fn = cr.compile([final, ys, *cr.grad(loss, [W, h])])
    up, down = _at(fn, feeds, step), _at(fn, feeds, -step)
    slopes = [(a - d) / (2 * step) for a, d in zip(up, down, strict=True)]
    got = cr.compile([*tangents, *cr.hvp(loss, [W, h], [v, u])])(**feeds)
    for a, e in zip(got, slopes, strict=True):  # central differences: h² and noise / h
        np.testing.assert_allclose(a, e, rtol=1e-6, atol=1e-7)


def _at(fn: Any, feeds: dict[str, Array], s: float) -> list[Array]:
    moved = {**feeds, "W": feeds["W"] + s * feeds["v"], "h": feeds["h"] + s * feeds["u"]}
    return list(fn(**{k: moved[k] for k in fn.inputs}))


def test_dependence_is_exact_over_the_steps() -> None:
    p, q, w, lone = f64("p", 2), f64("q", 2), f64("w", 2), f64("lone", 2)

    def body(carry: Any, x: cr.Tensor) -> Any:
        a, c = carry
        return (a * w, c + x), (a, cr.sign(c) * x)

    (a, c), (first, second) = cr.scan(body, (p, q), f64("x", T, 2))
    assert cr.grad(cr.sum(a), [p, w])
    for result, wrt in [(a, q), (c, p), (c, w), (first, q), (second, p)]:
        with pytest.raises(cr.errors.GradientError, match="does not depend"):
            cr.grad(cr.sum(result), wrt)
        assert not cr.compile(cr.grad(cr.sum(result), wrt, unused="zeros"))().any()
    with pytest.raises(cr.errors.GradientError, match="does not depend"):
        cr.grad(cr.sum(a) + cr.sum(second), lone)
    assert cr.grad(cr.sum(second), q) is not None  # through sign: it is zero, not none


def test_sums_in_a_body_are_passed_once_however_often_they_are_read() -> None:
    """A constant that is read through 40 sums, each of which reads the last one twice."""
    x, w = cr.input("x", (T, N), dtype="float64"), cr.input("w", (N,), dtype="float64")

    def body(h: cr.Tensor, row: cr.Tensor) -> tuple[cr.Tensor, None]:
        u = h + w
        for _ in range(40):
            u = u + (u + row)
        return cr.tanh(u * 2.0**-40), None

    final, _ = cr.scan(body, cr.zeros((N,), dtype="float64"), x)
    fn = cr.compile(cr.grad(cr.sum(final), w))
    rng = np.random.default_rng(3)
    feeds = {"x": rng.uniform(-1, 1, (T, N)), "w": rng.uniform(-1, 1, N)}
    h, dh = np.zeros(N), np.zeros(N)
    for row in feeds["x"]:
        u = h + feeds["w"] + (1 - 2.0**-40) * row
        h, dh = np.tanh(u), (1 - np.tanh(u) ** 2) * (dh + 1)
    np.testing.assert_allclose(fn(**feeds), dh, rtol=1e-9)


def test_a_constant_in_a_body_is_computed_once_outside() -> None:
    x, w = f64("x", T, M), f64("w", M, M)

    def body(h: cr.Tensor, v: cr.Tensor) -> tuple[cr.Tensor, None]:
        return cr.tanh(v + h @ (cr.exp(w) @ w)), None

    final, _ = cr.scan(body, cr.zeros(M, dtype="float64"), x)
    kernels = cr.compile(final).report().kernels
    inside = next(i for i, k in enumerate(kernels) if k.form == "scan")
    assert any("exp" in k.ops for k in kernels[:inside])
    assert not any("exp" in k.ops for k in kernels[inside:])


def test_weights_gradients_are_one_product_over_all_steps() -> None:
    x, h = f64("x", "time", "batch", N), f64("h", "batch", M)
    _, ys = cr.scan(rnn, h, x)
    fn = cr.compile(cr.grad(cr.sum(ys**2), [W, U]))
    kernels = fn.report().kernels
    last = max(i for i, k in enumerate(kernels) if k.form == "scan")
    outside = [k for k in kernels[last:] if "time" in str(k.flops) and "contract" in k.ops]
    assert {k.writes[0] for k in outside} >= {"dW", "dU"}


def test_what_nobody_reads_is_not_computed() -> None:
    x, h = f64("x", T, M), f64("h", M)

    def body(carry: Any, v: cr.Tensor) -> Any:
        a, c = carry
        return (cr.tanh(a + v), cr.exp(c * a)), (cr.sin(c), a)

    (a, _), _ = cr.scan(body, (h, h), x)
    text = cr.compile(a).show("kernels")
    assert "tanh" in text
    assert "exp" not in text
    assert "sin" not in text


# in training


def test_a_recurrent_net_learns_and_repeats_its_bits() -> None:
    rng = np.random.default_rng(1)
    xs = rng.normal(size=(64, 6, 3)).astype(np.float32)
    ys = (xs.sum((1, 2)) > 0).astype(np.int32)

    def losses() -> Array:
        x, y = cr.input("x", ("batch", 6, 3)), cr.input("y", ("batch",), dtype="int32")
        w, u = cr.parameter("w", (3, 8)), cr.parameter("u", (8, 8))
        out = cr.parameter("out", (8, 2))
        h0 = cr.broadcast_to(cr.zeros(8), (x.shape[0], 8))
        steps = cr.permute_dims(x, (1, 0, 2))
        h, _ = cr.scan(lambda h, v: (cr.tanh(v @ w + h @ u), None), h0, steps)
        step = cr.training_step(cr.losses.cross_entropy(h @ out, y), cr.optim.Adam(1e-2), seed=3)
        assert step.report().total_seconds < 5
        return step.run(x=xs, y=ys, batch_size=16, epochs=20)

    first, again = losses(), losses()
    assert first[-4:].mean() < 0.5 * first[:4].mean()
    np.testing.assert_array_equal(first, again)


def test_every_level_can_be_read() -> None:
    x, h = f64("x", "time", "batch", N), f64("h", "batch", M)
    final, _ = cr.scan(rnn, h, x)
    fn = cr.compile(cr.grad(cr.sum(final), W))
    for level in ("graph", "passes", "optimized", "kernels", "loops", "llvm", "asm"):
        assert fn.show(level)
    assert "tanh" in fn.show("graph")
    assert "tanh" in fn.show("optimized")
    flops = fn.report().totals(time=10, batch=4)["flops"]
    assert flops > 10 * 4 * 2 * (N * M + M * M)  # ten steps of two products, at least


# refused


def wrong_shape(h: cr.Tensor, x: cr.Tensor) -> Any:
    return h[:2], None


@pytest.mark.parametrize(
    ("kind", "words", "make"),
    [
        (cr.errors.ShapeError, "keep its type", lambda h, x: cr.scan(wrong_shape, h, x)),
        (cr.errors.DTypeError, "keep its type",
         lambda h, x: cr.scan(lambda c, v: (c.astype("float32"), None), h, x)),
        (cr.errors.ShapeError, "keep its form",
         lambda h, x: cr.scan(lambda c, v: ((c, c), None), h, x)),
        (cr.errors.ShapeError, "pair", lambda h, x: cr.scan(lambda c, v: c, h, x)),
        (cr.errors.ShapeError, "one length",
         lambda h, x: cr.scan(lambda c, v: (c, None), h, (x, h))),
        (cr.errors.ShapeError, "one length",
         lambda h, x: cr.scan(lambda c, v: (c, None), h, x, length=3)),
        (cr.errors.ShapeError, "axis 0",
         lambda h, x: cr.scan(lambda c, v: (c, None), h, cr.sum(x))),
        (cr.errors.ShapeError, "needs a length",
         lambda h, x: cr.scan(lambda c, v: (c, None), h)),
        (cr.errors.DTypeError, "made of Tensors",
         lambda h, x: cr.scan(lambda c, v: (c, None), "h", x)),
        (cr.errors.DTypeError, "made of Tensors",
         lambda h, x: cr.scan(lambda c, v: (c, object()), h, x)),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_the_users_line(kind: Any, words: str, make: Any) -> None:
    with pytest.raises(kind, match=words) as caught:
        make(f64("h", 5), f64("x", T, 5))
    assert "test_scan.py" in str(caught.value)


def test_what_belongs_to_a_body_does_not_leave_it() -> None:
    leaked = []

    def body(h: cr.Tensor, x: cr.Tensor) -> Any:
        leaked.append(cr.tanh(h * x))
        return leaked[0], None

    cr.scan(body, f64("h", 2), f64("x", T, 2))
    with pytest.raises(cr.errors.CompileError, match="body of a scan") as caught:
        cr.compile(leaked[0])
    assert "test_scan.py" in str(caught.value)


def test_random_numbers_are_drawn_outside() -> None:
    outside = cr.random.normal((2,))
    cr.scan(lambda h, x: (h + outside, None), cr.zeros(2), cr.zeros((T, 2)))
    with pytest.raises(cr.errors.CompileError, match="random") as caught:
        cr.scan(lambda h, x: (h + cr.random.normal((2,)), None), cr.zeros(2), cr.zeros((T, 2)))
    assert "pass them as xs" in str(caught.value)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_positions_read_in_a_step_are_tested(backend: str) -> None:
    table, at = f64("table", 4, M), cr.input("at", ("time",), dtype="int32")
    final, ys = cr.scan(lambda h, i: (h + table[i], i), cr.zeros(M, dtype="float64"), at)
    fn = cr.compile([final, ys], backend=backend)
    feeds = fed(table)
    got = fn(**feeds, at=[3, 0, 3])
    np.testing.assert_allclose(got[0], 2 * feeds["table"][3] + feeds["table"][0])
    with pytest.raises(cr.errors.FeedError, match=r"^at holds 4, where only -4 to 3"):
        fn(**feeds, at=[3, 4])


# others' recurrent nets


@pytest.mark.parametrize("cell", ["RNN", "LSTM"])
def test_recurrent_cells_are_pytorchs(cell: str) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    net = getattr(torch.nn, cell)(N, M).double()
    x = torch.randn(T, B, N, dtype=torch.float64, requires_grad=True)
    out, _ = net(x)
    (out**2).sum().backward()
    weights = {name: p.detach().numpy() for name, p in net.named_parameters()}
    p = {name: f64(name, *a.shape) for name, a in weights.items()}
    xs, zero = f64("x", T, "batch", N), cr.zeros(M, dtype="float64")
    h0 = cr.broadcast_to(zero, (xs.shape[1], M))

    def gates(v: cr.Tensor, h: cr.Tensor) -> cr.Tensor:
        return v @ p["weight_ih_l0"].T + p["bias_ih_l0"] + h @ p["weight_hh_l0"].T + p["bias_hh_l0"]

    def plain(h: cr.Tensor, v: cr.Tensor) -> Any:
        h = cr.tanh(gates(v, h))
        return h, h

    def long(state: Any, v: cr.Tensor) -> Any:
        h, c = state
        z = gates(v, h)
        i, f, g, o = (z[:, k * M : (k + 1) * M] for k in range(4))
        c = cr.sigmoid(f) * c + cr.sigmoid(i) * cr.tanh(g)
        h = cr.sigmoid(o) * cr.tanh(c)
        return (h, c), h

    body, init = (plain, h0) if cell == "RNN" else (long, (h0, h0))
    _, ys = cr.scan(body, init, xs)
    loss = cr.sum(ys**2)
    fn = cr.compile([ys, cr.grad(loss, xs), *cr.grad(loss, list(p.values()))])
    got = fn(x=x.detach().numpy(), **weights)
    want = [out.detach(), x.grad, *(q.grad for q in net.parameters())]
    for a, e in zip(got, want, strict=True):
        np.testing.assert_allclose(a, e.numpy(), **CLOSE)
