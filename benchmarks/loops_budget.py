"""What a memory budget gives for recurrent nets: the least arena, and what it costs.

    python benchmarks/loops_budget.py

Steps of a training step with Adam, one thread, batch 8: bytes of the arena without a budget and
with the smallest that can be met, how many steps of time run again at once, and processor time over
that without a budget, medians. Losses and all that is kept must be the same, to the last bit.
"""

from __future__ import annotations

import re
import statistics
import time
from typing import Any

import numpy as np

import chainrule as cr

BATCH, CLASSES, CALLS = 8, 10, 7
LAYERS = {"LSTM": cr.nn.LSTM, "GRU": cr.nn.GRU}
#: kind, layers, steps of time, inputs, units, both ways, a loss at each step
CASES = [
    ("LSTM", 1, 64, 32, 128, False, False),
    ("LSTM", 1, 64, 32, 128, False, True),
    ("LSTM", 2, 64, 32, 128, False, True),
    ("LSTM", 3, 64, 32, 128, False, False),
    ("GRU", 2, 64, 32, 128, False, False),
    ("LSTM", 2, 60, 32, 64, True, False),
    ("LSTM", 2, 61, 32, 64, False, True),
]


def step_of(case: tuple[Any, ...], budget: int | None) -> cr.TrainingStep:
    """A training step of a case."""
    kind, layers, steps, inputs, units, both, every = case
    x = cr.input("x", ("batch", steps, inputs))
    t = cr.input("t", ("batch", steps) if every else ("batch",), dtype="int32")
    nets = [
        LAYERS[kind](units, return_sequences=every or i < layers - 1, bidirectional=both)
        for i in range(layers)
    ]
    net = cr.nn.Sequential([*nets, cr.nn.Dense(CLASSES)])
    loss = cr.losses.cross_entropy(net(x), t)
    given = None if budget is None else (budget, {"batch": BATCH})
    return cr.training_step(loss, cr.optim.Adam(1e-3), threads=1, memory_budget=given)


def least_of(case: tuple[Any, ...]) -> int:
    """The smallest budget that can be met, which an error tells."""
    try:
        step_of(case, 64)
    except cr.errors.CompileError as error:
        found = re.search(r"least found is ([\d,]+)", str(error))
        assert found is not None
        return int(found[1].replace(",", ""))
    return 64


def main() -> None:
    """Print a table."""
    print("| net | arena, bytes | with the least budget | of it | steps at a time | time |")
    print("| --- | --- | --- | --- | --- | --- |")
    rng = np.random.default_rng(0)
    for case in CASES:
        kind, layers, steps, inputs, units, both, every = case
        data = {
            "x": rng.standard_normal((BATCH, steps, inputs)).astype(np.float32),
            "t": rng.integers(0, CLASSES, (BATCH, steps) if every else BATCH).astype(np.int32),
        }
        nets = [step_of(case, None), step_of(case, least_of(case))]
        seconds: list[list[float]] = [[], []]
        for _ in range(CALLS):
            losses = []
            for spent, net in zip(seconds, nets, strict=True):
                begun = time.process_time()
                losses.append(net(**data))
                spent.append(time.process_time() - begun)
            assert losses[0] == losses[1]
        kept = [{n: a.tobytes() for n, a in net.state_dict().items()} for net in nets]
        assert kept[0] == kept[1]
        plain, tight = (net.report().reserved(batch=BATCH)["arena"] for net in nets)
        made = nets[1].report().recomputed
        cost = statistics.median(seconds[1]) / statistics.median(seconds[0])
        name = f"{kind} {inputs}-{units}, {layers} layers, {steps} steps"
        more = f"{', both ways' if both else ''}{', a loss at each' if every else ''}"
        again = made.steps if made else 0
        print(
            f"| {name}{more} | {plain:,} | {tight:,} | {tight / plain:.2f} | {again or ''} "
            f"| {cost:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
