"""JAX with optax, the data in its own memory, the state donated.

jax-jit   one call a step; the minibatch is cut inside
jax-scan  one call makes `spec.scan` steps, by lax.scan
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

VARIANTS = {"jax-jit": {"scan": False}, "jax-scan": {"scan": True}}
NEEDS = ("jax", "optax")
SLOW = ()
_ALL = "optax, state donated, minibatch cut inside"
SETTINGS = {"jax-jit": f"one call a step, {_ALL}", "jax-scan": f"lax.scan over many, {_ALL}"}


def env(threads: int, cache: str) -> dict[str, str]:
    """What the worker runs in."""
    one = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    return {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "OMP_NUM_THREADS": str(threads),
        "XLA_FLAGS": one if threads == 1 else "",
    }


def supports(spec: Any, threads: int, **_: Any) -> str | None:
    """Why a workload can't be run, or None."""
    return None if spec.kind in _LOSSES else f"no spelling of {spec.kind!r}"


def _binary(jnp: Any, z: Any, t: Any) -> Any:
    return jnp.maximum(z, 0) - z * t + jnp.log1p(jnp.exp(-jnp.abs(z)))


def _cross_entropy(jax: Any, z: Any, y: Any) -> Any:
    jnp = jax.numpy
    chosen = jnp.take_along_axis(z, y[..., None], -1)[..., 0]
    return jnp.mean(jax.nn.logsumexp(z, axis=-1) - chosen)


def _mlp(jax: Any, shape: dict[str, Any]) -> Callable[..., Any]:
    jnp, count = jax.numpy, len(shape["sizes"]) - 1
    act = jax.nn.relu if shape.get("act") == "relu" else jnp.tanh

    def outputs(p: Any, x: Any, key: Any) -> Any:
        for i in range(count):
            x = x @ p[f"W{i}"] + p[f"b{i}"]
            if i == count - 1:
                return x
            x = act(x)
            if rate := shape.get("dropout"):
                key, own = jax.random.split(key)
                x = jnp.where(jax.random.bernoulli(own, 1 - rate, x.shape), x / (1 - rate), 0)

    def loss(p: Any, x: Any, y: Any, key: Any) -> Any:
        z = outputs(p, x, key)
        if shape["loss"] == "mse":
            return jnp.mean((z - y) ** 2)
        if shape["loss"] == "bce":
            return jnp.mean(_binary(jnp, z[:, 0], y))
        return _cross_entropy(jax, z, y)

    return loss


