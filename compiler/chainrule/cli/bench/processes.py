"""A peer, the process it runs in, and the row of figures it comes back with."""

from __future__ import annotations

import json
import os
import runpy
import select
import signal
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from chainrule.config import environment
from chainrule.records import dataclass

HERE = Path(__file__).resolve().parent
OURS = "chainrule"
#: seconds that a peer may take to its first losses, and to a block beyond what was asked for
PATIENCE = 300.0
_UNSET = ("PYTHONDONTWRITEBYTECODE", "OPENBLAS_CORETYPE", "BENCH_PEERS")
#: glibc's allocator keeps what it is given back, up to the most it takes for a threshold, as it
#: does by itself in a program that once freed a large array. Without, the activations of an eager
#: step are mapped and cleared each time, which makes PyTorch 1.1 to 1.6 times slower, by chance.
_KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**32)}


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
        env = environment(_UNSET, {**_KEPT_MEMORY, **peer.module["env"](threads, str(cache))})
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
