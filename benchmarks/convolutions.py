"""Convolutions and both their gradients beside PyTorch's, one thread, interleaved in one run.

    python benchmarks/convolutions.py

Medians of seven blocks, into memory that exists for ours; PyTorch (oneDNN) makes a new tensor each
time, as it does in training. Needs PyTorch.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import chainrule as cr
from chainrule import driver
from chainrule.ir.graph import Graph
from chainrule_runtime.manifest import PARTS, evaluate

Array = np.ndarray[Any, Any]
#: batch, channels in, channels out, height and width, window, padding, stride, groups
CASES = (
    (64, 1, 6, 28, 5, 2, 1, 1),
    (64, 6, 16, 14, 5, 0, 1, 1),
    (64, 3, 32, 32, 3, 1, 1, 1),
    (64, 32, 32, 32, 3, 1, 1, 1),
    (64, 32, 64, 16, 3, 1, 1, 1),
    (64, 64, 64, 16, 3, 1, 1, 1),
    (32, 64, 64, 14, 3, 1, 1, 1),
    (32, 64, 128, 28, 3, 1, 2, 1),
    (32, 128, 128, 28, 1, 0, 1, 1),
    (32, 64, 64, 32, 3, 1, 1, 64),
)


def native(tensor: cr.Tensor, feeds: Mapping[str, Array], batch: int) -> Callable[[], Array]:
    """The compiled code of one tensor, called on arrays that stay where they are."""
    leaves = driver.leaves_of([tensor.node])
    graph = Graph((tensor.node,))
    compiled = driver.build(graph, feeds=leaves, outputs=["out"], threads=1)
    manifest, sizes = compiled.manifest, {"batch": batch, PARTS: 1}
    table = (ctypes.c_void_p * manifest.places)()
    out = np.zeros([evaluate(d, sizes) for d in manifest.outputs[0].shape], np.float32)
    kept = [feeds[t.name] for t in manifest.feeds] + [np.array(a) for _, a in manifest.constants]
    given = [*manifest.feeds, *(t for t, _ in manifest.constants), manifest.outputs[0]]
    for t, array in zip(given, [*kept, out], strict=True):
        table[t.place] = array.ctypes.data
    slots = [max([0, *(evaluate(d, sizes) for d in slot)]) for slot in manifest.arena]
    memory = [np.zeros(size + 64, np.uint8) for size in slots]
    for place, slot in manifest.temporaries:
        table[place] = -(-memory[slot].ctypes.data // 64) * 64
    numbers = (ctypes.c_int64 * 4)(*([batch] if manifest.sizes else []), 0, 1, 0)
    step = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p)(compiled.step_address)
    addresses = ctypes.addressof(table), ctypes.addressof(numbers)

    def call(keep: object = (compiled, table, numbers, memory, kept)) -> Array:
        step(*addresses)
        return out

    return call


def pairs(
    n: int, c: int, o: int, size: int, window: int, padding: int, stride: int, groups: int
) -> dict[str, tuple[Callable[[], Array], Callable[[], Any]]]:
    """Ours and PyTorch's call for each direction, on the same numbers, once held to each other."""
    import torch

    rng = np.random.default_rng(0)
    x = cr.input("x", ("batch", c, size, size))
    k = cr.input("k", (o, c // groups, window, window))
    z = cr.conv(x, k, stride=stride, padding=padding, groups=groups)
    d = cr.input("d", z.shape)
    dx, dk = cr.vjp([z], [x, k], [d])
    shapes = {t.name: (n, *t.shape[1:]) if t is not k else t.shape for t in (x, k, d)}
    feeds = {name: rng.standard_normal(s, dtype=np.float32) for name, s in shapes.items()}
    tx, tk, td = (torch.from_numpy(feeds[name]) for name in "xkd")
    options = [stride] * 2, [padding] * 2, [1, 1]

    def back(first: bool) -> Any:
        mask = [first, not first, False]
        return torch.ops.aten.convolution_backward(
            td, tx, tk, None, *options, False, [0, 0], groups, mask
        )[0 if first else 1]

    found = {
        "z": (native(z, feeds, n), lambda: torch.conv2d(tx, tk, None, *options, groups)),
        "dx": (native(dx, feeds, n), lambda: back(True)),
        "dk": (native(dk, feeds, n), lambda: back(False)),
    }
    for ours, theirs in found.values():
        want = theirs().numpy()
        # sums of up to 65,536 terms in float32, in two orders
        np.testing.assert_allclose(ours(), want, rtol=0, atol=1e-4 * float(np.abs(want).max()))
    return found


def block(call: Callable[[], Any], count: int) -> float:
    """Seconds a call, over `count` of them."""
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def main() -> None:
    """Print a line for each convolution."""
    import torch

    torch.set_num_threads(1)
    print("| convolution | z: ms, GFLOP/s, times as fast | dx | dk |\n|---|---|---|---|")
    for case in CASES:
        n, c, o, size, window, padding, stride, groups = case
        places = (size + 2 * padding - window) // stride + 1
        flops = 2 * n * o * places**2 * (c // groups) * window**2
        cells = []
        for ours, theirs in pairs(*case).values():
            count = max(1, round(0.03 / max(block(ours, 1), 1e-6)))
            times = [(block(ours, count), block(theirs, count)) for _ in range(7)]
            mine, other = (statistics.median(column) for column in zip(*times, strict=True))
            cells.append(f"{mine * 1e3:.2f}, {flops / mine / 1e9:.0f}, {other / mine:.2f}")
        more = "".join(
            [f", stride {stride}"] * (stride > 1) + [f", {groups} groups"] * (groups > 1)
        )
        name = f"{n}×{c}×{size}², {o} kernels {window}×{window}{more}"
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
