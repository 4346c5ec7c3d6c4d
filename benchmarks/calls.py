"""What a call of a training step costs beyond the step itself.

    taskset -c 0 python benchmarks/calls.py [--rounds N]

The smallest net, with labels and with targets: `step(x=..., y=...)` against the same step inside
`step.run`, where a step costs nothing but its work, and against calling a function of Python's
with two keywords, the least that any call costs. Blocks take turns; medians and least.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np

import chainrule as cr

BATCH, STEPS = 8, 2000


def net(labels: bool) -> tuple[cr.TrainingStep, dict[str, np.ndarray]]:
    """4-3 with a cross-entropy, or with a squared error, and an epoch of data."""
    rng = np.random.default_rng(0)
    x = cr.input("x", ("batch", 4))
    z = x @ cr.parameter("w", (4, 3)) + cr.parameter("b", (3,))
    if labels:
        loss = cr.losses.cross_entropy(z, cr.input("y", ("batch",), dtype="int64"))
        y = rng.integers(0, 3, BATCH * STEPS)
    else:
        loss = cr.losses.mse(z, cr.input("y", ("batch", 3)))
        y = rng.standard_normal((BATCH * STEPS, 3), np.float32)
    step = cr.training_step(loss, cr.optim.SGD(1e-3), threads=1)
    return step, {"x": rng.standard_normal((BATCH * STEPS, 4), np.float32), "y": y}


def seconds(make: Callable[[], object]) -> float:
    """How long one call took."""
    start = time.perf_counter()
    make()
    return time.perf_counter() - start


def plain(x: np.ndarray, y: np.ndarray) -> None:
    """A function that does nothing."""


def calls(function: Callable[..., object], x: np.ndarray, y: np.ndarray) -> None:
    """As many calls as an epoch has steps."""
    for _ in range(STEPS):
        function(x=x, y=y)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=101)
    rounds = parser.parse_args().rounds
    print("| µs, median (least) | a call | the step in `run` | the call beyond it | plain Python |")
    print("|---|---|---|---|---|")
    for labels in (True, False):
        step, data = net(labels)
        x, y = data["x"][:BATCH], data["y"][:BATCH]
        ways: list[Callable[[], object]] = [
            partial(calls, step, x, y),
            partial(step.run, batch_size=BATCH, shuffle=False, x=data["x"], y=data["y"]),
            partial(calls, plain, x, y),
        ]
        times = [[seconds(way) / STEPS * 1e6 for way in ways] for _ in range(rounds)]
        call, run, python = zip(*times, strict=True)
        beyond = [a - b for a, b in zip(call, run, strict=True)]
        cells = [f"{statistics.median(c):.2f} ({min(c):.2f})" for c in (call, run, beyond, python)]
        name = "labels, cross-entropy" if labels else "targets, squared error"
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
