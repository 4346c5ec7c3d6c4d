"""The trial of what one generation of GPUs alone has, on the GPU that is here: see `gpu_trust`.

Products of the level of that generation are held to those of the level that every GPU of it and
after it runs, in every order of their factors, on made-up numbers; then a large one is timed in
both. Where one is wrong, or is no faster, code is for the other level.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence

import numpy as np

from chainrule.driver.gpu import build_gpu
from chainrule.driver.gpu_trust import TOLD, Trial, written
from chainrule.driver.measure import made_up
from chainrule.ir.graph import Graph
from chainrule.ir.types import TensorType, float32
from chainrule.ops.contract import einsum
from chainrule.ops.source import leaf
from chainrule.target import Target
from chainrule.target.gpu import GPUS, gpu
from chainrule_runtime.errors import DeviceError
from chainrule_runtime.gpu import driver
from chainrule_runtime.gpu.driver import Gpu
from chainrule_runtime.gpu.program import GpuProgram

#: of a group of products the groups, rows, columns and terms: no whole tiles, and no whole panels
SMALL = (8, 304, 264, 328)
#: of one that is timed, and how often
LARGE, TURNS = (1, 4096, 4096, 4096), 5
#: letters of the factors: as rows of terms, or turned
ORDERS = ("gmk,gkn->gmn", "gkm,gkn->gmn", "gmk,gnk->gmn", "gkm,gnk->gmn")


def tried(here: Gpu, level: str, small: Sequence[int], large: Sequence[int]) -> Trial:
    """The trial in this process: products of so many groups, rows, columns and terms are held to
    those of the usual level, and one is timed.
    """
    usual = gpu(here.capability, here.ptx_version)
    for order in ORDERS:
        far = difference(order, small, GPUS[level], usual)
        if not far <= 1:
            return Trial(False, f"{order} is wrong here by {far:.3g} times what rounding may do")
    ours, theirs = (_seconds(large, target) for target in (GPUS[level], usual))
    times = f"{_tera(large, ours)} TFLOP/s, and {_tera(large, theirs)} for {usual.level}"
    if ours >= theirs:
        return Trial(False, f"right here, and no faster: {times}")
    return Trial(True, f"right here, and faster: {times}")


def difference(order: str, sizes: Sequence[int], one: Target, other: Target) -> float:
    """How far products of two levels are from each other, as a part of what they may be: a sum of n
    terms in float32, in any order, is off by n roundings of its terms' magnitudes at most (Higham,
    "Accuracy and Stability of Numerical Algorithms", 2002, 4.2).
    """
    size = dict(zip("gmnk", sizes, strict=True))
    random = np.random.default_rng(0)
    arrays = [
        random.standard_normal([size[c] for c in text], np.float32)
        for text in order.partition("->")[0].split(",")
    ]
    found, again = (_program(order, sizes, target)(dict(zip("xy", arrays, strict=True)))[0]
                    for target in (one, other))  # fmt: skip
    terms = np.einsum(order, *map(np.abs, arrays), optimize=True)
    may = 2 * size["k"] * 2.0**-24 * 1.01 * terms  # factors are rounded to bfloat16 before
    with np.errstate(all="ignore"):
        far = np.abs(found.astype(np.float64) - again) / may
    return float(far.max()) if np.isfinite(far).all() else float("inf")


def _program(order: str, sizes: Sequence[int], target: Target) -> GpuProgram:
    size = dict(zip("gmnk", sizes, strict=True))
    letters = order.partition("->")[0].split(",")
    x, y = (
        leaf("input", name, TensorType(float32, tuple(size[c] for c in text)))
        for name, text in zip("xy", letters, strict=True)
    )
    built = build_gpu(
        Graph((einsum(order, x, y),)), feeds=(x, y), outputs=("out",), precision="bfloat16",
        target=target,
    )  # fmt: skip
    return GpuProgram(built.manifest, built.code)


def _seconds(sizes: Sequence[int], target: Target) -> float:
    """A median of the product's own kernel, which is the longest."""
    program = _program(ORDERS[0], sizes, target)
    turns = program.times(made_up(program.manifest, {}), TURNS + 1)[1:]
    return statistics.median(max(turn.values()) for turn in turns)


def _tera(sizes: Sequence[int], seconds: float) -> str:
    g, m, n, k = sizes
    return f"{2 * g * m * n * k / seconds / 1e12:,.0f}"


def main(level: str) -> None:
    """Make the trial, and say what came of it."""
    try:
        found = tried(driver.find(), level, SMALL, LARGE)
    except DeviceError as fault:  # one of the kernels', or there is no room now, or no GPU
        found = Trial(False, f"a trial failed: {fault.what}", fault.lost)
    print(TOLD + written(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
