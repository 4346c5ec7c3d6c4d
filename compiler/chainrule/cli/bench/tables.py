"""What `chainrule bench` found, as lines of tables: of each workload, and of all."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from chainrule.cli.bench.processes import OURS

Data = dict[str, Any]
COLUMNS = (
    "peer", "µs a step", "range, or why not", "ours is ×", "of the machine", "first step", "memory",
)  # fmt: skip
STARTS = ("started again", "import", "first step, nothing kept", "first step, with what was kept")


def said(threads: int) -> str:
    """A number of threads in words."""
    return "one thread" if threads == 1 else f"{threads} threads"


def about_run(results: Data) -> list[str]:
    """The machine, then what was installed."""
    rate = f"{results['flops'] / 1e9:.0f} GFLOP/s of multiply-adds a core"
    versions = ", ".join(f"{name} {v}" for name, v in results["versions"].items())
    return [f"{results['machine']}; {results['level']}, {rate}; float32", versions]


def lines(rows: Sequence[Data]) -> list[list[str]]:
    """A line for each row of a workload."""
    ours = _best(rows, ours=True)
    return [_line(row, ours) for row in rows]


def _line(row: Data, ours: float | None) -> list[str]:
    first = f"{row['first_step']:.2f} s" if row["first_step"] else ""
    memory = f"{row['memory'] / 2**20:.0f} MiB" if row["memory"] else ""
    if not row["counts"]:
        return [row["peer"], "", row["note"], "", "", first, memory]
    ratio = "" if ours is None else f"{row['median'] / ours:.2f}"
    spread = f"{micro(min(row['seconds']))} to {micro(max(row['seconds']))}"
    return [row["peer"], micro(row["median"]), spread, ratio, row["machine"], first, memory]


def start_lines(rows: Sequence[Data]) -> list[list[str]]:
    """A line for each peer that was started again: medians and ranges in seconds."""
    return [
        [row["peer"], f"{row['imported']:.2f} s", _spread(row["cold"]), _spread(row["warm"])]
        for row in rows
        if row["warm"]
    ]


def _spread(seconds: Sequence[float]) -> str:
    middle = statistics.median(seconds)
    return f"{middle:.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"


def _best(rows: Sequence[Data], ours: bool) -> float | None:
    """The least median of ours, or of all others."""
    return min(
        (r["median"] for r in rows if r["counts"] and r["peer"].startswith(OURS) == ours),
        default=None,
    )


def micro(seconds: float) -> str:
    """Seconds as microseconds, to three digits or whole."""
    value = seconds * 1e6
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def markdown(results: Data) -> str:
    """Everything: a table of all workloads for each number of threads, then one for each."""
    parts = [f"`{results['command']}`: {'; '.join(about_run(results))}.\n"]
    for threads in dict.fromkeys(found["threads"] for found in results["measured"]):
        measured = [found for found in results["measured"] if found["threads"] == threads]
        parts += _summary(measured, threads)
    for found in results["measured"]:
        parts.append(f"**{found['workload']}**: {found['title']}; {said(found['threads'])}\n")
        parts.append(markdown_table(COLUMNS, lines(found["rows"])))
    return "\n".join(parts)


def _summary(measured: Sequence[Data], threads: int) -> Iterator[str]:
    """Medians of all workloads beside each other; then, of those started again, the first steps."""
    timed = {r["peer"]: None for found in measured for r in found["rows"] if r["counts"]}
    head = (f"µs a step, {said(threads)}", *timed, "the best other takes")
    yield markdown_table(head, [_compared(found, list(timed)) for found in measured])
    started = [found for found in measured if start_lines(found["rows"])]
    ways = (
        ("imported", "import"),
        ("cold", "first step, nothing kept"),
        ("warm", "with what was kept"),
    )
    if started:
        yield markdown_table(
            ("seconds from the start of the process", *timed),
            [
                [f"{found['workload']}: {words}", *_begun(found, list(timed), kind)]
                for found in started
                for kind, words in ways
            ],
        )


def _compared(found: Data, names: Sequence[str]) -> list[str]:
    rows = {r["peer"]: r for r in found["rows"]}
    ours, other = _best(found["rows"], ours=True), _best(found["rows"], ours=False)
    cells = [micro(rows[n]["median"]) if n in rows and rows[n]["counts"] else "" for n in names]
    ratio = f"{other / ours:.2f} times ours" if ours and other else ""
    return [f"{found['workload']}: {found['title']}", *cells, ratio]


def _begun(found: Data, names: Sequence[str], kind: str) -> Iterator[str]:
    rows = {r["peer"]: r for r in found["rows"]}
    for name in names:
        values = rows[name][kind] if name in rows and rows[name]["warm"] else []
        yield (
            f"{statistics.median([values] if kind == 'imported' else values):.2f}" if values else ""
        )


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines under a head, as Markdown."""
    every = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in every) + "\n"
