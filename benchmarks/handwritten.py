"""The two smallest nets beside hand-written C, one thread, interleaved in one run.

    python benchmarks/handwritten.py

The C in benchmarks/handwritten is compiled with `gcc -O3 -march=native`, with and without
`-ffast-math`; every program trains from the same weights on the same data, the losses must agree to
1e-3, and all steps of a pass over the data are one native call. Medians and ranges of eleven.
"""

from __future__ import annotations

import ctypes
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import chainrule as cr

HERE = Path(__file__).parent / "handwritten"
FLAGS = {"-O3": [], "-O3 -ffast-math": ["-ffast-math"]}
STEPS, RATE, REPEATS = 500, 0.05, 11
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Net:
    """A net: its C, its loss as an expression, its data and its first weights."""

    source: str
    batch: int
    loss: Callable[[dict[str, cr.Tensor]], cr.Tensor]
    data: Arrays
    weights: Arrays


def tiny_mlp() -> Net:
    """4-16-3 with tanh, softmax cross-entropy, batch 8."""
    rng = np.random.default_rng(0)
    rows = STEPS * 8
    data = {"x": rng.standard_normal((rows, 4)), "y": rng.integers(0, 3, rows)}
    weights = {"W0": rng.standard_normal((4, 16)) / 2, "b0": np.zeros(16)}
    weights |= {"W1": rng.standard_normal((16, 3)) / 4, "b1": np.zeros(3)}

    def loss(p: dict[str, cr.Tensor]) -> cr.Tensor:
        x, y = cr.input("x", ("batch", 4)), cr.input("y", ("batch",), dtype="int32")
        return cr.losses.cross_entropy(cr.tanh(x @ p["W0"] + p["b0"]) @ p["W1"] + p["b1"], y)

    return Net("tiny_mlp.c", 8, loss, data, weights)


def logistic() -> Net:
    """30 features, binary cross-entropy, batch 32."""
    rng = np.random.default_rng(1)
    rows = STEPS * 32
    data = {"x": rng.standard_normal((rows, 30)), "t": rng.integers(0, 2, rows).astype(np.float32)}
    weights = {"W": rng.standard_normal((30, 1)) / 5, "b": np.zeros(1)}

    def loss(p: dict[str, cr.Tensor]) -> cr.Tensor:
        x, t = cr.input("x", ("batch", 30)), cr.input("t", ("batch",))
        return cr.losses.binary_cross_entropy((x @ p["W"] + p["b"])[:, 0], t)

    return Net("logistic.c", 32, loss, data, weights)


def native_types(arrays: Arrays) -> Arrays:
    """The arrays as float32 and int32."""
    kinds = {name: np.float32 if a.dtype.kind == "f" else np.int32 for name, a in arrays.items()}
    return {name: a.astype(kinds[name]) for name, a in arrays.items()}


def ours(net: Net) -> Callable[[], np.ndarray]:
    """A pass over the data by `run`."""
    weights, data = native_types(net.weights), native_types(net.data)
    made = {name: cr.parameter(name, a.shape, init=a) for name, a in weights.items()}
    step = cr.training_step(net.loss(made), cr.optim.SGD(RATE), threads=1)

    def run() -> np.ndarray:
        return np.asarray(step.run(batch_size=net.batch, shuffle=False, **data))

    return run


def by_hand(net: Net, flags: list[str], folder: Path) -> Callable[[], np.ndarray]:
    """A pass over the data by the compiled C."""
    train = compiled(HERE / net.source, flags, folder)
    weights, data = native_types(net.weights), native_types(net.data)
    losses = np.empty(STEPS, np.float32)
    arrays = [*data.values(), *weights.values(), losses]
    given: list[Any] = [STEPS, ctypes.c_float(RATE)]
    given += [ctypes.c_void_p(a.ctypes.data) for a in arrays]

    def run(keep: object = arrays) -> np.ndarray:
        train(*given)
        return losses.copy()

    return run


def compiled(source: Path, flags: list[str], folder: Path) -> Any:
    """The function `train` of a C file."""
    library = folder / f"{source.name}{len(flags)}.so"
    command = ["gcc", "-O3", "-march=native", *flags, "-shared", "-fPIC", "-o", str(library)]
    subprocess.run([*command, str(source), "-lm"], check=True)
    return ctypes.CDLL(str(library)).train


def measure(net: Net, folder: Path) -> list[tuple[str, list[float]]]:
    """Nanoseconds a step of each program, in rounds."""
    programs = {"chainrule, run": ours(net)}
    programs |= {f"C, gcc {name}": by_hand(net, flags, folder) for name, flags in FLAGS.items()}
    losses = [run() for run in programs.values()]
    for other in losses[1:]:
        np.testing.assert_allclose(other, losses[0], rtol=1e-3, atol=1e-5)
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(REPEATS):
        for name, run in programs.items():
            begun = time.perf_counter()
            for _ in range(20):
                run()
            taken[name].append((time.perf_counter() - begun) / (20 * STEPS) * 1e9)
    return list(taken.items())


def main() -> None:
    """Print a table for each net."""
    with tempfile.TemporaryDirectory() as folder:
        for net in (tiny_mlp(), logistic()):
            print(f"\n{net.source}\n")
            print("| program | ns a step: median, range | chainrule is x times faster |")
            print("|---|---|---|")
            taken = measure(net, Path(folder))
            first = statistics.median(taken[0][1])
            for name, times in taken:
                median = statistics.median(times)
                shown = f"{median:,.0f} [{min(times):,.0f} .. {max(times):,.0f}]"
                print(f"| {name} | {shown} | {median / first:.2f} |")


if __name__ == "__main__":
    main()
