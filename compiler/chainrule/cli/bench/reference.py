"""The first losses of a workload in float64: NumPy, each layer's derivative written out by hand.

A layer makes its result, and notes how a slope of it becomes slopes of what it was made of; the
notes are read backwards. No code of the compiler's has a part in it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from chainrule.cli.bench.workloads import WORKLOADS, Workload

Array = NDArray[np.float64]
Arrays = dict[str, Array]
Shape = Mapping[str, Any]
_EPSILON = 1e-5


def losses(work: Workload, steps: int) -> list[float] | None:
    """The losses of the first so many steps; None where they depend on random draws."""
    if work.draws:
        return None
    weights = {name: w.astype(np.float64) for name, w in work.params().items()}
    data = {n: a.astype(np.float64) if a.dtype.kind == "f" else a for n, a in work.data().items()}
    update, found = _Update(work.opt), []
    for i in range(steps):
        first = i % work.nbatch * work.batch
        rows = {n: a[first:][: work.batch] for n, a in data.items()}
        loss, grads = slopes(work, weights, rows)
        found.append(loss)
        update(weights, grads)
    return found


def main() -> None:
    """Print the first losses of a workload as JSON: its name and their number are the arguments."""
    print(json.dumps(losses(WORKLOADS[sys.argv[1]], int(sys.argv[2]))))


def slopes(work: Workload, weights: Arrays, rows: Mapping[str, Any]) -> tuple[float, Arrays]:
    """The loss of a minibatch, and its derivative by each weight."""
    net = _Net(weights)
    loss = _FORWARD[work.kind](net, work.shape, rows)
    for note in reversed(net.notes):
        note()
    return loss, {name: value.slope for name, value in net.weights.items()}


class _Update:
    """The optimizer's rule over all weights, in place."""

    def __init__(self, options: Any) -> None:
        self.options, self.time = options, 0
        self.m: Arrays = {}
        self.v: Arrays = {}

    def __call__(self, weights: Arrays, grads: Arrays) -> None:
        o, self.time = self.options, self.time + 1
        for name, g in grads.items():
            if o["kind"] == "sgd":
                self.m[name] = o["momentum"] * self.m.get(name, 0.0) + g
                weights[name] -= o["lr"] * self.m[name]
                continue
            weights[name] *= 1 - o["lr"] * o.get("wd", 0.0)
            self.m[name] = o["b1"] * self.m.get(name, 0.0) + (1 - o["b1"]) * g
            self.v[name] = o["b2"] * self.v.get(name, 0.0) + (1 - o["b2"]) * g * g
            m = self.m[name] / (1 - o["b1"] ** self.time)
            v = self.v[name] / (1 - o["b2"] ** self.time)
            weights[name] -= o["lr"] * m / (np.sqrt(v) + o["eps"])


class _Value:
    """Numbers, and the slope of the loss by each of them."""

    def __init__(self, data: Array) -> None:
        self.data = data
        self.slope: Array = np.zeros((), np.float64)

    def add(self, slope: Array) -> None:
        self.slope = self.slope + slope


