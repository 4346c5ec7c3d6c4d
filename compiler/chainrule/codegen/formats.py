"""What object files of each format hold: bytes of code, and the names they still need.

ELF stands in codegen.elf. COFF: Microsoft Portable Executable and Common Object File Format
Specification, sections 3 to 5; Mach-O: Apple's mach-o/loader.h and nlist.h; WebAssembly: Core
Specification, section 5.5, and the tool conventions' Linking document.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from chainrule.codegen import elf


def code_size(data: bytes) -> int:
    """Bytes of machine code in an object file."""
    if data.startswith(b"\x7fELF"):
        return elf.code_size(data)
    if data.startswith(b"\0asm"):
        return sum(len(body) for kind, body in _wasm_sections(data) if kind == 10)
    if data.startswith(b"\xcf\xfa\xed\xfe"):
        return sum(size for flags, size in _macho_sections(data) if flags & 0x80000400)
    return sum(size for flags, size in _coff_sections(data) if flags & 0x20)


def undefined_symbols(data: bytes) -> list[str]:
    """The names that an object file calls or reads and does not define."""
    if data.startswith(b"\x7fELF"):
        return elf.undefined_symbols(data)
    if data.startswith(b"\0asm"):
        return _wasm_undefined(data)
    if data.startswith(b"\xcf\xfa\xed\xfe"):
        return _macho_undefined(data)
    return _coff_undefined(data)


def _coff_sections(data: bytes) -> Iterator[tuple[int, int]]:
    count, optional = struct.unpack_from("<2xH12xH", data)
    for i in range(count):
        size, flags = struct.unpack_from("<16xI16xI", data, 20 + optional + 40 * i)
        yield flags, size


def _coff_undefined(data: bytes) -> list[str]:
    start, count = struct.unpack_from("<8xII", data)
    strings = start + 18 * count
    found, i = [], 0
    while i < count:
        name, value, section, _, storage, extra = struct.unpack_from(
            "<8sIhHBB", data, start + 18 * i
        )
        if section == 0 and storage == 2 and value == 0:
            if name.startswith(b"\0\0\0\0"):
                at = strings + int.from_bytes(name[4:], "little")
                name = data[at : data.index(b"\0", at)]
            found.append(name.rstrip(b"\0").decode())
        i += 1 + extra
    # a mark that Microsoft's linkers ask for in code with floats; nothing is called by it
    return sorted(n for n in found if n not in ("_fltused", "__fltused"))


def _macho_commands(data: bytes) -> Iterator[tuple[int, int]]:
    count, at = struct.unpack_from("<16xI", data)[0], 32
    for _ in range(count):
        kind, size = struct.unpack_from("<II", data, at)
        yield kind, at
        at += size


def _macho_sections(data: bytes) -> Iterator[tuple[int, int]]:
    for kind, at in _macho_commands(data):
        if kind == 0x19:
            count = struct.unpack_from("<64xI", data, at)[0]
            for i in range(count):
                size, flags = struct.unpack_from("<40xQ16xI", data, at + 72 + 80 * i)
                yield flags, size


def _macho_undefined(data: bytes) -> list[str]:
    found = []
    for kind, at in _macho_commands(data):
        if kind == 0x2:
            start, count, strings = struct.unpack_from("<8xIII", data, at)
            for i in range(count):
                name, how = struct.unpack_from("<IB", data, start + 16 * i)
                if how & 0xE0 == 0 and how & 0x0E == 0:
                    begin = strings + name
                    found.append(data[begin : data.index(b"\0", begin)].decode())
    return sorted(found)


def _leb(data: bytes, at: int) -> tuple[int, int]:
    """An unsigned number of variable length, and where the next byte is."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _wasm_sections(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 8
    while at < len(data):
        kind = data[at]
        size, at = _leb(data, at + 1)
        yield kind, data[at : at + size]
        at += size


def _wasm_undefined(data: bytes) -> list[str]:
    """Imports, but for the memory, the table and the stack pointer that every linker gives."""
    found = []
    for body in (b for kind, b in _wasm_sections(data) if kind == 2):
        count, at = _leb(body, 0)
        for _ in range(count):
            names = []
            for _ in range(2):
                size, at = _leb(body, at)
                names.append(body[at : at + size].decode())
                at += size
            kind, at = body[at], at + 1
            if kind == 1:  # a table: its type, its limits
                at += 1
            if kind in (1, 2):
                limits, at = body[at], at + 1
                for _ in range(1 + (limits & 1)):
                    _, at = _leb(body, at)
            elif kind == 3:  # a global: its type, whether it changes
                at += 2
            else:
                _, at = _leb(body, at)
                found.append(names[1])
    return sorted(found)
