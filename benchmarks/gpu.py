"""An NVIDIA GPU: every op and net checked on it, then timed beside PyTorch and JAX.

    python benchmarks/gpu.py             # all of it, as a table in Markdown
    python benchmarks/gpu.py --check     # whether the numbers are right, nothing timed

Ops are held to native code's bits, or where a fold is long to float64; nets to the losses of the
CPU over some steps. Times are medians of blocks of half a second, all in one process, interleaved;
of PyTorch eager, and with torch.compile in mode "reduce-overhead" (CUDA graphs), and of JAX, many
steps a call. Products are ours without `tune=` and as it chooses, cuBLASLt being one of its ways.
Each table says beside what was measured what is aimed at. Where compute-sanitizer is installed it
watches a few training steps.
"""

from __future__ import annotations

import platform
import runpy
import shutil
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import chainrule as cr
from chainrule.cli.bench.peers import chainrule_peer, jax_peer, torch_peer
from chainrule.cli.bench.workloads import WORKLOADS, Workload
from chainrule.driver import program
from chainrule.ir.graph import Graph
from chainrule.ir.node import apply
from chainrule.ops.registry import ops
from chainrule.ops.source import leaf
from chainrule_runtime.gpu import driver, epochs

STEPS, BLOCKS, BLOCK_SECONDS = 20, 7, 0.5
LONG_RUN = 10_000
LENGTHS = (256, 1024, 4096)
#: what is aimed at, as ratios in one run: a step beside PyTorch eager, and beside torch.compile
#: with CUDA graphs and JAX; memory-bound kernels beside a copy; launches of a step
AIMED = {"eager": "3x", "compiled": "1.5x", "copy": "85%", "launches": "1"}
COPIED = 1 << 26
#: another script beside this one, which says what is aimed at for products
PRODUCTS = runpy.run_path(str(Path(__file__).with_name("gpu_products.py")))
jax = PRODUCTS["jax"]
Row = tuple[str, ...]


# right


def wrong_ops(names: Sequence[str] = ()) -> Iterator[str]:
    """Ops whose numbers are not the CPU's, in words; all of them, or those of some names."""
    for entry in ops():
        for i, (op, types) in enumerate(entry.samples if not names or entry.name in names else ()):
            leaves = [leaf("input", f"x{k}", t) for k, t in enumerate(types)]
            graph = Graph((apply(op, *leaves),))
            rng = np.random.default_rng(zlib.crc32(str(op.name).encode()))
            arrays = [
                rng.uniform(*op.domain, t.shape).astype(t.dtype.numpy)
                if not t.dtype.is_bool
                else rng.random(t.shape) < 0.5
                for t in types
            ]
            feeds = {f"x{k}": a for k, a in enumerate(arrays)}
            try:
                want = program(graph, leaves, ["out"], "cpu").call(feeds)
            except cr.errors.CompileError:  # a leaf that nothing gives a value
                continue
            got = program(graph, leaves, ["out"], "cuda").call(feeds)
            if not np.array_equal(got[0], want[0], equal_nan=got[0].dtype.kind == "f"):
                worst = np.abs(np.subtract(got[0], want[0], dtype=np.float64)).max()
                yield f"{entry.name} {i}: {worst:.2g} from the CPU"


def losses(spec: Workload, backend: str, steps: int) -> np.ndarray:
    """The losses of a workload's first steps."""
    step = chainrule_step(spec, backend)
    rows = {n: a[: spec.batch * min(steps, spec.nbatch)] for n, a in spec.data().items()}
    return np.asarray(step.run(batch_size=spec.batch, shuffle=False, **rows))


def chainrule_step(spec: Workload, backend: str) -> cr.TrainingStep:
    loss = chainrule_peer.loss_of(spec, spec.params())
    optimizer = chainrule_peer.optimizer_of(dict(spec.opt))
    return cr.training_step(loss, optimizer, backend=backend, seed=spec.seed)


@contextmanager
def launch_by_launch() -> Iterator[None]:
    """Without the kernel that stays for many steps of a tiny net."""
    usual, epochs.PER_LAUNCH = epochs.PER_LAUNCH, 0
    try:
        yield
    finally:
        epochs.PER_LAUNCH = usual


def wrong_nets(specs: Sequence[Workload], steps: int = STEPS) -> Iterator[str]:
    """Workloads whose losses leave the CPU's: long folds differ in their last bits, which steps
    make more of, so that a thousandth is allowed; or where a kernel that stays has other bits.
    """
    for spec in specs:
        got, want = (losses(spec, backend, steps) for backend in ("cuda", "cpu"))
        if not np.allclose(got, want, rtol=1e-3, atol=1e-6):
            yield f"{spec.name}: losses {got[:3]} are the CPU's {want[:3]}"
        with launch_by_launch():
            again = losses(spec, "cuda", steps)
        if not np.array_equal(got, again):
            yield f"{spec.name}: losses {got[:3]} are {again[:3]} launch by launch"


