"""What can go wrong while a program runs. The compiler has errors of the same names."""

from __future__ import annotations

from typing import Any


class RuntimeFault(Exception):
    """The base: `what` is one sentence, `details` are further lines, the last one a remedy."""

    def __init__(self, what: str, *details: str) -> None:
        self.what, self.details = what, details
        super().__init__(what, *details)

    def __str__(self) -> str:
        return "\n  ".join([self.what, *self.details])


class FeedError(RuntimeFault, ValueError):
    """Data given to a program that it can't take."""


class NonFiniteError(RuntimeFault, ArithmeticError):
    """A number that must be finite is infinite or NaN: `number`, at `place` of what is `named`."""

    def __init__(
        self,
        what: str,
        *details: str,
        named: str = "",
        place: tuple[int, ...] = (),
        number: Any = None,
    ) -> None:
        super().__init__(what, *details)
        self.named, self.place, self.number = named, place, number


class DeviceError(RuntimeFault, RuntimeError):
    """A GPU that is not there, has no room, or has failed: `lost` with all that this process has on
    it. `code` is what the driver answered, "" where it was not asked.
    """

    def __init__(self, what: str, *details: str, lost: bool = False, code: str = "") -> None:
        super().__init__(what, *details)
        self.lost, self.code = lost, code


class ArtifactError(RuntimeFault, OSError):
    """A file that is damaged, of another kind, or for another machine."""