class _Net:
    """Weights, and the notes of what was made of them."""

    def __init__(self, weights: Arrays) -> None:
        self.weights = {name: _Value(w) for name, w in weights.items()}
        self.notes: list[Callable[[], None]] = []

    def made(self, data: Any, note: Callable[[Array], None]) -> _Value:
        """A value, with what its slope does."""
        value = _Value(np.asarray(data))
        self.notes.append(lambda: note(value.slope))
        return value

    def times(self, x: _Value, name: str) -> _Value:
        w = self.weights[name]

        def note(d: Array) -> None:
            rows = d.reshape(-1, d.shape[-1])
            w.add(x.data.reshape(len(rows), -1).T @ rows)
            x.add(d @ w.data.T)

        return self.made(x.data @ w.data, note)

    def plus(self, x: _Value, name: str) -> _Value:
        b = self.weights[name]

        def note(d: Array) -> None:
            x.add(d)
            b.add(d.sum(tuple(range(d.ndim - b.data.ndim))))

        return self.made(x.data + b.data, note)

    def dense(self, x: _Value, i: int | str) -> _Value:
        return self.plus(self.times(x, f"W{i}"), f"b{i}")

    def add(self, x: _Value, y: _Value) -> _Value:
        def note(d: Array) -> None:
            x.add(d)
            y.add(d)

        return self.made(x.data + y.data, note)

    def relu(self, x: _Value) -> _Value:
        return self.made(np.maximum(x.data, 0), lambda d: x.add(d * (x.data > 0)))

    def tanh(self, x: _Value) -> _Value:
        h = np.tanh(x.data)
        return self.made(h, lambda d: x.add(d * (1 - h**2)))

    def gelu(self, x: _Value) -> _Value:
        """By tanh: Hendrycks and Gimpel, 2016."""
        c, v = np.sqrt(2 / np.pi), x.data
        t = np.tanh(c * (v + 0.044715 * v * v * v))
        slope = 0.5 * (1 + t) + 0.5 * v * (1 - t**2) * c * (1 + 3 * 0.044715 * v * v)
        return self.made(0.5 * v * (1 + t), lambda d: x.add(d * slope))

    def take(self, name: str, places: Any) -> _Value:
        table = self.weights[name]

        def note(d: Array) -> None:
            slope = np.zeros_like(table.data)
            np.add.at(slope, places, d)
            table.add(slope)

        return self.made(table.data[places], note)

    def norm(self, x: _Value, k: str, i: str) -> _Value:
        """Layer norm over the last axis (Ba, Kiros and Hinton, 2016)."""
        g, b = self.weights[f"ln{k}g{i}"], self.weights[f"ln{k}b{i}"]
        centred = x.data - x.data.mean(-1, keepdims=True)
        root = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + _EPSILON)
        h = centred * root

        def note(d: Array) -> None:
            before = tuple(range(d.ndim - 1))
            g.add((d * h).sum(before))
            b.add(d.sum(before))
            d = d * g.data
            along = h * (d * h).mean(-1, keepdims=True)
            x.add(root * (d - d.mean(-1, keepdims=True) - along))

        return self.made(h * g.data + b.data, note)

    def attend(self, x: _Value, heads: int) -> _Value:
        """Causal attention; x holds queries, keys and values beside each other."""
        rows, length, width = x.data.shape
        each = width // 3 // heads
        parts = x.data.reshape(rows, length, 3, heads, each).transpose(2, 0, 3, 1, 4)
        q, k, v = parts
        scores = q @ k.swapaxes(-1, -2) / np.sqrt(each)
        scores[..., ~np.tri(length, dtype=bool)] = -np.inf
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)

        def note(d: Array) -> None:
            d = d.reshape(rows, length, heads, each).transpose(0, 2, 1, 3)
            dp = d @ v.swapaxes(-1, -2)
            ds = p * (dp - (dp * p).sum(-1, keepdims=True)) / np.sqrt(each)
            all_three = np.stack([ds @ k, ds.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ d])
            x.add(all_three.transpose(1, 3, 0, 2, 4).reshape(x.data.shape))

        return self.made((p @ v).transpose(0, 2, 1, 3).reshape(rows, length, width // 3), note)

    def convolve(self, x: _Value, i: int, padding: int) -> _Value:
        kernel, bias = self.weights[f"K{i}"], self.weights[f"kb{i}"]
        size = kernel.data.shape[-1]
        sides = (padding, padding)
        padded = np.pad(x.data, ((0, 0), (0, 0), sides, sides))
        windows = sliding_window_view(padded, (size, size), (2, 3))
        h = np.tensordot(windows, kernel.data, ([1, 4, 5], [1, 2, 3])).transpose(0, 3, 1, 2)

        def note(d: Array) -> None:
            bias.add(d.sum((0, 2, 3)))
            kernel.add(np.tensordot(d, windows, ([0, 2, 3], [0, 2, 3])))
            inward = np.zeros_like(padded)
            high, wide = d.shape[2:]
            for a in range(size):
                for b in range(size):
                    part = np.tensordot(kernel.data[:, :, a, b], d, ([0], [1]))
                    inward[:, :, a : a + high, b : b + wide] += part.transpose(1, 0, 2, 3)
            end = slice(padding, -padding or None)
            x.add(inward[:, :, end, end])

        return self.made(h + bias.data[:, None, None], note)

    def pool(self, x: _Value) -> _Value:
        """The largest of each 2x2, which is one; where all are 0, ReLU stops the slope."""
        rows, channels, high, wide = x.data.shape
        parts = x.data.reshape(rows, channels, high // 2, 2, wide // 2, 2)
        most = parts.max((3, 5), keepdims=True)

        def note(d: Array) -> None:
            x.add(((parts == most) * d[:, :, :, None, :, None]).reshape(x.data.shape))

        return self.made(most[:, :, :, 0, :, 0], note)

    def reshape(self, x: _Value, *shape: int) -> _Value:
        return self.made(x.data.reshape(shape), lambda d: x.add(d.reshape(x.data.shape)))

    def cell(self, z: _Value, c: _Value) -> tuple[_Value, _Value]:
        """The state and the cell after a step, from its gates (Hochreiter, Schmidhuber, 1997)."""
        i, f, g, o = np.split(z.data, 4, axis=1)
        i, f, g, o = _sigmoid(i), _sigmoid(f), np.tanh(g), _sigmoid(o)
        after = _Value(f * c.data + i * g)
        t = np.tanh(after.data)
        h = _Value(o * t)

        def note() -> None:
            dc = after.slope + h.slope * o * (1 - t**2)
            gates = [dc * g * i * (1 - i), dc * c.data * f * (1 - f), dc * i * (1 - g**2)]
            z.add(np.concatenate([*gates, h.slope * t * o * (1 - o)], axis=1))
            c.add(dc * f)

        self.notes.append(note)
        return h, after

    def stack(self, parts: list[_Value]) -> _Value:
        def note(d: Array) -> None:
            for k, part in enumerate(parts):
                part.add(d[:, k])

        return self.made(np.stack([p.data for p in parts], axis=1), note)


def _sigmoid(z: Array) -> Array:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * z)))


