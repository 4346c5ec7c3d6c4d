"""The nets whose first step benchmarks/startup.py waits for: a loss, an optimizer, a minibatch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np

import chainrule as cr

Net = tuple[cr.Tensor, Any, Mapping[str, np.ndarray]]


def _floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def _classes(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, count, shape).astype(np.int32)


def _weight(name: str, *shape: int) -> cr.Tensor:
    return cr.parameter(name, shape)


def _dense(h: cr.Tensor, sizes: list[int], activation: Callable[..., cr.Tensor]) -> cr.Tensor:
    for i, (n, m) in enumerate(pairwise(sizes)):
        h = h @ _weight(f"W{i}", n, m) + _weight(f"b{i}", m)
        h = activation(h) if i < len(sizes) - 2 else h
    return h


def _classifier(
    sizes: list[int], batch: int, optimizer: Any, activation: Callable[..., cr.Tensor]
) -> Net:
    h = _dense(cr.input("x", ("batch", sizes[0])), sizes, activation)
    loss = cr.losses.cross_entropy(h, cr.input("y", ("batch",), dtype="int32"))
    return loss, optimizer, {"x": _floats(batch, sizes[0]), "y": _classes(sizes[-1], batch)}


def tiny() -> Net:
    """4-16-3, tanh, SGD."""
    return _classifier([4, 16, 3], 8, cr.optim.SGD(0.1), cr.tanh)


def logistic() -> Net:
    """Logistic regression of 30 features, SGD."""
    x, t = cr.input("x", ("batch", 30)), cr.input("t", ("batch",))
    z = (x @ _weight("W", 30, 1) + _weight("b", 1))[:, 0]
    loss = cr.losses.binary_cross_entropy(z, t)
    return loss, cr.optim.SGD(0.1), {"x": _floats(32, 30), "t": _classes(2, 32).astype(np.float32)}


def small() -> Net:
    """64-128-64-10, ReLU, Adam: the demo's net."""
    return _classifier([64, 128, 64, 10], 32, cr.optim.Adam(1e-3), cr.relu)


def mlp() -> Net:
    """784-512-256-10, ReLU, Adam."""
    return _classifier([784, 512, 256, 10], 32, cr.optim.Adam(1e-3), cr.relu)


def _narrow(layers: int) -> Net:
    h = _dense(cr.input("x", ("batch", 32)), [32] * (layers + 1), cr.tanh)
    loss = cr.losses.mse(h, cr.input("t", ("batch", 32)))
    return loss, cr.optim.SGD(0.01), {"x": _floats(16, 32), "t": _floats(16, 32)}


def deep64() -> Net:
    """64 layers of width 32, tanh, SGD."""
    return _narrow(64)


def deep200() -> Net:
    """200 layers of width 32, tanh, SGD."""
    return _narrow(200)


def vae() -> Net:
    """VAE 784-400-20-400-784, Adam."""
    x = cr.input("x", ("batch", 784))
    h = cr.relu(x @ _weight("W0", 784, 400) + _weight("b0", 400))
    mean = h @ _weight("W1", 400, 20) + _weight("b1", 20)
    logvar = h @ _weight("W2", 400, 20) + _weight("b2", 20)
    z = mean + cr.input("eps", ("batch", 20)) * cr.exp(0.5 * logvar)
    h = cr.relu(z @ _weight("W3", 20, 400) + _weight("b3", 400))
    logits = h @ _weight("W4", 400, 784) + _weight("b4", 784)
    error = cr.maximum(logits, 0) - logits * x + cr.log1p(cr.exp(-cr.abs(logits)))
    divergence = -0.5 * cr.sum(1 + logvar - mean * mean - cr.exp(logvar), axis=-1)
    loss = cr.mean(cr.sum(error, axis=-1) + divergence)
    data = {"x": (_floats(128, 784) > 0).astype(np.float32), "eps": _floats(128, 20)}
    return loss, cr.optim.Adam(1e-3), data


def lenet() -> Net:
    """LeNet-like: two convolutions of 5×5 with pooling, three dense layers, momentum."""
    h = cr.input("x", ("batch", 1, 28, 28))
    for i, (channels, out, padding) in enumerate([(1, 6, 2), (6, 16, 0)]):
        h = cr.conv(h, _weight(f"K{i}", out, channels, 5, 5), padding=padding)
        h = cr.max_pool(cr.relu(h + _weight(f"k{i}", out, 1, 1)), 2)
    h = _dense(cr.reshape(h, (h.shape[0], 400)), [400, 120, 84, 10], cr.relu)
    loss = cr.losses.cross_entropy(h, cr.input("y", ("batch",), dtype="int32"))
    data = {"x": _floats(64, 1, 28, 28), "y": _classes(10, 64)}
    return loss, cr.optim.SGD(0.01, momentum=0.9), data


