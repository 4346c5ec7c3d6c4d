"""A training step on one thread and on several, in turn, with the processors free or taken.

    python benchmarks/threads.py [--threads N] [--batches 1,8,32] [--seconds S] [--taken]

784-256-128-10 with ReLU, cross-entropy and Adam, one call a step. Blocks alternate; the least and
the median of each, in microseconds a step. With --taken another process works on each processor.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np

import chainrule as cr

SIZES = (784, 256, 128, 10)


def net(threads: int) -> cr.TrainingStep:
    """The step, on so many threads at most."""
    h = cr.input("x", ("batch", SIZES[0]))
    for i, (n, m) in enumerate(pairwise(SIZES)):
        h = cr.relu(h) if i else h
        h = h @ cr.parameter(f"W{i}", (n, m)) + cr.parameter(f"b{i}", (m,))
    t = cr.input("t", ("batch",), dtype="int32")
    # a rate so low that the one minibatch is never learned by heart: of a loss that is 0 gradients
    # are denormal numbers, which processors are slow with
    return cr.training_step(cr.losses.cross_entropy(h, t), cr.optim.Adam(1e-9), threads=threads)


@contextmanager
def neighbours(taken: bool) -> Iterator[None]:
    """A process that never rests on each processor, if wanted."""
    pin = "import os; os.sched_setaffinity(0, {{{}}})\nwhile True: pass"
    cpus = sorted(os.sched_getaffinity(0)) if taken else []
    busy = [subprocess.Popen([sys.executable, "-c", pin.format(cpu)]) for cpu in cpus]
    try:
        time.sleep(0.5 if busy else 0)
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def block(step: cr.TrainingStep, data: dict[str, np.ndarray], seconds: float) -> float:
    """Microseconds a step, over so many seconds."""
    begun, steps, took = time.perf_counter(), 0, 0.0
    while took < seconds:
        for _ in range(4):
            step(**data)
        steps += 4
        took = time.perf_counter() - begun
    return took / steps * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", default="1,8,32,128,1024")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each batch")
    parser.add_argument("--taken", action="store_true", help="a busy process on each processor")
    given = parser.parse_args()
    steps = [net(threads) for threads in (1, given.threads)]
    random = np.random.default_rng(0)
    print(f"| batch | one thread: least, median | {given.threads} threads | of medians |")
    print("| --- | --- | --- | --- |")
    with neighbours(given.taken):
        for batch in map(int, given.batches.split(",")):
            data = {
                "x": random.standard_normal((batch, SIZES[0])).astype(np.float32),
                "t": random.integers(0, SIZES[-1], batch).astype(np.int32),
            }
            found: list[list[float]] = [[], []]
            end = time.perf_counter() + given.seconds
            while time.perf_counter() < end:
                for times, step in zip(found, steps, strict=True):
                    times.append(block(step, data, 0.25))
            middle = [statistics.median(times) for times in found]
            cells = [f"{min(t):.0f}, {m:.0f}" for t, m in zip(found, middle, strict=True)]
            print(
                f"| {batch} | {cells[0]} | {cells[1]} | {middle[1] / middle[0]:.2f} |", flush=True
            )


if __name__ == "__main__":
    main()
