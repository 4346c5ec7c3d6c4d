"""How long each kernel takes: a step with a clock, run on copies of what the caller keeps."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from chainrule.codegen.native import compile_object, load
from chainrule.codegen.steps import calls_in
from chainrule.codegen.timed import MONOTONIC, timed_module
from chainrule.driver.build import Compiled
from chainrule.errors import CompileError
from chainrule.schedule.kernel import Form
from chainrule_runtime import NonFiniteError, Program, Storage
from chainrule_runtime.manifest import Manifest, Tensor, element_type, evaluate
from chainrule_runtime.pool import function_in_c

Array = np.ndarray[Any, Any]
#: for how long calls are timed, and how many at the least; one before them is not
SECONDS, CALLS = 0.3, 5


def measure(compiled: Compiled, sizes: Mapping[str, int], kept: Mapping[str, Array]) -> list[float]:
    """Seconds of each kernel in one call on one thread, medians over calls; 0 for one that only
    repeats others.

    Feeds are made up: floats from 0 to 1, the least place that may be read. Raises CompileError
    where the system has no clock that native code can read.
    """
    levels, manifest = compiled.levels, compiled.manifest
    calls = calls_in(levels.calls)
    times = np.zeros(len(calls) + 1, np.int64)
    clock = function_in_c("clock_gettime"), MONOTONIC.get(sys.platform, 0)
    if not all(clock):
        raise CompileError("kernels can't be timed on this system", "leave measure out")
    text = timed_module(
        levels.calls, manifest.sizes, compiled.native.target, clock, times.ctypes.data
    )
    code = load(compile_object(text, compiled.native.target))
    storage = _copies(manifest, kept)
    program = Program(manifest, code.address("step"), kept=storage.arrays, keep_alive=code)
    feeds = made_up(manifest, sizes)
    begun, found = time.perf_counter(), list[Array]()
    while len(found) <= CALLS or time.perf_counter() - begun < SECONDS:
        times[:] = 0
        try:
            program(feeds)
        except NonFiniteError:  # made-up data may lead anywhere: begin again
            if not found:
                raise
            _fill(storage, kept)
            continue
        found.append(times.copy())
    middle = np.median(found[1:], axis=0)
    spent = iter(np.maximum(middle[:-1] - middle[-1], 1) * 1e-9)
    return [0.0 if k.form is Form.SCAN else float(next(spent)) for k in levels.kernels]


def made_up(manifest: Manifest, sizes: Mapping[str, int]) -> dict[str, Array]:
    """Feeds of a program at some sizes."""
    random = np.random.default_rng(0)
    least = {c.feed: evaluate(c.least, sizes) for c in manifest.checks if c.feed and c.bound}

    def made(tensor: Tensor) -> Array:
        shape = tuple(evaluate(d, sizes) for d in tensor.shape)
        kind = element_type(tensor.dtype)
        if kind.kind in "biu":
            return np.full(shape, least.get(tensor.name, 0), kind)
        return random.random(shape).astype(kind)

    return {t.name: made(t) for t in manifest.feeds}


def _copies(manifest: Manifest, kept: Mapping[str, Array]) -> Storage:
    names = [t.name for t in manifest.kept]
    storage = Storage([(n, kept[n].dtype, kept[n].shape) for n in names], {}, None)
    _fill(storage, kept)
    return storage


def _fill(storage: Storage, kept: Mapping[str, Array]) -> None:
    for name, array in storage.arrays.items():
        array[...] = kept[name]
