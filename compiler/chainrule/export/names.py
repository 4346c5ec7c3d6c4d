"""Names in C: identifiers made of names that may be anything."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_KEYWORDS = re.findall(
    r"\w+",
    """
    alignas alignof and and_eq asm auto bitand bitor bool break case catch char class co_await
    co_return co_yield compl concept const const_cast consteval constexpr constinit continue
    decltype default delete do double dynamic_cast else enum explicit export extern false float for
    friend goto if inline int long mutable namespace new noexcept not not_eq nullptr operator or
    or_eq private protected public register reinterpret_cast requires restrict return short signed
    sizeof static static_assert static_cast struct switch template this thread_local throw true try
    typedef typeid typename typeof union unsigned using virtual void volatile wchar_t while xor
    xor_eq int8_t int16_t int32_t int64_t uint8_t uint16_t uint32_t uint64_t size_t NULL main errno
    """,
)
#: what compilers define besides, where they are not told to be strict
_MACROS = "linux unix i386 mips sparc sun".split()  # noqa: SIM905
#: what parameters of the interface are called
_OWN = re.findall(
    r"\w+",
    """
    state state_bytes workspace workspace_bytes seed bytes n memory index name out in lr value rows
    batch_size order words losses done
    """,
)


def is_identifier(name: str) -> bool:
    """Whether C takes a name as it is, for a function's prefix and for a file."""
    good = re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,63}", name) is not None
    return good and name not in _KEYWORDS and "__" not in name


def identifiers(names: Iterable[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """An identifier for each name, like it where that can be, and no two the same."""
    used = {*_KEYWORDS, *_MACROS, *_OWN, *taken}
    found: dict[str, str] = {}
    for name in dict.fromkeys(names):
        base = re.sub(r"[^A-Za-z0-9]+", "_", name)[:48].strip("_") or "x"
        base = f"x{base}" if base[0].isdigit() else base
        chosen, count = base, 1
        while chosen in used:
            count += 1
            chosen = f"{base}_{count}"
        used.add(chosen)
        found[name] = chosen
    return found


def largest_names(sizes: Mapping[str, str]) -> dict[str, str]:
    """What the constants for the largest sizes are called: the sizes' identifiers in capitals, no
    two the same, and none as constants of other meanings.
    """
    found: dict[str, str] = {}
    used = {"WORKSPACE_BYTES", "PARTS"}
    for size, name in sizes.items():
        chosen, count = name.upper(), 1
        while chosen in used:
            count += 1
            chosen = f"{name.upper()}_{count}"
        used.add(chosen)
        found[size] = chosen
    return found
