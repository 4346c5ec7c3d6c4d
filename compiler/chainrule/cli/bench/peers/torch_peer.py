"""PyTorch as its users write it for speed: its own modules, fused optimizers, preloaded tensors.

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
_ALL = "fused optimizer, denormals flushed, convolutions channels last"
SETTINGS = {"torch": f"eager, {_ALL}", "torch-compile": f"forward and loss compiled, {_ALL}"}


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
    return None if spec.kind in _NETS else f"no spelling of {spec.kind!r}"


def _filled(torch: Any, module: Any, **arrays: Any) -> Any:
    """The module, with these numbers in its parameters."""
    with torch.no_grad():
        for name, array in arrays.items():
            getattr(module, name).copy_(torch.from_numpy(array))
    return module


def _linear(torch: Any, weights: dict[str, Any], name: int | str, bias: bool = True) -> Any:
    weight = weights[f"W{name}"]
    given = {"bias": weights[f"b{name}"]} if bias else {}
    return _filled(torch, torch.nn.Linear(*weight.shape, bias=bias), weight=weight.T, **given)


def _dense(torch: Any, spec: Any, sizes: Any) -> list[Any]:
    nn, layers = torch.nn, []
    for i, _ in enumerate(pairwise(sizes)):
        layers.append(_linear(torch, spec.params(), i))
        if i < len(sizes) - 2:
            layers.append(nn.Tanh() if spec.shape.get("act") == "tanh" else nn.ReLU())
            if spec.shape.get("dropout"):
                layers.append(nn.Dropout(spec.shape["dropout"]))
    return layers


def _mlp(torch: Any, spec: Any) -> tuple[Any, Callable[..., Any]]:
    f = torch.nn.functional
    net = torch.nn.Sequential(*_dense(torch, spec, spec.shape["sizes"]))
    if spec.shape["loss"] == "ce":
        return net, lambda x, y: f.cross_entropy(net(x), y)
    if spec.shape["loss"] == "mse":
        return net, lambda x, t: f.mse_loss(net(x), t)
    return net, lambda x, t: f.binary_cross_entropy_with_logits(net(x).squeeze(1), t)


def _cnn(torch: Any, spec: Any) -> tuple[Any, Callable[..., Any]]:
    nn, weights, layers = torch.nn, spec.params(), []
    for i, (inward, outward, size, padding, pooled) in enumerate(spec.shape["conv"]):
        made = nn.Conv2d(inward, outward, size, padding=padding)
        layers += [_filled(torch, made, weight=weights[f"K{i}"], bias=weights[f"kb{i}"]), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pooled else []
    net = nn.Sequential(*layers, nn.Flatten(), *_dense(torch, spec, spec.shape["dense"]))
    net = net.to(memory_format=torch.channels_last)
    return net, lambda x, y: nn.functional.cross_entropy(net(x), y)


def _lstm(torch: Any, spec: Any) -> tuple[Any, Callable[..., Any]]:
    nn, w, shape = torch.nn, spec.params(), spec.shape
    words = _filled(torch, nn.Embedding(shape["vocab"], shape["embed"]), weight=w["emb"])
    cells = nn.LSTM(shape["embed"], shape["hidden"], batch_first=True)
    both = {"weight_ih_l0": w["Wih"].T, "weight_hh_l0": w["Whh"].T}
    _filled(torch, cells, **both, bias_ih_l0=w["bih"], bias_hh_l0=w["bhh"])
    last = _linear(torch, w, 0)

    def loss(xy: Any) -> Any:
        z = last(cells(words(xy[:, :-1]))[0])
        return nn.functional.cross_entropy(z.flatten(0, 1), xy[:, 1:].flatten())

    return nn.ModuleList([words, cells, last]), loss


def _gpt(torch: Any, spec: Any) -> tuple[Any, Callable[..., Any]]:
    nn, f, w, shape = torch.nn, torch.nn.functional, spec.params(), spec.shape
    width, heads = shape["d"], shape["heads"]

    def norm(scale: str, shift: str) -> Any:
        return _filled(torch, nn.LayerNorm(width), weight=w[scale], bias=w[shift])

    def block(i: int) -> Any:
        names = [f"{name}_{i}" for name in ("qkv", "o", "fc", "pr")]
        norms = [norm(f"ln{k}g_{i}", f"ln{k}b_{i}") for k in (1, 2)]
        return nn.ModuleList([*norms, *(_linear(torch, w, name) for name in names)])

    words = _filled(torch, nn.Embedding(shape["vocab"], width), weight=w["wte"])
    places = _filled(torch, nn.Embedding(shape["ctx"], width), weight=w["wpe"])
    blocks = nn.ModuleList(block(i) for i in range(shape["layers"]))
    last, head = norm("lnfg", "lnfb"), _linear(torch, w, 0, bias=False)

    def loss(xy: Any) -> Any:
        x, (rows, length) = xy[:, :-1], (xy.shape[0], shape["ctx"])
        h = words(x) + places.weight
        for first, second, qkv, out, up, down in blocks:
            parts = qkv(first(h)).view(rows, length, 3, heads, width // heads).unbind(2)
            q, k, v = (p.transpose(1, 2) for p in parts)
            a = f.scaled_dot_product_attention(q, k, v, is_causal=True)
            h = h + out(a.transpose(1, 2).reshape(rows, length, width))
            h = h + down(f.gelu(up(second(h)), approximate="tanh"))
        return f.cross_entropy(head(last(h)).flatten(0, 1), xy[:, 1:].flatten())

    return nn.ModuleList([words, places, blocks, last, head]), loss


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


_NETS = {"mlp": _mlp, "logreg": _mlp, "cnn": _cnn, "lstm": _lstm, "gpt": _gpt, "vae": _vae}


class TorchStep:
    """A step over preloaded tensors."""

    steps_per_call = 1

    def __init__(self, spec: Any, threads: int, compiled: bool) -> None:
        torch = import_module("torch")
        torch.set_num_threads(threads)
        torch.set_flush_denormal(True)
        torch.manual_seed(spec.seed)
        arrays = {name: torch.from_numpy(a) for name, a in spec.data().items()}
        self.feeds = [a.long() if name in ("y", "xy") else a for name, a in arrays.items()]
        if spec.kind == "cnn":
            self.feeds[0] = self.feeds[0].contiguous(memory_format=torch.channels_last)
        self.batch, self.nbatch = spec.batch, spec.nbatch
        net, loss = _NETS[spec.kind](torch, spec)
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
