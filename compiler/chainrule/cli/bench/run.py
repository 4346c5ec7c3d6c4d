"""Peers beside each other: a process each, their blocks interleaved, the rows that come of it."""

from __future__ import annotations

import json
import os
import platform
import runpy
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from chainrule.cli.bench.machine import Machine
from chainrule.cli.bench.reference import losses as reference_losses
from chainrule.cli.bench.workloads import WORKLOADS, Workload
from chainrule.config import environment
from chainrule.errors import CompileError

HERE = Path(__file__).resolve().parent
OURS = "chainrule"
ROUNDS, CHECKED, TOLERANCE = 5, 20, 1e-3
#: how far apart the mean losses of peers that draw their own numbers may be
DRAWN = 0.1
#: seconds that a peer may take to its first losses, and to a block beyond what was asked for
PATIENCE = 300.0
_UNSET = ("PYTHONDONTWRITEBYTECODE", "OPENBLAS_CORETYPE", "BENCH_PEERS")


@dataclass(frozen=True)
class Peer:
    """A column: its file, the functions in it, its variant."""

    name: str
    file: Path
    module: dict[str, Any]

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of its functions."""
        return dict(self.module["VARIANTS"][self.name])

    def missing(self) -> list[str]:
        """Packages that it needs and that are not installed."""
        return [n for n in self.module["NEEDS"] if find_spec(n) is None]

    def versions(self) -> dict[str, str]:
        """The versions of what it needs."""
        return {n: _version(n) for n in self.module["NEEDS"]}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not an installed distribution"


def peers() -> dict[str, Peer]:
    """Every column by name, ours first."""
    files = sorted(HERE.glob("peers/*_peer.py"), key=lambda f: (f.stem != "chainrule_peer", f.stem))
    loaded = [(file, runpy.run_path(str(file))) for file in files]
    return {name: Peer(name, file, m) for file, m in loaded for name in m["VARIANTS"]}


@dataclass
class Row:
    """A peer on a workload. `note` says why a figure is missing or can't be trusted."""

    peer: str
    note: str = ""
    first_step: float = 0.0
    memory: int = 0
    deviation: float | None = None
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Seconds a step."""
        return statistics.median(self.seconds)

    @property
    def counts(self) -> bool:
        """Whether it was timed, and trained what the others did."""
        return bool(self.seconds) and not self.note


class PeerFailed(Exception):
    """A peer's process ended, or was silent for too long."""


class Worker:
    """A peer's process; its lines are read unbuffered, as `select` sees no buffer of Python's."""

    def __init__(self, peer: Peer, folder: Path, threads: int) -> None:
        self.row, self._log = Row(peer.name), folder / f"{peer.name}.log"
        cache = folder / f"{peer.name}.cache"
        cache.mkdir(mode=0o700)
        env = environment(_UNSET, peer.module["env"](threads, str(cache)))
        command = [sys.executable, "-P", str(HERE / "worker.py"), str(peer.file), peer.name]
        begun = time.perf_counter()
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [*command, str(folder), str(threads)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=env, bufsize=0,
            )  # fmt: skip
            _pin(self._process.pid, threads)
        try:
            self.hear(PATIENCE)
            self.row.first_step = time.perf_counter() - begun
            self.row.losses = self.hear(PATIENCE)["losses"]
        except BaseException:
            self.close()
            raise

    def hear(self, patience: float) -> dict[str, Any]:
        """Its next line. Raises PeerFailed."""
        out = self._process.stdout
        assert out is not None
        ready, _, _ = select.select([out], [], [], patience)
        line = out.readline() if ready else b""
        if not ready:
            raise PeerFailed(f"no answer in {patience:.0f} s")
        if not line:
            said = self._log.read_text(errors="replace").strip().splitlines()
            raise PeerFailed(said[-1][:200] if said else f"ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def time(self, seconds: float) -> float:
        """Seconds a step over one block."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{seconds}\n".encode())
        except OSError:
            raise PeerFailed("its process ended") from None
        told = self.hear(seconds + PATIENCE)
        self.row.memory = told["memory"]
        return float(told["seconds"] / told["steps"])

    def close(self) -> None:
        """End the process, kindly or not."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _pin(process: int, threads: int) -> None:
    """Keep a new process on so many cores, the last ones, where that can be."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(process, sorted(os.sched_getaffinity(0))[-threads:])


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
    work: Workload, columns: Sequence[Peer], threads: int, seconds: float, rounds: int = ROUNDS
) -> list[Row]:
    """A row for each peer: its first step, its losses, then blocks in turn, round after round."""
    rows: list[Row] = []
    workers: list[Worker] = []
    with written(work) as folder:
        try:
            for peer in columns:
                why = peer.module["supports"](work, threads, **peer.options)
                if why:
                    rows.append(Row(peer.name, why))
                    continue
                try:
                    workers.append(Worker(peer, folder, threads))
                    rows.append(workers[-1].row)
                except PeerFailed as fault:
                    rows.append(Row(peer.name, str(fault)))
            for turn in range(rounds + 1):
                for worker in workers:
                    _timed(worker, seconds, counts=turn > 0)
        finally:
            for worker in workers:
                worker.close()
    compare(rows, reference_losses(work, CHECKED))
    return rows


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
            pairs = zip(row.losses, truth, strict=True)
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
        wanted = dict.fromkeys(["chainrule", "chainrule-call", *_known("peer", names, every)])
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


def as_data(row: Row) -> dict[str, Any]:
    """A row as plain data."""
    return asdict(row)
