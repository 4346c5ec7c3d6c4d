"""NumPy by hand: every array made once, every operation in place, all parameters in one block."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

VARIANTS: dict[str, dict[str, Any]] = {"numpy": {}}
NEEDS = ("numpy",)
SLOW = ()
SETTINGS = {"numpy": "by hand, in place, products by its BLAS"}


def env(threads: int, cache: str) -> dict[str, str]:
    """What the worker runs in."""
    return {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}


def supports(spec: Any, threads: int) -> str | None:
    """Why a workload can't be run, or None."""
    if spec.kind not in ("mlp", "logreg") or spec.shape.get("dropout"):
        return "written for dense nets"
    return None


def _cross_entropy(z: Any, y: Any, d: Any) -> float:
    rows = np.arange(len(y))
    z -= z.max(axis=1, keepdims=True)
    np.exp(z, out=d)
    total = d.sum(axis=1, keepdims=True)
    loss = float(np.mean(np.log(total[:, 0]) - z[rows, y]))
    d /= total
    d[rows, y] -= 1
    d /= len(y)
    return loss


def _mean_square(z: Any, t: Any, d: Any) -> float:
    np.subtract(z, t, out=d)
    loss = float(np.mean(d * d))
    d *= 2 / d.size
    return loss


def _binary(z: Any, t: Any, d: Any) -> float:
    t = t[:, None]
    small = np.exp(-np.abs(z))
    loss = float(np.mean(np.maximum(z, 0) - z * t + np.log1p(small)))
    np.divide(np.where(z > 0, 1, small), 1 + small, out=d)
    d -= t
    d /= len(t)
    return loss


_LOSSES: dict[str, Callable[[Any, Any, Any], float]] = {
    "ce": _cross_entropy, "mse": _mean_square, "bce": _binary,
}  # fmt: skip


class NumPyStep:
    """A step over arrays that exist."""

    steps_per_call = 1

    def __init__(self, spec: Any, threads: int) -> None:
        weights, self.spec, self.last, self.time = spec.params(), spec, math.nan, 0
        self.rows, self.answers = spec.data().values()
        self.flat = np.concatenate([w.ravel() for w in weights.values()])
        self.slopes, self.m, self.v, self.scratch = (np.zeros_like(self.flat) for _ in range(4))
        ends = np.cumsum([w.size for w in weights.values()])[:-1]
        shapes = [w.shape for w in weights.values()]
        views = [
            [part.reshape(s) for part, s in zip(np.split(a, ends), shapes, strict=True)]
            for a in (self.flat, self.slopes)
        ]
        self.layers = [
            (views[0][i], views[0][i + 1], views[1][i], views[1][i + 1])
            for i in range(0, len(shapes), 2)
        ]
        widths = [m for _, m in pairwise(spec.shape["sizes"])]
        self.h, self.d = ([np.empty((spec.batch, m), np.float32) for m in widths] for _ in "hd")

    def __call__(self, i: int) -> None:
        spec, last = self.spec, len(self.layers) - 1
        rows = slice(i % spec.nbatch * spec.batch, i % spec.nbatch * spec.batch + spec.batch)
        relu, x = spec.shape.get("act") == "relu", self.rows[rows]
        for k, (w, b, _, _) in enumerate(self.layers):
            h = self.h[k]
            np.matmul(self.h[k - 1] if k else x, w, out=h)
            h += b
            if k < last:
                np.maximum(h, 0, out=h) if relu else np.tanh(h, out=h)
        self.last = _LOSSES[spec.shape["loss"]](self.h[last], self.answers[rows], self.d[last])
        for k in reversed(range(last + 1)):
            w, _, dw, db = self.layers[k]
            d, below = self.d[k], self.h[k - 1] if k else x
            np.matmul(below.T, d, out=dw)
            d.sum(axis=0, out=db)
            if k:
                np.matmul(d, w.T, out=self.d[k - 1])
                self.d[k - 1] *= below > 0 if relu else 1 - below * below
        self._update(**spec.opt)

    def _update(
        self, kind: str, lr: float, momentum: float = 0.0, b1: float = 0.0, b2: float = 0.0,
        eps: float = 0.0, wd: float = 0.0,
    ) -> None:  # fmt: skip
        g, m, v, s, self.time = self.slopes, self.m, self.v, self.scratch, self.time + 1
        if kind == "sgd":
            if momentum:
                m *= momentum
                m += g
            np.multiply(m if momentum else g, lr, out=s)
            self.flat -= s
            return
        if wd:
            self.flat *= 1 - lr * wd
        m *= b1
        np.multiply(g, 1 - b1, out=s)
        m += s
        v *= b2
        np.multiply(g, g, out=s)
        s *= 1 - b2
        v += s
        np.sqrt(v, out=s)
        s *= 1 / math.sqrt(1 - b2**self.time)
        s += eps
        np.divide(m, s, out=s)
        s *= lr / (1 - b1**self.time)
        self.flat -= s

    def losses(self) -> list[float]:
        """The last step's loss."""
        return [self.last]

    def sync(self) -> None:
        """Nothing is left to do when a call returns."""


def make_step(spec: Any, threads: int) -> NumPyStep:
    """The workload, ready to run."""
    return NumPyStep(spec, threads)
