"""Attention, forward and with its derivative, beside PyTorch's, one thread, interleaved in one run.

    taskset -c 1 python benchmarks/attention.py

Medians of some short blocks, with the least and the most. PyTorch is its fused attention for CPUs,
which does not store the scores either; both are called on arrays and make new ones. Operations are
those of the two products forward and of five back, half of them under a causal mask. Needs PyTorch.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional

import chainrule as cr

#: batch, heads, queries and keys, width of a head
CASES = ((16, 4, 64, 32), (16, 4, 128, 32), (4, 8, 256, 64), (2, 8, 512, 64), (1, 8, 1024, 64))
BLOCKS, SECONDS = 9, 0.05


def ours(shape: tuple[int, ...], causal: bool) -> dict[str, Callable[..., Any]]:
    q, k, v, ct = (cr.input(name, shape) for name in ("q", "k", "v", "ct"))
    out = cr.attention(q, k, v, causal=causal)
    back = cr.grad(cr.sum(out * ct), [q, k, v])
    forward, both = (cr.compile(outputs, threads=1) for outputs in (out, [out, *back]))
    return {"forward": lambda ct, **fed: forward(**fed), "with derivative": both}


def theirs(causal: bool, **fed: np.ndarray) -> dict[str, Callable[[], Any]]:
    ct = torch.from_numpy(fed.pop("ct"))
    operands = [torch.from_numpy(x).requires_grad_() for x in fed.values()]

    def both() -> None:
        for x in operands:
            x.grad = None
        functional.scaled_dot_product_attention(*operands, is_causal=causal).backward(ct)

    @torch.inference_mode()
    def forward() -> None:
        functional.scaled_dot_product_attention(*operands, is_causal=causal)

    return {"forward": forward, "with derivative": both}


def timed(calls: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Milliseconds of each call, in turns, after one that is not counted."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(BLOCKS):
        for name, call in calls.items():
            count, began = 0, time.perf_counter()
            while count == 0 or time.perf_counter() - began < SECONDS:
                call()
                count += 1
            found[name].append((time.perf_counter() - began) / count * 1e3)
    return found


def main() -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    print("| attention | forward: ms, GFLOP/s, times as fast | with its derivative |")
    print("|---|---|---|")
    for batch, heads, length, width in CASES:
        for causal in (False, True):
            shape = (batch, heads, length, width)
            fed = {x: rng.standard_normal(shape, dtype=np.float32) for x in ("q", "k", "v", "ct")}
            mine, peer = ours(shape, causal), theirs(causal, **fed)
            cells = []
            for what, products in (("forward", 2), ("with derivative", 7)):
                run = timed({"here": partial(mine[what], **fed), "there": peer[what]})
                here, there = (statistics.median(run[name]) for name in ("here", "there"))
                flops = products * 2 * batch * heads * length**2 * width / (2 if causal else 1)
                low, high = min(run["here"]), max(run["here"])
                cells.append(
                    f"{here:.2f} ({low:.2f} to {high:.2f}), {flops / here / 1e6:.0f}, "
                    f"{there / here:.2f}"
                )
            kind = "causal" if causal else "all keys"
            print(f"| {batch}×{heads}×{length}×{width}, {kind} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