def _binary(z: Array, t: Array) -> Array:
    """Binary cross-entropy of logits, element by element."""
    return np.asarray(np.maximum(z, 0) - z * t + np.log1p(np.exp(-np.abs(z))))


def _cross_entropy(z: _Value, y: Any) -> float:
    p = np.exp(z.data - z.data.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    at = *np.indices(y.shape), y
    loss = -float(np.log(p[at]).mean())
    p[at] -= 1
    z.add(p / y.size)
    return loss


def _loss(kind: str, z: _Value, rows: Mapping[str, Any]) -> float:
    """A loss of outputs; its slope is theirs from now on."""
    if kind == "ce":
        return _cross_entropy(z, rows["y"])
    if kind == "mse":
        difference = z.data - rows["t"]
        z.add(2 * difference / difference.size)
        return float((difference**2).mean())
    t = rows["t"][:, None]
    z.add((_sigmoid(z.data) - t) / len(t))
    return float(_binary(z.data, t).mean())


def _mlp(net: _Net, shape: Shape, rows: Mapping[str, Any]) -> float:
    act = net.relu if shape.get("act") == "relu" else net.tanh
    h, last = _Value(rows["x"]), len(shape["sizes"]) - 2
    for i in range(last):
        h = act(net.dense(h, i))
    return _loss(shape["loss"], net.dense(h, last), rows)


def _cnn(net: _Net, shape: Shape, rows: Mapping[str, Any]) -> float:
    h, last = _Value(rows["x"]), len(shape["dense"]) - 2
    for i, (*_, padding, pooled) in enumerate(shape["conv"]):
        h = net.relu(net.convolve(h, i, padding))
        h = net.pool(h) if pooled else h
    h = net.reshape(h, len(h.data), -1)
    for i in range(last):
        h = net.relu(net.dense(h, i))
    return _cross_entropy(net.dense(h, last), rows["y"])


def _lstm(net: _Net, shape: Shape, rows: Mapping[str, Any]) -> float:
    x, y = rows["xy"][:, :-1], rows["xy"][:, 1:]
    zeros = np.zeros((len(x), shape["hidden"]))
    h, c, states = _Value(zeros), _Value(zeros), []
    for t in range(x.shape[1]):
        inward = net.plus(net.times(net.take("emb", x[:, t]), "Wih"), "bih")
        h, c = net.cell(net.add(inward, net.plus(net.times(h, "Whh"), "bhh")), c)
        states.append(h)
    return _cross_entropy(net.dense(net.stack(states), 0), y)


def _gpt(net: _Net, shape: Shape, rows: Mapping[str, Any]) -> float:
    x, y = rows["xy"][:, :-1], rows["xy"][:, 1:]
    h = net.plus(net.take("wte", x), "wpe")
    for i in range(shape["layers"]):
        a = net.dense(net.norm(h, "1", f"_{i}"), f"qkv_{i}")
        h = net.add(h, net.dense(net.attend(a, shape["heads"]), f"o_{i}"))
        f = net.gelu(net.dense(net.norm(h, "2", f"_{i}"), f"fc_{i}"))
        h = net.add(h, net.dense(f, f"pr_{i}"))
    return _cross_entropy(net.times(net.norm(h, "f", ""), "W0"), y)


def _vae(net: _Net, shape: Shape, rows: Mapping[str, Any]) -> float:
    """Reconstruction and divergence (Kingma and Welling, 2014, appendix B), means over rows."""
    x, eps = rows["x"], rows["eps"]
    h = net.relu(net.dense(_Value(x), 0))
    mu, logvar = net.dense(h, 1), net.dense(h, 2)
    deviation = np.exp(0.5 * logvar.data)

    def note(d: Array) -> None:
        mu.add(d)
        logvar.add(d * eps * 0.5 * deviation)

    z = net.made(mu.data + eps * deviation, note)
    o = net.dense(net.relu(net.dense(z, 3)), 4)
    o.add((_sigmoid(o.data) - x) / len(x))
    mu.add(mu.data / len(x))
    logvar.add(0.5 * (np.exp(logvar.data) - 1) / len(x))
    divergence = -0.5 * (1 + logvar.data - mu.data**2 - np.exp(logvar.data)).sum()
    return float((_binary(o.data, x).sum() + divergence) / len(x))


_FORWARD: dict[str, Callable[[_Net, Shape, Mapping[str, Any]], float]] = {
    "mlp": _mlp, "logreg": _mlp, "cnn": _cnn, "lstm": _lstm, "gpt": _gpt, "vae": _vae,
}  # fmt: skip
