"""Philox natively, in a loop: what rows are shuffled by, and what little code draws from.

Salmon, Moraes, Dror & Shaw, Parallel random numbers: as easy as 1, 2, 3, SC 2011.
"""

from __future__ import annotations

from chainrule.ops import philox


def signed(word: int) -> int:
    """An unsigned word as LLVM writes it in an i32."""
    return word - (1 << 32) if word >= 1 << 31 else word


_A, _C = philox.MULTIPLIERS
_K, _M = map(signed, philox.WEYL)
#: words 0 and 1 of the four, the first as the upper half
PHILOX = f"""
define internal i64 @philox(i32 %a0, i32 %b0, i32 %c0, i32 %d0, i32 %k0, i32 %m0) noinline #0 {{
entry:
  br label %round
round:
  %i = phi i32 [{philox.ROUNDS}, %entry], [%left, %round]
  %a1 = phi i32 [%a0, %entry], [%a2, %round]
  %b1 = phi i32 [%b0, %entry], [%b2, %round]
  %c1 = phi i32 [%c0, %entry], [%c2, %round]
  %d1 = phi i32 [%d0, %entry], [%d2, %round]
  %k1 = phi i32 [%k0, %entry], [%k2, %round]
  %m1 = phi i32 [%m0, %entry], [%m2, %round]
  %aw = zext i32 %a1 to i64
  %cw = zext i32 %c1 to i64
  %p = mul i64 %aw, {_A}
  %q = mul i64 %cw, {_C}
  %ph = lshr i64 %p, 32
  %qh = lshr i64 %q, 32
  %pt = trunc i64 %ph to i32
  %qt = trunc i64 %qh to i32
  %ax = xor i32 %qt, %b1
  %cx = xor i32 %pt, %d1
  %a2 = xor i32 %ax, %k1
  %c2 = xor i32 %cx, %m1
  %b2 = trunc i64 %q to i32
  %d2 = trunc i64 %p to i32
  %k2 = add i32 %k1, {_K}
  %m2 = add i32 %m1, {_M}
  %left = sub i32 %i, 1
  %more = icmp ne i32 %left, 0
  br i1 %more, label %round, label %done
done:
  %high = zext i32 %a2 to i64
  %low = zext i32 %b2 to i64
  %up = shl i64 %high, 32
  %both = or i64 %up, %low
  ret i64 %both
}}"""

_LETTERS = "abcdkm"
_HALVES = "\n".join(f"  %{x}0 = trunc i64 %{x} to i32" for x in _LETTERS)
_WORD = f"""define internal i64 @$NAME({", ".join(f"i64 %{x}" for x in _LETTERS)}) #0 {{
entry:
{_HALVES}
  %both = call i64 @philox({", ".join(f"i32 %{x}0" for x in _LETTERS)})
  %word = $HALF
  ret i64 %word
}}"""
#: functions of the library that are had from it, as text with their name left open; of their
#: arguments only the lower halves count
WORDS = {
    "philox_0": _WORD.replace("$HALF", "lshr i64 %both, 32"),
    "philox_1": _WORD.replace("$HALF", "and i64 %both, 4294967295"),
}