def cnn() -> Net:
    """Four convolutions of 3×3 over 3×32×32 with pooling after two, two dense layers, Adam."""
    h = cr.input("x", ("batch", 3, 32, 32))
    for i, (channels, out) in enumerate(pairwise([3, 32, 32, 64, 64])):
        h = cr.conv(h, _weight(f"K{i}", out, channels, 3, 3), padding=1)
        h = cr.relu(h + _weight(f"k{i}", out, 1, 1))
        h = cr.max_pool(h, 2) if i % 2 else h
    h = _dense(cr.reshape(h, (h.shape[0], 4096)), [4096, 256, 10], cr.relu)
    loss = cr.losses.cross_entropy(h, cr.input("y", ("batch",), dtype="int32"))
    return loss, cr.optim.Adam(3e-4), {"x": _floats(64, 3, 32, 32), "y": _classes(10, 64)}


def lstm() -> Net:
    """LSTM 64-256 over 64 steps, Adam."""
    width, inputs, hidden = 64, 64, 256
    x = cr.input("x", (width, "batch", inputs))
    into, again = _weight("Wx", inputs, 4 * hidden), _weight("Wh", hidden, 4 * hidden)
    gates = x @ into + _weight("b", 4 * hidden)

    def cell(carry: Any, gate: cr.Tensor) -> Any:
        h, c = carry
        z = gate + h @ again
        i, f, n, o = (z[:, k * hidden : (k + 1) * hidden] for k in range(4))
        c = cr.sigmoid(f) * c + cr.sigmoid(i) * cr.tanh(n)
        h = cr.sigmoid(o) * cr.tanh(c)
        return (h, c), h

    start = cr.zeros((x.shape[1], hidden))
    _, hs = cr.scan(cell, (start, start), gates)
    z = hs @ _weight("W", hidden, inputs) + _weight("c", inputs)
    loss = cr.losses.cross_entropy(z, cr.input("y", (width, "batch"), dtype="int32"))
    return loss, cr.optim.Adam(1e-3), {"x": _floats(64, 8, 64), "y": _classes(64, 64, 8)}


def gpt() -> Net:
    """A decoder of 4 layers of width 128 with 4 heads over 128 tokens, AdamW."""
    width, heads, length, words = 128, 4, 128, 64
    x = cr.input("x", ("batch", length), dtype="int32")
    h = cr.take(_weight("words", words, width), x, axis=0) + _weight("places", length, width)

    def norm(name: str, h: cr.Tensor) -> cr.Tensor:
        return cr.layer_norm(h, _weight(f"{name}_scale", width), _weight(f"{name}_shift", width))

    for k in range(4):
        a = norm(f"n{k}", h) @ _weight(f"qkv{k}", width, 3 * width) + _weight(f"bq{k}", 3 * width)
        parts = (a[:, :, j * width : (j + 1) * width] for j in range(3))
        shape = (x.shape[0], length, heads, width // heads)
        q, key, v = (cr.permute_dims(cr.reshape(p, shape), (0, 2, 1, 3)) for p in parts)
        a = cr.permute_dims(cr.attention(q, key, v, causal=True), (0, 2, 1, 3))
        a = cr.reshape(a, (x.shape[0], length, width))
        h = h + a @ _weight(f"o{k}", width, width) + _weight(f"bo{k}", width)
        f = norm(f"m{k}", h) @ _weight(f"up{k}", width, 4 * width) + _weight(f"bu{k}", 4 * width)
        f = cr.gelu(f, approximate="tanh") @ _weight(f"down{k}", 4 * width, width)
        h = h + f + _weight(f"bd{k}", width)
    z = norm("last", h) @ _weight("head", width, words)
    loss = cr.losses.cross_entropy(z, cr.input("y", ("batch", length), dtype="int32"))
    return loss, cr.optim.AdamW(1e-3), {"x": _classes(words, 2, 128), "y": _classes(words, 2, 128)}


NETS: dict[str, Callable[[], Net]] = {
    f.__name__: f for f in (tiny, logistic, small, mlp, deep64, deep200, vae, lenet, cnn, lstm, gpt)
}
