"""Two bfloat16 in one word of 32 bits, and the multiply-add of such pairs.

That is how processors with bfloat16 arithmetic take the factors of a sum of products. What AMD's
Zen 5 does for `vdpbf16ps` is what Intel's manual says (Software Developer's Manual, volume 2, at
that name): two fused multiply-adds, that of the upper halves first, each rounded to nearest, with
subnormal operands and results taken as 0 whatever the processor's flags say. So the recipe here has
the instruction's bits wherever no number is subnormal.
"""

from __future__ import annotations

#: by name, in machine operations: `pair` of two float32 that are bfloat16 makes a word, the first
#: in its lower half, and `round_pair` of any two, rounded to nearest, ties to even; a float32 less
#: that half of a word is `less_lower`, or `less_upper`, and 0 where it would be infinite or NaN;
#: `dot2` adds the products of the halves of two words to a float32
NATIVE = {
    "round_pair": """
        a = bits(x)
        b = bits(y)
        lower = a + (32767 + and_(lshr(a, 16), 1))
        upper = b + (32767 + and_(lshr(b, 16), 1))
        low = lshr(where(x == x, lower, 2143289344), 16)
        or_(low, and_(where(y == y, upper, 2143289344), -65536))
    """,
    "less_lower": """
        rest = x - float_of_bits(shl(y, 16))
        where(abs(rest) <= 3.4028234663852886e38, rest, 0.0)
    """,
    "less_upper": """
        rest = x - float_of_bits(and_(y, -65536))
        where(abs(rest) <= 3.4028234663852886e38, rest, 0.0)
    """,
    "pair": "or_(lshr(bits(x), 16), bits(y))",
    "dot2": """
        upper = fma(float_of_bits(and_(x, -65536)), float_of_bits(and_(y, -65536)), total)
        fma(float_of_bits(shl(x, 16)), float_of_bits(shl(y, 16)), upper)
    """,
}
