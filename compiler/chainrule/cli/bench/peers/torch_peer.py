"""PyTorch as its users write it for speed: fused optimizers, denormals flushed, preloaded tensors.

torch          eager
torch-compile  torch.compile of the forward pass and the loss, so of the backward pass too
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from itertools import pairwise
from typing import Any

VARIANTS = {"torch": {"compiled": False}, "torch-compile": {"compiled": True}}
NEEDS = ("torch",)
SLOW = ("torch-compile",)


def env(threads: int, cache: str) -> dict[str, str]:
    """What the worker runs in."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TORCHINDUCTOR_COMPILE_THREADS": str(threads),
        "TORCHINDUCTOR_CACHE_DIR": cache,
    }


def supports(spec: Any, threads: int, **_: Any) -> str | None:
    """Why a workload can't be run, or None."""
    return None if spec.kind in ("mlp", "logreg", "vae") else f"no spelling of {spec.kind!r}"


def _linear(torch: Any, weights: dict[str, Any], i: int) -> Any:
    made = torch.nn.Linear(*weights[f"W{i}"].shape)
    with torch.no_grad():
        made.weight.copy_(torch.from_numpy(weights[f"W{i}"]).t())
        made.bias.copy_(torch.from_numpy(weights[f"b{i}"]))
    return made


def _mlp(torch: Any, spec: Any) -> tuple[Any, Callable[..., Any]]:
    shape, weights, layers = spec.shape, spec.params(), []
    for i, _ in enumerate(pairwise(shape["sizes"])):
        layers.append(_linear(torch, weights, i))
        if i < len(shape["sizes"]) - 2:
            layers.append(torch.nn.ReLU() if shape["act"] == "relu" else torch.nn.Tanh())
            if shape.get("dropout"):
                layers.append(torch.nn.Dropout(shape["dropout"]))
    net, f = torch.nn.Sequential(*layers), torch.nn.functional
    if shape["loss"] == "ce":
        return net, lambda x, y: f.cross_entropy(net(x), y)
    if shape["loss"] == "mse":
        return net, lambda x, t: f.mse_loss(net(x), t)
    return net, lambda x, t: f.binary_cross_entropy_with_logits(net(x).squeeze(1), t)


def _vae(torch: Any, spec: Any) -> tuple[Any, Callable[..., Any]]:
    weights, f = spec.params(), torch.nn.functional
    net = torch.nn.ModuleList(_linear(torch, weights, i) for i in range(5))
    fc1, mean, spread, fc3, fc4 = net

    def loss(x: Any, eps: Any) -> Any:
        h = f.relu(fc1(x))
        mu, logvar = mean(h), spread(h)
        logits = fc4(f.relu(fc3(mu + eps * torch.exp(0.5 * logvar))))
        bce = f.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        kl = -0.5 * torch.sum(1 + logvar - mu * mu - torch.exp(logvar))
        return (bce + kl) / x.shape[0]

    return net, loss


class TorchStep:
    """A step over preloaded tensors."""

    steps_per_call = 1

    def __init__(self, spec: Any, threads: int, compiled: bool) -> None:
        torch = import_module("torch")
        torch.set_num_threads(threads)
        torch.set_flush_denormal(True)
        torch.manual_seed(spec.seed)
        arrays = {name: torch.from_numpy(a) for name, a in spec.data().items()}
        self.feeds = [a.long() if name == "y" else a for name, a in arrays.items()]
        self.batch, self.nbatch = spec.batch, spec.nbatch
        net, loss = (_vae if spec.kind == "vae" else _mlp)(torch, spec)
        self.forward = torch.compile(loss) if compiled else loss
        o = spec.opt
        if o["kind"] == "sgd":
            self.optimizer = torch.optim.SGD(
                net.parameters(), lr=o["lr"], momentum=o["momentum"], fused=True
            )
        else:
            decay = {"weight_decay": o["wd"]} if o["kind"] == "adamw" else {}
            rule = torch.optim.AdamW if decay else torch.optim.Adam
            self.optimizer = rule(
                net.parameters(), lr=o["lr"], betas=(o["b1"], o["b2"]), eps=o["eps"],
                fused=True, **decay,
            )  # fmt: skip
        self.last: Any = None

    def __call__(self, i: int) -> None:
        first = i % self.nbatch * self.batch
        self.optimizer.zero_grad(set_to_none=True)
        self.last = self.forward(*[a[first : first + self.batch] for a in self.feeds])
        self.last.backward()
        self.optimizer.step()

    def losses(self) -> list[float]:
        """The last step's loss."""
        return [self.last.item()]

    def sync(self) -> None:
        """Nothing is left to do when a call returns."""


def make_step(spec: Any, threads: int, **options: Any) -> TorchStep:
    """The workload, ready to run."""
    return TorchStep(spec, threads, **options)
