"""The same training step in every framework, each as its own users would write it for speed.

The net is 64-128-64-10 with ReLU, softmax cross-entropy and Adam (learning rate 1e-3), in float32
on one thread. Every peer starts from the same weights and sees the same minibatches in the same
order; frameworks are imported inside the classes, so that a worker loads only its own.

A peer is built from (weights, x, y, batch), the rows being a multiple of the batch, and has
`run(count)`: at least `count` training steps, returning the losses that it has at hand (in order;
those that read a loss only now and then return what they read), and how many steps were made.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

SIZES = (64, 128, 64, 10)
RATE, BETA1, BETA2, EPSILON = 1e-3, 0.9, 0.999, 1e-8
LONG_CALL = 100  # steps that a peer with a native loop makes in one call, at least

Array = NDArray[Any]
Weights = dict[str, Array]


def initial_weights(dtype: str = "float32") -> Weights:
    """Glorot-uniform weights and zero biases, the same for every peer."""
    rng = np.random.default_rng(0)
    weights: Weights = {}
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(SIZES), 1):
        limit = math.sqrt(6 / (fan_in + fan_out))
        weights[f"W{i}"] = rng.uniform(-limit, limit, (fan_in, fan_out)).astype("float32")
        weights[f"b{i}"] = np.zeros(fan_out, "float32")
    return {name: w.astype(dtype) for name, w in weights.items()}


class Peer:
    """Where the minibatches come from: rows in turn, from the first again after the last."""

    label: ClassVar[str]
    needs: ClassVar[str]

    def __init__(self, x: Array, y: Array, batch: int) -> None:
        self.x, self.y, self.batch = x, y, batch
        self.per_epoch = len(x) // batch
        self.epochs = -(-LONG_CALL // self.per_epoch)
        self.done = 0

    def next_rows(self) -> slice:
        start = self.done % self.per_epoch * self.batch
        self.done += 1
        return slice(start, start + self.batch)


class NumPyPeer(Peer):
    """By hand: every array made once, every operation in place, parameters in one arena."""

    label, needs = "NumPy by hand", "numpy"

    def __init__(self, weights: Weights, x: Array, y: Array, batch: int) -> None:
        super().__init__(x, y, batch)
        dtype = weights["W1"].dtype
        self.flat = np.concatenate([w.ravel() for w in weights.values()])
        self.flat_grad, self.m, self.v, self.scratch = (np.zeros_like(self.flat) for _ in range(4))
        self.w = self._views(self.flat, weights)
        self.g = self._views(self.flat_grad, weights)
        self.h = [np.empty((batch, n), dtype) for n in SIZES[1:]]
        self.d = [np.empty((batch, n), dtype) for n in SIZES[1:]]
        self.rows = np.arange(batch)

    @staticmethod
    def _views(flat: Array, like: Weights) -> Weights:
        ends = np.cumsum([w.size for w in like.values()])
        parts = np.split(flat, ends[:-1])
        return {n: p.reshape(w.shape) for (n, w), p in zip(like.items(), parts, strict=True)}

    def run(self, count: int) -> tuple[list[float], int]:
        return [self.step() for _ in range(count)], count

    def step(self) -> float:
        rows = self.next_rows()
        x, y = self.x[rows], self.y[rows]
        loss = self._forward(x, y)
        self._backward(x)
        self._adam()
        return loss

    def _forward(self, x: Array, y: Array) -> float:
        w, (h1, h2, z) = self.w, self.h
        for inputs, out, i in ((x, h1, 1), (h1, h2, 2), (h2, z, 3)):
            np.matmul(inputs, w[f"W{i}"], out=out)
            out += w[f"b{i}"]
            if out is not z:
                np.maximum(out, 0, out=out)
        z -= z.max(axis=1, keepdims=True)
        p = self.d[2]  # softmax, then the loss's derivative with respect to z
        np.exp(z, out=p)
        total = p.sum(axis=1, keepdims=True)
        loss = float(np.mean(np.log(total[:, 0]) - z[self.rows, y]))
        p /= total
        p[self.rows, y] -= 1
        p /= self.batch
        return loss

    def _backward(self, x: Array) -> None:
        w, g, (h1, h2, _), (d1, d2, d3) = self.w, self.g, self.h, self.d
        for inputs, d, below, i in ((h2, d3, d2, 3), (h1, d2, d1, 2), (x, d1, None, 1)):
            np.matmul(inputs.T, d, out=g[f"W{i}"])
            d.sum(axis=0, out=g[f"b{i}"])
            if below is not None:
                np.matmul(d, w[f"W{i}"].T, out=below)
                below *= inputs > 0

    def _adam(self) -> None:
        g, m, v, s = self.flat_grad, self.m, self.v, self.scratch
        m *= BETA1
        np.multiply(g, 1 - BETA1, out=s)
        m += s
        v *= BETA2
        np.multiply(g, g, out=s)
        s *= 1 - BETA2
        v += s
        np.sqrt(v, out=s)
        s *= 1 / math.sqrt(1 - BETA2**self.done)
        s += EPSILON
        np.divide(m, s, out=s)
        s *= RATE / (1 - BETA1**self.done)
        self.flat -= s


class TorchPeer(Peer):
    """Eager, as a user writes it, with the optimizer implementation named by `optimizer`."""

    label, needs = "PyTorch eager", "torch"
    optimizer = "fused"

    def __init__(self, weights: Weights, x: Array, y: Array, batch: int) -> None:
        import torch

        super().__init__(x, y, batch)
        torch.set_num_threads(1)
        layers: list[torch.nn.Module] = []
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(SIZES), 1):
            dense = torch.nn.Linear(fan_in, fan_out)
            dense.weight.data = torch.tensor(weights[f"W{i}"].T.copy())
            dense.bias.data = torch.tensor(weights[f"b{i}"])
            layers += [dense, torch.nn.ReLU()]
        self.net = torch.nn.Sequential(*layers[:-1])
        self.tx, self.ty = torch.tensor(x), torch.tensor(y, dtype=torch.int64)
        self.loss = torch.nn.functional.cross_entropy
        chosen = {self.optimizer: True}
        self.adam = torch.optim.Adam(self.net.parameters(), lr=RATE, **chosen)

    def run(self, count: int) -> tuple[list[float], int]:
        losses = [self.step() for _ in range(count)]
        return [float(loss) for loss in losses], count

    def step(self) -> Any:
        rows = self.next_rows()
        loss = self.loss(self.net(self.tx[rows]), self.ty[rows])
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        self.adam.step()
        return loss.detach()


class TorchForeachPeer(TorchPeer):
    label, optimizer = "PyTorch eager, foreach", "foreach"


class JaxPeer(Peer):
    """The whole step under one jit with donated state; data and step count stay on the device."""

    label, needs = "JAX jit", "jax"

    def __init__(self, weights: Weights, x: Array, y: Array, batch: int) -> None:
        import jax
        import jax.numpy as jnp

        super().__init__(x, y, batch)
        w = {name: jnp.asarray(value) for name, value in weights.items()}
        zeros = {name: jnp.zeros_like(value) for name, value in w.items()}
        again = {name: jnp.zeros_like(value) for name, value in w.items()}
        self.state = (w, zeros, again, jnp.zeros((), jnp.int32))
        self.jx, self.jy = jnp.asarray(x), jnp.asarray(y)
        self.compiled = jax.jit(self._program(), donate_argnums=0)

    def _program(self) -> Any:
        return self._one_step

    def run(self, count: int) -> tuple[list[float], int]:
        losses = []
        for _ in range(count):
            self.state, loss = self.compiled(self.state, self.jx, self.jy)
            losses.append(loss)
        return [float(loss) for loss in losses], count

    def _one_step(self, state: Any, x: Any, y: Any) -> Any:
        import jax
        import jax.numpy as jnp

        w, m, v, t = state
        start = t % self.per_epoch * self.batch
        xb = jax.lax.dynamic_slice_in_dim(x, start, self.batch)
        yb = jax.lax.dynamic_slice_in_dim(y, start, self.batch)
        loss, g = jax.value_and_grad(self._loss)(w, xb, yb)
        t = t + 1
        m = {n: BETA1 * m[n] + (1 - BETA1) * g[n] for n in w}
        v = {n: BETA2 * v[n] + (1 - BETA2) * g[n] * g[n] for n in w}
        rate = RATE / (1 - BETA1**t)
        root = 1 / jnp.sqrt(1 - BETA2**t)
        w = {n: w[n] - rate * m[n] / (jnp.sqrt(v[n]) * root + EPSILON) for n in w}
        return (w, m, v, t), loss

    @staticmethod
    def _loss(w: Any, x: Any, y: Any) -> Any:
        import jax
        import jax.numpy as jnp

        h = jax.nn.relu(x @ w["W1"] + w["b1"])
        h = jax.nn.relu(h @ w["W2"] + w["b2"])
        logs = jax.nn.log_softmax(h @ w["W3"] + w["b3"])
        return -jnp.mean(jnp.take_along_axis(logs, y[:, None], axis=1))


class JaxScanPeer(JaxPeer):
    """Whole epochs in one call, by `lax.scan`."""

    label = "JAX scan"

    def _program(self) -> Any:
        import jax

        length = self.epochs * self.per_epoch

        def loop(state: Any, x: Any, y: Any) -> Any:
            step = self._one_step
            return jax.lax.scan(lambda s, _: step(s, x, y), state, None, length=length)

        return loop

    def run(self, count: int) -> tuple[list[float], int]:
        losses: list[float] = []
        while len(losses) < count:
            self.state, some = self.compiled(self.state, self.jx, self.jy)
            losses += np.asarray(some).tolist()
        return losses, len(losses)


class ChainrulePeer(Peer):
    """One native call a step; the loss comes back as a float each time."""

    label, needs = "chainrule step", "chainrule"

    def __init__(self, weights: Weights, x: Array, y: Array, batch: int) -> None:
        import chainrule as cr

        super().__init__(x, y, batch)
        h: Any = cr.input("x", ("batch", SIZES[0]))
        labels = cr.input("y", ("batch",), dtype="int32")
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(SIZES), 1):
            w = cr.parameter(f"W{i}", (fan_in, fan_out), init=weights[f"W{i}"])
            b = cr.parameter(f"b{i}", (fan_out,), init=weights[f"b{i}"])
            h = h @ w + b
            h = cr.relu(h) if i < len(SIZES) - 1 else h
        loss = cr.losses.cross_entropy(h, labels)
        self.step = cr.training_step(loss, cr.optim.Adam(RATE), threads=1)

    def run(self, count: int) -> tuple[list[float], int]:
        losses = []
        for _ in range(count):
            rows = self.next_rows()
            losses.append(self.step(x=self.x[rows], y=self.y[rows]))
        return losses, count


class ChainruleRunPeer(ChainrulePeer):
    """Whole epochs in one native call."""

    label = "chainrule run"

    def run(self, count: int) -> tuple[list[float], int]:
        losses: list[float] = []
        while len(losses) < count:
            some = self.step.run(
                x=self.x, y=self.y, batch_size=self.batch, epochs=self.epochs, shuffle=False
            )
            losses += np.asarray(some).tolist()
        return losses, len(losses)


PEERS: dict[str, type[Any]] = {
    "chainrule": ChainrulePeer,
    "chainrule_run": ChainruleRunPeer,
    "numpy": NumPyPeer,
    "torch": TorchPeer,
    "torch_foreach": TorchForeachPeer,
    "jax": JaxPeer,
    "jax_scan": JaxScanPeer,
}
