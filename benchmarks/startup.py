"""From the start of a process to its first trained step: with an empty cache, and with a full one.

    python benchmarks/startup.py [--nets tiny,vae] [--rounds 9] [--stages]

Every run is a process of its own, pinned to one core: "cold" finds nothing compiled, "warm" what a
process before it kept on disk; bytecode of Python is there in both, as it is for users. Nets take
turns, round after round, so that a drift of the machine hits all alike; "numpy" is a process that
only imports NumPy, the least that any of them takes. On a machine that does other things as well
the processor's seconds, of which the least of all rounds is shown, tell more than the clock's.
`--stages` adds where the time of the last warm and the last cold run went, as the process saw it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
NAMES = (
    "numpy",
    "tiny",
    "logistic",
    "small",
    "mlp",
    "deep64",
    "deep200",
    "vae",
    "lenet",
    "cnn",
    "lstm",
    "gpt",
)


def work(name: str) -> None:
    """One net in this process, from importing to the first step; prints seconds of each stage."""
    seconds: dict[str, float] = {}
    last = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal last
        now = time.perf_counter()
        seconds[stage], last = now - last, now

    import numpy  # noqa: F401

    lap("numpy")
    if name == "numpy":
        print("\n".join(["there", str(time.process_time()), json.dumps(seconds)]))
        return
    import chainrule as cr

    lap("import")
    from startup_nets import NETS

    loss, optimizer, data = NETS[name]()
    lap("net")
    step = cr.training_step(loss, optimizer, threads=1)
    lap("training_step")
    value = step(**data)
    lap("first step")
    print(value, flush=True)
    print(time.process_time())
    print(json.dumps(seconds))
    if "--report" in sys.argv:
        print(step.report(), file=sys.stderr)


def run(name: str, folder: str) -> tuple[float, float, dict[str, float]]:
    """Seconds until a new process has trained one step, the processor's seconds, its stages."""
    import subprocess

    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment = {**kept, "CHAINRULE_CACHE": folder, "OPENBLAS_NUM_THREADS": "1"}
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, str(HERE), "--worker", name],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        process.stdout.readline()
        seconds = time.perf_counter() - start
        processor = float(process.stdout.readline())
        stages: dict[str, float] = json.loads(process.stdout.readline())
    return seconds, processor, stages


def shown(pairs: list[tuple[float, float]]) -> str:
    import statistics

    clock, processor = zip(*pairs, strict=True)
    spread = f"{statistics.median(clock):.2f} [{min(clock):.2f} .. {max(clock):.2f}]"
    return f"{spread} | {min(processor):.2f}"


def main() -> None:
    """Measure; what only this needs is imported here, so that no worker waits for it."""
    import argparse
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", default=",".join(NAMES), help="of " + ", ".join(NAMES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--stages", action="store_true", help="where the time went")
    asked = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    names = asked.nets.split(",")
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    stages: dict[tuple[str, str], dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as kept:
        for name in names:  # fills the cache, and writes bytecode
            run(name, kept)
        for _ in range(asked.rounds):
            for name in names:
                with tempfile.TemporaryDirectory() as empty:
                    for way, folder in (("cold", empty), ("warm", kept)):
                        *seconds, stages[name, way] = run(name, folder)
                        found.setdefault((name, way), []).append((seconds[0], seconds[1]))
    print("| net | cold, seconds: median, range | processor | warm | processor |")
    print("|---|---|---|---|---|")
    for name in names:
        print(f"| {name} | {shown(found[name, 'cold'])} | {shown(found[name, 'warm'])} |")
    if asked.stages:
        for (name, way), seconds_of in stages.items():
            parts = ", ".join(f"{stage} {s * 1e3:.0f}" for stage, s in seconds_of.items())
            print(f"{name} {way}, ms: {parts}")


if __name__ == "__main__":
    if "--worker" in sys.argv:
        work(sys.argv[sys.argv.index("--worker") + 1])
    else:
        main()
