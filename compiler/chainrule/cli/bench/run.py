"""Peers beside each other: a process each, their blocks interleaved, the rows that come of it."""

from __future__ import annotations

import json
import os
import platform
import runpy
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from chainrule.cli.bench.workloads import WORKLOADS, Workload
from chainrule.codegen.rates import Machine
from chainrule.config import environment
from chainrule.errors import CompileError
from chainrule.records import dataclass

HERE = Path(__file__).resolve().parent
OURS = "chainrule"
ROUNDS, CHECKED, TOLERANCE = 5, 20, 1e-3
#: of a step of so many operations fewer are checked: by hand in float64 it takes seconds
LARGE, FEW = 10**9, 5
#: how far apart the mean losses of peers that draw their own numbers may be
DRAWN = 0.1
#: seconds that a peer may take to its first losses, and to a block beyond what was asked for
PATIENCE = 300.0
#: what libraries under NumPy are told their number of threads by
_BLAS_THREADS = (
    "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
)  # fmt: skip
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

    @property
    def settings(self) -> str:
        """In a line, how it is used."""
        return str(self.module["SETTINGS"][self.name])

    @property
    def ours(self) -> bool:
        """Whether it is this compiler's."""
        return self.name.startswith(OURS)

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
    """A peer on a workload. `note` says why a figure is missing or can't be trusted.

    Seconds: of importing it, from process start to its first step (once, and for each further
    start with nothing kept and with what it kept on disk), and of a step in each block; bytes of
    memory at its most; the first losses, and by how much they are another's.
    """

    peer: str
    note: str = ""
    imported: float = 0.0
    first_step: float = 0.0
    cold: list[float] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)
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
    """A peer's process; its lines are read unbuffered, as `select` sees no buffer of Python's.

    It leads a group of its own: Ctrl-C comes to this process alone, which ends it and all that it
    started.
    """

    def __init__(self, peer: Peer, folder: Path, threads: int, cache: Path) -> None:
        self.peer, self.cache, self.row = peer, cache, Row(peer.name)
        self._log = folder / f"{peer.name}.log"
        cache.mkdir(mode=0o700, exist_ok=True)
        env = environment(_UNSET, peer.module["env"](threads, str(cache)))
        command = [sys.executable, "-P", str(HERE / "peers/worker.py"), str(peer.file), peer.name]
        begun = time.perf_counter()
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [*command, str(folder), str(threads)], start_new_session=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=env, bufsize=0,
            )  # fmt: skip
        try:
            _pin(self._process.pid, threads)
            self.row.imported = self.hear(PATIENCE)["imported"]
            self.row.first_step = time.perf_counter() - begun
        except BaseException:
            self.kill()
            raise

    def check(self) -> None:
        """Wait for its first losses."""
        self.row.losses = self.hear(PATIENCE)["losses"]

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
            raise PeerFailed(said[-1][:200] if said else _ended(self._process.wait()))
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
        """End the process: kindly first, and with all that it started."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
        finally:
            self.kill()

    def kill(self) -> None:
        """End the process and what it started, at once."""
        with suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
        self._process.wait()


def _ended(code: int) -> str:
    """What an exit code says."""
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"


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