# fast


def medians(calls: Mapping[str, Callable[[], int]], wait: Callable[[], None]) -> dict[str, str]:
    """Microseconds a step of each, interleaved: the median of blocks, and their range. A call says
    how many steps it was.
    """
    found: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(BLOCKS):
        for name, call in calls.items():
            wait()
            start, steps = time.perf_counter(), 0
            while time.perf_counter() - start < BLOCK_SECONDS:
                steps += call()
            wait()
            found[name].append((time.perf_counter() - start) / steps * 1e6)
    return {
        n: f"{statistics.median(t):.1f} ({min(t):.1f} to {max(t):.1f})" for n, t in found.items()
    }


def step_calls(spec: Workload) -> dict[str, Callable[[], int]]:
    """A workload's steps, ours and PyTorch's."""
    ours, data = chainrule_step(spec, "cuda"), spec.data()

    def run() -> int:
        return len(ours.run(batch_size=spec.batch, shuffle=False, epochs=10, **data))

    def apart() -> int:
        with launch_by_launch():
            return run()

    calls: dict[str, Callable[[], int]] = {"chainrule": run, "launch by launch": apart}
    if find_spec("torch"):
        for name, mode in (("torch", None), ("torch.compile", "reduce-overhead")):
            calls[name] = torch_step(spec, mode)
    if find_spec("optax") and jax() and jax_peer.supports(spec, 1) is None:
        calls["jax"] = jax_step(spec)
    return calls


def jax_step(spec: Workload) -> Callable[[], int]:
    """JAX's steps, many in a call, until they are done."""
    made = jax_peer.make_step(spec, 1, scan=True)

    def steps() -> int:
        made(0)
        made.sync()
        return int(made.steps_per_call)

    return steps


def launches_of(spec: Workload) -> str:
    """How often the driver is asked to launch in a step: graphs, or the kernel that stays for many
    steps.
    """
    step, gpu = chainrule_step(spec, "cuda"), driver.find()
    data = {n: a[: spec.batch * min(STEPS, spec.nbatch)] for n, a in spec.data().items()}
    played = [0, 0]  # graphs; kernels, of which others are asked for when graphs are recorded

    def counted(i: int, ask: Callable[..., None]) -> Callable[..., None]:
        def call(*given: Any) -> None:
            played[i] += 1
            ask(*given)

        return call

    for i, name in enumerate(("play", "launch")):
        setattr(gpu, name, counted(i, getattr(gpu, name)))
    steps = len(step.run(batch_size=spec.batch, shuffle=False, **data))
    for name in ("play", "launch"):
        delattr(gpu, name)
    return f"{(played[0] or played[1]) / steps:.3g}"


def settled(gpu: Any) -> Callable[[], None]:
    """What waits until nothing is under way on the GPU, PyTorch's stream too."""

    def wait() -> None:
        with gpu.entered():
            gpu.wait()
        if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
            sys.modules["torch"].cuda.synchronize()

    return wait


def torch_step(spec: Workload, mode: str | None) -> Callable[[], int]:
    """PyTorch's step on the GPU, its data there too."""
    torch = import_module("torch")
    net, forward = torch_peer._NETS[spec.kind](torch, spec)
    net.to("cuda")
    feeds = [torch.from_numpy(a).to("cuda") for a in spec.data().values()]
    feeds = [a.long() if a.dtype == torch.int32 else a for a in feeds]
    options = dict(spec.opt)
    rule = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    given = {"lr": options["lr"], "fused": True}
    if options["kind"] == "sgd":
        given["momentum"] = options["momentum"]
    optimizer = rule[options["kind"]](net.parameters(), **given)
    forward = torch.compile(forward, mode=mode) if mode else forward
    place = 0

    def step() -> int:
        nonlocal place
        first = place % spec.nbatch * spec.batch
        place += 1
        optimizer.zero_grad(set_to_none=True)
        forward(*[a[first : first + spec.batch] for a in feeds]).backward()
        optimizer.step()
        return 1

    return step


def kernel_seconds(outputs: Any, feeds: dict[str, np.ndarray], times: int = 20) -> float:
    """Seconds that a program's launches take, without what is sent and fetched."""
    fn = cr.compile(outputs, backend="cuda")
    fn(**feeds)
    ours = fn._program._program
    arrays = ours.binder.arrays(feeds)
    plan = ours.plan(tuple(a.shape for a in arrays))
    best = []
    with ours.session() as session:
        recording = session.memory.recordings[plan]
        for _ in range(BLOCKS):
            session.gpu.wait()
            start = time.perf_counter()
            for _ in range(times):
                session.gpu.play(recording)
            session.gpu.wait()
            best.append((time.perf_counter() - start) / times)
    return statistics.median(best)


