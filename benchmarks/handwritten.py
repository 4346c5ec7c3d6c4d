"""The two smallest nets beside C written for each: what a compiler makes of loops made by hand.

    python benchmarks/handwritten.py [--seconds S]

A peer more for `chainrule bench`, whose `c` is put together layer by layer and compiled with
-ffast-math: here the whole step of a net is one loop over its rows, with and without that flag.
Weights, data, the check of the losses and the interleaving are bench's own.
"""

from __future__ import annotations

import argparse
import runpy
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
VARIANTS = {"handwritten": {"fast": False}, "handwritten-fast": {"fast": True}}
NEEDS = ()
SLOW = ()
SETTINGS = {
    "handwritten": "one loop over rows, cc -O3 -march=native",
    "handwritten-fast": "the same with -ffast-math",
}
PROGRAMS = {"tiny": "tiny_mlp.c", "logistic": "logistic.c"}


def env(threads: int, cache: str) -> dict[str, str]:
    """What the worker runs in."""
    return {}


def supports(spec: Any, threads: int, **_: Any) -> str | None:
    """Why a workload can't be run, or None."""
    return None if spec.name in PROGRAMS else "written for the two smallest nets"


def make_step(spec: Any, threads: int, fast: bool) -> Any:
    """The workload, ready to run."""
    by_hand = runpy.run_path(str(Path(spec.library).with_name("c_peer.py")))
    sizes = f"enum {{ COUNT = {spec.nbatch}, BATCH = {spec.batch} }};\n"
    rate = f"static const float RATE = {spec.opt['lr']}f;\n"
    text = sizes + rate + (HERE.parent / "handwritten" / PROGRAMS[spec.name]).read_text()
    program = by_hand["compiled"](text, *(["-ffast-math"] if fast else []))
    return by_hand["CStep"](spec, program, *spec.data().values())


def main() -> None:
    """Print a table for each net."""
    from chainrule.cli.bench import processes, reference, run, tables
    from chainrule.cli.bench.workloads import WORKLOADS
    from chainrule.codegen.rates import Machine

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.5, help="of a block of steps")
    asked = parser.parse_args()
    peers, machine = processes.peers(), Machine()
    columns = [
        peers["chainrule"],
        peers["c"],
        *(processes.Peer(n, HERE, globals()) for n in VARIANTS),
    ]
    for name in PROGRAMS:
        work = WORKLOADS[name]
        bound = run.limits(work, machine, machine.flops(), 1)
        truth = reference.losses(work, run.CHECKED)
        rows = run.measure(work, columns, 1, asked.seconds, truth)
        print(f"\n{work.title}\n")
        print(
            tables.markdown_table(
                tables.COLUMNS, tables.lines([run.as_data(r, bound) for r in rows])
            )
        )


if __name__ == "__main__":
    main()
