"""What every function asks first: is this memory a state of this kernel, is that pointer one."""

from __future__ import annotations

import struct
from collections.abc import Callable

from chainrule.export.codes import CODE
from chainrule.export.model import (
    ABI,
    ALIGN,
    AT_ABI,
    AT_CHECKSUM,
    AT_VARIANT,
    MAGIC,
    Model,
)
from chainrule.export.text import Code

#: the checksum's multiplier: odd, so that a word that is changed always changes the sum; the first
#: of splitmix64's (Steele, Lea & Flood, Fast splittable pseudorandom number generators, 2014)
FACTOR, SHIFT, FIRST = 0xBF58476D1CE4E5B9, 29, 0x9E3779B97F4A7C15

#: how many pointers are looked at in one call
TOGETHER = 3


def functions(model: Model, data: Callable[[bytes], str]) -> list[str]:
    """`check_pointer`, `check_data`, `check_block`, `check_head`, `check_state`, `check_call` and
    `digest`.
    """
    own = [_pointer(model), _data(), _block(model), _head(model, data), _state(model)]
    return [*own, _call(), _digest()]


def _pointer(model: Model) -> str:
    """`i32 @check_pointer(pointer, mask)`: neither null nor with bits of the mask set."""
    kind = "noinline " if model.small else ""
    code = Code(f"internal i32 @check_pointer(ptr %pointer, iw %mask) {kind}#0")
    null = code.value("icmp eq ptr %pointer, null")
    code.leave_if(null, f"i32 {CODE['ERROR_NULL']}")
    address = code.value("ptrtoint ptr %pointer to iw")
    low = code.value(f"and iw {address}, %mask")
    code.leave_if(code.value(f"icmp ne iw {low}, 0"), f"i32 {CODE['ERROR_ALIGN']}")
    return code.text("i32 0")


def _data() -> str:
    """`i32 @check_data(mask, pointers)`: so many at once, none null or with bits of the mask."""
    names = [f"%p{i}" for i in range(TOGETHER)]
    code = Code(f"internal i32 @check_data(iw %mask, {', '.join(f'ptr {n}' for n in names)}) #0")
    bits = "0"
    for name in names:
        null = code.value(f"icmp eq ptr {name}, null")
        code.leave_if(null, f"i32 {CODE['ERROR_NULL']}")
        bits = code.value(f"or iw {bits}, {code.value(f'ptrtoint ptr {name} to iw')}")
    low = code.value(f"and iw {bits}, %mask")
    code.leave_if(code.value(f"icmp ne iw {low}, 0"), f"i32 {CODE['ERROR_ALIGN']}")
    return code.text("i32 0")


def _block(model: Model) -> str:
    """`i32 @check_block(state, bytes)`: a place where a state of this kernel can lie."""
    code = Code("internal i32 @check_block(ptr %state, iw %bytes) #0")
    code.guard(f"@check_pointer(ptr %state, iw {ALIGN - 1})")
    small = code.value(f"icmp ult iw %bytes, {model.state_bytes}")
    code.leave_if(small, f"i32 {CODE['ERROR_ROOM']}")
    return code.text("i32 0")


def head(model: Model) -> bytes:
    """What a new state begins with, up to the count of epochs."""
    return struct.pack("<QIIQQ", MAGIC, ABI, 0, model.digest, model.state_bytes)


def _head(model: Model, data: Callable[[bytes], str]) -> str:
    """`i32 @check_head(head)`: what a state or saved bytes begin with, wherever they lie.

    Word by word, with the code that each has to leave with; that of the variant has none.
    """
    state, version, other = (CODE[f"ERROR_{n}"] for n in ("STATE", "VERSION", "MODEL"))
    codes = bytes([state, state, version, 0, *[other] * 4])
    code = Code("internal i32 @check_head(ptr %head) #0")

    def word(i: str) -> None:
        fault = code.load("i8", f"@{data(codes)}", i, align=1)
        at = code.value(f"shl iw {i}, 2")
        have = code.load("i32", "%head", at, align=1)
        wanted = code.load("i32", f"@{data(head(model))}", at, align=4)
        counts = code.value(f"icmp ne i8 {fault}, 0")
        differs = code.value(f"icmp ne i32 {have}, {wanted}")
        bad = code.value(f"and i1 {counts}, {differs}")
        code.leave_if(bad, f"i32 {code.value(f'zext i8 {fault} to i32')}")

    code.loop(str(len(codes)), word)
    return code.text("i32 0")