def bandwidth_rows() -> Iterator[Row]:
    """Memory-bound kernels beside a plain copy, in GB/s of what they read and write."""
    x = cr.input("x", (COPIED // 1024, 1024))
    cases = {
        "copy": (x + 0.0, 8),
        "gelu": (cr.gelu(x), 8),
        "softmax": (cr.softmax(x), 8),
        "layer_norm": (cr.layer_norm(x, None, None), 8),
        "sum of rows": (cr.sum(x, axis=1), 4),
        "sum of columns": (cr.sum(x, axis=0), 4),
        "sum": (cr.sum(x), 4),
    }
    feeds = {"x": np.random.default_rng(0).standard_normal(x.shape, np.float32)}
    speeds = {
        n: size * COPIED / kernel_seconds(out, feeds) / 1e9 for n, (out, size) in cases.items()
    }
    for name, speed in speeds.items():
        yield name, f"{speed:.0f} GB/s", f"{speed / speeds['copy']:.0%}", AIMED["copy"]


def attention_rows() -> Iterator[Row]:
    """Causal attention of 8 x 8 heads of 64 in float32, forward and back, in milliseconds, beside
    PyTorch's.
    """
    torch = import_module("torch") if find_spec("torch") else None
    for n in LENGTHS:
        shape = 8, 8, n, 64
        q, k, v = (cr.input(name, shape) for name in "qkv")
        out = cr.attention(q, k, v, causal=True)
        rng = np.random.default_rng(0)
        feeds = {name: rng.standard_normal(shape, np.float32) for name in "qkv"}
        ours = kernel_seconds([out, *cr.grad(cr.sum(out * out), [q, k, v])], feeds) * 1e3
        theirs = torch_attention(torch, shape) * 1e3 if torch else float("nan")
        yield f"{n}", f"{ours:.2f}", f"{theirs:.2f}", f"{theirs / ours:.0%}"


def torch_attention(torch: Any, shape: tuple[int, ...]) -> float:
    q, k, v = (torch.randn(shape, device="cuda", requires_grad=True) for _ in range(3))
    found = []
    for _ in range(BLOCKS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(20):
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            (out * out).sum().backward()
        torch.cuda.synchronize()
        found.append((time.perf_counter() - start) / 20)
    return statistics.median(found)


def grown(spec: Workload) -> int:
    """Bytes of the GPU that a long run has not given back."""
    gpu, step = driver.find(), chainrule_step(spec, "cuda")
    data = spec.data()
    step.run(batch_size=spec.batch, **data)
    with gpu.entered():
        before = gpu.free()
    step.run(batch_size=spec.batch, epochs=LONG_RUN // spec.nbatch, **data)
    with gpu.entered():
        return before - gpu.free()


def sanitized() -> str:
    """What compute-sanitizer says of a training step; why not, where it is not here."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return "not installed"
    code = "import gpu; print(gpu.losses(next(iter(gpu.WORKLOADS.values())), 'cuda', 4))"
    command = [tool, "--tool", "memcheck", sys.executable, "-c", code]
    folder = __file__.rsplit("/", 1)[0]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return (done.stdout.strip().splitlines() or ["it said nothing"])[-1]


def table(head: Row, rows: Sequence[Row]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: Sequence[str]) -> int:
    print(f"GPU: {driver.describe()}; {platform.platform()}; {time.strftime('%Y-%m-%d')}\n")
    try:
        gpu = driver.find()
    except driver.DeviceError:
        return 2
    specs = list(WORKLOADS.values())
    wrong = [*wrong_ops(), *wrong_nets([s for s in specs if not s.draws])]
    print("\n".join(wrong) or "every op and net has the CPU's numbers", "\n")
    print(f"compute-sanitizer: {sanitized()}\n")
    if "--check" in arguments or wrong:
        return bool(wrong)
    print(table(("kernel", "speed", "of a copy", "aimed at"), list(bandwidth_rows())), "\n")
    for title, head, rows in PRODUCTS["tables"]():
        print(f"{title}\n\n{table(head, rows)}\n")
    print(table(("queries", "ours, ms", "PyTorch", "ratio"), list(attention_rows())), "\n")
    rows: list[Row] = []
    ways = "chainrule", "launch by launch", "torch", "torch.compile", "jax"
    for spec in specs:
        found = medians(step_calls(spec), settled(gpu))
        rows.append((spec.title, *(found.get(way, "") for way in ways), launches_of(spec)))
    aims = "", "", AIMED["eager"], *[AIMED["compiled"]] * 2, AIMED["launches"]
    rows.append(("theirs / ours, aimed at for small nets", *aims))
    print(table(("µs a step", *ways, "launches a step"), rows), "\n")
    print(f"{LONG_RUN} steps of {specs[0].title} took {grown(specs[0])} bytes of memory for good")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
