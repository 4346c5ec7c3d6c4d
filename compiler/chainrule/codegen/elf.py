"""What an ELF object holds: how many bytes of code, and which names it still needs.

Layout: Tool Interface Standard, Executable and Linking Format 1.2, and its 64-bit form.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

_EXECUTABLE, _SYMBOL_TABLE, _UNDEFINED = 0x4, 2, 0


class Section(NamedTuple):
    """One row of the section header table."""

    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entry: int


def sections(data: bytes) -> list[Section]:
    """The section headers of a little-endian ELF object."""
    if data[:4] != b"\x7fELF" or data[4] not in (1, 2) or data[5] != 1:
        raise ValueError("not a little-endian ELF object")
    wide = data[4] == 2
    start, size, count = struct.unpack_from(
        "<Q10xHH" if wide else "<I10xHH", data, 40 if wide else 32
    )
    row = "<IIQQQQIIQQ" if wide else "<IIIIIIIIII"
    return [Section(*struct.unpack_from(row, data, start + i * size)) for i in range(count)]


def code_size(data: bytes) -> int:
    """Bytes of machine code."""
    return sum(s.size for s in sections(data) if s.flags & _EXECUTABLE)


def undefined_symbols(data: bytes) -> list[str]:
    """The names that the object calls or reads and does not define."""
    table = sections(data)
    found = []
    for s in table:
        if s.kind != _SYMBOL_TABLE:
            continue
        names = table[s.link].offset
        for at in range(s.offset + s.entry, s.offset + s.size, s.entry):
            (name,) = struct.unpack_from("<I", data, at)
            (section,) = struct.unpack_from("<H", data, at + (6 if data[4] == 2 else 14))
            if section == _UNDEFINED and name:
                found.append(data[names + name : data.index(b"\0", names + name)].decode())
    return sorted(found)
