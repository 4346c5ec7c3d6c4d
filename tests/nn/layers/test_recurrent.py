"""RNN, LSTM and GRU against their equations in NumPy and against PyTorch, ragged rows too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.errors import DTypeError, ShapeError
from chainrule.nn import GRU, LSTM, RNN, Dense, Sequential

Array = np.ndarray[Any, Any]
#: float64: six steps of sums of some tens of terms; float32 the same
TOLERANCE = {"float64": 1e-9, "float32": 2e-5}
LENGTHS = np.array([6, 1, 4])
MASK = np.arange(6) < LENGTHS[:, None]
LAYERS = {"rnn": RNN, "lstm": LSTM, "gru": GRU}


def data(dtype: str = "float64", time: Any = "time") -> tuple[cr.Tensor, Array]:
    v = np.random.default_rng(2).normal(size=(3, 6, 5)).astype(dtype)
    return cr.input("x", ("batch", time, 5), dtype=dtype), v


def sigmoid(z: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-z)))


# one step each, by the equations: (input, state, weights) -> state


def rnn(x: Array, s: list[Array], w: Callable[[str], Array]) -> list[Array]:
    return [np.tanh(x @ w("input_weight") + s[0] @ w("state_weight") + w("bias"))]


def lstm(x: Array, s: list[Array], w: Callable[[str], Array]) -> list[Array]:
    z = x @ w("input_weight") + s[0] @ w("state_weight") + w("bias")
    i, f, g, o = np.split(z, 4, axis=-1)
    c = sigmoid(f) * s[1] + sigmoid(i) * np.tanh(g)
    return [sigmoid(o) * np.tanh(c), c]


def gru(x: Array, s: list[Array], w: Callable[[str], Array]) -> list[Array]:
    a = np.split(x @ w("input_weight") + w("bias"), 3, axis=-1)
    b = np.split(s[0] @ w("state_weight") + w("state_bias"), 3, axis=-1)
    r, z = sigmoid(a[0] + b[0]), sigmoid(a[1] + b[1])
    return [(1 - z) * np.tanh(a[2] + r * b[2]) + z * s[0]]


STEPS = {"rnn": rnn, "lstm": lstm, "gru": gru}


def loop(
    kind: str, x: Array, w: Callable[[str], Array], reverse: bool
) -> tuple[Array, list[Array]]:
    """h after each step, and the last state, row by row and only over a row's real steps."""
    hs = np.zeros((3, 6, 4))
    last: list[list[Array]] = []
    for row, length in enumerate(LENGTHS):
        state = [np.zeros(4)] * (2 if kind == "lstm" else 1)
        for t in reversed(range(length)) if reverse else range(length):
            state = STEPS[kind](x[row, t], state, w)
            hs[row, t] = state[0]
        last.append(state)
    return hs, [np.stack(parts) for parts in zip(*last, strict=True)]


@pytest.mark.parametrize("kind", LAYERS)
def test_each_row_is_its_own_loop(held: Any, kind: str) -> None:
    """With a mask a row is what it would be alone, both ways; derivatives too."""
    x, v = data()
    m = cr.input("m", ("batch", "time"), dtype="bool")
    layer = LAYERS[kind](4, return_sequences=True, return_state=True, bidirectional=True)
    out, (there, back) = layer(x, mask=m)
    flat = [t for s in (there, back) for t in (s if isinstance(s, tuple) else (s,))]
    h = held([out, *flat], layer, x=v, m=MASK)
    hs, state = loop(kind, v, lambda n: h.values[f"{kind}1.{n}"], False)
    back_hs, back_state = loop(kind, v, lambda n: h.values[f"{kind}1.reverse_{n}"], True)
    h.to_numpy([np.concatenate([hs, back_hs], axis=-1), *state, *back_state], 1e-12)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_last_h_of_ragged_rows(held: Any, kind: str) -> None:
    x, v = data()
    m = cr.input("m", ("batch", "time"), dtype="bool")
    layer = LAYERS[kind](4)
    h = held(layer(x, mask=m), layer, x=v, m=MASK)
    _, state = loop(kind, v, lambda n: h.values[f"{kind}1.{n}"], False)
    h.to_numpy(state[0], 1e-12)


