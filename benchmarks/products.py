"""Matrix products of the compiler's own beside NumPy's, one thread, interleaved in one run.

    OPENBLAS_NUM_THREADS=1 python benchmarks/products.py

Medians of seven blocks, into memory that exists for both. What reaching native code from Python
costs is measured on a product of one element and taken off ours, since products stand inside a
compiled step.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable

import numpy as np

import chainrule as cr
from chainrule import driver
from chainrule.ir.graph import Graph

#: rows, summed, columns, whether the second factor lies transposed (first factor, for a gradient)
CASES = {
    "32x64 @ 64x128": (32, 64, 128, ""),
    "32x128 @ (64x128).T": (32, 128, 64, "second"),
    "(32x64).T @ 32x128": (64, 32, 128, "first"),
    "32x64 @ 64x10": (32, 64, 10, ""),
    "256 cubed": (256, 256, 256, ""),
    "512 cubed": (512, 512, 512, ""),
    "1024 cubed": (1024, 1024, 1024, ""),
}


Call = Callable[[], object]


def product(m: int, k: int, n: int, turned: str) -> tuple[Call, Call]:
    """The product as a call of the native code alone and as one of NumPy's, on the same numbers."""
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
    np.testing.assert_allclose(mine, p @ q, rtol=1e-4, atol=1e-3)
    return ours, lambda: np.matmul(p, q, out=theirs)


def block(call: Call, count: int) -> float:
    """Seconds a call, over `count` of them."""
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def main() -> None:
    """Print a line for each product."""
    empty, _ = product(1, 1, 1, "")
    overhead = statistics.median(block(empty, 5000) for _ in range(7))
    print(f"reaching native code: {overhead * 1e6:.2f} µs, taken off ours")
    for name, (m, k, n, turned) in CASES.items():
        ours, numpys = product(m, k, n, turned)
        count = max(3, round(2e9 / (2 * m * k * n) / 20))
        times = [(block(ours, count) - overhead, block(numpys, count)) for _ in range(7)]
        mine, theirs = (statistics.median(column) for column in zip(*times, strict=True))
        rate = 2 * m * k * n / mine / 1e9
        print(
            f"{name:22s} {mine * 1e6:9.1f} µs {rate:6.0f} GFLOP/s   NumPy {theirs * 1e6:9.1f} µs"
            f"   {theirs / mine:.2f} times as fast"
        )


if __name__ == "__main__":
    main()
