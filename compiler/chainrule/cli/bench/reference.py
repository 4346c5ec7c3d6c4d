"""The first losses of a workload in float64, by NumPy and derivatives written out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from chainrule.cli.bench.workloads import Workload

Array = NDArray[np.float64]
Arrays = dict[str, Array]


def losses(work: Workload, count: int) -> list[float] | None:
    """The losses of the first `count` steps; None where they depend on random draws."""
    if work.draws:
        return None
    weights = {name: w.astype(np.float64) for name, w in work.params().items()}
    data = {n: a if n == "y" else a.astype(np.float64) for n, a in work.data().items()}
    slope = _vae if work.kind == "vae" else _mlp
    update, found = _Update(work.opt), []
    for i in range(count):
        first = i % work.nbatch * work.batch
        loss, grads = slope(work, weights, {n: a[first:][: work.batch] for n, a in data.items()})
        found.append(loss)
        update(weights, grads)
    return found


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


def _sigmoid(z: Array) -> Array:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * z)))


def _binary(z: Array, t: Array) -> Array:
    """Binary cross-entropy of logits, element by element."""
    return np.asarray(np.maximum(z, 0) - z * t + np.log1p(np.exp(-np.abs(z))))


def _mlp(work: Workload, w: Arrays, given: dict[str, Any]) -> tuple[float, Arrays]:
    depth = len(w) // 2
    relu = work.shape.get("act") == "relu"
    hs = [given["x"]]
    for i in range(depth):
        z = hs[-1] @ w[f"W{i}"] + w[f"b{i}"]
        last = i == depth - 1
        hs.append(z if last else np.maximum(z, 0) if relu else np.tanh(z))
    loss, d = _loss(work.shape["loss"], hs[-1], given)
    grads: Arrays = {}
    for i in reversed(range(depth)):
        grads[f"W{i}"], grads[f"b{i}"] = hs[i].T @ d, d.sum(0)
        d = d @ w[f"W{i}"].T * ((hs[i] > 0) if relu else 1 - hs[i] ** 2)
    return loss, grads


def _loss(kind: str, z: Array, given: dict[str, Any]) -> tuple[float, Array]:
    """A loss of outputs, and its derivative by them."""
    rows = len(z)
    if kind == "mse":
        difference = z - given["t"]
        return float((difference**2).mean()), 2 * difference / z.size
    if kind == "bce":
        t = given["t"][:, None]
        return float(_binary(z, t).mean()), (_sigmoid(z) - t) / rows
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    at = np.arange(rows), given["y"]
    loss = -float(np.log(p[at]).mean())
    p[at] -= 1
    return loss, p / rows


def _vae(work: Workload, w: Arrays, given: dict[str, Any]) -> tuple[float, Arrays]:
    """Reconstruction and divergence (Kingma and Welling, 2014, appendix B), means over rows."""
    x, eps = given["x"], given["eps"]
    rows = len(x)
    h = np.maximum(x @ w["W0"] + w["b0"], 0)
    mu, logvar = h @ w["W1"] + w["b1"], h @ w["W2"] + w["b2"]
    deviation = np.exp(0.5 * logvar)
    z = mu + eps * deviation
    g = np.maximum(z @ w["W3"] + w["b3"], 0)
    o = g @ w["W4"] + w["b4"]
    divergence = -0.5 * (1 + logvar - mu**2 - np.exp(logvar)).sum()
    loss = float((_binary(o, x).sum() + divergence) / rows)
    do = (_sigmoid(o) - x) / rows
    dg = do @ w["W4"].T * (g > 0)
    dz = dg @ w["W3"].T
    dmu = dz + mu / rows
    dlogvar = dz * eps * 0.5 * deviation + 0.5 * (np.exp(logvar) - 1) / rows
    dh = (dmu @ w["W1"].T + dlogvar @ w["W2"].T) * (h > 0)
    pairs = [(x, dh), (h, dmu), (h, dlogvar), (z, dg), (g, do)]
    grads: Arrays = {}
    for i, (inward, outward) in enumerate(pairs):
        grads[f"W{i}"], grads[f"b{i}"] = inward.T @ outward, outward.sum(0)
    return loss, grads
