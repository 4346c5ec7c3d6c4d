"""Training steps of recurrent nets beside PyTorch's, interleaved in one run.

    python benchmarks/recurrent.py [threads]

Letters are embedded, go through one LSTM or GRU, and each foretells the next: cross-entropy, Adam.
The same weights and letters for both; PyTorch eager has its own layer, whose loop is native, and a
fused Adam. Medians of blocks, and nanoseconds for each step of time, forward and backward. Needs
PyTorch.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import chainrule as cr
from chainrule import nn

LETTERS, TIME, BLOCKS = 64, 64, 7
#: layer, units, batch
CASES = (
    ("LSTM", 8, 1),
    ("LSTM", 32, 1),
    ("LSTM", 32, 8),
    ("LSTM", 64, 8),
    ("LSTM", 128, 32),
    ("LSTM", 256, 32),
    ("GRU", 32, 8),
    ("GRU", 256, 32),
)


def ours(kind: str, units: int, text: np.ndarray, threads: int) -> tuple[Callable[[], float], Any]:
    """A step of ours, and its parameters by name."""
    x = cr.input("text", ("batch", TIME + 1), dtype="int32")
    layer = getattr(nn, kind)(units, return_sequences=True)
    table = cr.parameter("table", (LETTERS, units), init=cr.init.normal())
    z = nn.Dense(LETTERS)(layer(cr.take(table, x[:, :-1], axis=0)))
    loss = cr.losses.cross_entropy(z, x[:, 1:])
    step = cr.training_step(loss, cr.optim.Adam(1e-3), threads=threads)
    return lambda: step(text=text), step.parameters


def theirs(kind: str, units: int, text: np.ndarray, given: Any) -> Callable[[], float]:
    """A step of PyTorch's that begins with given parameters."""
    import torch

    layer = getattr(torch.nn, kind)(units, units, batch_first=True)
    table, out = torch.nn.Embedding(LETTERS, units), torch.nn.Linear(units, LETTERS)
    name = next(n for n in given if n.endswith("state_weight")).removesuffix("state_weight")
    last = next(n for n in given if n.startswith("dense") and n.endswith("weight"))
    other = given.get(f"{name}state_bias")
    with torch.no_grad():
        for tensor, array in (
            (table.weight, given["table"]),
            (layer.weight_ih_l0, given[f"{name}input_weight"].T),
            (layer.weight_hh_l0, given[f"{name}state_weight"].T),
            (layer.bias_ih_l0, given[f"{name}bias"]),
            (layer.bias_hh_l0, np.zeros_like(given[f"{name}bias"]) if other is None else other),
            (out.weight, given[last].T),
            (out.bias, given[last.removesuffix("weight") + "bias"]),
        ):
            tensor.copy_(torch.from_numpy(np.array(array)))
    parameters = [*table.parameters(), *layer.parameters(), *out.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True)
    whole = torch.from_numpy(text).long()

    def step() -> float:
        optimizer.zero_grad()
        z = out(layer(table(whole[:, :-1]))[0])
        loss = torch.nn.functional.cross_entropy(z.flatten(0, 1), whole[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def main(threads: int) -> None:
    """Print the table, in Markdown."""
    import torch

    torch.set_num_threads(threads)
    print("| net | µs a step | ns a step of time | PyTorch, µs | times as fast |")
    print("|---|---|---|---|---|")
    for kind, units, batch in CASES:
        text = np.random.default_rng(0).integers(0, LETTERS, (batch, TIME + 1)).astype(np.int32)
        mine, parameters = ours(kind, units, text, threads)
        other = theirs(kind, units, text, {n: np.array(a) for n, a in parameters.items()})
        np.testing.assert_allclose(mine(), other(), rtol=1e-5)
        for _ in range(2):  # PyTorch trains two biases, ours is their sum: from here on they differ
            mine(), other()
        times: dict[Callable[[], float], list[float]] = {mine: [], other: []}
        for _ in range(BLOCKS):
            for step, blocks in times.items():
                begin, count = time.perf_counter(), 0
                while time.perf_counter() - begin < 0.1:
                    step()
                    count += 1
                blocks.append((time.perf_counter() - begin) / count * 1e6)
        a, b = (statistics.median(blocks) for blocks in times.values())
        print(
            f"| {kind} of {units}, batch {batch} | {a:,.0f} | {a * 1e3 / TIME:,.0f} | {b:,.0f} "
            f"| {b / a:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