def _cnn(jax: Any, shape: dict[str, Any]) -> Callable[..., Any]:
    """Images and kernels have their channels last, which XLA's CPU code is faster with."""
    lax, last = jax.lax, len(shape["dense"]) - 2

    def loss(p: Any, x: Any, y: Any, key: Any) -> Any:
        for i, (_, _, _, padding, pooled) in enumerate(shape["conv"]):
            x = lax.conv_general_dilated(
                x, p[f"K{i}"], (1, 1), 2 * [(padding, padding)],
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )  # fmt: skip
            x = jax.nn.relu(x + p[f"kb{i}"])
            if pooled:
                rows, high, wide, channels = x.shape
                x = x.reshape(rows, high // 2, 2, wide // 2, 2, channels).max((2, 4))
        x = x.reshape(x.shape[0], -1)
        for i in range(last):
            x = jax.nn.relu(x @ p[f"W{i}"] + p[f"b{i}"])
        return _cross_entropy(jax, x @ p[f"W{last}"] + p[f"b{last}"], y)

    return loss


def _channels_last(spec: Any, weights: dict[str, Any], data: dict[str, Any]) -> None:
    """Images, kernels, and the rows of the first dense layer, which reads flattened images."""
    data["x"] = data["x"].transpose(0, 2, 3, 1)
    for i, _ in enumerate(spec.shape["conv"]):
        weights[f"K{i}"] = weights[f"K{i}"].transpose(2, 3, 1, 0)
    channels, (rows, columns) = spec.shape["conv"][-1][1], weights["W0"].shape
    side = round((rows // channels) ** 0.5)
    flat = weights["W0"].reshape(channels, side, side, columns).transpose(1, 2, 0, 3)
    weights["W0"] = flat.reshape(rows, columns)


def _lstm(jax: Any, shape: dict[str, Any]) -> Callable[..., Any]:
    jnp, nn = jax.numpy, jax.nn

    def loss(p: Any, xy: Any, key: Any) -> Any:
        x, y = xy[:, :-1], xy[:, 1:]
        inward = p["emb"][x.T] @ p["Wih"] + (p["bih"] + p["bhh"])

        def cell(carry: Any, gates: Any) -> Any:
            h, c = carry
            i, f, g, o = jnp.split(gates + h @ p["Whh"], 4, axis=1)
            c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
            h = nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        start = jnp.zeros((len(x), shape["hidden"]))
        _, states = jax.lax.scan(cell, (start, start), inward)
        return _cross_entropy(jax, states @ p["W0"] + p["b0"], y.T)

    return loss


def _gpt(jax: Any, shape: dict[str, Any]) -> Callable[..., Any]:
    """Dense layers read rows, not (batch, tokens, width): their gradients are faster so."""
    jnp, width, heads, length = jax.numpy, shape["d"], shape["heads"], shape["ctx"]
    seen = np.tri(length, dtype=bool)

    def norm(h: Any, scale: Any, shift: Any) -> Any:
        centred = h - h.mean(-1, keepdims=True)
        variance = (centred * centred).mean(-1, keepdims=True)
        return centred * jax.lax.rsqrt(variance + 1e-5) * scale + shift

    def loss(p: Any, xy: Any, key: Any) -> Any:
        x, y = xy[:, :-1], xy[:, 1:]
        h = (p["wte"][x] + p["wpe"]).reshape(-1, width)
        for i in range(shape["layers"]):
            a = norm(h, p[f"ln1g_{i}"], p[f"ln1b_{i}"]) @ p[f"Wqkv_{i}"] + p[f"bqkv_{i}"]
            a = a.reshape(len(x), length, 3, heads, width // heads)
            q, k, v = a.transpose(2, 0, 3, 1, 4)
            scores = q @ k.swapaxes(-1, -2) / np.sqrt(width // heads)
            a = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), -1) @ v
            a = a.transpose(0, 2, 1, 3).reshape(-1, width)
            h = h + a @ p[f"Wo_{i}"] + p[f"bo_{i}"]
            f = norm(h, p[f"ln2g_{i}"], p[f"ln2b_{i}"]) @ p[f"Wfc_{i}"] + p[f"bfc_{i}"]
            h = h + jax.nn.gelu(f, approximate=True) @ p[f"Wpr_{i}"] + p[f"bpr_{i}"]
        z = norm(h, p["lnfg"], p["lnfb"]) @ p["W0"]
        return _cross_entropy(jax, z, y.reshape(-1))

    return loss


def _vae(jax: Any, shape: dict[str, Any]) -> Callable[..., Any]:
    jnp = jax.numpy

    def loss(p: Any, x: Any, eps: Any, key: Any) -> Any:
        h = jax.nn.relu(x @ p["W0"] + p["b0"])
        mu, logvar = h @ p["W1"] + p["b1"], h @ p["W2"] + p["b2"]
        z = mu + eps * jnp.exp(0.5 * logvar)
        logits = jax.nn.relu(z @ p["W3"] + p["b3"]) @ p["W4"] + p["b4"]
        kl = -0.5 * jnp.sum(1 + logvar - mu * mu - jnp.exp(logvar))
        return (jnp.sum(_binary(jnp, logits, x)) + kl) / x.shape[0]

    return loss


_LOSSES = {"mlp": _mlp, "logreg": _mlp, "cnn": _cnn, "lstm": _lstm, "gpt": _gpt, "vae": _vae}


def _rule(optax: Any, o: dict[str, Any]) -> Any:
    if o["kind"] == "sgd":
        return optax.sgd(o["lr"], momentum=o["momentum"] or None)
    if o["kind"] == "adam":
        return optax.adam(o["lr"], b1=o["b1"], b2=o["b2"], eps=o["eps"])
    return optax.adamw(o["lr"], b1=o["b1"], b2=o["b2"], eps=o["eps"], weight_decay=o["wd"])


class JaxStep:
    """One step, or many in a scan, over donated state."""

    def __init__(self, spec: Any, threads: int, scan: bool) -> None:
        jax, optax = import_module("jax"), import_module("optax")
        jnp, lax = jax.numpy, jax.lax
        loss, weights, data = _LOSSES[spec.kind](jax, spec.shape), spec.params(), spec.data()
        if spec.kind == "cnn":
            _channels_last(spec, weights, data)
        rule, batch, nbatch = _rule(optax, spec.opt), spec.batch, spec.nbatch
        self.steps_per_call = spec.scan if scan else 1
        self.feeds = [jnp.array(a) for a in data.values()]
        params = {name: jnp.array(w) for name, w in weights.items()}
        key = jax.random.key(spec.seed) if spec.shape.get("dropout") else None
        self.state = params, rule.init(params), jnp.zeros((), jnp.int32), key
        self.last: Any = None

        def step(state: Any, feeds: Any) -> Any:
            p, memory, i, key = state
            own = None
            if key is not None:
                key, own = jax.random.split(key)
            first = lax.rem(i, nbatch) * batch
            rows = [lax.dynamic_slice_in_dim(a, first, batch) for a in feeds]
            value, grads = jax.value_and_grad(loss)(p, *rows, own)
            changes, memory = rule.update(grads, memory, p)
            return (optax.apply_updates(p, changes), memory, i + 1, key), value

        def many(state: Any, feeds: Any) -> Any:
            # inside a loop XLA's CPU code has only a naive convolution, so there it is unrolled
            unroll = spec.scan if spec.kind == "cnn" else 1
            body = lambda s, _: step(s, feeds)  # noqa: E731
            return lax.scan(body, state, None, length=spec.scan, unroll=unroll)

        self.call = jax.jit(many if scan else step, donate_argnums=0)

    def __call__(self, i: int) -> None:
        self.state, self.last = self.call(self.state, self.feeds)

    def losses(self) -> list[float]:
        """The losses of the last call's steps."""
        return [float(loss) for loss in np.atleast_1d(np.asarray(self.last))]

    def sync(self) -> None:
        """Wait for what was asked for."""
        self.last.block_until_ready()


def make_step(spec: Any, threads: int, **options: Any) -> JaxStep:
    """The workload, ready to run."""
    return JaxStep(spec, threads, **options)
