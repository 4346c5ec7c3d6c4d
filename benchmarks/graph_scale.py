"""How time grows with the number of nodes: building, differentiating, rewriting, printing.

    python benchmarks/graph_scale.py [--sizes 1000,10000,100000] [--shapes chain,wide] [--compile]

For each shape of graph and number of operations it prints the processor seconds of each stage,
the nanoseconds for each operation, and at the end the exponent of growth from the smallest graph to
the largest: 1 is linear. Each row is a process' own, so that none profits from another's memory.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chainrule as cr
from chainrule.driver.lower import PASSES
from chainrule.ir.graph import Graph
from chainrule.ir.passes import run_passes
from chainrule.show.graph import graph_text

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("build", "grad", "passes", "str", "latex", "graph")
Built = tuple[cr.Tensor, list[cr.Tensor]]


def chain(n: int) -> Built:
    """One operation after another: as deep as it is long."""
    x = cr.input("x", ("batch",))
    h: Any = x
    for i in range(n // 4):
        h = cr.sin(cr.tanh(h) * 1.01 + 0.1 * (i % 7))
    return cr.sum(h), [x]


def wide(n: int) -> Built:
    """One tensor that half of all operations read, and the sum of all that they give."""
    x = cr.input("x", ("batch",))
    total: Any = cr.tanh(x)
    for i in range(n // 2):
        total = total + x * (1.0 + i)
    return cr.sum(total), [x]


def diamond(n: int) -> Built:
    """Each tensor read twice by the next: 2**n paths."""
    x = cr.input("x", ("batch",))
    h: Any = x
    for _ in range(n // 2):
        h = cr.tanh(h) * h
    return cr.sum(h), [x]


def layers(n: int) -> Built:
    """A net of dense layers, each with parameters of its own: some 4 operations each."""
    h: Any = cr.input("x", ("batch", 8))
    weights = []
    for i in range(n // 4):
        w, b = cr.parameter(f"w{i}", (8, 8)), cr.parameter(f"b{i}", (8,))
        weights += [w, b]
        h = cr.tanh(h @ w + b)
    return cr.mean(cr.square(h)), weights


def many(n: int) -> Built:
    """Ever so many parameters, each used once."""
    x = cr.input("x", ("batch",))
    weights = [cr.parameter(f"w{i}", ()) for i in range(n // 3)]
    total: Any = x
    for w in weights:
        total = total + x * w
    return cr.sum(total), weights


SHAPES: dict[str, Callable[[int], Built]] = {
    f.__name__: f for f in (chain, wide, diamond, layers, many)
}


def measure(shape: str, n: int) -> dict[str, float]:
    """Seconds for each stage over a graph of n operations, and how many nodes there are."""
    seconds: dict[str, float] = {}
    last = time.process_time()

    def lap(stage: str) -> None:
        nonlocal last
        now = time.process_time()
        seconds[stage], last = now - last, time.process_time()

    loss, wrt = SHAPES[shape](n)
    lap("build")
    slopes = cr.grad(loss, wrt)
    lap("grad")
    graph = Graph((loss.node, *(s.node for s in slopes)))
    nodes = len(graph)
    last = time.process_time()
    run_passes(graph, PASSES)
    lap("passes")
    str(slopes[0])
    lap("str")
    slopes[0].latex()
    lap("latex")
    graph_text(graph)
    lap("graph")
    return {**seconds, "nodes": nodes}


def compile_seconds(shape: str, n: int) -> float:
    """Seconds to compile a graph and its gradient to machine code."""
    loss, wrt = SHAPES[shape](n)
    slopes = cr.grad(loss, wrt)
    start = time.process_time()
    cr.compile([loss, *slopes])
    return time.process_time() - start


def apart(*arguments: str) -> Any:
    """What this file prints, run by itself."""
    done = subprocess.run(
        [sys.executable, __file__, *arguments], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="1000,10000,100000")
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--compile", action="store_true", help="machine code too: 400 and 5000 ops")
    parser.add_argument("--one", nargs=2, metavar=("SHAPE", "N"), help=argparse.SUPPRESS)
    parser.add_argument("--native", nargs=2, metavar=("SHAPE", "N"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one[0], int(given.one[1]))))
        return
    if given.native:
        print(json.dumps(compile_seconds(given.native[0], int(given.native[1]))))
        return
    sizes = [int(n) for n in given.sizes.split(",")]
    print("| graph | operations | nodes |", " | ".join(STAGES), "| ns an operation |")
    print("|---" * (len(STAGES) + 4) + "|")
    for shape in given.shapes.split(","):
        rows = [apart("--one", shape, str(n)) for n in sizes]
        for n, row in zip(sizes, rows, strict=True):
            cells = " | ".join(f"{row[s]:.3f}" for s in STAGES)
            each = sum(row[s] for s in STAGES) / n * 1e9
            print(f"| {shape} | {n:,} | {row['nodes']:,} | {cells} | {each:,.0f} |")
        if len(sizes) > 1:
            span = math.log(sizes[-1] / sizes[0])
            grown = (math.log(rows[-1][s] / rows[0][s]) / span for s in STAGES)
            print(f"| {shape} | exponent | |", " | ".join(f"{g:.2f}" for g in grown), "| |")
    if given.compile:
        for shape, n in (("layers", 400), ("chain", 5000)):
            print(f"compile {shape} of {n:,} operations and gradient:", end=" ")
            print(f"{apart('--native', shape, str(n)):.2f} s")


if __name__ == "__main__":
    main()
