"""Matrix products of the compiler's own beside NumPy's and PyTorch's, one thread, interleaved.

    OPENBLAS_NUM_THREADS=1 python benchmarks/products.py

The shapes of the training steps of `chainrule bench`, and square ones; PyTorch (oneDNN and MKL)
where it is installed. Medians of seven blocks, into memory that exists for everybody. What reaching
native code from Python costs is measured on a product of one element and taken off ours, since
products stand inside a compiled step. A share is of the multiply-adds that a loop in registers
reaches on the same core.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

import chainrule as cr
from chainrule import driver
from chainrule.codegen.rates import Machine
from chainrule.ir.graph import Graph


class Case(NamedTuple):
    """Rows, summed, columns; which factor lies transposed.

    The second does for the slope of a layer's input, the first for that of its weight.
    """

    m: int
    k: int
    n: int
    turned: str = ""

    def __str__(self) -> str:
        first = f"({self.k}x{self.m}).T" if self.turned == "first" else f"{self.m}x{self.k}"
        second = f"({self.n}x{self.k}).T" if self.turned == "second" else f"{self.k}x{self.n}"
        return f"{first} @ {second}"


def layer(batch: int, n: int, m: int) -> list[Case]:
    """The three products of a dense layer."""
    return [Case(batch, n, m), Case(batch, m, n, "second"), Case(n, batch, m, "first")]


CASES = {
    "logistic": [Case(32, 30, 1), Case(30, 32, 1, "first")],
    "deep": layer(16, 32, 32),
    "small": [*layer(32, 64, 128), Case(32, 64, 10)],
    "mlp, batch 1": [Case(1, 784, 512), Case(1, 256, 512, "second")],
    "mlp, batch 32": [*layer(32, 784, 512), *layer(32, 512, 256)],
    "mlp, batch 128": [*layer(128, 784, 512), *layer(128, 512, 256)],
    "mlp, batch 1024": [*layer(1024, 784, 512), *layer(1024, 512, 256)],
    "vae": [*layer(128, 784, 400), *layer(128, 400, 20)],
    "lenet, cnn: dense": [*layer(64, 400, 120), *layer(64, 4096, 256)],
    "lstm": [*layer(32, 256, 1024), Case(2048, 64, 1024)],
    "gpt": [*layer(2048, 128, 384), *layer(2048, 128, 512), Case(2048, 128, 65)],
    "square": [Case(n, n, n) for n in (256, 512, 1024)],
}
BLOCKS = 7
Call = Callable[[], object]


def product(case: Case) -> dict[str, Call]:
    """The product as calls on the same numbers: the native code alone, and each peer's."""
    m, k, n, turned = case
    rng = np.random.default_rng(0)
    a = rng.standard_normal((k, m) if turned == "first" else (m, k)).astype(np.float32)
    b = rng.standard_normal((n, k) if turned == "second" else (k, n)).astype(np.float32)
    x, y = cr.input("x", a.shape), cr.input("y", b.shape)
    result = (x.T if turned == "first" else x) @ (y.T if turned == "second" else y)
    compiled = driver.build(
        Graph((result.node,)), feeds=[x.node, y.node], outputs=["out"], threads=1
    )
    mine, theirs = np.empty((m, n), np.float32), np.empty((m, n), np.float32)
    manifest = compiled.manifest
    slots = [np.zeros(int(max(sizes)), np.uint8) for sizes in manifest.arena]
    table = (ctypes.c_void_p * manifest.places)()
    for tensor, array in zip((*manifest.feeds, *manifest.outputs), (a, b, mine), strict=True):
        table[tensor.place] = array.ctypes.data
    for place, slot in manifest.temporaries:
        table[place] = slots[slot].ctypes.data
    step = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p)(compiled.step_address)
    p, q = (a.T if turned == "first" else a), (b.T if turned == "second" else b)
    address, keep = ctypes.addressof(table), (compiled, slots, table, a, b, mine)

    def ours(keep: object = keep) -> object:
        return step(address, None)

    ours()
    # sums of k float32 products in another order: k roundings of 6e-8 at most, of terms about 1
    np.testing.assert_allclose(mine, p @ q, rtol=1e-4, atol=1e-6 * k)
    calls: dict[str, Call] = {"here": ours, "NumPy": lambda: np.matmul(p, q, out=theirs)}
    if find_spec("torch") is not None:
        calls["PyTorch"] = torchs(p, q)
    return calls


def torchs(p: np.ndarray, q: np.ndarray) -> Call:
    """PyTorch's product of the same two matrices."""
    import torch

    torch.set_num_threads(1)
    first, second = torch.from_numpy(p), torch.from_numpy(q)
    out: Any = torch.empty((p.shape[0], q.shape[1]))

    def call() -> object:
        return torch.mm(first, second, out=out)

    return call


def block(call: Call, count: int) -> float:
    """Seconds a call, over `count` of them."""
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def main() -> None:
    """Print a table, a line for each product."""
    empty = product(Case(1, 1, 1))["here"]
    overhead = statistics.median(block(empty, 5000) for _ in range(BLOCKS))
    machine, peak = Machine(), 0.0
    print(f"reaching native code: {overhead * 1e6:.2f} µs, taken off ours\n")
    names = list(product(Case(1, 1, 1)))
    others = [name for name in names if name != "here"]
    heads = ["step", "product", "µs here", *(f"µs {n}" for n in others), "GFLOP/s", "share of peak"]
    heads += [f"times as fast as {name}" for name in others]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for step, cases in CASES.items():
        for case in cases:
            calls, work = product(case), 2 * case.m * case.k * case.n
            count = max(3, round(1e8 / work))
            peak = max(peak, machine.flops())
            blocks = [[block(call, count) for call in calls.values()] for _ in range(BLOCKS)]
            mine, *theirs = (statistics.median(column) for column in zip(*blocks, strict=True))
            mine = max(mine - overhead, 1e-9)
            cells = [step, str(case), *(f"{t * 1e6:,.1f}" for t in (mine, *theirs))]
            cells += [f"{work / mine / 1e9:.0f}", f"{work / mine / peak:.0%}"]
            cells += [f"{t / mine:.2f}" for t in theirs]
            print(f"| {' | '.join(cells)} |", flush=True)
    print(f"\na core: {peak / 1e9:.0f} GFLOP/s of multiply-adds")


if __name__ == "__main__":
    main()
