"""Products on an NVIDIA GPU, of float32 without TF32 and of bfloat16, and layers with bias, ReLU:
ours without `tune=`, what that chooses (cuBLASLt is one of its ways), PyTorch's and JAX's.

    python benchmarks/gpu_products.py        # or with all else, by benchmarks/gpu.py

Of ours the kernel of the product is timed by the GPU's own clock; factors that `precision=` rounds
are bfloat16 in memory then, as PyTorch's and JAX's are.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

import chainrule as cr

SIZES = (128, 256, 512, 1024, 2048, 4096)
#: rows, terms and columns of layers whose bias and ReLU are fused
LAYERS = ((64, 256, 256), (256, 512, 512), (1024, 1024, 1024))
#: what is aimed at in bfloat16, as ratios to cuBLAS, which PyTorch calls: our own product at 4096,
#: and the fused small ones
LARGE, FUSED = "80%", "100%"
BLOCKS, TIMES = 7, 20
HEAD = ("case", "ours, TFLOP/s", "chosen", "by", "PyTorch", "JAX", "ours / PyTorch", "aimed at")
Row = tuple[str, ...]


def tables() -> Iterator[tuple[str, Row, list[Row]]]:
    """A title, a head and rows for each kind of numbers."""
    for precision in (None, "bfloat16"):
        yield f"products of {precision or 'float32'}", HEAD, list(rows_of(precision))


def rows_of(precision: str | None) -> Iterator[Row]:
    """Square products, then layers, in TFLOP/s."""
    for n in SIZES:
        x, y = cr.input("x", (n, n)), cr.input("y", (n, n))
        aim = LARGE if precision and n == 4096 else ""
        yield (f"{n} cubed", *row(x @ y, [x, y], 2 * n**3, precision, aim))
    for rows, terms, columns in LAYERS:
        x, w = cr.input("x", (rows, terms)), cr.input("w", (terms, columns))
        b, work = cr.input("b", (columns,)), 2 * rows * terms * columns
        aim = FUSED if precision else ""
        case = f"layer {rows} x {terms} x {columns}"
        yield (case, *row(cr.relu(x @ w + b), [x, w, b], work, precision, aim))


def row(
    out: cr.Tensor, inputs: Sequence[cr.Tensor], work: int, precision: str | None, aim: str
) -> Row:
    """Ours, what tune= chooses and who that is, PyTorch's, JAX's, and a ratio."""
    plain, tuned = (
        cr.compile(out, backend="cuda", precision=precision, tune=tune) for tune in (False, True)
    )
    products = tuned.report().tuning.products
    by = ", ".join(p.ways[p.chosen].what for p in products) or "ours: nothing was timed"
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(t.shape, np.float32) for t in inputs]
    ours, chosen = product_seconds(plain), product_seconds(tuned)
    theirs, other = (f(arrays, precision or "float32") for f in (torch_product, jax_product))
    shown = [f"{work / s / 1e12:.2f}" if s else "" for s in (ours, chosen, theirs, other)]
    share = f"{theirs / ours:.0%}" if theirs else ""
    return *shown[:2], by, *shown[2:], share, aim


def product_seconds(fn: Any) -> float:
    """What the kernel of the product took, with all that is fused into it."""
    kernels = fn.report(measure=True).kernels
    return float(max(kernels, key=lambda k: k.flops if isinstance(k.flops, int) else 0).measured)


def jax() -> Any:
    """JAX, where it is installed and has the GPU, of whose memory it takes what it needs."""
    if not find_spec("jax"):
        return None
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    found = import_module("jax")
    return found if found.default_backend() == "gpu" else None


def torch_product(arrays: Sequence[np.ndarray], kind: str) -> float | None:
    """Seconds of a product, or of a layer where there is a bias, in PyTorch, if it is here."""
    if not find_spec("torch"):
        return None
    torch = import_module("torch")
    a, b, *bias = (torch.from_numpy(x).to("cuda", getattr(torch, kind)) for x in arrays)

    def run() -> Any:
        return torch.relu(torch.addmm(bias[0], a, b)) if bias else a @ b

    return seconds_of(run, torch.cuda.synchronize)


def jax_product(arrays: Sequence[np.ndarray], kind: str) -> float | None:
    """The same in JAX."""
    found = jax()
    if not found:
        return None
    numpy = found.numpy

    def run(a: Any, b: Any, *bias: Any) -> Any:
        out = numpy.matmul(a, b, precision="highest", preferred_element_type="float32")
        return numpy.maximum(out + bias[0], 0) if bias else out

    call, given = found.jit(run), [numpy.asarray(a, kind) for a in arrays]
    last: list[Any] = [None]

    def go() -> None:
        last[0] = call(*given)

    return seconds_of(go, lambda: last[0].block_until_ready())


def seconds_of(run: Callable[[], Any], wait: Callable[[], Any], times: int = TIMES) -> float:
    """The median of what a call takes."""
    found = []
    for _ in range(BLOCKS + 1):
        start = time.perf_counter()
        for _ in range(times):
            run()
        wait()
        found.append((time.perf_counter() - start) / times)
    return statistics.median(found[1:])


def main() -> int:
    """Print the tables."""
    for title, head, rows in tables():
        lines = [head, tuple("---" for _ in head), *rows]
        print(f"{title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines), "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
