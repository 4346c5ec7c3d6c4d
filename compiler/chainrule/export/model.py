"""What is exported, as data: the tensors that live between calls, how they begin, and the units."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import Any

import numpy as np

from chainrule.codegen.steps import Step
from chainrule.ir.types import DType
from chainrule.records import dataclass
from chainrule.target import Target
from chainrule_runtime.manifest import Manifest, evaluate

Array = np.ndarray[Any, Any]

#: the version of the C interface and of the bytes of a state; a state of another one is refused
ABI = 1
#: every block and every tensor in it begins at a multiple of so many bytes
ALIGN = 64
#: what a state begins with: magic, version, variant, model, size, epochs begun, checksum
HEAD = 64
MAGIC = int.from_bytes(b"CHAINRUL", "little")
AT_ABI, AT_VARIANT, AT_MODEL, AT_SIZE, AT_EPOCH, AT_CHECKSUM = 8, 12, 16, 24, 32, 40
#: of a state on a GPU: the code that stops what follows, and how many steps of many were made
AT_STATUS, AT_DONE = 48, 56


@dataclass(frozen=True)
class Drawn:
    """Begins as scale · number + shift, of the draw of that number and of a `distribution`.

    That is "uniform", "normal", "truncated", the normal one within 2 deviations, or "orthogonal":
    normal numbers made orthogonal, of length `scale`.
    """

    distribution: str
    number: int
    scale: float
    shift: float


@dataclass(frozen=True)
class Given:
    """Begins as these numbers; as one number, where it is the same everywhere."""

    array: Array


@dataclass(frozen=True)
class Same:
    """Begins as another tensor of the state does."""

    name: str


Begin = Drawn | Given | Same


@dataclass(frozen=True)
class StateTensor:
    """A tensor of the state: a "parameter", a "state" or the "optimizer"'s own.

    Of an ensemble so many `members` have theirs in it, along the last axis.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    role: str
    begin: Begin
    members: int | None = None

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return int(np.prod(self.shape, dtype=object))

    @property
    def bytes(self) -> int:
        """How many bytes these are."""
        return self.elements * self.dtype.itemsize


@dataclass(frozen=True)
class Number:
    """A hyper-parameter that may change between steps, and the scalar of the state that holds it.

    `called` is what functions call it; `low` and `high` are what is asked of it, an LLVM comparison
    and a bound each. With `complement` the state holds what the number lacks of 1, and that is what
    is set: a float of 0.999 would say it less well.
    """

    name: str
    called: str
    kept: str
    low: tuple[str, float] = ("oge", 0.0)
    high: tuple[str, float] = ("olt", math.inf)
    complement: bool = False


@dataclass(frozen=True)
class Unit:
    """One native function of a kernel, lowered for one target: its calls, and its buffers."""

    calls: tuple[Step, ...] = field(repr=False)
    manifest: Manifest


@dataclass(frozen=True)
class Variant:
    """The units of a kernel by name, for one target."""

    target: Target
    units: Mapping[str, Unit]


@dataclass(frozen=True)
class Size:
    """A symbolic size, and the largest it may be."""

    name: str
    most: int


#: the gradient of each parameter that there is one of, at tensors by name
Derivative = Callable[[Mapping[str, Array]], Mapping[str, Array]]


@dataclass(frozen=True)
class Model:
    """A training step as it is exported.

    `digest` tells models apart: a state belongs to one. `sizes` stand in order of appearance;
    `sliced` are the inputs that are cut into minibatches along the first of them. `about` is what
    the manifest tells besides. A `small` one is written as little code, not as fast code.
    A caller may divide a step in up to so many `parts`. Of an ensemble there are so many `members`.
    `derivative` gives the gradient of the loss in inference by the formulas; of the first member's.
    """

    name: str
    digest: int
    kept: tuple[StateTensor, ...]
    seed: str
    numbers: tuple[Number, ...]
    sizes: tuple[Size, ...]
    sliced: frozenset[str]
    variants: tuple[Variant, ...]
    about: Mapping[str, Any]
    small: bool = False
    parts: int = 1
    members: int | None = None
    derivative: Derivative | None = field(default=None, repr=False)

    @property
    def units(self) -> Mapping[str, Unit]:
        """The units as the first variant has them: feeds and outputs are the same in all."""
        return self.variants[0].units

    @property
    def fixed(self) -> dict[str, int] | None:
        """The sizes that workspace is laid out for in any case; None where each call tells."""
        return self.most() if self.small else None

    @property
    def offsets(self) -> dict[str, int]:
        """Where each tensor lies in the state."""
        found, at = {}, HEAD
        for tensor in self.kept:
            found[tensor.name] = at
            at += round_up(tensor.bytes)
        return found

    @property
    def state_bytes(self) -> int:
        """Bytes of the state."""
        return HEAD + sum(round_up(t.bytes) for t in self.kept)

    def most(self) -> dict[str, int]:
        """The largest sizes."""
        return {s.name: s.most for s in self.sizes}


def round_up(size: int) -> int:
    """The next multiple of ALIGN."""
    return -(-size // ALIGN) * ALIGN


def fits(manifests: Sequence[Manifest], sizes: Mapping[str, int]) -> bool:
    """Whether sizes meet what every one of them asks for."""
    return all(evaluate(d, sizes) > 0 for m in manifests for d in m.nonempty)
