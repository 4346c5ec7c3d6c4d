"""tinygrad: a step under TinyJit, on its CPU device (which needs clang or LLVM to be there)."""

from __future__ import annotations

from importlib import import_module
from typing import Any

VARIANTS: dict[str, dict[str, Any]] = {"tinygrad": {}}
NEEDS = ("tinygrad",)
SLOW = ("tinygrad",)


def env(threads: int, cache: str) -> dict[str, str]:
    """What the worker runs in."""
    return {"DEV": "CPU", "CPU": "1", "CACHEDB": f"{cache}/cache.db", "CPU_COUNT": str(threads)}


def supports(spec: Any, threads: int) -> str | None:
    """Why a workload can't be run, or None."""
    if spec.kind not in ("mlp", "logreg"):
        return f"no spelling of {spec.kind!r}"
    return "its kernels take minutes to compile" if len(spec.shape["sizes"]) > 20 else None


class TinyStep:
    """A jitted step over preloaded tensors."""

    steps_per_call = 1

    def __init__(self, spec: Any, threads: int) -> None:
        tiny = import_module("tinygrad")
        optimizers = import_module("tinygrad.nn.optim")
        tensor = tiny.Tensor
        weights = {name: tensor(w, requires_grad=True) for name, w in spec.params().items()}
        o, shape = spec.opt, spec.shape
        if o["kind"] == "sgd":
            rule = optimizers.SGD(list(weights.values()), lr=o["lr"], momentum=o["momentum"])
        else:
            same = {"lr": o["lr"], "b1": o["b1"], "b2": o["b2"], "eps": o["eps"]}
            decay = {"weight_decay": o["wd"]} if "wd" in o else {}
            make = optimizers.AdamW if decay else optimizers.Adam
            rule = make(list(weights.values()), **same, **decay)
        count = len(shape["sizes"]) - 1

        def step(x: Any, y: Any) -> Any:
            rule.zero_grad()
            for i in range(count):
                x = x.dot(weights[f"W{i}"]) + weights[f"b{i}"]
                if i < count - 1:
                    x = x.relu() if shape["act"] == "relu" else x.tanh()
                    x = x.dropout(shape["dropout"]) if shape.get("dropout") else x
            if shape["loss"] == "ce":
                loss = x.sparse_categorical_crossentropy(y)
            elif shape["loss"] == "mse":
                loss = ((x - y) ** 2).mean()
            else:
                loss = x.squeeze(1).binary_crossentropy_logits(y)
            loss.backward()
            return loss.realize(*rule.schedule_step())

        self.call, self.training = tiny.TinyJit(step), tensor.train
        self.rows = [
            [tensor(a[k * spec.batch :][: spec.batch]).realize() for a in spec.data().values()]
            for k in range(spec.nbatch)
        ]
        self.last: Any = None

    def __call__(self, i: int) -> None:
        with self.training():
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
