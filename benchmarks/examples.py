"""A training step of each example of docs/gallery.md, beside the same net in PyTorch eager.

    python benchmarks/examples.py [--blocks 5] [--seconds 0.3] [NAME...]

One thread each, float32, the same minibatch again and again; PyTorch with its fused Adam. Blocks of
the two alternate; medians. Where nothing is drawn at random, PyTorch is given our parameters, and
its first loss must be ours. Needs torch and scikit-learn.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

import chainrule as cr

EXAMPLES = Path(__file__).parents[1] / "examples"
TOLERANCE = 1e-4  # of the first loss: a few hundred float32 sums in another order
Array = np.ndarray[Any, Any]


class Pair(NamedTuple):
    """The two programs: ours with its minibatch, a loss in PyTorch with its parameters."""

    batch: int
    step: cr.TrainingStep
    feeds: dict[str, Array]
    loss: Callable[[], torch.Tensor]
    optimizer: torch.optim.Optimizer
    exact: bool = True


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tensors(feeds: dict[str, Array]) -> list[torch.Tensor]:
    return [
        torch.tensor(a.astype("int64" if a.dtype.kind == "i" else "float32"))
        for a in feeds.values()
    ]


def given(step: cr.TrainingStep, *modules: nn.Module) -> list[nn.Parameter]:
    """The parameters of modules, in order, set to ours: matrices are (in, out) here."""
    theirs = [p for module in modules for p in module.parameters()]
    with torch.no_grad():
        for p, ours in zip(theirs, step.parameters.values(), strict=True):
            p.copy_(torch.tensor(ours.T if ours.ndim == 2 else ours).reshape(p.shape))
    return theirs


def dense(
    *sizes: int, between: Callable[[], nn.Module] = nn.ReLU, drop: float = 0
) -> nn.Sequential:
    parts: list[nn.Module] = []
    for n, m in pairwise(sizes):
        parts += [nn.Linear(n, m), between(), *([nn.Dropout(drop)] if drop else [])]
    return nn.Sequential(*parts[: -2 if drop else -1])


def perceptron() -> Pair:
    example = load("perceptron")
    feeds = {"xs": random(20, 2), "ts": (random(20) > 0).astype("float32")}
    step = cr.training_step(example.loss, cr.optim.SGD(0.5), threads=1)
    x, y = tensors(feeds)
    net = nn.Linear(2, 1)
    found = given(step, net)
    loss = lambda: nn.functional.binary_cross_entropy_with_logits(net(x)[:, 0], y)  # noqa: E731
    return Pair(20, step, feeds, loss, torch.optim.SGD(found, 0.5))


def descent() -> Pair:
    example = load("descent")
    feeds = {"x": example.X.astype("float32"), "y": example.Y.astype("float32")}
    step = cr.training_step(example.loss, cr.optim.SGD(0.1), threads=1)
    x, y = tensors(feeds)
    w = nn.Parameter(torch.tensor(step.parameters["w"]))
    return Pair(
        len(y), step, feeds, lambda: nn.functional.mse_loss(x @ w, y), torch.optim.SGD([w], 0.1)
    )


def overfitting() -> Pair:
    example = load("overfitting")
    feeds = {"x": random(32, 64), "y": labels(32)}
    model = cr.Model(example.net(0.5), "cross_entropy", cr.optim.Adam(1e-3), threads=1)
    step = model.build(feeds["x"], feeds["y"]).step
    x, y = tensors(feeds)
    net = dense(64, 128, 128, 10, drop=0.5)
    found = given(step, net)
    adam = torch.optim.Adam(found, 1e-3, fused=True)
    return Pair(32, step, feeds, lambda: nn.functional.cross_entropy(net(x), y), adam, exact=False)


def cnn() -> Pair:
    example = load("cnn")
    feeds = {"x": random(64, 1, 8, 8), "y": labels(64)}
    rate = cr.schedules.cosine(4e-3, steps=10_000)
    adam = cr.optim.AdamW(rate, weight_decay=0.01)
    model = cr.Model(example.net(), "cross_entropy", adam, threads=1)
    step = model.build(feeds["x"], feeds["y"]).step
    x, y = tensors(feeds)

    def block(n: int, m: int) -> list[nn.Module]:
        return [nn.Conv2d(n, m, 3, padding=1), nn.BatchNorm2d(m), nn.ReLU()]

    net = nn.Sequential(
        *block(1, 32), *block(32, 32), nn.MaxPool2d(2), *block(32, 64), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.4), nn.Linear(256, 10),
    )  # fmt: skip
    theirs = torch.optim.AdamW(net.parameters(), 4e-3, weight_decay=0.01, fused=True)
    loss = lambda: nn.functional.cross_entropy(net(x), y)  # noqa: E731
    return Pair(64, step, feeds, loss, theirs, exact=False)


def uncertainty() -> Pair:
    example = load("uncertainty")
    feeds = {"x": random(32, 10), "y": random(32, 1)}
    step = cr.training_step(example.loss, cr.optim.AdamW(3e-3, weight_decay=0.1), threads=1)
    x, y = tensors(feeds)
    body, mean, spread = nn.Linear(10, 32), nn.Linear(32, 1), nn.Linear(32, 1)
    found = given(step, body, mean, spread)

    def loss() -> torch.Tensor:
        h = torch.tanh(body(x))
        s = spread(h)
        return ((y - mean(h)).square() * torch.exp(-s) + s).mean() / 2

    return Pair(32, step, feeds, loss, torch.optim.AdamW(found, 3e-3, weight_decay=0.1, fused=True))


def vae() -> Pair:
    example = load("vae")
    feeds = {"x": np.abs(random(64, 64)).clip(0, 1)}
    metrics = {"drawn": example.drawn, "far": example.far}
    step = cr.training_step(example.loss, cr.optim.Adam(2e-3), metrics=metrics, threads=1)
    (x,) = tensors(feeds)
    body, mean, spread = nn.Linear(64, 256), nn.Linear(256, 8), nn.Linear(256, 8)
    decoder = dense(8, 256, 64)
    found = [p for part in (body, mean, spread, decoder) for p in part.parameters()]

    def loss() -> torch.Tensor:
        h = torch.relu(body(x))
        m, s = mean(h), spread(h)
        pixels = decoder(m + torch.exp(s / 2) * torch.randn_like(m))
        drawn = nn.functional.binary_cross_entropy_with_logits(pixels, x, reduction="sum")
        return (drawn + (m.square() + s.exp() - s - 1).sum() / 2) / len(x)

    return Pair(64, step, feeds, loss, torch.optim.Adam(found, 2e-3, fused=True), exact=False)


def reinforce() -> Pair:
    example = load("reinforce")
    rows = 1000
    right = (random(rows, 1) > 0).astype("float32")
    feeds = {"x": random(rows, 4), "a": right, "r": random(rows, 1)}
    step = cr.training_step(example.loss, cr.optim.Adam(1e-2), threads=1)
    x, a, r = tensors(feeds)
    net = dense(4, 32, 1, between=nn.Tanh)
    found = given(step, net)
    cross = nn.functional.binary_cross_entropy_with_logits
    adam = torch.optim.Adam(found, 1e-2, fused=True)
    return Pair(rows, step, feeds, lambda: (r * cross(net(x), a, reduction="none")).mean(), adam)


def adversarial() -> Pair:
    example = load("adversarial")
    feeds = {"x": np.abs(random(64, 64)).clip(0, 1), "y": labels(64), "ε": np.float32(0.15)}
    step = cr.training_step(example.robust, cr.optim.Adam(3e-3), threads=1)
    x, y, e = tensors(feeds)
    x.requires_grad_()
    net = dense(64, 128, 64, 10)
    found = given(step, net)

    def loss() -> torch.Tensor:
        plain = nn.functional.cross_entropy(net(x), y)
        (dx,) = torch.autograd.grad(plain, x, retain_graph=True)
        attacked = (x.detach() + e * dx.sign()).clamp(0, 1)
        return (plain + nn.functional.cross_entropy(net(attacked), y)) / 2

    return Pair(64, step, feeds, loss, torch.optim.Adam(found, 3e-3, fused=True))


PAIRS = (perceptron, descent, overfitting, cnn, uncertainty, vae, reinforce, adversarial)
RANDOM = np.random.default_rng(0)


def random(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype("float32")


def labels(count: int) -> Array:
    return RANDOM.integers(0, 10, count).astype("int32")


def microseconds(step: Callable[[], object], seconds: float) -> float:
    """A step, on average over so many seconds."""
    begun, steps = time.perf_counter(), 0
    while (took := time.perf_counter() - begun) < seconds or not steps:
        step()
        steps += 1
    return took / steps * 1e6


def timed(pair: Pair, blocks: int, seconds: float) -> tuple[float, float]:
    """Medians of the two in microseconds. The first losses must agree where they can."""

    def theirs() -> float:
        pair.optimizer.zero_grad()
        loss = pair.loss()
        loss.backward()
        pair.optimizer.step()
        return loss.item()

    first = pair.step(**pair.feeds), theirs()
    assert not pair.exact or abs(first[0] - first[1]) < TOLERANCE * max(1, abs(first[0])), first
    found: list[list[float]] = [[], []]
    for _ in range(blocks):
        for times, step in zip(found, (lambda: pair.step(**pair.feeds), theirs), strict=True):
            times.append(microseconds(step, seconds))
    return statistics.median(found[0]), statistics.median(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="which examples; all if none is given")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="of a block")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print("| example | batch | µs here | µs PyTorch eager | times as fast |")
    print("|---|---|---|---|---|")
    for make in PAIRS:
        if not asked.names or make.__name__ in asked.names:
            pair = make()
            ours, theirs = timed(pair, asked.blocks, asked.seconds)
            name, ratio = make.__name__, theirs / ours
            print(f"| {name} | {pair.batch} | {ours:,.1f} | {theirs:,.1f} | {ratio:.1f} |")


if __name__ == "__main__":
    main()
