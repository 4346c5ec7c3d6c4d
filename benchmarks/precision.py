"""Loss curves and times of a step in each precision, of the workloads of `chainrule bench`.

    python benchmarks/precision.py [--nets mlp-1024,cnn,lstm,gpt] [--steps 100] [--threads 1]
    python benchmarks/precision.py --times [--rounds 7]

The same initial values and minibatches in each precision. Times are of the same steps, taken in
turn, each the median of short blocks, with the range; where PyTorch is installed its step too, in
float32 and under autocast to bfloat16, both with its fused optimizer, eager.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np

import chainrule as cr
from chainrule.cli.bench.peers import chainrule_peer, torch_peer
from chainrule.cli.bench.workloads import WORKLOADS, Workload
from chainrule.codegen.host import host_target

PRECISIONS = (None, "bfloat16", "bfloat16x3")
BLOCK = 0.3  # seconds


def step_of(spec: Workload, precision: str | None, threads: int) -> Any:
    """A training step of a workload."""
    return cr.training_step(
        chainrule_peer.loss_of(spec, spec.params()),
        chainrule_peer.optimizer_of(spec.opt),
        threads=threads,
        precision=precision,
        seed=spec.seed,
    )


def curve(spec: Workload, precision: str | None, count: int, threads: int) -> np.ndarray[Any, Any]:
    """The losses of so many steps."""
    step, epochs = step_of(spec, precision, threads), -(-count // spec.nbatch)
    losses = step.run(**spec.data(), batch_size=spec.batch, epochs=epochs, shuffle=False)
    return np.asarray(losses[:count])


def report_curves(spec: Workload, count: int, threads: int) -> None:
    """A row a precision: means of the quarters, and how far from float32's curve."""
    found = [curve(spec, precision, count, threads) for precision in PRECISIONS]
    places = [0, *(count * i // 4 for i in (1, 2, 3)), count]
    for precision, losses in zip(PRECISIONS, found, strict=True):
        means = " | ".join(f"{losses[a:b].mean():.4f}" for a, b in pairwise(places))
        off = np.abs(losses - found[0])
        far = f"{off.mean():.1e}, {off.max():.1e}" if precision else ""
        name = precision or "float32"
        print(f"| {spec.name} | {name} | {losses[0]:.4f} | {means} | {far} |", flush=True)


def calls_of(spec: Workload, threads: int) -> dict[str, Callable[[], object]]:
    """A step of each kind, on the first minibatch, ready to be timed."""
    feeds = {name: a[: spec.batch].copy() for name, a in spec.data().items()}
    calls: dict[str, Callable[[], object]] = {}
    for precision in PRECISIONS:
        step = step_of(spec, precision, threads)
        calls[f"chainrule, {precision or 'float32'}"] = lambda step=step: step(**feeds)
    if find_spec("torch") is None:
        return calls
    import torch

    def eager(narrow: bool) -> Callable[[], object]:
        step = torch_peer.TorchStep(spec, threads, False)
        whole = step.forward

        def forward(*given: Any) -> Any:
            with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
                return whole(*given)

        step.forward = forward
        return lambda: step(0)

    calls["PyTorch, float32"] = eager(False)
    calls["PyTorch, autocast to bfloat16"] = eager(True)
    return calls


def report_times(spec: Workload, rounds: int, threads: int) -> None:
    """A row a step: milliseconds, and how many times faster than ours in float32 it is."""
    calls = calls_of(spec, threads)
    found: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            taken: list[float] = []
            end = time.perf_counter() + BLOCK
            while not taken or time.perf_counter() < end:
                start = time.perf_counter()
                call()
                taken.append(1e3 * (time.perf_counter() - start))
            found[name].append(statistics.median(taken))
    plain = statistics.median(next(iter(found.values())))
    for name, blocks in found.items():
        middle = statistics.median(blocks)
        spread = f"{middle:.2f} [{min(blocks):.2f} .. {max(blocks):.2f}]"
        print(f"| {spec.name} | {name} | {spread} | {plain / middle:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", default="mlp-1024,cnn,lstm,gpt")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--times", action="store_true")
    asked = parser.parse_args()
    print(f"level {host_target().level}, {asked.threads} thread(s)\n")
    if asked.times:
        print("| workload | step | ms: median [range] | times faster |\n|---|---|---|---|")
    else:
        print(
            "| workload | products in | first loss | mean of 1st quarter | 2nd | 3rd | 4th "
            "| from float32's: mean, max |\n|---|---|---|---|---|---|---|---|"
        )
    for name in asked.nets.split(","):
        if asked.times:
            report_times(WORKLOADS[name], asked.rounds, asked.threads)
        else:
            report_curves(WORKLOADS[name], asked.steps, asked.threads)


if __name__ == "__main__":
    main()
