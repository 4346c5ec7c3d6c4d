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
from typing import Any, NamedTuple

import numpy as np

import chainrule as cr
from chainrule import driver
from chainrule.ir.graph import Graph
from chainrule_runtime.manifest import PARTS, evaluate

Array = np.ndarray[Any, Any]


class Case(NamedTuple):
    """A convolution of `n` images of `c` channels, over `axes` axes of one size, by `o` kernels."""

    n: int
    c: int
    o: int
    size: int
    window: int
    padding: int = 0
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    axes: int = 2

    @property
    def places(self) -> int:
        """The positions of the window along an axis."""
        reach = self.dilation * (self.window - 1) + 1
        return (self.size + 2 * self.padding - reach) // self.stride + 1

    @property
    def flops(self) -> int:
        """Operations of each direction: two a multiply-add."""
        taps = self.c // self.groups * self.window**self.axes
        return 2 * self.n * self.o * self.places**self.axes * taps

    def __str__(self) -> str:
        window = "×".join([str(self.window)] * self.axes)
        size = f"{self.size}²" if self.axes == 2 else str(self.size)
        usual = {"stride": 1, "dilation": 1}
        more = [f"{k} {getattr(self, k)}" for k, v in usual.items() if getattr(self, k) != v]
        more += [f"{self.groups} groups"] if self.groups > 1 else []
        return ", ".join([f"{self.n}×{self.c}×{size}, {self.o} kernels {window}", *more])


CASES = (
    Case(64, 1, 6, 28, 5, padding=2),
    Case(64, 6, 16, 14, 5),
    Case(64, 3, 32, 32, 3, padding=1),
    Case(64, 32, 32, 32, 3, padding=1),
    Case(64, 32, 64, 16, 3, padding=1),
    Case(64, 64, 64, 16, 3, padding=1),
    Case(32, 64, 64, 14, 3, padding=1),
    Case(32, 128, 128, 7, 3, padding=1),
    Case(64, 32, 64, 14, 5, padding=2),
    Case(32, 64, 64, 14, 7, padding=3),
    Case(32, 64, 128, 28, 3, padding=1, stride=2),
    Case(32, 64, 64, 28, 3, padding=2, dilation=2),
    Case(32, 128, 128, 28, 1),
    Case(32, 64, 64, 28, 3, padding=1, groups=4),
    Case(32, 64, 64, 32, 3, padding=1, groups=64),
    Case(64, 64, 64, 256, 5, padding=2, axes=1),
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


def pairs(case: Case) -> dict[str, tuple[Callable[[], Array], Callable[[], Any]]]:
    """Ours and PyTorch's call for each direction, on the same numbers, once held to each other."""
    import torch

    rng = np.random.default_rng(0)
    n, groups, axes = case.n, case.groups, case.axes
    x = cr.input("x", ("batch", case.c, *[case.size] * axes))
    k = cr.input("k", (case.o, case.c // groups, *[case.window] * axes))
    z = cr.conv(x, k, case.stride, case.padding, case.dilation, groups)
    d = cr.input("d", z.shape)
    dx, dk = cr.vjp([z], [x, k], [d])
    shapes = {t.name: (n, *t.shape[1:]) if t is not k else t.shape for t in (x, k, d)}
    feeds = {name: rng.standard_normal(s, dtype=np.float32) for name, s in shapes.items()}
    tx, tk, td = (torch.from_numpy(feeds[name]) for name in "xkd")
    options = [case.stride] * axes, [case.padding] * axes, [case.dilation] * axes
    forward = torch.conv1d if axes == 1 else torch.conv2d

    def back(first: bool) -> Any:
        mask = [first, not first, False]
        return torch.ops.aten.convolution_backward(
            td, tx, tk, None, *options, False, [0] * axes, groups, mask
        )[0 if first else 1]

    found = {
        "z": (native(z, feeds, n), lambda: forward(tx, tk, None, *options, groups)),
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
        cells = []
        for ours, theirs in pairs(case).values():
            count = max(1, round(0.03 / max(block(ours, 1), 1e-6)))
            times = [(block(ours, count), block(theirs, count)) for _ in range(7)]
            mine, other = (statistics.median(column) for column in zip(*times, strict=True))
            cells.append(f"{mine * 1e3:.2f}, {case.flops / mine / 1e9:.0f}, {other / mine:.2f}")
        print(f"| {case} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
