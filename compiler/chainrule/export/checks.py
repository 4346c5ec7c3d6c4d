"""What every function asks first: is this memory a state of this kernel, is that pointer one."""

from __future__ import annotations

from chainrule.export.codes import CODE
from chainrule.export.model import (
    ABI,
    ALIGN,
    AT_ABI,
    AT_CHECKSUM,
    AT_MODEL,
    AT_SIZE,
    AT_VARIANT,
    MAGIC,
    Model,
)
from chainrule.export.text import Code

#: the checksum's multiplier: odd, so that a word that is changed always changes the sum; the first
#: of splitmix64's (Steele, Lea & Flood, Fast splittable pseudorandom number generators, 2014)
FACTOR, SHIFT, FIRST = 0xBF58476D1CE4E5B9, 29, 0x9E3779B97F4A7C15


def functions(model: Model) -> list[str]:
    """`check_pointer`, `check_block`, `check_head`, `check_state`, `check_call` and `digest`."""
    own = [_pointer(model), _block(model), _head(model), _state(model)]
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


def _block(model: Model) -> str:
    """`i32 @check_block(state, bytes)`: a place where a state of this kernel can lie."""
    code = Code("internal i32 @check_block(ptr %state, iw %bytes) #0")
    code.guard(f"@check_pointer(ptr %state, iw {ALIGN - 1})")
    small = code.value(f"icmp ult iw %bytes, {model.state_bytes}")
    code.leave_if(small, f"i32 {CODE['ERROR_ROOM']}")
    return code.text("i32 0")


def _head(model: Model) -> str:
    """`i32 @check_head(head)`: what a state or saved bytes begin with, wherever they lie."""
    code = Code("internal i32 @check_head(ptr %head) #0")
    for kind, offset, wanted, fault in (
        ("i64", 0, MAGIC, "ERROR_STATE"),
        ("i32", AT_ABI, ABI, "ERROR_VERSION"),
        ("i64", AT_MODEL, signed(model.digest), "ERROR_MODEL"),
        ("i64", AT_SIZE, model.state_bytes, "ERROR_MODEL"),
    ):
        have = code.load(kind, "%head", offset, align=1)
        code.leave_if(code.value(f"icmp ne {kind} {have}, {wanted}"), f"i32 {CODE[fault]}")
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
