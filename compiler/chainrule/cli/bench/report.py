"""`chainrule bench` itself: what is measured, for the eye, as Markdown and as JSON."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from chainrule.cli.bench.processes import Peer
from chainrule.cli.bench.run import (
    ROUNDS,
    about,
    as_data,
    chosen_peers,
    chosen_workloads,
    limits,
    measure,
    truth_of,
)
from chainrule.cli.bench.tables import (
    COLUMNS,
    STARTS,
    Data,
    about_run,
    lines,
    markdown,
    said,
    start_lines,
)
from chainrule.cli.page import Page
from chainrule.codegen.rates import Machine
from chainrule.errors import CompileError
from chainrule.records import dataclass

#: seconds of a block, unless they are given: of a quick run, of a full one
QUICK, FULL = 0.15, 0.5


@dataclass(frozen=True)
class Asked:
    """What a run is to measure, and where the figures go."""

    workloads: str | None = None
    peers: str | None = None
    threads: str = "1"
    seconds: float | None = None
    starts: int = 0
    full: bool = False
    markdown: bool = False
    json_file: Path | None = None


def run(asked: Asked) -> None:
    """Measure, and print as it goes. Raises CompileError for names that are not there."""
    works = chosen_workloads(asked.workloads, asked.full)
    columns = chosen_peers(asked.peers, asked.full)
    counts = _threads(asked.threads)
    seconds = asked.seconds or (FULL if asked.full else QUICK)
    if seconds != seconds:  # what no range refuses
        raise CompileError("nan is no number of seconds", "say how long a block is, such as 0.15")
    if asked.json_file is not None and not asked.json_file.resolve().parent.is_dir():
        raise CompileError(f"there is no folder {asked.json_file.resolve().parent}")
    page, machine = Page(quiet=asked.markdown), Machine()
    results = _begun(machine, columns, seconds)
    _head(page, results)
    for work in works:
        truth = truth_of(work)
        for threads in counts:
            if asked.markdown:
                print(f"{work.name}, {said(threads)}", file=sys.stderr, flush=True)
            rows = measure(work, columns, threads, seconds, truth, starts=asked.starts)
            # the best rate seen so far: on a shared machine one look may fall into a bad moment
            results["flops"] = max(results["flops"], machine.flops())
            bound = limits(work, machine, results["flops"], threads)
            found = [as_data(row, bound) for row in rows]
            results["measured"].append(
                {
                    "workload": work.name,
                    "title": work.title,
                    "threads": threads,
                    "limits": {"arithmetic": bound.arithmetic, "bytes": bound.bytes},
                    "rows": found,
                }
            )
            page.heading(work.name, f"{work.title}; {said(threads)}")
            page.table(COLUMNS, lines(found))
            if asked.starts:
                page.gap()
                page.table(STARTS, start_lines(found))
            if asked.json_file is not None:  # what was measured is kept, whatever comes next
                _write(asked.json_file, results)
    _foot(page, asked)
    if asked.markdown:
        print(markdown(results))


def _threads(text: str) -> list[int]:
    """The numbers of threads. Raises CompileError for what is none, and for too many."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    counts = [n.strip() for n in text.split(",")]
    for count in counts:
        if not (count.isascii() and count.isdigit() and int(count) > 0):
            raise CompileError(f"{count!r} is no number of threads", "say 1, or 1,2 for both")
        if int(count) > (usable or 1):
            raise CompileError(f"this process may use {usable} cores, not {count}")
    return [int(count) for count in counts]


def _begun(machine: Machine, columns: Sequence[Peer], seconds: float) -> Data:
    """Results with nothing measured but the machine."""
    here = [p for p in columns if not p.missing()]
    return {
        "command": shlex.join(["chainrule", *sys.argv[1:]]),
        "machine": about(),
        "level": machine.level,
        "flops": machine.flops(),
        "seconds": seconds,
        "blocks": ROUNDS,
        "versions": {name: v for p in here for name, v in p.versions().items()},
        "settings": {p.name: p.settings for p in columns},
        "missing": sorted({name for p in columns for name in p.missing()}),
        "measured": [],
    }


def _head(page: Page, results: Data) -> None:
    page.heading("Machine")
    for line in about_run(results):
        page.say(line)
    page.heading("Peers")
    page.table(("peer", "how"), [list(pair) for pair in results["settings"].items()])
    if results["missing"]:
        page.say(f"not installed: {', '.join(results['missing'])}", style="dim")


def _foot(page: Page, asked: Asked) -> None:
    page.gap()
    page.say(
        "Medians of interleaved blocks after one to warm up, whole steps: forward, backward, "
        "update, next minibatch. The first step counts from the start of the process, nothing "
        "compiled before. Of the machine: of the multiply-adds it can do, or of the bytes it can "
        "read, whichever takes longer. Memory is the process's at its most."
    )
    if not asked.full:
        rest = [p.name for p in chosen_peers(None, True) if p.name in p.module["SLOW"]]
        page.say(f"--full has every workload, and {' and '.join(rest)}", style="dim")


def _write(file: Path, results: Data) -> None:
    part = file.with_name(file.name + ".part")
    part.write_text(json.dumps(results, indent=1))
    os.replace(part, file)
