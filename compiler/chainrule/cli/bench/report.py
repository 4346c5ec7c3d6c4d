"""`chainrule bench` itself: what is measured, as tables for the eye and as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chainrule.cli.bench.machine import Machine
from chainrule.cli.bench.run import (
    OURS,
    Limits,
    Row,
    about,
    as_data,
    chosen_peers,
    chosen_workloads,
    limits,
    measure,
)
from chainrule.cli.page import Page
from chainrule.errors import CompileError

COLUMNS = ("peer", "µs a step", "range", "ours is ×", "of the machine", "first step", "memory")


def run(
    page: Page,
    *,
    workloads: str | None,
    peers: str | None,
    threads: int,
    seconds: float,
    full: bool,
    json_file: Path | None,
) -> None:
    """Measure, and print as it goes. Raises CompileError for names that are not there."""
    works, columns = chosen_workloads(workloads, full), chosen_peers(peers, full)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else threads
    if threads > usable:
        raise CompileError(f"this process may use {usable} cores, not {threads}")
    if json_file is not None and not json_file.resolve().parent.is_dir():
        raise CompileError(f"there is no folder {json_file.resolve().parent}")
    here = [p for p in columns if not p.missing()]
    machine = Machine()
    flops = machine.flops()
    page.heading("Machine")
    page.say(f"{about()}; {machine.level}, {flops / 1e9:.0f} GFLOP/s of multiply-adds a core")
    page.say(f"{threads} thread{'s' * (threads > 1)} for everybody, float32")
    versions = {n: v for p in here for n, v in p.versions().items() if n != OURS}
    page.say(", ".join(f"{n} {v}" for n, v in versions.items()) or "no peer is installed")
    absent = sorted({n for p in columns for n in p.missing()})
    if absent:
        page.say(f"not installed, so left out: {', '.join(absent)}", style="dim")
    results: dict[str, Any] = {
        "machine": about(), "flops": flops, "threads": threads, "versions": versions,
        "workloads": {},
    }  # fmt: skip
    for work in works:
        page.heading(work.name, work.title)
        bound = limits(work, machine, flops, threads)
        rows = measure(work, here, threads, seconds)
        _show(page, rows, bound)
        results["workloads"][work.name] = {
            "title": work.title,
            "limits": {"arithmetic": bound.arithmetic, "bytes": bound.bytes},
            "rows": [as_data(row) for row in rows],
        }
        if json_file is not None:  # what was measured is kept, whatever comes next
            _write(json_file, results)
    page.gap()
    page.say(
        "Medians of interleaved blocks, whole steps: forward, backward, update, next minibatch. "
        "The first step counts from the start of the process, nothing compiled before. Of the "
        "machine: of the multiply-adds it can do, or of the bytes it can read, whichever takes "
        "longer."
    )


def _show(page: Page, rows: Sequence[Row], bound: Limits) -> None:
    ours = min((r.median for r in rows if r.counts and r.peer.startswith(OURS)), default=None)
    timed = [r for r in rows if r.seconds]
    page.table(
        COLUMNS, [_cells(r, ours, bound) for r in timed], right="memory first step ours is ×"
    )
    for row in rows:
        if row.note:
            page.say(f"{row.peer}: {row.note}", style="dim")


def _cells(row: Row, ours: float | None, bound: Limits) -> list[str]:
    low, high = min(row.seconds), max(row.seconds)
    ratio = "" if ours is None or not row.counts else f"{row.median / ours:.2f}"
    return [
        row.peer,
        _micro(row.median),
        f"{_micro(low)} to {_micro(high)}",
        ratio,
        bound.share(row.median),
        f"{row.first_step:.2f} s",
        f"{row.memory / 2**20:.0f} MiB" if row.memory else "",
    ]


def _micro(seconds: float) -> str:
    value = seconds * 1e6
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _write(file: Path, results: dict[str, Any]) -> None:
    part = file.with_name(file.name + ".part")
    part.write_text(json.dumps(results, indent=1))
    os.replace(part, file)
