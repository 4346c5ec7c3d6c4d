"""The codes that functions of a kernel return, and what they mean: data for the header too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from chainrule_runtime.manifest import Check, Manifest, show


class Fault(NamedTuple):
    """A code, the name it has in the header, and what it means."""

    code: int
    name: str
    text: str


FAULTS = (
    Fault(0, "OK", "all is well"),
    Fault(1, "ERROR_NULL", "a pointer is null"),
    Fault(2, "ERROR_ALIGN", "a buffer is not aligned: blocks to NAME_ALIGN, data to its elements"),
    Fault(3, "ERROR_ROOM", "a buffer is smaller than it must be"),
    Fault(
        4, "ERROR_SIZE", "a size is 0, above what the kernel was exported for, or has no meaning"
    ),
    Fault(5, "ERROR_STATE", "this is no state: call init or load first"),
    Fault(6, "ERROR_MODEL", "this is the state of another model"),
    Fault(7, "ERROR_VERSION", "this is a state of another version of the interface"),
    Fault(8, "ERROR_DAMAGED", "the bytes are damaged: their checksum is another"),
    Fault(9, "ERROR_CPU", "this processor lacks instructions that the kernel was compiled for"),
    Fault(
        10,
        "ERROR_NAME",
        "there is no tensor of that number, or it has another size; or no such member",
    ),
    Fault(11, "ERROR_VALUE", "a number is out of the range that it must lie in"),
    Fault(12, "ERROR_FINITE", "the loss is infinite or not a number; nothing was changed"),
    Fault(13, "ERROR_SELFTEST", "this machine does not compute what the compiler's did"),
)
CODE = {f.name: f.code for f in FAULTS}
#: the code of the first check of data; the others follow
FIRST_CHECK = 32


def checks_of(manifests: Sequence[Manifest]) -> dict[str, int]:
    """The code of each thing that units check of data, by what is said of it."""
    found: dict[str, int] = {}
    for check in (c for m in manifests for c in m.checks if c.bound is not None):
        found.setdefault(_bounded(check), FIRST_CHECK + len(found))
    return found


def own_code(check: Check, codes: dict[str, int]) -> int:
    """The interface's code for what native code of a unit checks."""
    return CODE["ERROR_FINITE"] if check.bound is None else codes[_bounded(check)]


def faults(codes: dict[str, int]) -> list[Fault]:
    """Every fault that a kernel's functions can return."""
    found = [Fault(c, f"ERROR_DATA{c - FIRST_CHECK}", text) for text, c in codes.items()]
    return [*FAULTS, *found]


def _bounded(check: Check) -> str:
    assert check.bound is not None
    return f"{check.what} holds a number outside [{show(check.least)}, {show(check.bound)})"