@pytest.mark.parametrize("looped", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_step_at_a_time(held: Any, kind: str, looped: bool) -> None:
    """As where text is written: a step a call, the state handed on; in a loop of one's own too."""
    x, v = data(time=6)
    layer = LAYERS[kind](4, return_state=True)
    count = 2 if kind == "lstm" else 1
    zeros = tuple(cr.zeros((x.shape[0], 4), dtype="float64") for _ in range(count))
    state: Any = zeros if kind == "lstm" else zeros[0]
    if looped:

        def step(state: Any, now: cr.Tensor) -> Any:
            out, state = layer(cr.expand_dims(now, axis=1), state)
            return state, out

        state, stack = cr.scan(step, state, cr.permute_dims(x, (1, 0, 2)))
        out = cr.permute_dims(stack, (1, 0, 2))
    else:
        outs = []
        for t in range(6):
            one, state = layer(x[:, t : t + 1], state)
            outs.append(cr.expand_dims(one, axis=1))
        out = cr.concat(outs, axis=1)
    h = held([out, *(state if kind == "lstm" else [state])], layer, x=v)
    w = lambda n: h.values[f"{kind}1.{n}"]  # noqa: E731
    hs, now = [], [np.zeros((3, 4))] * len(zeros)
    for t in range(6):
        now = STEPS[kind](v[:, t], now, w)
        hs.append(now[0])
    h.to_numpy([np.stack(hs, axis=1), *now], 1e-12)


def torch_weights(kind: str, t: Any, count: int) -> dict[str, Any]:
    """The parameters of PyTorch's layer, from ours by name."""
    torch = pytest.importorskip("torch")
    found = {}
    for ours, theirs in (("", "l0"), ("reverse_", "l0_reverse"))[:count]:
        name = f"{kind}1.{ours}"
        found[f"weight_ih_{theirs}"] = t[f"{name}input_weight"].T
        found[f"weight_hh_{theirs}"] = t[f"{name}state_weight"].T
        found[f"bias_ih_{theirs}"] = t[f"{name}bias"]
        other = t.get(f"{name}state_bias")
        found[f"bias_hh_{theirs}"] = torch.zeros_like(t[f"{name}bias"]) if other is None else other
    return found


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_they_are_pytorchs(
    held: Any, kind: str, ragged: bool, bidirectional: bool, dtype: str
) -> None:
    torch = pytest.importorskip("torch")
    x, v = data(dtype, 6)
    kinds = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}
    make = kinds[kind]
    theirs = make(5, 4, batch_first=True, bidirectional=bidirectional, dtype=getattr(torch, dtype))
    layer = LAYERS[kind](4, return_sequences=True, return_state=True, bidirectional=bidirectional)
    ways = 2 if bidirectional else 1
    carried = 2 if kind == "lstm" else 1
    begin = [cr.input(f"b{i}", ("batch", 4), dtype=dtype) for i in range(ways * carried)]
    rng = np.random.default_rng(4)
    feeds: dict[str, Array] = {
        f"b{i}": rng.normal(size=(3, 4)).astype(dtype) for i in range(len(begin))
    }
    parts = [tuple(begin[i * carried : (i + 1) * carried]) for i in range(ways)]
    given: Any = [p if carried == 2 else p[0] for p in parts]
    mask = cr.input("m", ("batch", 6), dtype="bool") if ragged else None
    if ragged:
        feeds["m"] = MASK
    out, state = layer(x, given if bidirectional else given[0], mask)
    states = list(state) if bidirectional else [state]
    flat = [t for s in states for t in (s if isinstance(s, tuple) else (s,))]

    def reference(t: Any) -> Any:
        start = [
            torch.stack([t[f"b{w * carried + c}"] for w in range(ways)]) for c in range(carried)
        ]
        xs = t["x"]
        pack, pad = torch.nn.utils.rnn.pack_padded_sequence, torch.nn.utils.rnn.pad_packed_sequence
        if ragged:
            xs = pack(xs, torch.tensor(LENGTHS), batch_first=True, enforce_sorted=False)
        args = (xs, tuple(start) if carried == 2 else start[0])
        ys, last = torch.func.functional_call(theirs, torch_weights(kind, t, ways), args)
        ys = pad(ys, batch_first=True)[0] if ragged else ys
        ends = last if carried == 2 else (last,)
        return [ys, *(ends[c][w] for w in range(ways) for c in range(carried))]

    held([out, *flat], layer, x=v, **feeds).to_torch(reference, TOLERANCE[dtype])


