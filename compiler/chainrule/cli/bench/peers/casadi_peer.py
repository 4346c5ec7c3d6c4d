"""CasADi: the step as scalar expressions, its generated C compiled as its manual says.

casadi  one call makes `spec.scan` steps, in a C loop over the generated function
"""

from __future__ import annotations

import runpy
import shutil
import tempfile
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

VARIANTS: dict[str, dict[str, Any]] = {"casadi": {}}
NEEDS = ("casadi",)
SLOW = ()
SETTINGS = {"casadi": "SX, generated C by cc -O3 -march=native, a loop over many steps"}
#: multiply-adds of a forward pass beyond which scalar expressions take minutes to compile
_LARGEST = 2000


def env(threads: int, cache: str) -> dict[str, str]:
    """What the worker runs in."""
    return {}


def supports(spec: Any, threads: int) -> str | None:
    """Why a workload can't be run, or None."""
    if shutil.which("cc") is None:
        return "there is no C compiler"
    if spec.kind not in ("mlp", "logreg") or spec.opt["kind"] != "sgd" or spec.opt["momentum"]:
        return "written for dense nets and SGD"
    work = spec.batch * sum(n * m for n, m in pairwise(spec.shape["sizes"]))
    return "expands every scalar: for the smallest nets only" if work > _LARGEST else None


def _generated(spec: Any, width: int) -> str:
    """C for one step: weights, rows and answers to the next weights and the loss."""
    casadi = import_module("casadi")
    shape, rows = spec.shape, spec.batch
    weights = [casadi.SX.sym(name, w.size) for name, w in spec.params().items()]
    x, t = casadi.SX.sym("x", shape["sizes"][0], rows), casadi.SX.sym("t", width, rows)
    h, last = x, len(shape["sizes"]) - 2
    for i, (n, m) in enumerate(pairwise(shape["sizes"])):
        h = casadi.mtimes(casadi.reshape(weights[2 * i], m, n), h)
        h = h + casadi.repmat(weights[2 * i + 1], 1, rows)
        if i < last:
            h = casadi.tanh(h) if shape["act"] == "tanh" else casadi.fmax(h, 0)
    if shape["loss"] == "ce":
        total = casadi.log(casadi.sum1(casadi.exp(h))) - casadi.sum1(h * t)
        loss = casadi.sum2(total) / rows
    elif shape["loss"] == "mse":
        loss = casadi.sumsqr(h - t) / (width * rows)
    else:
        soft = casadi.fmax(h, 0) + casadi.log1p(casadi.exp(-casadi.fabs(h)))
        loss = casadi.sum2(soft - h * t) / rows
    every = casadi.vertcat(*weights)
    moved = every - spec.opt["lr"] * casadi.gradient(loss, every)
    function = casadi.Function("net", [every, x, t], [moved, loss])
    with tempfile.TemporaryDirectory() as folder:
        options = {"casadi_real": "float", "with_header": False}
        generator = casadi.CodeGenerator("net.c", options)
        generator.add(function)
        return Path(generator.generate(f"{folder}/")).read_text()


def _loop(spec: Any, width: int) -> str:
    count = sum(w.size for w in spec.params().values())
    places, start = [], 0
    for i, w in enumerate(spec.params().values()):
        places.append((i, start, w.size))
        start += w.size
    copy_in = "".join(f"memcpy(p + {s}, w[{i}], {4 * n});" for i, s, n in places)
    copy_out = "".join(f"memcpy(w[{i}], p + {s}, {4 * n});" for i, s, n in places)
    return f"""
#include <string.h>
static float a[{count}], b[{count}], work[1 << 20];
static casadi_int iw[1 << 16];
void steps(float **w, const float *xs, const float *ts, long first, long count, float *losses) {{
    float *p = a, *q = b;
    {copy_in}
    for (long i = first; i < first + count; i++) {{
        long k = i % {spec.nbatch};
        const float *arg[16] = {{p, xs + k * {spec.batch * spec.shape["sizes"][0]},
                                ts + k * {spec.batch * width}}};
        float *res[16] = {{q, losses + (i - first)}};
        net(arg, res, iw, work, 0);
        float *swap = p; p = q; q = swap;
    }}
    {copy_out}
}}
"""


def make_step(spec: Any, threads: int) -> Any:
    """The workload, ready to run."""
    by_hand = runpy.run_path(str(Path(spec.library).with_name("c_peer.py")))
    rows, answers = spec.data().values()
    if spec.shape["loss"] == "ce":
        answers = np.eye(spec.shape["sizes"][-1], dtype=np.float32)[answers]
    width = answers.size // len(answers)
    text = "#include <tgmath.h>\n" + _generated(spec, width) + _loop(spec, width)
    return by_hand["CStep"](spec, by_hand["compiled"](text), rows, answers)