def _state(model: Model) -> str:
    """`i32 @check_state(state, bytes)`: a state of this kernel."""
    code = Code("internal i32 @check_state(ptr %state, iw %bytes) #0")
    code.guard("@check_block(ptr %state, iw %bytes)")
    code.guard("@check_head(ptr %state)")
    variant = code.load("i32", "%state", AT_VARIANT, align=4)
    unknown = code.value(f"icmp uge i32 {variant}, {len(model.variants)}")
    code.leave_if(unknown, f"i32 {CODE['ERROR_STATE']}")
    return code.text("i32 0")


def _call() -> str:
    """`i32 @check_call(state, bytes, workspace, room, needed)`: what a unit is called with."""
    given = "ptr %state, iw %bytes, ptr %workspace, iw %room, iw %needed"
    code = Code(f"internal i32 @check_call({given}) #0")
    code.guard("@check_state(ptr %state, iw %bytes)")
    code.guard(f"@check_pointer(ptr %workspace, iw {ALIGN - 1})")
    small = code.value("icmp ult iw %room, %needed")
    code.leave_if(small, f"i32 {CODE['ERROR_ROOM']}")
    return code.text("i32 0")


def _digest() -> str:
    """`i64 @digest(bytes, n)`: a checksum of n bytes, a multiple of 8, variant and sum left out.

    These are fields of a head; what holds no state has other bytes there, which do not count.
    """
    code = Code("internal i64 @digest(ptr %data, iw %n) #0")
    words = code.value("lshr iw %n, 3")
    # the sum goes from round to round in a phi of its own
    before = code.block
    code.do("br label %head")
    code.open("head")
    code.do(f"%i = phi iw [0, %{before}], [%next, %body]")
    code.do(f"%sum = phi i64 [{signed(FIRST)}, %{before}], [%shaken, %body]")
    more = code.value(f"icmp ult iw %i, {words}")
    code.do(f"br i1 {more}, label %body, label %done")
    code.open("body")
    at = code.value("shl iw %i, 3")
    word = code.load("i64", "%data", at, align=1)
    is_variant = code.value(f"icmp eq iw %i, {AT_ABI // 8}")
    masked = code.value(f"and i64 {word}, {0xFFFFFFFF}")
    word = code.value(f"select i1 {is_variant}, i64 {masked}, i64 {word}")
    is_sum = code.value(f"icmp eq iw %i, {AT_CHECKSUM // 8}")
    word = code.value(f"select i1 {is_sum}, i64 0, i64 {word}")
    mixed = code.value(f"xor i64 %sum, {word}")
    spread = code.value(f"mul i64 {mixed}, {signed(FACTOR)}")
    high = code.value(f"lshr i64 {spread}, {SHIFT}")
    code.do(f"%shaken = xor i64 {spread}, {high}")
    code.do("%next = add iw %i, 1")
    code.do("br label %head")
    code.open("done")
    return code.text("i64 %sum")


def digest(data: bytes | bytearray) -> int:
    """The same checksum here."""
    total = FIRST
    for i in range(0, len(data) // 8 * 8, 8):
        word = int.from_bytes(data[i : i + 8], "little")
        word = word & 0xFFFFFFFF if i == AT_ABI else 0 if i == AT_CHECKSUM else word
        total = ((total ^ word) * FACTOR) % 2**64
        total ^= total >> SHIFT
    return total


def signed(word: int) -> int:
    """An unsigned word as LLVM writes it in an i64."""
    return word - (1 << 64) if word >= 1 << 63 else word
