"""The first figures anyone asks for, side by side with the peers that are installed.

    python benchmarks/first_light.py [--peers numpy,torch,jax] [--json FILE]

Three tables: what importing costs beyond NumPy, the time from process start to the first trained
step of the demo's net, and training steps a second at batch 1, 32 and 256. Each peer works in a
process of its own, on one thread (pinned to one core while steps are timed); the blocks of the
peers are interleaved, round after round, so that a drift of the machine hits all alike. Figures are
medians with their ranges. The losses of the first 20 steps must agree with NumPy's in float64 to
1e-3, or the run fails.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from first_light_peers import PEERS, NumPyPeer, initial_weights

HERE = Path(__file__).resolve()
DIGITS = HERE.parents[1] / "compiler/chainrule/datasets/digits.npz"
BATCHES = (1, 32, 256)
CHECKED, TOLERANCE = 20, 1e-3
WARM_SECONDS = 1.0
Figures = dict[str, list[float]]

# One thread each. Variables that a machine's administrator may have set to steer OpenBLAS are taken
# out, so that it chooses its kernels by the CPU.
THREADS = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}
UNSET = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "PYTHONDONTWRITEBYTECODE")


def environment() -> dict[str, str]:
    """What a worker runs in."""
    kept = {name: value for name, value in os.environ.items() if name not in UNSET}
    return {**kept, **THREADS}


def minibatches(batch: int) -> tuple[np.ndarray, np.ndarray]:
    """The digits as whole minibatches: as many rows as `batch` divides."""
    with np.load(DIGITS, allow_pickle=False) as file:
        x, y = file["pixels"] / np.float32(16), file["labels"]
    rows = 1438 // batch * batch
    return x[:rows].astype(np.float32), y[:rows].astype(np.int32)


# A worker: one peer at one batch size, told by lines on stdin what to do.


def work(name: str, batch: int) -> None:
    """Build the peer, make its first steps, then time a block for each line that comes in."""
    x, y = minibatches(batch)
    peer = PEERS[name](initial_weights(), x, y, batch)
    losses, made = peer.run(1)
    print(json.dumps({"loss": losses[0]}), flush=True)
    while made < CHECKED:
        more, count = peer.run(1)
        losses, made = losses + more, made + count
    print(json.dumps({"losses": losses[:CHECKED]}), flush=True)
    for line in sys.stdin:
        print(json.dumps(block(peer, float(line))), flush=True)


def block(peer: Any, seconds: float) -> dict[str, float]:
    """Steps for about so long, a hundred at a time; losses are read after each hundred."""
    made, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        made += peer.run(100)[1]
    return {"steps": made, "seconds": spent}


class Worker:
    """A peer's process, and the time from its start to its first trained step."""

    def __init__(self, name: str, batch: int, pinned: bool) -> None:
        self.name = name
        start = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, str(HERE), "--worker", name, "--batch", str(batch)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
            text=True,
        )
        if pinned and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(self.process.pid, {max(os.sched_getaffinity(0))})
        self.read()
        self.first_step = time.perf_counter() - start
        self.losses: list[float] = self.read()["losses"]

    def read(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name}: its process ended with {self.process.wait()}")
        return json.loads(line)

    def rate(self, seconds: float) -> float:
        """Steps a second over one block."""
        assert self.process.stdin
        print(seconds, file=self.process.stdin, flush=True)
        timed = self.read()
        return float(timed["steps"] / timed["seconds"])

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(30)


def import_seconds(module: str, rounds: int) -> list[float]:
    """What `import module` takes after `import numpy`, in fresh processes with warm bytecode."""
    code = (
        "import time, numpy; start = time.perf_counter(); "
        f"import {module}; print(time.perf_counter() - start)"
    )
    command = [sys.executable, "-c", code]
    runs = [
        subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
        for _ in range(rounds + 1)
    ]
    return [float(run.stdout) for run in runs[1:]]


def first_steps(names: list[str], rounds: int) -> Figures:
    """Seconds from process start to the first trained step at batch 32."""
    seconds: Figures = {name: [] for name in names}
    for _ in range(rounds + 1):
        for name in names:
            worker = Worker(name, 32, pinned=False)
            worker.close()
            seconds[name].append(worker.first_step)
    return {name: values[1:] for name, values in seconds.items()}


def rates(names: list[str], batch: int, rounds: int, seconds: float) -> Figures:
    """Steps a second of each peer, block by block, after their losses have been compared."""
    truth = float64_losses(batch)
    workers = [Worker(name, batch, pinned=True) for name in names]
    for worker in workers:
        np.testing.assert_allclose(worker.losses, truth, rtol=TOLERANCE, err_msg=worker.name)
        worker.rate(WARM_SECONDS)
    blocks: Figures = {name: [] for name in names}
    for _ in range(rounds):
        for worker in workers:
            blocks[worker.name].append(worker.rate(seconds))
    for worker in workers:
        worker.close()
    return blocks


