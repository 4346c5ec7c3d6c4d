"""Which variant this processor can run: cpuid on x86-64, no question elsewhere.

Bits: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, CPUID, and AMD64
Architecture Programmer's Manual, volume 3, appendix E; levels as in the System V psABI supplement.
"""

from __future__ import annotations

from collections.abc import Sequence

from chainrule.export.text import Code
from chainrule.target import Target

#: leaf 7 has a second page, which stands for a leaf of its own here
_SECOND = 0x10007
#: (leaf, register, bits) that each level asks for beyond those of the level below
_CPUID = {
    "generic": (),
    "x86-64-v2": ((1, "cx", (0, 9, 13, 19, 20, 23)), (0x80000001, "cx", (0,))),
    "x86-64-v3": (
        (1, "cx", (12, 22, 27, 28, 29)),
        (7, "bx", (3, 5, 8)),
        (0x80000001, "cx", (5,)),
    ),
    "x86-64-v4": ((7, "bx", (16, 17, 28, 30, 31)),),
    "x86-64-v4+bf16": ((_SECOND, "ax", (5,)),),
}
#: what the system must save of registers, by XCR0: SSE and AVX; with the masks and ZMM
_SAVED = {"x86-64-v3": 0x6, "x86-64-v4": 0xE6}
_REGISTERS = ("ax", "bx", "cx", "dx")
_LEVELS = tuple(_CPUID)


def processor(targets: Sequence[Target], missing: int) -> str:
    """`i32 @processor(ptr %variant)`: puts the number of the best variant there, or gives a code.

    Variants stand from the best down.
    """
    code = Code("internal i32 @processor(ptr %variant) #0")
    if targets[0].level not in _LEVELS:
        code.store("i32", "0", "%variant", align=4)
        return code.text("i32 0")
    has = _levels(code, max(_LEVELS.index(t.level) for t in targets))
    for number, target in enumerate(targets):
        fits, following = code.label(), code.label()
        code.do(f"br i1 {has[target.level]}, label %{fits}, label %{following}")
        code.open(fits)
        code.store("i32", str(number), "%variant", align=4)
        code.do("ret i32 0")
        code.open(following)
    return code.text(f"i32 {missing}")


def _levels(code: Code, highest: int) -> dict[str, str]:
    """Whether each level up to the highest is there, as i1."""
    leaves: dict[int, dict[str, str]] = {}

    def register(leaf: int, name: str) -> str:
        if leaf not in leaves:
            # a processor answers a leaf it has not with another one's bits: ask which it has
            page = 1 if leaf == _SECOND else 0
            number = 7 if page else leaf
            base = 7 if page else leaf & 0x80000000
            top = _cpuid(code, str(_signed(base)))["ax"]
            known = code.value(f"icmp uge i32 {top}, {page or _signed(number)}")
            asked = code.value(f"select i1 {known}, i32 {_signed(number)}, i32 {_signed(base)}")
            bits = _cpuid(code, asked, page)
            mask = code.value(f"sext i1 {known} to i32")
            leaves[leaf] = {r: code.value(f"and i32 {v}, {mask}") for r, v in bits.items()}
        return leaves[leaf][name]

    found: dict[str, str] = {}
    before = "true"
    for level in _LEVELS[: highest + 1]:
        for leaf, name, bits in _CPUID[level]:
            wanted = _signed(sum(1 << b for b in bits))
            have = code.value(f"and i32 {register(leaf, name)}, {wanted}")
            all_there = code.value(f"icmp eq i32 {have}, {wanted}")
            before = code.value(f"and i1 {before}, {all_there}")
        if level in _SAVED:
            before = _saved(code, before, _SAVED[level])
        found[level] = before
    return found


def _saved(code: Code, condition: str, mask: int) -> str:
    """Whether the system saves registers; asked only where `condition` says there is xgetbv."""
    start = code.block
    ask, after = code.label(), code.label()
    code.do(f"br i1 {condition}, label %{ask}, label %{after}")
    code.open(ask)
    pair = code.value('call { i32, i32 } asm sideeffect "xgetbv", "={ax},={dx},{cx}"(i32 0)')
    low = code.value(f"extractvalue {{ i32, i32 }} {pair}, 0")
    have = code.value(f"and i32 {low}, {mask}")
    good = code.value(f"icmp eq i32 {have}, {mask}")
    code.do(f"br label %{after}")
    code.open(after)
    return code.value(f"phi i1 [false, %{start}], [{good}, %{ask}]")


def _cpuid(code: Code, leaf: str, page: int = 0) -> dict[str, str]:
    kind = "{ i32, i32, i32, i32 }"
    constraints = "={ax},={bx},={cx},={dx},{ax},{cx}"
    operands = f"i32 {leaf}, i32 {page}"
    answer = code.value(f'call {kind} asm sideeffect "cpuid", "{constraints}"({operands})')
    return {r: code.value(f"extractvalue {kind} {answer}, {i}") for i, r in enumerate(_REGISTERS)}


def _signed(word: int) -> int:
    """An unsigned word as LLVM writes it in an i32."""
    return word - (1 << 32) if word >= 1 << 31 else word
