"""Products timed in a handful of ways, and the fastest of each kept.

The ways differ in tiles and in what is packed, and every one has the same bits: each number is one
chain of multiply-adds, whatever the tile. What is predicted to take longest is timed; of the ways
those that should be fastest, each loop alone, on made-up numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from chainrule.codegen.steps import Call
from chainrule.driver.clock import can_measure, measure_programs
from chainrule.driver.predict import predict
from chainrule.ir.loop import Buffer
from chainrule.ir.size import evaluate
from chainrule.loops.build import Built, build_kernel
from chainrule.loops.choice import Choice, candidates
from chainrule.loops.text import signature
from chainrule.schedule.kernel import Form, Kernel
from chainrule.target import Target
from chainrule.target.speeds import Speeds

Array = np.ndarray[Any, Any]
#: so many products are timed at most, those that should take more than such a share of a call, each
#: in so many ways at most
PRODUCTS, SHARE, WAYS = 8, 0.02, 6
#: what has to be gained for a choice to be made
GAIN = 0.03


def tuned(
    kernels: Sequence[Kernel],
    built: Sequence[Built],
    sizes: Mapping[str, int],
    target: Target,
    speeds: Speeds,
) -> dict[int, Choice]:
    """The choices that are faster than what sizes say, by the number of the kernel."""
    if not can_measure():
        return {}
    found: dict[int, Choice] = {}
    for i in _dearest(kernels, built, sizes, target, speeds):
        ways = _ways(kernels[i], built[i], sizes, target, speeds)
        if len(ways) < 2:
            continue
        seconds = _measured([b for _, b in ways], sizes, target)
        best = int(np.argmin(seconds))
        if seconds[best] < (1 - GAIN) * seconds[0]:
            found[i] = replace(ways[best][0], why="fastest of those timed")
    return found


def _dearest(
    kernels: Sequence[Kernel],
    built: Sequence[Built],
    sizes: Mapping[str, int],
    target: Target,
    speeds: Speeds,
) -> list[int]:
    """The first kernels of the products' programs that should take longest, all calls together."""
    predicted = predict(kernels, built, sizes, target, speeds)
    first: dict[int, int] = {}
    seconds: dict[int, float] = {}
    for i, (kernel, b, p) in enumerate(zip(kernels, built, predicted, strict=True)):
        if kernel.form is Form.CONTRACT:
            number = first.setdefault(id(b.program), i)
            seconds[number] = seconds.get(number, 0.0) + p.seconds
    least = SHARE * sum(p.seconds for p in predicted)
    dear = sorted((i for i, s in seconds.items() if s > least), key=lambda i: -seconds[i])
    return dear[:PRODUCTS]


def _ways(
    kernel: Kernel, now: Built, sizes: Mapping[str, int], target: Target, speeds: Speeds
) -> list[tuple[Choice, Built]]:
    """What sizes say, then other ways, those first that should be fastest."""
    ways = {signature(now.program): (Choice(), now)}
    for choice in candidates(target):
        made = build_kernel(kernel, now.program.name, target, choice)
        ways.setdefault(signature(made.program), (choice, made))
    usual, *others = ways.values()

    def seconds(way: tuple[Choice, Built]) -> float:
        return predict([kernel], [way[1]], sizes, target, speeds)[0].seconds

    return [usual, *sorted(others, key=seconds)[: WAYS - 1]]


def _measured(ways: Sequence[Built], sizes: Mapping[str, int], target: Target) -> list[float]:
    """Seconds of programs that do the same, on the same operands."""
    random = np.random.default_rng(0)
    operands = len(ways[0].memory)
    memory = [_filled(b, sizes, random) for b in ways[0].program.buffers[:operands]]
    calls = []
    for way in ways:
        scratch = [_filled(b, sizes, random) for b in way.program.buffers[operands:]]
        places = (*range(operands), *range(len(memory), len(memory) + len(scratch)))
        memory += scratch
        calls.append(Call(way.program, places))
    return measure_programs(calls, memory, sizes, target)


def _filled(buffer: Buffer, sizes: Mapping[str, int], random: np.random.Generator) -> Array:
    """Numbers from 0 to 1, or zeros where they are whole; on a line of the cache."""
    count, kind = evaluate(buffer.size, sizes), buffer.dtype.numpy
    block = np.zeros(count * kind.itemsize + 64, np.uint8)
    start = -block.ctypes.data % 64
    array = block[start : start + count * kind.itemsize].view(kind)
    if buffer.dtype.is_float:
        array[:] = random.random(count)
    return array
