"""LLVM values with our types, and a builder that puts each pure instruction where it is free.

Instructions are numbered by their text, so equal ones are one, and an instruction that needs only
what was known outside a loop is put outside the loop: no LLVM pass has to find that again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field
from functools import cache
from typing import NamedTuple

from chainrule.ir.types import DType
from chainrule.records import dataclass


class Register(NamedTuple):
    """A constant or a named value; `lanes` is 0 for a scalar, else the vector's length.

    A tuple, as it is made for every instruction and a frozen class takes twice as long.
    """

    text: str
    dtype: DType
    lanes: int = 0

    @property
    def type(self) -> str:
        """Its LLVM type."""
        return _type_of(self.dtype, self.lanes)

    @property
    def typed(self) -> str:
        """Its LLVM type and name, as instructions write an operand."""
        return f"{_type_of(self.dtype, self.lanes)} {self.text}"


@cache
def _type_of(dtype: DType, lanes: int) -> str:
    return vector(element(dtype), lanes)


@cache
def element(dtype: DType) -> str:
    """The LLVM type of one element in a register; of a bfloat16, its bits."""
    if dtype.is_float and dtype.bits > 16:
        return "float" if dtype.bits == 32 else "double"
    return f"i{dtype.bits}"


@cache
def memory(dtype: DType) -> str:
    """The LLVM type of one element in memory: a bool is a byte there."""
    return "i8" if dtype.is_bool else element(dtype)


def vector(element_type: str, lanes: int) -> str:
    """The LLVM type of so many elements; of a scalar for 0."""
    return f"<{lanes} x {element_type}>" if lanes else element_type


def mangled(element_type: str, lanes: int) -> str:
    """A type as the names of overloaded intrinsics spell it."""
    short = {"float": "f32", "double": "f64"}.get(element_type, element_type)
    return f"v{lanes}{short}" if lanes else short


@dataclass
class Region:
    """A stretch of code entered in one place: a function, a loop's body, a guarded part.

    `label` is the block its end lies in. `guard`: entered on a condition, so that no load may move
    out of it; `stores` and `checked` say what keeps loads from leaving a loop's body.
    """

    label: str
    guard: bool = False
    stores: frozenset[object] = frozenset()
    checked: bool = False
    lines: list[str] = field(default_factory=list)
    known: dict[str, str] = field(default_factory=dict)


class Builder:
    """Lines of one function, as a stack of regions, outermost first."""

    def __init__(self) -> None:
        self.regions = [Region("entry", guard=True)]
        self.depth_of: dict[str, int] = {}
        self.declarations: set[str] = set()
        self.count = 0

    @property
    def here(self) -> Region:
        """The innermost region."""
        return self.regions[-1]

    def fresh(self) -> str:
        """A name that is not taken."""
        self.count += 1
        return f"%v{self.count}"

    def label(self) -> str:
        """A block label that is not taken."""
        self.count += 1
        return f"L{self.count}"

    def depth(self, operands: Iterable[str]) -> int:
        """The depth of the outermost region in which all operands are known."""
        depth, depth_of = 0, self.depth_of.get
        for operand in operands:
            if (found := depth_of(operand, 0)) > depth:
                depth = found
        return depth

    def name_at(self, depth: int, text: str, key: str = "") -> str:
        """The value of an instruction, appended to a region unless it is known there already."""
        region = self.regions[depth]
        name = region.known.get(key or text)
        if name is None:
            name = self.fresh()
            region.known[key or text] = name
            region.lines.append(f"  {name} = {text}")
            self.depth_of[name] = depth
        return name

    def pure(self, text: str, *operands: str) -> str:
        """The value of an instruction without effects, put as far out as its operands allow."""
        return self.name_at(self.depth(operands), text)

    def pinned(self, text: str) -> str:
        """The value of an instruction that must not run where the program does not say so."""
        return self.name_at(len(self.regions) - 1, text)

    def effect(self, text: str) -> None:
        """An instruction that is there for what it does."""
        self.here.lines.append(f"  {text}")

    def load_depth(self, address_depth: int, buffer: object) -> int:
        """How far out a load may move: past loops that neither write the buffer nor check."""
        depth = len(self.regions) - 1
        while depth > address_depth:
            region = self.regions[depth]
            if region.guard or region.checked or buffer in region.stores:
                break
            depth -= 1
        return depth

    def declare(self, text: str) -> None:
        """Note an intrinsic the module must declare."""
        self.declarations.add(f"declare {text}")

    def open(self, region: Region) -> None:
        """Enter a region inside the innermost one."""
        self.regions.append(region)

    def close(self) -> Region:
        """Leave the innermost region."""
        return self.regions.pop()
