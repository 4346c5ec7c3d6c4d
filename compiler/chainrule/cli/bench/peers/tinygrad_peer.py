"""tinygrad: a step under TinyJit, on its CPU device, which compiles with clang.

Where a value would be computed again inside the products that read it, `kept` makes tinygrad keep
it and its slope; without that, attention and the VAE are several times slower.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib import import_module
from typing import Any

VARIANTS: dict[str, dict[str, Any]] = {"tinygrad": {}}
NEEDS = ("tinygrad",)
SLOW = ("tinygrad",)
SETTINGS = {"tinygrad": "whole step under TinyJit, CPU device by clang, minibatches preloaded"}
#: in the order of preference; Debian's packages have a number in their names
_COMPILERS = ("clang", *(f"clang-{n}" for n in range(21, 13, -1)))


def _compiler() -> str | None:
    return next((name for name in _COMPILERS if shutil.which(name)), None)


def env(threads: int, cache: str) -> dict[str, str]:
    """What the worker runs in."""
    own = {"DEV": "CPU", "CPU": "1", "CACHEDB": f"{cache}/cache.db", "PARALLEL": "0"}
    return {
        **own,
        "CPU_COUNT": str(threads),
        "NUM_CPU_THREADS": str(threads),
        "CC": _compiler() or "clang",
    }


def supports(spec: Any, threads: int) -> str | None:
    """Why a workload can't be run, or None."""
    if _compiler() is None:
        return "there is no clang, which its CPU device compiles with"
    if spec.kind == "lstm" or len(spec.shape.get("sizes", ())) > 20:
        return "unrolled, its kernels take minutes to compile"
    return None if spec.kind in _LOSSES else f"no spelling of {spec.kind!r}"


def kept(value: Any) -> Any:
    """A value that lies in memory, and whose slope does."""
    return value.contiguous().contiguous_backward()


def _mlp(w: dict[str, Any], shape: dict[str, Any]) -> Callable[..., Any]:
    last = len(shape["sizes"]) - 2

    def loss(x: Any, y: Any) -> Any:
        for i in range(last + 1):
            x = x.linear(w[f"W{i}"], w[f"b{i}"])
            if i < last:
                x = x.relu() if shape["act"] == "relu" else x.tanh()
                x = x.dropout(shape["dropout"]) if shape.get("dropout") else x
        if shape["loss"] == "ce":
            return x.sparse_categorical_crossentropy(y)
        if shape["loss"] == "mse":
            return ((x - y) ** 2).mean()
        return x.squeeze(1).binary_crossentropy_logits(y)

    return loss


def _cnn(w: dict[str, Any], shape: dict[str, Any]) -> Callable[..., Any]:
    last = len(shape["dense"]) - 2

    def loss(x: Any, y: Any) -> Any:
        for i, (*_, padding, pooled) in enumerate(shape["conv"]):
            x = x.conv2d(w[f"K{i}"], w[f"kb{i}"], padding=padding).relu()
            x = x.max_pool2d(2) if pooled else x
        x = x.flatten(1)
        for i in range(last):
            x = x.linear(w[f"W{i}"], w[f"b{i}"]).relu()
        return x.linear(w[f"W{last}"], w[f"b{last}"]).sparse_categorical_crossentropy(y)

    return loss


def _vae(w: dict[str, Any], shape: dict[str, Any]) -> Callable[..., Any]:
    def loss(x: Any, eps: Any) -> Any:
        h = x.linear(w["W0"], w["b0"]).relu()
        mu, logvar = h.linear(w["W1"], w["b1"]), h.linear(w["W2"], w["b2"])
        z = mu + eps * (0.5 * logvar).exp()
        z = kept(z.linear(w["W3"], w["b3"]).relu().linear(w["W4"], w["b4"]))
        error = z.relu() - z * x + (1 + (-z.abs()).exp()).log()
        divergence = -0.5 * (1 + logvar - mu * mu - logvar.exp()).sum()
        return (error.sum() + divergence) / x.shape[0]

    return loss


def _gpt(w: dict[str, Any], shape: dict[str, Any]) -> Callable[..., Any]:
    width, heads, length = shape["d"], shape["heads"], shape["ctx"]

    def norm(h: Any, k: str, i: str) -> Any:
        return kept(kept(h.layernorm(eps=1e-5)) * w[f"ln{k}g{i}"] + w[f"ln{k}b{i}"])

    def loss(xy: Any) -> Any:
        x, y = xy[:, :-1], xy[:, 1:]
        tensor, rows = type(xy), x.shape[0]
        hidden = tensor.full((length, length), float("-inf")).triu(1)
        h = kept(w["wte"][x] + w["wpe"])
        for i in range(shape["layers"]):
            a = kept(norm(h, "1", f"_{i}").linear(w[f"Wqkv_{i}"], w[f"bqkv_{i}"]))
            parts = a.reshape(rows, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
            q, k, v = (kept(part) for part in parts)
            scores = q @ k.transpose(-2, -1) * (width // heads) ** -0.5 + hidden
            a = kept(
                (kept(kept(scores).softmax()) @ v).transpose(1, 2).reshape(rows, length, width)
            )
            h = kept(h + a.linear(w[f"Wo_{i}"], w[f"bo_{i}"]))
            f = kept(norm(h, "2", f"_{i}").linear(w[f"Wfc_{i}"], w[f"bfc_{i}"]))
            h = kept(h + kept(f.gelu()).linear(w[f"Wpr_{i}"], w[f"bpr_{i}"]))
        return kept(norm(h, "f", "") @ w["W0"]).sparse_categorical_crossentropy(y)

    return loss


_LOSSES = {"mlp": _mlp, "logreg": _mlp, "cnn": _cnn, "gpt": _gpt, "vae": _vae}


class TinyStep:
    """A jitted step over preloaded tensors."""

    steps_per_call = 1

    def __init__(self, spec: Any, threads: int) -> None:
        tiny = import_module("tinygrad")
        optimizers = import_module("tinygrad.nn.optim")
        tensor, o = tiny.Tensor, spec.opt
        weights = {name: tensor(w).contiguous().realize() for name, w in spec.params().items()}
        if o["kind"] == "sgd":
            rule = optimizers.SGD(list(weights.values()), lr=o["lr"], momentum=o["momentum"])
        else:
            same = {"lr": o["lr"], "b1": o["b1"], "b2": o["b2"], "eps": o["eps"]}
            decay = {"weight_decay": o["wd"]} if "wd" in o else {}
            make = optimizers.AdamW if decay else optimizers.Adam
            rule = make(list(weights.values()), **same, **decay)
        loss_of = _LOSSES[spec.kind](weights, spec.shape)

        def step(*rows: Any) -> Any:
            with tiny.Context(TRAINING=1):
                rule.zero_grad()
                loss = loss_of(*rows).backward()
                return loss.realize(*rule.schedule_step())

        self.call = tiny.TinyJit(step)
        self.rows = [
            [tensor(a[k * spec.batch :][: spec.batch]).realize() for a in spec.data().values()]
            for k in range(spec.nbatch)
        ]
        self.last: Any = None

    def __call__(self, i: int) -> None:
        self.last = self.call(*self.rows[i % len(self.rows)])

    def losses(self) -> list[float]:
        """The last step's loss."""
        return [float(self.last.item())]

    def sync(self) -> None:
        """Wait for what was asked for."""
        self.last.item()


def make_step(spec: Any, threads: int) -> TinyStep:
    """The workload, ready to run."""
    return TinyStep(spec, threads)
