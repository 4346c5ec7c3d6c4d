"""Loss curves and time of a step in each precision: an MLP, a convolutional net, an LSTM, a GPT.

python benchmarks/precision.py [--steps 400] [--nets mlp,cnn,lstm,gpt] [--wide]

All learn from the handwritten digits that travel with the package, from the same initial values, in
the same order of rows; the GPT writes on a digit's pixels, row after row. With --wide, the MLP
784-512-256-10 on 1024 random rows instead: time alone. Steps of all precisions are timed in turn,
block after block.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np

import chainrule as cr

PRECISIONS = (None, "bfloat16", "bfloat16x3")
SEED = 1
Data = dict[str, Any]
Net = tuple[cr.Tensor, Data]


def mlp() -> Net:
    digits = cr.datasets.digits()
    x, y = cr.input("x", ("batch", 64)), cr.input("y", ("batch",), dtype="int32")
    net = cr.nn.Sequential([cr.nn.Dense(128, "relu"), cr.nn.Dense(64, "relu"), cr.nn.Dense(10)])
    return cr.losses.cross_entropy(net(x), y), {"x": digits.x_train, "y": digits.y_train}


def cnn() -> Net:
    digits = cr.datasets.digits()
    x, y = cr.input("x", ("batch", 1, 8, 8)), cr.input("y", ("batch",), dtype="int32")
    net = cr.nn.Sequential(
        [
            cr.nn.Conv2D(16, 3, padding=1, activation="relu"),
            cr.nn.MaxPool(2),
            cr.nn.Conv2D(32, 3, padding=1, activation="relu"),
            cr.nn.Flatten(),
            cr.nn.Dense(10),
        ]
    )
    images = digits.x_train.reshape(-1, 1, 8, 8)
    return cr.losses.cross_entropy(net(x), y), {"x": images, "y": digits.y_train}


def lstm() -> Net:
    digits = cr.datasets.digits()
    x, y = cr.input("x", ("batch", 8, 8)), cr.input("y", ("batch",), dtype="int32")
    net = cr.nn.Sequential([cr.nn.LSTM(64), cr.nn.Dense(10)])
    rows = digits.x_train.reshape(-1, 8, 8)
    return cr.losses.cross_entropy(net(x), y), {"x": rows, "y": digits.y_train}


def gpt() -> Net:
    digits, tokens, width = cr.datasets.digits(), 17, 64
    ids, nexts = (cr.input(name, ("batch", 63), dtype="int32") for name in ("ids", "nexts"))
    embedding = cr.nn.Embedding(tokens, width, weight_init=cr.init.normal(std=0.02))
    blocks = [cr.nn.TransformerBlock(4, causal=True) for _ in range(2)]
    h = cr.nn.Sequential([cr.nn.LearnedPositions(63), *blocks, cr.nn.LayerNorm()])(embedding(ids))
    logits = cr.reshape(embedding.attend(h), (-1, tokens))
    loss = cr.losses.cross_entropy(logits, cr.reshape(nexts, (-1,)))
    scale = 16 / digits.x_train.max()
    pixels = np.rint(digits.x_train.reshape(-1, 64) * scale).astype(np.int32)
    return loss, {"ids": pixels[:, :-1].copy(), "nexts": pixels[:, 1:].copy()}


def wide() -> Net:
    rng = np.random.default_rng(SEED)
    x, y = cr.input("x", ("batch", 784)), cr.input("y", ("batch",), dtype="int32")
    net = cr.nn.Sequential([cr.nn.Dense(512, "relu"), cr.nn.Dense(256, "relu"), cr.nn.Dense(10)])
    rows = rng.standard_normal((1024, 784)).astype(np.float32)
    return cr.losses.cross_entropy(net(x), y), {"x": rows, "y": rng.integers(0, 10, 1024)}


NETS: dict[str, Callable[[], Net]] = {f.__name__: f for f in (mlp, cnn, lstm, gpt)}


def steps_of(net: Net) -> Iterator[Any]:
    """A training step in each precision, on one thread."""
    for precision in PRECISIONS:
        yield cr.training_step(
            net[0], cr.optim.Adam(1e-3), threads=1, precision=precision, seed=SEED
        )


def curves(net: Net, batch: int, count: int) -> list[Any]:
    """The losses of so many steps, in each precision."""
    rows = len(next(iter(net[1].values())))
    epochs = -(-count // -(-rows // batch))
    return [s.run(**net[1], batch_size=batch, epochs=epochs)[:count] for s in steps_of(net)]


def times(net: Net, batch: int, blocks: int = 5, seconds: float = 0.4) -> list[list[float]]:
    """Milliseconds a step in each precision: the median of each block."""
    feeds = {name: a[:batch].copy() for name, a in net[1].items()}
    steps = list(steps_of(net))
    found: list[list[float]] = [[] for _ in steps]
    for _ in range(blocks):
        for step, medians in zip(steps, found, strict=True):
            taken: list[float] = []
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                start = time.perf_counter()
                step(**feeds)
                taken.append(1e3 * (time.perf_counter() - start))
            medians.append(statistics.median(taken))
    return found


def report_times(name: str, found: list[list[float]]) -> None:
    plain = statistics.median(found[0])
    for precision, blocks in zip(PRECISIONS, found, strict=True):
        middle = statistics.median(blocks)
        print(
            f"| {name} | {precision or 'float32'} | {middle:.2f} [{min(blocks):.2f} .. "
            f"{max(blocks):.2f}] | {plain / middle:.2f} |"
        )


def report_curves(name: str, found: list[Any]) -> None:
    places = [0, *(len(found[0]) * i // 4 for i in (1, 2, 3)), len(found[0])]
    for precision, curve in zip(PRECISIONS, found, strict=True):
        means = [f"{curve[a:b].mean():.4f}" for a, b in pairwise(places)]
        off = np.abs(curve - found[0])
        print(
            f"| {name} | {precision or 'float32'} | {curve[0]:.4f} | {' | '.join(means)} | "
            f"{off.mean():.1e}, {off.max():.1e} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--wide", action="store_true")
    asked = parser.parse_args()
    if asked.wide:
        print("| net | products in | ms a step [range] | times faster |\n|---|---|---|---|")
        report_times("784-512-256-10, batch 1024", times(wide(), 1024))
        return
    print(
        "| net | products in | first loss | mean of 1st quarter | 2nd | 3rd | 4th "
        "| from float32's: mean, max |"
    )
    print("|---|---|---|---|---|---|---|---|")
    nets = {name: NETS[name]() for name in asked.nets.split(",")}
    for name, net in nets.items():
        report_curves(name, curves(net, asked.batch, asked.steps))
    print("\n| net | products in | ms a step [range] | times faster |\n|---|---|---|---|")
    for name, net in nets.items():
        report_times(f"{name}, batch {asked.batch}", times(net, asked.batch, 3))


if __name__ == "__main__":
    main()
