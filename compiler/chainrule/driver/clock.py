"""A clock around calls: how long each of them takes."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from chainrule.codegen.native import Loaded, compile_object, load
from chainrule.codegen.steps import Call, Step, calls_in
from chainrule.codegen.timed import MONOTONIC, OF_THREAD, timed_module
from chainrule.errors import CompileError
from chainrule.target import Target
from chainrule_runtime.pool import function_in_c

Array = np.ndarray[Any, Any]
#: for how long calls are timed, and how many at the least; one before them is not
SECONDS, CALLS = 0.3, 5


def measure_programs(
    calls: Sequence[Call], memory: Sequence[Array], sizes: Mapping[str, int], target: Target
) -> list[float]:
    """Seconds of processor time of each call, medians over turns in which each is made once; the
    buffers of a call are places in `memory`.
    """
    code, times = timed(calls, tuple(sizes), target, OF_THREAD)
    table = (ctypes.c_void_p * len(memory))(*(a.ctypes.data for a in memory))
    numbers = (ctypes.c_int64 * len(sizes))(*sizes.values())
    step = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p)(code.address("step"))
    begun, found = time.perf_counter(), list[Array]()
    while len(found) <= CALLS or time.perf_counter() - begun < SECONDS:
        times[:] = 0
        step(ctypes.addressof(table), ctypes.addressof(numbers))
        found.append(times.copy())
    return seconds_of(found[1:])


def can_measure() -> bool:
    """Whether native code can read a clock on this system."""
    return all(_clock(MONOTONIC))


def _clock(numbers: Mapping[str, int]) -> tuple[int, int]:
    """Where the function is that tells the time, and which clock it is asked for."""
    return function_in_c("clock_gettime"), numbers.get(sys.platform, 0)


def timed(
    order: Sequence[Step],
    sizes: Sequence[str],
    target: Target,
    numbers: Mapping[str, int] = MONOTONIC,
) -> tuple[Loaded, Array]:
    """Calls with a clock, of these by system, and where their nanoseconds are added up."""
    if not can_measure():
        raise CompileError("kernels can't be timed on this system", "leave measure and tune out")
    times = np.zeros(len(calls_in(order)) + 1, np.int64)
    text = timed_module(order, sizes, target, _clock(numbers), times.ctypes.data)
    return load(compile_object(text, target)), times


def seconds_of(found: Sequence[Array]) -> list[float]:
    """Medians of what each call took; the last of them is of the clock itself."""
    middle = np.median(found, axis=0)
    return [float(t) for t in np.maximum(middle[:-1] - middle[-1], 1) * 1e-9]
