"""How far what sizes say about products is from the fastest way, and what the cost model would say.

    taskset -c 0 python benchmarks/choices.py [--workloads A,B] [--least SHARE]

Of the training steps of `chainrule bench`, each product that should take more than a share of its
step, one thread, at the workload's own batch. It is built in every way that has the same bits
(tiles of other heights and widths, packed or not), all are timed in turns, and the fastest three
once more, for longer, beside what sizes say (the rule) and what the model predicts to be fastest:
the fastest of many is partly luck. Times of the rule over the others': 1.05 is 5 % too slow.
"""

from __future__ import annotations

import argparse
import math
import runpy
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from chainrule.driver import clock, lower, tune
from chainrule.driver.calibrate import calibrate
from chainrule.driver.predict import predict
from chainrule.ir.size import evaluate
from chainrule.loops.build import Built
from chainrule.loops.choice import Choice
from chainrule.schedule.kernel import Kernel
from chainrule.target import Target
from chainrule.target.speeds import Speeds

PREDICTIONS = runpy.run_path(str(Path(__file__).parent / "predictions.py"))
#: seconds for which all ways of a product are timed, and the few that are left
ALL, FEW = 1.0, 2.0
KEPT = 3


def told(choice: Choice) -> str:
    """A choice in words."""
    if choice == Choice():
        return "the rule"
    tile = f"{choice.rows}x{(choice.vectors or 0) * 16}" if choice.rows else "its tile"
    return tile + {None: "", True: " packed", False: " not packed"}[choice.packed]


class Table:
    """What is found, in the place of `tuned`; nothing is chosen."""

    def __init__(self, least: float) -> None:
        self.least, self.name = least, ""
        self.ratios: list[tuple[float, float]] = []

    def tuned(
        self,
        kernels: Sequence[Kernel],
        built: Sequence[Built],
        sizes: Mapping[str, int],
        target: Target,
        speeds: Speeds,
    ) -> dict[int, Choice]:
        """Time the dearest products in all ways, and print a line for each."""
        tune.SHARE, tune.WAYS = self.least, 99
        for i in tune._dearest(kernels, built, sizes, target, speeds):
            self.line(kernels[i], tune._ways(kernels[i], built[i], sizes, target, speeds), sizes,
                      target, speeds)  # fmt: skip
        return {}

    def line(
        self,
        kernel: Kernel,
        ways: Sequence[tuple[Choice, Built]],
        sizes: Mapping[str, int],
        target: Target,
        speeds: Speeds,
    ) -> None:
        """One product."""
        should = [predict([kernel], [b], sizes, target, speeds)[0].seconds for _, b in ways]
        clock.SECONDS = ALL
        took = tune._measured([b for _, b in ways], sizes, target)
        model = int(np.argmin(should))
        some = [*dict.fromkeys([0, model, *map(int, np.argsort(took)[:KEPT])])]
        clock.SECONDS = FEW
        again = dict(zip(some, tune._measured([ways[i][1] for i in some], sizes, target),
                         strict=True))  # fmt: skip
        best = min(again, key=lambda i: again[i])
        shape = " ".join(str(kernel.anchor.type).split())
        self.ratios.append((again[0] / again[best], again[0] / again[model]))
        print(
            f"| {self.name} | {shape} | {len(ways)} | {again[0] * 1e6:,.1f} | "
            f"{told(ways[best][0])}: {again[0] / again[best]:.2f} | "
            f"{told(ways[model][0])}: {again[0] / again[model]:.2f} | "
            f"{should[0] / evaluate(kernel.times, sizes) / again[0]:.2f} |",
            flush=True,
        )


def main() -> None:
    """Print a table, and the geometric means of its ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [n for n in PREDICTIONS["WORKLOADS"] if n not in ("tiny", "logistic")]
    parser.add_argument("--workloads", default=",".join(names))
    parser.add_argument("--least", type=float, default=0.05)
    given = parser.parse_args()
    calibrate()
    table = Table(given.least)
    lower.tuned = table.tuned  # type: ignore[assignment]
    print("| workload | product | ways | µs by the rule | the fastest | the model's | predicted |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in given.workloads.split(","):
        table.name, work = name, PREDICTIONS["WORKLOADS"][name]
        PREDICTIONS["step_of"](work, tune={"batch": work.batch})
    for column, what in enumerate(("the fastest", "the model's")):
        logs = [math.log(r[column]) for r in table.ratios]
        print(f"{what}: {math.exp(sum(logs) / len(logs)):.3f} on average")


if __name__ == "__main__":
    main()
