"""What reports predict for the workloads of `chainrule bench`, and what kernels take.

    python benchmarks/predictions.py [--workloads A,B] [--calibrate]

One thread, each workload's own batch. Microseconds of a step, all kernels together, predicted and
measured; their ratio; and how far kernels that take more than a hundredth of it are off, by
which factor on average, weighed by their time.
"""

from __future__ import annotations

import argparse
import math
import runpy
from pathlib import Path
from typing import Any

import chainrule as cr
from chainrule.cli.bench import processes
from chainrule.cli.bench.workloads import WORKLOADS, Workload
from chainrule.driver.calibrate import calibrate

PEER = runpy.run_path(str(Path(processes.HERE) / "peers/chainrule_peer.py"))
LEAST = 0.01


def step_of(work: Workload, **options: Any) -> cr.TrainingStep:
    """The training step of a workload, on one thread."""
    o = work.opt
    rules = {
        "sgd": lambda: cr.optim.SGD(o["lr"], momentum=o["momentum"]),
        "adam": lambda: cr.optim.Adam(o["lr"]),
        "adamw": lambda: cr.optim.AdamW(o["lr"], weight_decay=o["wd"]),
    }
    loss = PEER["loss_of"](work, work.params())
    return cr.training_step(loss, rules[o["kind"]](), threads=1, **options)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--calibrate", action="store_true", help="measure the machine again")
    given = parser.parse_args()
    if given.calibrate:
        calibrate()
    print("| workload | µs predicted | measured | of it | a kernel is off by |")
    print("| --- | --- | --- | --- | --- |")
    for name in given.workloads.split(","):
        work = WORKLOADS[name]
        report = step_of(work).report(measure=True, sizes={"batch": work.batch})
        total = report.measured or math.nan
        pairs = [(k.predicted, k.measured or 0.0) for k in report.kernels]
        large = [(p, m) for p, m in pairs if m > LEAST * total]
        weight = sum(m for _, m in large)
        off = math.exp(sum(m * abs(math.log(p / m)) for p, m in large) / weight) if large else 1.0
        print(
            f"| {name} | {report.predicted * 1e6:,.1f} | {total * 1e6:,.1f} | "
            f"{report.predicted / total:.2f} | {off:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
