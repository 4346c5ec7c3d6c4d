"""How many threads a step is fastest on, timed: 1, 2, 4, ... up to what it may have.

Numbers of threads take turns, a block of steps each, on copies of made-up values, so that whatever
else the machine does meets all of them. Sums are never split among threads: the bits are the same.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from chainrule.codegen.native import Loaded
from chainrule.driver import clock
from chainrule.driver.measure import made_up
from chainrule_runtime import Crew, NonFiniteError, Program, RuntimeFault, Storage
from chainrule_runtime.manifest import Manifest, TunedThreads, element_type, evaluate
from chainrule_runtime.sharing import RECORD, shared_work

#: what more threads have to gain, of the time on fewer
GAIN = 0.03
#: seconds of a block of steps on one number of threads
BLOCK = 0.01
#: what kept floats are at most: small weights give a loss that is a number
_LARGEST = 0.02
#: nanoseconds of a trial that does not end: steps are shared, always
_ALWAYS = 2**62


def tuned_threads(
    manifest: Manifest, code: Loaded, sizes: Mapping[str, int], most: int
) -> TunedThreads:
    """The smallest number of threads, `most` at most, that none beats by GAIN at these sizes."""
    found = TunedThreads(tuple(sizes.items()), shared_work(manifest, sizes))
    numbers = numbers_of_threads(most)
    try:
        kept = _kept(manifest)
        ways = {n: _way(manifest, code, sizes, n, kept) for n in numbers}
    except RuntimeFault as fault:  # made-up values need not fit
        return replace(found, why=f"made-up values did not do: {fault.what}")
    if len({parts for _, parts in ways.values()}) < 2:
        return replace(found, why="a step so small is not shared")
    seconds = _timed({n: way for n, (way, _) in ways.items()})
    least = min(seconds.values())
    chosen = next(n for n in numbers if seconds[n] <= least * (1 + GAIN))
    return replace(found, most=chosen, seconds=tuple(seconds.items()))


def numbers_of_threads(most: int) -> list[int]:
    """The powers of two up to a number, and that itself."""
    return [*(2**i for i in range((most - 1).bit_length())), most]


def _way(
    manifest: Manifest, code: Loaded, sizes: Mapping[str, int], threads: int, kept: Storage
) -> tuple[Callable[[], None], int]:
    """A step on so many threads, as often as it is called, and how many share it indeed."""
    crew = Crew(threads, code.address("work"), code.address("dismiss"))
    program = Program(manifest, code.address("step"), kept=kept.arrays, keep_alive=code, crew=crew)
    feeds = made_up(manifest, sizes)
    plan = program.plan(tuple(feeds[t.name].shape for t in manifest.feeds))
    for name in ("trial", "length"):
        plan.native_sizes[len(manifest.sizes) + RECORD.index(name)] = ctypes.c_int64(_ALWAYS)

    def step() -> None:
        try:
            program(feeds)
        except NonFiniteError:  # steps on made-up values may lead anywhere: begin again
            _fill(kept)
            program(feeds)

    _fill(kept)
    step()
    return step, plan.parts


def _kept(manifest: Manifest) -> Storage:
    shapes = [(t, [evaluate(d, {}) for d in t.shape]) for t in manifest.kept]
    return Storage([(t.name, element_type(t.dtype), tuple(s)) for t, s in shapes], {}, None)


def _fill(kept: Storage) -> None:
    random = np.random.default_rng(0)
    for array in kept.arrays.values():
        array[...] = random.random(array.shape) * _LARGEST if array.dtype.kind not in "biu" else 0


def _timed(ways: Mapping[int, Callable[[], None]]) -> dict[int, float]:
    """Seconds of a step each way: medians of blocks."""
    found: dict[int, list[float]] = {n: [] for n in ways}
    begun = time.perf_counter()
    while len(found[1]) <= clock.CALLS or time.perf_counter() - begun < clock.SECONDS * len(ways):
        for n, step in ways.items():
            start, count = time.perf_counter(), 0
            while not count or time.perf_counter() - start < BLOCK:
                step()
                count += 1
            found[n].append((time.perf_counter() - start) / count)
    return {n: float(np.median(times[1:])) for n, times in found.items()}
