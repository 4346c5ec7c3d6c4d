"""One process, one peer, one workload: builds it, makes its first steps, then times blocks.

Run by its path, `python -P worker.py PEER_FILE VARIANT FOLDER THREADS`, so that nothing of
chainrule is loaded where another is measured. Speaks JSON lines; what a peer prints goes to a log.
"""

from __future__ import annotations

import ctypes
import json
import os
import runpy
import signal
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

CHECKED = 20
UNREAD = 100  # steps between two readings of the loss


class Given:
    """A workload as it lies in a folder: its figures as attributes, its arrays."""

    def __init__(self, folder: str) -> None:
        self.__dict__.update(json.loads(Path(folder, "workload.json").read_text()))
        self._folder = folder

    def params(self) -> dict[str, Any]:
        """The initial weights."""
        return self._arrays("weights.npz")

    def data(self) -> dict[str, Any]:
        """All rows."""
        return self._arrays("data.npz")

    def _arrays(self, name: str) -> dict[str, Any]:
        with np.load(Path(self._folder, name), allow_pickle=False) as file:
            return dict(file)


def peak_memory() -> int:
    """The most bytes this process ever had in memory; 0 where the system does not tell.

    `ru_maxrss` would not do: it begins at what the parent had when it started this process.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(n.split()[1]) for n in lines if n.startswith("VmHWM")), 0)


def end_with_parent() -> None:
    """Have Linux end this process when the one that started it is no more."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG


def main() -> None:
    """Import, build, step, answer."""
    end_with_parent()
    file, variant, folder, threads = sys.argv[1:]
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    peer, spec = runpy.run_path(file), Given(folder)
    begun = time.perf_counter()
    for name in peer["NEEDS"]:
        import_module(name)
    imported = time.perf_counter() - begun
    step = peer["make_step"](spec, int(threads), **peer["VARIANTS"][variant])
    each = step.steps_per_call

    def say(**figures: Any) -> None:
        out.write(json.dumps(figures) + "\n")

    step(0)
    losses = [float(loss) for loss in step.losses()]
    say(first=losses[0], imported=imported)
    done = each
    while len(losses) < CHECKED:
        step(done)
        losses += map(float, step.losses())
        done += each
    say(losses=losses[:CHECKED])
    for line in sys.stdin:
        made, seconds = block(step, done, float(line))
        done += made
        say(steps=made, seconds=seconds, memory=peak_memory())


def block(step: Any, first: int, seconds: float) -> tuple[int, float]:
    """Steps from number `first` on for about so long; losses are read now and then, as users do."""
    each, calls, made, begun = step.steps_per_call, 1, 0, time.perf_counter()
    while True:
        for _ in range(calls):
            step(first + made)
            made += each
        step.losses()
        step.sync()
        spent = time.perf_counter() - begun
        if spent >= seconds:
            return made, spent
        left = int((seconds - spent) / spent * made / each)
        calls = max(1, min(UNREAD // each, left))


if __name__ == "__main__":
    main()
