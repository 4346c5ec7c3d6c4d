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


def env(threads: int, cache: str) -> dict[str, str]:
    """What the worker runs in."""
    one = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    return {
        "JAX_PLATFORMS": "cpu",
        "OMP_NUM_THREADS": str(threads),
        "XLA_FLAGS": one if threads == 1 else "",
    }


def supports(spec: Any, threads: int, **_: Any) -> str | None:
    """Why a workload can't be run, or None."""
    return None if spec.kind in ("mlp", "logreg", "vae") else f"no spelling of {spec.kind!r}"


def _binary(jnp: Any, z: Any, t: Any) -> Any:
    return jnp.maximum(z, 0) - z * t + jnp.log1p(jnp.exp(-jnp.abs(z)))


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
        chosen = jnp.take_along_axis(z, y[:, None], 1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(z, axis=1) - chosen)

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
        loss = (_vae if spec.kind == "vae" else _mlp)(jax, spec.shape)
        rule, batch, nbatch = _rule(optax, spec.opt), spec.batch, spec.nbatch
        self.steps_per_call = spec.scan if scan else 1
        self.feeds = [jnp.array(a) for a in spec.data().values()]
        params = {name: jnp.array(w) for name, w in spec.params().items()}
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
            return lax.scan(lambda s, _: step(s, feeds), state, None, length=spec.scan)

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
