"""What a compiled program needs to be called: the contract between its maker and this package.

A size is an int, or `{"terms": [[coefficient, [factor, ...]], ...]}` where a factor is the name of
a symbolic size or `["//" | "%", size, size]`. Everything here is plain data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from chainrule_runtime.errors import RuntimeFault

DimData = int | dict[str, Any]
#: no symbol of a shape is called so
PARTS = "threads'"


@dataclass(frozen=True)
class Tensor:
    """A named tensor and its place in the table of buffers."""

    name: str
    dtype: str
    shape: tuple[DimData, ...]
    place: int

    def __str__(self) -> str:
        return f"{_SHORT.get(self.dtype, self.dtype)}[{', '.join(map(show, self.shape))}]"


@dataclass(frozen=True)
class Check:
    """What a program tests, and the code it leaves with when that does not hold.

    With a `bound`, elements of `feed` (None: of a computed tensor) must lie in [least, bound);
    without, `what` must be finite.
    """

    code: int
    what: str
    feed: str | None
    bound: DimData | None
    least: DimData = 0


@dataclass(frozen=True)
class Stage:
    """What the threads that share a step come to next: one does it alone, or all a part of it.

    `call` numbers the calls in `Manifest.shared`; None is done by one thread in any case. Memory
    that it `reads` and `writes` is told by numbers: below 0 what lives within a step, else what is
    given, kept or given back. Where threads meet inside (`inner`), `first_reads` and `first_writes`
    are what it touches before. It tests what it has `checked`, and may leave there with a code. A
    `meeting` is no work: all threads meet, in any case.
    """

    call: int | None = None
    reads: tuple[int, ...] = ()
    writes: tuple[int, ...] = ()
    first_reads: tuple[int, ...] = ()
    first_writes: tuple[int, ...] = ()
    inner: bool = False
    checked: tuple[int, ...] = ()
    meeting: bool = False


@dataclass(frozen=True)
class TunedThreads:
    """How many threads were fastest, where symbolic `sizes` were so large.

    `seconds` are pairs of a number of threads and what a step took on so many. `most` is the number
    that is kept, for steps whose shared calls are no more `work` than they were there; 0 where
    nothing was timed, `why` says why.
    """

    sizes: tuple[tuple[str, int], ...] = ()
    work: int = 0
    most: int = 0
    seconds: tuple[tuple[int, float], ...] = ()
    why: str = ""


@dataclass(frozen=True)
class Manifest:
    """The tensors of a program by what they are, and the memory it needs besides.

    `feeds` are given at each call, `kept` are parameters and states that live between calls,
    `outputs` are read after it; an output may share its place with a feed or a kept tensor.
    `arena[i]` lists sizes in bytes, of which the largest is what slot i needs; `temporaries` maps a
    place in the table to its slot. `nonempty` are sizes that must not be 0. `shared` says of each
    call that threads may share how much work it is and how often it is made; one of less than
    `call_work`, or a step in which shared calls do less than `step_work`, is better done by one.
    `stages` are what threads do between meetings. Their number is a size in `arena`, called PARTS,
    and `tuned` what timing found of it.
    """

    sizes: tuple[str, ...]
    feeds: tuple[Tensor, ...]
    kept: tuple[Tensor, ...]
    constants: tuple[tuple[Tensor, np.ndarray[Any, Any]], ...]
    outputs: tuple[Tensor, ...]
    arena: tuple[tuple[DimData, ...], ...]
    temporaries: tuple[tuple[int, int], ...]
    checks: tuple[Check, ...]
    nonempty: tuple[DimData, ...] = ()
    shared: tuple[tuple[DimData, DimData], ...] = ()
    call_work: int = 0
    step_work: int = 0
    stages: tuple[Stage, ...] = ()
    tuned: TunedThreads | None = None

    @property
    def places(self) -> int:
        """How many entries the table of buffers has."""
        tensors = [*self.feeds, *self.kept, *(t for t, _ in self.constants), *self.outputs]
        used = [*(t.place for t in tensors), *(place for place, _ in self.temporaries)]
        return 1 + max(used, default=-1)


_SHORT = {"float32": "f32", "float64": "f64", "int32": "i32", "int64": "i64", "bfloat16": "bf16"}


def element_type(name: str) -> np.dtype[Any]:
    """The NumPy dtype of that name; for bfloat16 ml_dtypes', without which a RuntimeFault."""
    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError:
        hint = "install ml_dtypes, which gives it one"
        raise RuntimeFault("NumPy has no bfloat16 of its own", hint) from None
    bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return bfloat16


def evaluate(dim: DimData, sizes: Mapping[str, int]) -> int:
    """The number a size is, given the symbolic ones."""
    if isinstance(dim, int):
        return dim
    return sum(c * math.prod(_factor(f, sizes) for f in factors) for c, factors in dim["terms"])


def _factor(factor: Any, sizes: Mapping[str, int]) -> int:
    if isinstance(factor, str):
        return sizes[factor]
    kind, numerator, denominator = factor
    n, d = evaluate(numerator, sizes), evaluate(denominator, sizes)
    return n // d if kind == "//" else n % d


def with_size(dim: DimData, name: str, size: int) -> DimData:
    """A size of which one symbol, outside of quotients, is known."""
    if isinstance(dim, int):
        return dim
    terms = [
        [c * size ** factors.count(name), [f for f in factors if f != name]]
        for c, factors in dim["terms"]
    ]
    return {"terms": terms}


def show(dim: DimData) -> str:
    """A size as text."""
    if isinstance(dim, int):
        return str(dim)
    parts = []
    for c, factors in dim["terms"]:
        names = [f if isinstance(f, str) else f"({show(f[1])}{f[0]}{show(f[2])})" for f in factors]
        parts.append("*".join([*([str(c)] if c != 1 or not names else []), *names]))
    return " + ".join(parts).replace("+ -", "- ") or "0"
