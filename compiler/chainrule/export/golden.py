"""What a self-test is held to, as data."""

from __future__ import annotations

from chainrule.records import dataclass


@dataclass(frozen=True)
class Slope:
    """A step of parameters, and what the loss at one end lacks of that at the other, within."""

    step: float
    difference: float
    within: float


@dataclass(frozen=True)
class Golden:
    """What comes out of the self-test on a machine that computes right."""

    digest: int
    slope: Slope | None = None
