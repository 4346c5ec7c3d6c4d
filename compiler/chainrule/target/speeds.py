"""How fast a machine is, as data: what a calibration measures, and what is taken without one."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

from chainrule.records import dataclass
from chainrule.target import NEAREST, SECOND

#: what a text of speeds begins with; a change of what is measured changes it
KIND = "speeds 1"
_MIB = 2**20


@dataclass(frozen=True)
class Speeds:
    """One core's rates, in seconds and bytes.

    `flops` are operations a second of float32 multiply-adds, two for each; `reads` pairs of bytes
    and bytes a second: a block that is no larger is read so fast, from the nearest cache outward,
    and the last pair, of 0 bytes, is of larger ones. `fork` is what it takes to give another thread
    a step and hear that it is done, `meeting` to wait for each other on the way.
    """

    flops: float
    reads: tuple[tuple[int, float], ...]
    fork: float
    meeting: float

    def bandwidth(self, size: float) -> float:
        """Bytes a second, of a block of so many bytes."""
        return next((rate for held, rate in self.reads if size <= held), self.reads[-1][1])

    def __str__(self) -> str:
        held = [f"up to {told(size)}" if size else "beyond" for size, _ in self.reads]
        reads = ", ".join(
            f"{rate / 1e9:.0f} {block}" for block, (_, rate) in zip(held, self.reads, strict=True)
        )
        return (
            f"{self.flops / 1e9:.0f} GFLOP/s, GB/s {reads}; "
            f"fork {self.fork * 1e6:.1f} µs, meeting {self.meeting * 1e6:.2f}"
        )

    def text(self) -> str:
        """What `read_speeds` makes the same of."""
        return json.dumps({"kind": KIND, **asdict(self)})


def told(size: int) -> str:
    """A number of bytes in words."""
    return f"{size >> 20} MiB" if size >= _MIB else f"{size >> 10} KiB"


def read_speeds(text: str) -> Speeds | None:
    """The speeds of a text; None of anything else, or of what no machine can be."""
    try:
        data: Any = json.loads(text)
        if data.pop("kind") != KIND:
            return None
        reads = tuple((int(size), float(rate)) for size, rate in data.pop("reads"))
        found = Speeds(reads=reads, **{name: float(value) for name, value in data.items()})
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    rates = (found.flops, *(rate for _, rate in reads), found.fork, found.meeting)
    sizes = [size for size, _ in reads]
    ordered = len(sizes) > 1 and sizes[-1] == 0 and sizes[:-1] == sorted({*sizes[:-1]} - {0})
    return found if ordered and all(math.isfinite(r) and r > 0 for r in rates) else None


def _usual(gigaflops: float, first: float) -> Speeds:
    """A core of a server of the 2020s: its second cache gives half of what the first does, the
    third 25 GB/s, memory 12.
    """
    reads = ((NEAREST, first), (SECOND, first / 2), (32 * _MIB, 25e9), (0, 12e9))
    return Speeds(gigaflops * 1e9, reads, 1.2e-6, 3e-7)


#: by instruction level, where nothing was measured: two vectors of multiply-adds and of loads a
#: cycle of 3 GHz; fork and meeting are what was measured under Linux on a Xeon with AMX
USUAL = {
    "x86-64-v4": _usual(192, 300e9),
    "x86-64-v3": _usual(96, 150e9),
    "aarch64": _usual(48, 75e9),
}
_LEAST = _usual(24, 75e9)


def usual_speeds(level: str) -> Speeds:
    """What is taken of a machine of an instruction level, as long as it is not calibrated."""
    return USUAL.get(level.partition("+")[0], _LEAST)
