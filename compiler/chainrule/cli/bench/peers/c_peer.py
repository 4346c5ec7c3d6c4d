"""C by hand, every size a constant, compiled here with -O3 -march=native -ffast-math.

c  one call makes `spec.scan` steps
"""

from __future__ import annotations

import ctypes
import math
import shutil
import subprocess
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

VARIANTS: dict[str, dict[str, Any]] = {"c": {}}
NEEDS = ()
SLOW = ()
SETTINGS = {"c": "cc -O3 -march=native -ffast-math, sizes constant, a loop over many steps"}
#: multiply-adds beyond which products want blocking, which nobody writes by hand
_LARGEST = 2**17
#: layers up to which each has loops of its own; more share them, or compiling takes a minute
_OWN = 8
_LOSSES = {"ce": "cross_entropy", "mse": "mean_square", "bce": "binary"}


def env(threads: int, cache: str) -> dict[str, str]:
    """What the worker runs in."""
    return {}


def supports(spec: Any, threads: int) -> str | None:
    """Why a workload can't be run, or None."""
    if shutil.which("cc") is None:
        return "there is no C compiler"
    if spec.kind not in ("mlp", "logreg") or spec.shape.get("dropout"):
        return "written for dense nets"
    if spec.opt["kind"] == "adamw" or spec.opt.get("momentum"):
        return "written for SGD and Adam"
    sizes = spec.shape["sizes"]
    work = spec.batch * sum(n * m for n, m in pairwise(sizes))
    return "written for small nets" if work > 8 * _LARGEST else None


def source_of(spec: Any, library: str) -> str:
    """The program that trains a workload: `steps(arena, x, y, first, count, losses)`."""
    sizes, rows = spec.shape["sizes"], spec.batch
    layers = list(pairwise(sizes))
    act = {"relu": "RELU", "tanh": "TANH"}.get(spec.shape.get("act"), "LINEAR")
    kind = "int" if spec.shape["loss"] == "ce" else "float"
    width = sizes[-1] if spec.shape["loss"] == "mse" else 1
    lines, widest = [], max(sizes)
    for i, (n, m) in enumerate(layers):
        lines.append(f"static float h{i + 1}[{rows * m}], gw{i}[{n * m}], gb{i}[{m}];")
        if spec.opt["kind"] == "adam":
            lines.append(f"static float mw{i}[{n * m}], mb{i}[{m}], vw{i}[{n * m}], vb{i}[{m}];")
    lines += [
        f"static float d[2][{rows * widest}];",
        f"void steps(float **w, const float *xs, const {kind} *ys, long first, long count,",
        "           float *losses) {",
        "for (long i = first; i < first + count; i++) {",
        f"const float *h0 = xs + i % {spec.nbatch} * {rows * sizes[0]};",
        f"const {kind} *y = ys + i % {spec.nbatch} * {rows * width};",
    ]
    last = len(layers) - 1
    for i, (n, m) in enumerate(layers):
        by = "LINEAR" if i == last else act
        lines.append(
            f"forward({rows}, {n}, {m}, {by}, h{i}, w[{2 * i}], w[{2 * i + 1}], h{i + 1});"
        )
    lines.append(
        f"losses[i - first] = {_LOSSES[spec.shape['loss']]}({rows}, {sizes[-1]}, "
        f"h{last + 1}, y, d[{last % 2}]);"
    )
    for i, (n, m) in reversed(list(enumerate(layers))):
        here, other = f"d[{i % 2}]", f"d[{(i + 1) % 2}]"
        lines.append(f"slopes({rows}, {n}, {m}, h{i}, {here}, gw{i}, gb{i});")
        if i:
            lines.append(f"backward({rows}, {n}, {m}, {act}, h{i}, w[{2 * i}], {here}, {other});")
        for place, kind, count in ((2 * i, "w", n * m), (2 * i + 1, "b", m)):
            lines.append(_update(spec.opt, count, f"w[{place}]", f"{kind}{i}"))
    return "\n".join([library, *lines, "}}", ""])


def _update(o: dict[str, Any], count: int, weight: str, name: str) -> str:
    if o["kind"] == "sgd":
        return f"descend({count}, {o['lr']}f, {weight}, g{name});"
    corrections = f"1 - powf({o['b1']}f, i + 1), 1 - powf({o['b2']}f, i + 1)"
    return (
        f"adam({count}, {o['lr']}f, {o['b1']}f, {o['b2']}f, {o['eps']}f, {corrections}, "
        f"{weight}, g{name}, m{name}, v{name});"
    )


def compiled(source: str, *options: str) -> ctypes.CDLL:
    """A C program in this process."""
    with tempfile.TemporaryDirectory() as folder:
        text, made = Path(folder, "step.c"), Path(folder, "step.so")
        text.write_text(source)
        command = ["cc", "-O3", "-march=native", "-shared", "-fPIC", *options]
        subprocess.run([*command, str(text), "-o", str(made), "-lm"], check=True)
        return ctypes.CDLL(str(made))


class CStep:
    """Steps in a C loop; subclasses compile it of something else."""

    def __init__(self, spec: Any, program: ctypes.CDLL, rows: Any, answers: Any) -> None:
        self.steps_per_call = math.gcd(spec.scan, spec.nbatch)
        self._arrays = [np.array(w) for w in spec.params().values()]
        self._rows, self._answers = rows, answers
        pointers = [w.ctypes.data for w in self._arrays]
        self._table = (ctypes.c_void_p * len(pointers))(*pointers)
        self._losses = np.zeros(self.steps_per_call, np.float32)
        self._steps = program.steps
        self._steps.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_long] * 2 + [ctypes.c_void_p]
        self._steps.restype = None

    def __call__(self, i: int) -> None:
        self._steps(
            self._table, self._rows.ctypes.data, self._answers.ctypes.data,
            i, self.steps_per_call, self._losses.ctypes.data,
        )  # fmt: skip

    def losses(self) -> list[float]:
        """The losses of the last call's steps."""
        return [float(loss) for loss in self._losses]

    def sync(self) -> None:
        """Nothing is left to do when a call returns."""


def make_step(spec: Any, threads: int) -> CStep:
    """The workload, ready to run."""
    data = spec.data()
    source = source_of(spec, Path(spec.library).read_text())
    shared = ["-DINLINE=static"] if len(spec.shape["sizes"]) > _OWN else []
    return CStep(spec, compiled(source, "-ffast-math", *shared), *data.values())
