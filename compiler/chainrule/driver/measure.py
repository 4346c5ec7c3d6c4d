"""How long each kernel takes: a step with a clock, run on copies of what the caller keeps."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from chainrule.codegen.steps import calls_in
from chainrule.driver.clock import CALLS, SECONDS, Array, seconds_of, timed
from chainrule.schedule.kernel import Form
from chainrule_runtime import NonFiniteError, Program, Storage
from chainrule_runtime.manifest import Manifest, Tensor, element_type, evaluate

if TYPE_CHECKING:
    from chainrule.driver.build import Compiled


def measure(compiled: Compiled, sizes: Mapping[str, int], kept: Mapping[str, Array]) -> list[float]:
    """Seconds of each kernel in one call on one thread, medians over calls; 0 for one that only
    repeats others.

    Feeds are made up: floats from 0 to 1, the least place that may be read. Raises CompileError
    where the system has no clock that native code can read.
    """
    levels, manifest = compiled.levels, compiled.manifest
    code, times = timed(levels.calls, manifest.sizes, compiled.native.target)
    storage = copies_of(manifest, kept)
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
    before = {id(b.once) for b in levels.built if b.once is not None}
    calls = zip(calls_in(levels.calls), seconds_of(found[1:]), strict=True)
    spent = iter([seconds for call, seconds in calls if id(call.program) not in before])
    return [0.0 if k.form is Form.SCAN else next(spent) for k in levels.kernels]


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


def copies_of(manifest: Manifest, kept: Mapping[str, Array]) -> Storage:
    """What a program keeps, once more."""
    names = [t.name for t in manifest.kept]
    storage = Storage([(n, kept[n].dtype, kept[n].shape) for n in names], {}, None)
    _fill(storage, kept)
    return storage


def _fill(storage: Storage, kept: Mapping[str, Array]) -> None:
    for name, array in storage.arrays.items():
        array[...] = kept[name]
