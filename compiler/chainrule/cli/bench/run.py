"""Peers beside each other: a process each, their blocks interleaved, the rows that come of it."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from chainrule.cli.bench.processes import HERE, Peer, PeerFailed, Row, Worker, peers
from chainrule.cli.bench.workloads import WORKLOADS, Workload
from chainrule.codegen.rates import Machine
from chainrule.config import environment
from chainrule.errors import CompileError
from chainrule.records import dataclass

ROUNDS, CHECKED, TOLERANCE = 5, 20, 1e-3
#: of a step of so many operations fewer are checked: by hand in float64 it takes seconds
LARGE, FEW = 10**9, 5
#: how far apart the mean losses of peers that draw their own numbers may be
DRAWN = 0.1
#: what libraries under NumPy are told their number of threads by
_BLAS_THREADS = (
    "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
)  # fmt: skip


@contextmanager
def written(work: Workload) -> Iterator[Path]:
    """A folder with the workload in it, for those that can't import it."""
    with tempfile.TemporaryDirectory(prefix="chainrule-bench-") as name:
        folder = Path(name)
        plain = {**work.plain(), "library": str(HERE / "peers/dense.c")}
        (folder / "workload.json").write_text(json.dumps(plain))
        for kind, arrays in (("weights", work.params()), ("data", work.data())):
            np.savez(folder / f"{kind}.npz", **arrays)  # type: ignore[arg-type]
        yield folder


def measure(
    work: Workload,
    columns: Sequence[Peer],
    threads: int,
    seconds: float,
    truth: Sequence[float] | None,
    *,
    starts: int = 0,
    rounds: int = ROUNDS,
) -> list[Row]:
    """A row for each peer: its first step, its losses, then blocks in turn, round after round.

    Then each is started `starts` times more with nothing compiled, and with what it kept.
    """
    rows: dict[str, Row] = {}
    workers: list[Worker] = []
    with written(work) as folder:
        try:
            for peer in columns:
                rows[peer.name] = Row(peer.name, _why_not(peer, work, threads))
                if not rows[peer.name].note:
                    _started(workers, rows, peer, folder, threads)
            for turn in range(rounds + 1):
                for worker in workers:
                    _timed(worker, seconds, counts=turn > 0)
        finally:
            for worker in workers:
                worker.close()
        for turn in range(starts):
            for worker in workers:
                _again(worker, folder, threads, turn)
    compare(list(rows.values()), truth)
    return list(rows.values())


def _why_not(peer: Peer, work: Workload, threads: int) -> str:
    """Why a peer can't be asked for a workload, or nothing."""
    missing = peer.missing()
    if missing:
        return f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed"
    return peer.module["supports"](work, threads, **peer.options) or ""


def _started(
    workers: list[Worker], rows: dict[str, Row], peer: Peer, folder: Path, threads: int
) -> None:
    """One more worker with its first losses, or the reason why there is none."""
    try:
        worker = Worker(peer, folder, threads, folder / f"{peer.name}.cache")
        workers.append(worker)
        rows[peer.name] = worker.row
        worker.check()
    except PeerFailed as fault:
        rows[peer.name].note = str(fault)


def _again(worker: Worker, folder: Path, threads: int, turn: int) -> None:
    """Start a peer with an empty cache and with the one that it filled."""
    if worker.row.note:
        return
    empty = folder / f"{worker.peer.name}.{turn}.cache"
    for cache, found in ((empty, worker.row.cold), (worker.cache, worker.row.warm)):
        try:
            other = Worker(worker.peer, folder, threads, cache)
        except PeerFailed as fault:
            worker.row.note = f"when started again: {fault}"
            return
        other.kill()
        found.append(other.row.first_step)


def _timed(worker: Worker, seconds: float, counts: bool) -> None:
    """One block; the first one warms up and is not counted."""
    if worker.row.note:
        return
    try:
        spent = worker.time(seconds)
    except PeerFailed as fault:
        worker.row.note = str(fault)
        return
    if counts:
        worker.row.seconds.append(spent)


def truth_of(work: Workload) -> list[float] | None:
    """The first losses of a workload in float64; None where they depend on random draws.

    They are NumPy's in a process of its own, on one thread: on several its products wait for each
    other, on a busy machine ten times as long as they compute.
    """
    count = CHECKED if work.flops() < LARGE else FEW
    env = environment((), dict.fromkeys(_BLAS_THREADS, "1"))
    code = "from chainrule.cli.bench.reference import main; main()"
    command = [sys.executable, "-P", "-c", code, work.name, str(count)]
    found: list[float] | None = json.loads(subprocess.check_output(command, env=env))
    return found


def compare(rows: Sequence[Row], truth: Sequence[float] | None) -> None:
    """Enter how far each row's losses are from the truth; without one, their mean from the others'.

    A row too far away says so in its note, and counts for nothing.
    """
    with_losses = [r for r in rows if r.losses]
    means = [statistics.fmean(r.losses) for r in with_losses]
    for row in with_losses:
        if truth is None:
            row.deviation = abs(statistics.fmean(row.losses) / statistics.median(means) - 1)
        else:
            pairs = zip(row.losses, truth, strict=False)
            row.deviation = max(abs(a / b - 1) for a, b in pairs)
        if not row.deviation <= (DRAWN if truth is None else TOLERANCE):
            row.note = row.note or f"its losses are another's, by {row.deviation:.1e}"


@dataclass(frozen=True)
class Limits:
    """What a machine allows a workload: seconds of its operations, and of its bytes."""

    arithmetic: float
    bytes: float

    def share(self, seconds: float) -> str:
        """How much of the machine's rate a step reaches, of what bounds it more."""
        bound = max(self.arithmetic, self.bytes)
        what = "FMA" if self.arithmetic >= self.bytes else "bytes"
        return f"{bound / seconds:.0%} {what}"


def limits(work: Workload, machine: Machine, flops: float, threads: int) -> Limits:
    """The least time of a step: its products at the measured rate, its bytes at a read's."""
    speed = machine.bandwidth(max(work.bytes(), 2**16))
    return Limits(work.flops() / (flops * threads), work.bytes() / (speed * threads))


def chosen_workloads(names: str | None, full: bool) -> list[Workload]:
    """Those that are named, or the quick ones, or all. Raises CompileError for an unknown name."""
    if names is None:
        return [w for w in WORKLOADS.values() if full or w.quick]
    return [WORKLOADS[n] for n in _known("workload", names, WORKLOADS)]


def chosen_peers(names: str | None, full: bool) -> list[Peer]:
    """Ours, and those that are named, or all, without the slow ones unless `full`."""
    every = peers()
    if names is not None:
        ours = [p.name for p in every.values() if p.ours]
        wanted = dict.fromkeys([*ours, *_known("peer", names, every)])
        return [every[n] for n in wanted]
    return [p for p in every.values() if full or p.name not in p.module["SLOW"]]


def _known(kind: str, names: str, table: dict[str, Any]) -> list[str]:
    wanted = [n.strip() for n in names.split(",") if n.strip()]
    for name in wanted:
        if name not in table:
            raise CompileError(f"there is no {kind} {name!r}", f"there are {', '.join(table)}")
    return wanted


def about() -> str:
    """The machine in words, for the record."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    model = next((n.split(":")[1].strip() for n in lines if "model name" in n), platform.machine())
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}{load}"


def as_data(row: Row, bound: Limits) -> dict[str, Any]:
    """A row as plain data, with what follows from it."""
    median = row.median if row.seconds else None
    share = bound.share(row.median) if row.seconds else ""
    return {**asdict(row), "counts": row.counts, "median": median, "machine": share}
