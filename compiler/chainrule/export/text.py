"""A function of LLVM text, written line by line."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from typing import Any

from chainrule_runtime.manifest import DimData


class Code:
    """The body of one function: instructions in blocks, values with fresh names."""

    def __init__(self, head: str) -> None:
        self.head = head
        self.lines: list[str] = []
        self.locals: list[str] = []
        self.count = 0
        self.block = "entry"

    def text(self, result: str) -> str:
        """The whole function, which ends with `ret result`."""
        return "\n".join(
            [f"define {self.head} {{", "entry:", *self.locals, *self.lines, f"  ret {result}", "}"]
        )

    def do(self, text: str) -> None:
        """An instruction without a value."""
        self.lines.append(f"  {text}")

    def value(self, text: str) -> str:
        """The name of an instruction's value."""
        self.count += 1
        self.do(f"%n{self.count} = {text}")
        return f"%n{self.count}"

    def local(self, kind: str, align: int) -> str:
        """A place in the frame, whose size is known so."""
        self.count += 1
        self.locals.append(f"  %n{self.count} = alloca {kind}, align {align}")
        return f"%n{self.count}"

    def label(self) -> str:
        """A block's name that is not taken."""
        self.count += 1
        return f"b{self.count}"

    def open(self, label: str) -> None:
        """Begin a block."""
        self.lines.append(f"{label}:")
        self.block = label

    def leave_if(self, condition: str, result: str) -> None:
        """`ret result` where the condition, an i1, holds."""
        bad, good = self.label(), self.label()
        self.do(f"br i1 {condition}, label %{bad}, label %{good}")
        self.open(bad)
        self.do(f"ret {result}")
        self.open(good)

    def guard(self, call: str, wide: bool = False) -> None:
        """Leave with the code that a call gives, unless it is 0; `wide` where an iw is returned."""
        code = self.value(f"call i32 {call}")
        bad = self.value(f"icmp ne i32 {code}, 0")
        self.leave_if(bad, f"iw {self.value(f'zext i32 {code} to iw')}" if wide else f"i32 {code}")

    def when(self, condition: str, body: Callable[[], None]) -> None:
        """Do something only where a condition holds."""
        then, after = self.label(), self.label()
        self.do(f"br i1 {condition}, label %{then}, label %{after}")
        self.open(then)
        body()
        self.do(f"br label %{after}")
        self.open(after)

    def loop(self, count: str, body: Callable[[str], None]) -> None:
        """`body(i)` for i from 0 to an iw, which is left out."""
        head, inside, after = self.label(), self.label(), self.label()
        before = self.block
        i, following = f"%{head}.i", f"%{head}.next"
        self.do(f"br label %{head}")
        self.open(head)
        at = len(self.lines)
        more = self.value(f"icmp ult iw {i}, {count}")
        self.do(f"br i1 {more}, label %{inside}, label %{after}")
        self.open(inside)
        body(i)
        self.do(f"{following} = add iw {i}, 1")
        self.do(f"br label %{head}")
        self.lines.insert(at, f"  {i} = phi iw [0, %{before}], [{following}, %{self.block}]")
        self.open(after)

    def at(self, base: str, offset: int | str) -> str:
        """The pointer so many bytes further on."""
        return base if offset == 0 else self.value(f"getelementptr i8, ptr {base}, iw {offset}")

    def load(self, kind: str, base: str, offset: int | str = 0, align: int = 8) -> str:
        """What lies at a pointer."""
        return self.value(f"load {kind}, ptr {self.at(base, offset)}, align {align}")

    def store(self, kind: str, what: str, base: str, offset: int | str = 0, align: int = 8) -> None:
        """Put a value at a pointer."""
        self.do(f"store {kind} {what}, ptr {self.at(base, offset)}, align {align}")

    def wide(self, value: str) -> str:
        """An iw as an i64."""
        return self.value(f"zext iw {value} to i64") if value.startswith("%") else value

    def narrow(self, value: str) -> str:
        """An iw as an i32."""
        return self.value(f"trunc iw {value} to i32")

    def copy(self, to: str, source: str, count: int | str) -> None:
        """Bytes from one place to another."""
        self.do(f"call void @copy(ptr {to}, ptr {source}, i64 {self.wide(str(count))})")

    def maximum(self, one: str, other: str) -> str:
        """The greater of two iw, both at least 0."""
        more = self.value(f"icmp ugt iw {one}, {other}")
        return self.value(f"select i1 {more}, iw {one}, iw {other}")

    def number(self, dim: DimData, sizes: Mapping[str, str]) -> str:
        """A size as an iw, of symbolic ones that are values by name."""
        if isinstance(dim, int):
            return str(dim)
        total = "0"
        for coefficient, factors in dim["terms"]:
            term = str(coefficient)
            for factor in factors:
                term = self.value(f"mul iw {term}, {self._factor(factor, sizes)}")
            total = self.value(f"add iw {total}, {term}")
        return total

    def _factor(self, factor: Any, sizes: Mapping[str, str]) -> str:
        if isinstance(factor, str):
            return sizes[factor]
        kind, numerator, denominator = factor
        over, under = self.number(numerator, sizes), self.number(denominator, sizes)
        rest = self.value(f"srem iw {over}, {under}")
        below = self.value(f"icmp slt iw {rest}, 0")  # sizes divide as in Python, downward
        if kind == "//":
            whole = self.value(f"sdiv iw {over}, {under}")
            less = self.value(f"zext i1 {below} to iw")
            return self.value(f"sub iw {whole}, {less}")
        more = self.value(f"select i1 {below}, iw {under}, iw 0")
        return self.value(f"add iw {rest}, {more}")


def finished(text: str, word: str) -> str:
    """Functions where `iw`, the integer as wide as an address, is the one it is on a machine.

    Where it is made of another integer that is as wide, there is nothing to do.
    """
    text = re.sub(r"\biw\b", word, text)
    return re.sub(r"= (?:zext|trunc) (i\d+) (\S+) to \1\b", r"= add \1 \2, 0", text)


def sectioned(text: str) -> str:
    """Functions, each in a section of its own, so that linkers may leave out what nobody calls."""
    return re.sub(r"(?m)^(define [^(]*@([\w.$]+)\(.* #\d+) \{$", r'\1 section ".text.\2" {', text)


def number_text(value: float, kind: str) -> str:
    """A number as LLVM writes it exactly: the bits of a double, for a float too."""
    if kind == "float":
        value = struct.unpack("<f", struct.pack("<f", value))[0]
    return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"


def constant(name: str, data: bytes, align: int, section: str) -> str:
    """Bytes that are never written, as a global of that name."""
    text = "".join(chr(b) if 32 <= b < 127 and b not in (34, 92) else f"\\{b:02X}" for b in data)
    where = f', section "{section}.{name}"' if section else ""
    return f'@{name} = private constant [{len(data)} x i8] c"{text}"{where}, align {align}'