@pytest.mark.parametrize("kind", LAYERS)
def test_without_a_bias(held: Any, kind: str) -> None:
    x, v = data()
    layer = LAYERS[kind](4, use_bias=False)
    h = held(layer(x), layer, x=v)
    names = {f"{kind}1.input_weight", f"{kind}1.state_weight"}
    assert set(layer.parameters) == names
    (got,), _ = h.run()

    def weight(name: str) -> Array:
        full = f"{kind}1.{name}"
        wide = h.values[f"{kind}1.input_weight"].shape[1]
        return h.values[full] if full in names else np.zeros(wide)

    state = [np.zeros((3, 4))] * (2 if kind == "lstm" else 1)
    for t in range(6):
        state = STEPS[kind](v[:, t], state, weight)
    np.testing.assert_allclose(got, state[0], rtol=1e-12, atol=1e-14)


def test_a_net_of_them_learns_which_came_first() -> None:
    """Whether the larger of two marked numbers came first, from rows of noise."""
    rng = np.random.default_rng(0)
    v = rng.normal(size=(256, 7, 1)).astype(np.float32)
    y = (v[:, 0, 0] > v[:, 3, 0]).astype(np.int32)
    x, label = cr.input("x", ("n", 7, 1)), cr.input("label", ("n",), dtype="int32")
    net = Sequential([GRU(12, return_sequences=True), GRU(12), Dense(2)])
    step = cr.training_step(cr.losses.cross_entropy(net(x), label), cr.optim.Adam(2e-2))
    losses = step.run(x=v, label=y, batch_size=32, epochs=25)
    assert losses[:4].mean() > 0.6  # log 2 = 0.69 is a guess
    assert losses[-8:].mean() < 0.35


def test_a_cell_is_printed_as_its_equations() -> None:
    x, _ = data()
    layer = LSTM(4)
    lines = [" ".join(line.split()) for line in str(layer(x)).splitlines()]
    assert "c[t] = f[t] ⊙ c[t-1] + i[t] ⊙ g[t]" in lines
    assert "h[t] = o[t] ⊙ tanh(c[t])" in lines


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda x: RNN(0), ShapeError, "RNN: units"),
        (lambda x: RNN(3)(x[:, 0]), ShapeError, "RNN takes a tensor of rank 3"),
        (lambda x: LSTM(3)(x, mask=x[:, :, 0]), DTypeError, "mask of bools"),
        (lambda x: LSTM(3)(x, mask=x[:, 0] > 0), ShapeError, "a mask for each step"),
        (lambda x: LSTM(3)(x, x[:, 0, :3]), ShapeError, "begins with h and c"),
        (lambda x: GRU(3)(x, x[:, 0]), ShapeError, "begins with h of"),
        (lambda x: GRU(3, bidirectional=True)(x, x[:, 0, :3]), ShapeError, "two states"),
    ],
)
def test_what_does_not_fit_is_refused(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call(data()[0])
