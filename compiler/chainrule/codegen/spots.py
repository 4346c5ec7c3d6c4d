"""Where buffers of little code lie, whatever is called, and functions that stand for loops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from chainrule.codegen.outlined import Place
from chainrule.ir.loop import Program
from chainrule.ir.size import Dim


class Spot(NamedTuple):
    """Where a buffer lies whatever is called: so many bytes into what is given under a name."""

    base: str
    offset: int


class Part(NamedTuple):
    """A function that stands for a loop, with what it is given in the place of its parameters."""

    name: str
    program: Program
    places: Sequence[Place]
    numbers: Sequence[Dim]


#: one call of a program, and where its buffers lie, as far as that is known
Called = tuple[Program, Sequence[Spot | None]]


def common(spots: Sequence[Spot | None]) -> Spot | None:
    """The one spot that all are."""
    return spots[0] if len(set(spots)) == 1 else None


def given(spots: Sequence[Spot | None], pointers: Sequence[str]) -> list[str]:
    """What a function is given for its buffers: what known ones are parts of, and all others."""
    bases = sorted({spot.base for spot in spots if spot is not None})
    told = (p for p, spot in zip(pointers, spots, strict=True) if spot is None)
    return [*(f"ptr %{base}" for base in bases), *told]
