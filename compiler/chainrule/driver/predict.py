"""How long each kernel should take on one thread: its effort, and how far away its memory is.

What a kernel touches is as far away as all that was touched since: a value lies in the nearest
cache that holds so much (the distance of Mattson and others, "Evaluation techniques for storage
hierarchies", IBM Systems Journal 9(2), 1970). Programs are taken to run again and again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from chainrule.ir.node import Node
from chainrule.ir.size import evaluate
from chainrule.loops.build import Built
from chainrule.loops.effort import Effort, effort_of
from chainrule.records import dataclass
from chainrule.schedule.kernel import Form, Kernel
from chainrule.target import Target
from chainrule.target.speeds import Speeds, told


@dataclass(frozen=True)
class Prediction:
    """Seconds of all the times that a kernel runs in a call, and what bounds it."""

    seconds: float
    bound: str


def predict(
    kernels: Sequence[Kernel],
    built: Sequence[Built],
    sizes: Mapping[str, int],
    target: Target,
    speeds: Speeds,
) -> list[Prediction]:
    """What each kernel should take, where symbolic sizes are so large."""
    efforts: dict[int, Effort] = {}
    for b in built:
        if id(b.program) not in efforts:
            efforts[id(b.program)] = effort_of(b.program, sizes, target)
    own = [efforts[id(b.program)] for b in built]
    touched = [_touched(b, effort) for b, effort in zip(built, own, strict=True)]
    far = _distances(touched)
    found = []
    for kernel, effort, memory, away in zip(kernels, own, touched, far, strict=True):
        if kernel.form is Form.SCAN:
            found.append(Prediction(0.0, "what it repeats"))
            continue
        times = evaluate(kernel.times, sizes)
        one = _one(effort, memory, away, target, speeds)
        found.append(Prediction(one.seconds * times, one.bound))
    return found


def _one(
    effort: Effort,
    memory: Mapping[Node, int],
    away: Mapping[Node, int],
    target: Target,
    speeds: Speeds,
) -> Prediction:
    found = [Prediction(effort.seconds(speeds, target), "operations")]
    for (held, _), (_, rate) in zip(speeds.reads, speeds.reads[1:], strict=False):
        found.append(Prediction(effort.traffic(held) / rate, f"reads beyond {told(held)}"))
    moved = sum(size / speeds.bandwidth(away[node]) for node, size in memory.items())
    rate = sum(memory.values()) / moved / 1e9 if moved else 0.0
    found.append(Prediction(moved, f"bytes at {rate:.0f} GB/s"))
    return max(found, key=lambda p: p.seconds)


def _touched(built: Built, effort: Effort) -> dict[Node, int]:
    """The bytes of each node's memory that a program moves."""
    own = zip(built.program.buffers, built.memory, strict=False)  # workspace comes after them
    return {node: effort.moved(buffer) for buffer, node in own}


def _distances(touched: Sequence[Mapping[Node, int]]) -> list[dict[Node, int]]:
    """How many bytes were touched since the memory of each node was, when a kernel comes to it."""
    unique: dict[Node, int] = {}
    for memory in touched:
        for node, size in memory.items():
            unique[node] = max(unique.get(node, 0), size)
    most, passed = sum(unique.values()), 0
    last: dict[Node, int] = {}
    found: list[dict[Node, int]] = []
    for _ in range(2):  # the second time around each has been touched before
        found = []
        for memory in touched:
            passed += sum(memory.values())
            found.append({n: min(most, passed - last.get(n, 0)) for n in memory})
            last.update(dict.fromkeys(memory, passed))
    return found