def float64_losses(batch: int) -> list[float]:
    """The first losses as NumPy computes them in float64."""
    x, y = minibatches(batch)
    peer = NumPyPeer(initial_weights("float64"), x.astype(np.float64), y, batch)
    return peer.run(CHECKED)[0]


def better_torch(blocks: Figures) -> Figures:
    """Of PyTorch's two Adams the faster one."""
    both = [name for name in ("torch", "torch_foreach") if name in blocks]
    slower = sorted(both, key=lambda name: statistics.median(blocks[name]))[:-1]
    return {name: values for name, values in blocks.items() if name not in slower}


# Reporting.


def spread(values: list[float], form: str) -> str:
    low, mid, high = min(values), statistics.median(values), max(values)
    return f"{mid:{form}} [{low:{form}} .. {high:{form}}]"


def row_label(name: str) -> str:
    label = str(PEERS[name].label)
    return f"{label}, fused" if name == "torch" else label


def tables(results: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, columns and rows of each table."""
    imports = [[name, spread(v, ".3f")] for name, v in results["import_s"].items()]
    firsts = [[row_label(n), spread(v, ".2f")] for n, v in results["first_step_s"].items()]
    found = [
        ("Import beyond NumPy's, seconds", ["package", "median, range"], imports),
        ("Process start to first trained step, seconds", ["peer", "median, range"], firsts),
    ]
    for batch, blocks in results["steps_per_s"].items():
        middles = {name: statistics.median(values) for name, values in blocks.items()}
        ours = [name for name in ("chainrule", "chainrule_run") if name in blocks]
        rows = [
            [row_label(name), spread(values, ",.0f"), f"{1e6 / middles[name]:,.1f}"]
            + [f"{middles[our] / middles[name]:.2f}" for our in ours]
            for name, values in blocks.items()
        ]
        columns = ["peer", "steps/s: median, range", "µs a step"]
        columns += [f"{row_label(our)} is x times faster" for our in ours]
        found.append((f"Training steps, batch {batch}", columns, rows))
    return found


def report(results: dict[str, Any]) -> None:
    """The tables for the eye, then for pasting."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=120)
    markdown = []
    for title, columns, rows in tables(results):
        table = Table(*columns, title=title)
        for row in rows:
            table.add_row(*row)
        console.print(table)
        lines = [columns, ["---"] * len(columns), *rows]
        markdown += [f"**{title}**", "", *(f"| {' | '.join(line)} |" for line in lines), ""]
    print("\n".join(["", results["machine"], "", *markdown]))


def machine() -> str:
    """The CPU and the versions, for the record."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "CPU")
    return f"{model}, {os.cpu_count()} cores, Python {sys.version.split()[0]}, one thread, float32"


def chosen(wanted: str) -> list[str]:
    """Ours and the wanted peers, of those that are installed."""
    families = ["chainrule", *wanted.split(",")]
    unknown = set(families) - {peer.needs for peer in PEERS.values()}
    if unknown:
        raise SystemExit(f"no such peer: {', '.join(sorted(unknown))}")
    missing = [name for name in families if importlib.util.find_spec(name) is None]
    if missing:
        print(f"not installed, left out: {', '.join(missing)}", file=sys.stderr)
    return [n for n, p in PEERS.items() if p.needs in families and p.needs not in missing]


def measure(names: list[str], rounds: int, seconds: float) -> dict[str, Any]:
    packages = dict.fromkeys(PEERS[name].needs for name in names)
    imported = {p: import_seconds(p, rounds) for p in packages if p != "numpy"}
    started = first_steps([name for name in names if name != "torch_foreach"], rounds)
    rated = {batch: better_torch(rates(names, batch, rounds, seconds)) for batch in BATCHES}
    return {
        "machine": machine(),
        "import_s": imported,
        "first_step_s": started,
        "steps_per_s": rated,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", default="numpy,torch,jax", help="of numpy, torch, jax")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of one timed block")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument("--worker", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=32, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        return work(asked.worker, asked.batch)
    results = measure(chosen(asked.peers), asked.rounds, asked.seconds)
    report(results)
    if asked.json:
        with tempfile.NamedTemporaryFile("w", dir=asked.json.resolve().parent, delete=False) as out:
            json.dump(results, out, indent=1)
        os.replace(out.name, asked.json)


if __name__ == "__main__":
    main()
