"""Optimizers in NumPy, each transcribed from its paper and PyTorch's documentation of it.

A rule takes a parameter, its gradient, what is remembered (a dict, changed in place), the count of
updates from 1, and the options of PyTorch's optimizer; it gives the next parameter.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray
Slots = dict[str, Any]


def decayed(w: Array, g: Array, o: dict[str, Any]) -> Array:
    return g + o.get("weight_decay", 0) * w


def sgd(w: Array, g: Array, s: Slots, t: int, o: dict[str, Any]) -> Array:
    g, momentum = decayed(w, g, o), o.get("momentum", 0)
    if momentum:
        s["b"] = g if t == 1 else momentum * s["b"] + (1 - o.get("dampening", 0)) * g
        g = g + momentum * s["b"] if o.get("nesterov") else s["b"]
    return w - o["lr"] * g


def adagrad(w: Array, g: Array, s: Slots, t: int, o: dict[str, Any]) -> Array:
    g = decayed(w, g, o)
    lr = o["lr"] / (1 + (t - 1) * o.get("lr_decay", 0))
    s["sum"] = s.get("sum", o.get("initial_accumulator_value", 0)) + g * g
    return w - lr * g / (np.sqrt(s["sum"]) + o.get("eps", 1e-10))


def adadelta(w: Array, g: Array, s: Slots, t: int, o: dict[str, Any]) -> Array:
    g, rho, eps = decayed(w, g, o), o.get("rho", 0.9), o.get("eps", 1e-6)
    s["v"] = s.get("v", 0) * rho + g * g * (1 - rho)
    d = np.sqrt(s.get("u", 0) + eps) / np.sqrt(s["v"] + eps) * g
    s["u"] = s.get("u", 0) * rho + d * d * (1 - rho)
    return w - o["lr"] * d


def rmsprop(w: Array, g: Array, s: Slots, t: int, o: dict[str, Any]) -> Array:
    g, alpha = decayed(w, g, o), o.get("alpha", 0.99)
    s["v"] = alpha * s.get("v", 0) + (1 - alpha) * g * g
    v = s["v"]
    if o.get("centered"):
        s["ave"] = s.get("ave", 0) * alpha + (1 - alpha) * g
        v = v - s["ave"] ** 2
    step = g / (np.sqrt(v) + o.get("eps", 1e-8))
    if o.get("momentum"):
        step = s["b"] = o["momentum"] * s.get("b", 0) + step
    return w - o["lr"] * step


def moments(g: Array, s: Slots, t: int, o: dict[str, Any]) -> tuple[Array, Array, float]:
    b1, b2 = o.get("betas", (0.9, 0.999))
    s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
    s["v"] = b2 * s.get("v", 0) + (1 - b2) * g * g
    return s["m"], np.sqrt(s["v"] / (1 - b2**t)) + o.get("eps", 1e-8), b1


def adam(w: Array, g: Array, s: Slots, t: int, o: dict[str, Any]) -> Array:
    m, spread, b1 = moments(decayed(w, g, o), s, t, o)
    return w - o["lr"] * m / (1 - b1**t) / spread


def adamw(w: Array, g: Array, s: Slots, t: int, o: dict[str, Any]) -> Array:
    w = w - o["lr"] * o.get("weight_decay", 0.01) * w
    m, spread, b1 = moments(g, s, t, o)
    return w - o["lr"] * m / (1 - b1**t) / spread


def nadam(w: Array, g: Array, s: Slots, t: int, o: dict[str, Any]) -> Array:
    if o.get("decoupled_weight_decay"):
        w = w * (1 - o["lr"] * o["weight_decay"])
    else:
        g = decayed(w, g, o)
    m, spread, b1 = moments(g, s, t, o)
    psi = o.get("momentum_decay", 0.004)
    now, then = (b1 * (1 - 0.5 * 0.96 ** (k * psi)) for k in (t, t + 1))
    s["product"] = s.get("product", 1) * now
    mean = (1 - now) / (1 - s["product"]) * g + then / (1 - s["product"] * then) * m
    return w - o["lr"] * mean / spread


def lion(w: Array, g: Array, s: Slots, t: int, o: dict[str, Any]) -> Array:
    b1, b2 = o.get("betas", (0.9, 0.99))
    m = s.get("m", np.zeros_like(w))
    s["m"] = b2 * m + (1 - b2) * g
    return w - o["lr"] * (np.sign(b1 * m + (1 - b1) * g) + o.get("weight_decay", 0) * w)


RULES = {
    "SGD": sgd,
    "Adagrad": adagrad,
    "Adadelta": adadelta,
    "RMSprop": rmsprop,
    "Adam": adam,
    "AdamW": adamw,
    "NAdam": nadam,
    "Lion": lion,
}
