"""The GPT of examples/gpt.py beside PyTorch's: a training step, and text written with caches.

    taskset -c 1 python benchmarks/gpt.py

One thread each, the same weights, minibatches and noise, interleaved in one run: medians of many
short blocks, with the range. Both must have the same losses and write the same letters. PyTorch is
eager, with its fused attention and its fused AdamW, its caches made once, in inference mode.
"""

from __future__ import annotations

import runpy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

import chainrule as cr

EXAMPLE = runpy.run_path(str(Path(__file__).parents[1] / "examples/gpt.py"))
CONTEXT, WIDTH, BLOCKS, HEADS, BATCH = (
    EXAMPLE[name] for name in ("CONTEXT", "WIDTH", "BLOCKS", "HEADS", "BATCH")
)
LETTERS, STEPS = 65, 3

Weights = dict[str, torch.Tensor]


class Peer:
    """The same net in PyTorch, on the same weights; matrices are (in, out), as ours."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        self.w = {n: torch.tensor(w.copy(), requires_grad=True) for n, w in weights.items()}
        decayed = [w for w in self.w.values() if w.ndim > 1]
        others = [w for w in self.w.values() if w.ndim < 2]
        groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        self.adam = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=True)
        shape = (1, HEADS, CONTEXT, WIDTH // HEADS)
        self.caches = [(torch.zeros(shape), torch.zeros(shape)) for _ in range(BLOCKS)]

    def norm(self, h: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(h, (WIDTH,), self.w[f"{name}.scale"])

    def logits(self, ids: torch.Tensor, at: int | None = None) -> torch.Tensor:
        """Of all of a window, or of what comes next from a place on, with the caches."""
        (batch, new), first = ids.shape, at or 0
        end = first + new
        h = self.w["gpt1.letters.weight"][ids] + self.w["gpt1.places.weight"][first:end]
        for i in range(BLOCKS):
            name = f"gpt1.blocks{i + 1}"
            x = self.norm(h, f"{name}.norm1")
            q, k, v = (
                (x @ self.w[f"{name}.attention.{part}.weight"])
                .view(batch, new, HEADS, WIDTH // HEADS)
                .transpose(1, 2)
                for part in ("query", "key", "value")
            )
            if at is not None:
                keys, values = self.caches[i]
                keys[:, :, first:end], values[:, :, first:end] = k, v
                k, v = keys[:, :, :end], values[:, :, :end]
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=new > 1)
            y = y.transpose(1, 2).reshape(batch, new, WIDTH)
            h = h + y @ self.w[f"{name}.attention.output.weight"]
            x = functional.gelu(self.norm(h, f"{name}.norm2") @ self.w[f"{name}.up.weight"])
            h = h + x @ self.w[f"{name}.down.weight"]
        return self.norm(h, "gpt1.norm") @ self.w["gpt1.letters.weight"].T

    def step(self, ids: torch.Tensor, following: torch.Tensor) -> float:
        self.adam.zero_grad(set_to_none=True)
        z = self.logits(ids).view(-1, LETTERS)
        loss = functional.cross_entropy(z, following.view(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.w.values(), 1.0)
        self.adam.step()
        return loss.item()

    @torch.inference_mode()
    def write(self, prompt: np.ndarray, noise: torch.Tensor, temperature: float) -> list[int]:
        z, written = self.logits(torch.from_numpy(prompt[None]), 0)[0, -1], []
        for i, row in enumerate(noise):
            letter = torch.argmax(z / temperature + row)
            written.append(letter)
            z = self.logits(letter.view(1, 1), len(prompt) + i)[0, 0]
        return [int(letter) for letter in written]


def shown(seconds: list[float], each: int, unit: float) -> str:
    values = sorted(s / each * unit for s in seconds)
    return f"{statistics.median(values):8.1f}   ({values[0]:.1f} to {values[-1]:.1f})"


def timed(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, in turns, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def main() -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    ids = cr.input("ids", ("batch", CONTEXT), dtype="int32")
    following = cr.input("following", ("batch", CONTEXT), dtype="int32")
    net = EXAMPLE["GPT"](LETTERS)
    loss = cr.losses.cross_entropy(net(ids), following)
    decayed, rest = (cr.optim.AdamW(1e-3, betas=(0.9, 0.99), weight_decay=d) for d in (0.1, 0.0))
    groups = cr.optim.Groups(decayed, {"*.scale": rest}, clip_norm=1.0)
    step = cr.training_step(loss, groups, threads=1)
    peer = Peer(dict(step.parameters))

    rows = rng.integers(LETTERS, size=(STEPS * BATCH, CONTEXT + 1), dtype=np.int32)
    x, y = rows[:, :-1].copy(), rows[:, 1:].copy()
    batches = [
        (torch.from_numpy(x[i : i + BATCH]).long(), torch.from_numpy(y[i : i + BATCH]).long())
        for i in range(0, len(x), BATCH)
    ]
    ours = step.run(ids=x, following=y, batch_size=BATCH, shuffle=False)
    theirs = [peer.step(*batch) for batch in batches]
    print(f"losses of {STEPS} steps differ by at most {np.abs(ours - theirs).max():.1e}")
    train = timed(
        {
            "chainrule": lambda: step.run(ids=x, following=y, batch_size=BATCH, shuffle=False),
            "PyTorch": lambda: [peer.step(*batch) for batch in batches],
        },
        15,
    )
    print("ms a training step")
    for name, seconds in train.items():
        print(f"{name:12}{shown(seconds, STEPS, 1e3)}")

    write = cr.compile(EXAMPLE["writer"](net, LETTERS), threads=1)
    weights = {name: w.copy() for name, w in step.parameters.items()}
    peer = Peer(weights)
    prompt = np.arange(4, dtype=np.int32)
    noise = rng.gumbel(size=(CONTEXT - 4, LETTERS)).astype(np.float32)
    same = torch.from_numpy(noise)
    found = write(prompt=prompt, noise=noise, temperature=0.8, **weights).tolist()
    print("the same letters" if found == peer.write(prompt, same, 0.8) else "OTHER LETTERS")
    told = timed(
        {
            "chainrule": lambda: write(prompt=prompt, noise=noise, temperature=0.8, **weights),
            "PyTorch": lambda: peer.write(prompt, same, 0.8),
        },
        100,
    )
    print("µs a letter written with caches")
    for name, seconds in told.items():
        print(f"{name:12}{shown(seconds, len(noise), 1e6)}")


if __name__ == "__main__":
    main()
