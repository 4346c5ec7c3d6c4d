"""Orthogonal beginnings natively: normal numbers made orthonormal where they lie.

Modified Gram-Schmidt, twice, which is enough (Giraud, Langou & Rozložník, The loss of orthogonality
in the Gram-Schmidt orthogonalization process, 2005). No memory besides the matrix is needed, and
each sum goes in one order, without fused multiply-add: every machine gives the same bits, those of
lang.init.
"""

from __future__ import annotations

from chainrule.export.text import Code


def orthonormal(kind: str) -> str:
    """`void @orthonormal_KIND(out, count, length, step, stride, gain)`, for float or double.

    `count` vectors of `length` elements: vector j begins at j · step, its elements lie `stride`
    apart; counts and places in elements.
    """
    item = 4 if kind == "float" else 8
    head = "ptr %out, iw %count, iw %length, iw %step, iw %stride"
    code = Code(f"internal void @orthonormal_{kind}({head}, {kind} %gain) #0")
    sum_ = code.local(kind, item)

    def start(vector: str) -> str:
        return code.value(f"mul iw {vector}, {code.value(f'mul iw %step, {item}')}")

    def at(begin: str, r: str) -> str:
        place = code.value(f"mul iw {r}, {code.value(f'mul iw %stride, {item}')}")
        return code.value(f"add iw {begin}, {place}")

    def load(place: str) -> str:
        return code.load(kind, "%out", place, align=item)

    def dot(one: str, other: str) -> str:
        """The inner product of two vectors, in order."""
        code.store(kind, "0.0", sum_, align=item)

        def add(r: str) -> None:
            product = code.value(f"fmul {kind} {load(at(one, r))}, {load(at(other, r))}")
            before = code.load(kind, sum_, align=item)
            code.store(kind, code.value(f"fadd {kind} {before}, {product}"), sum_, align=item)

        code.loop("%length", add)
        return code.load(kind, sum_, align=item)

    def each(vector: str, word: str, number: str) -> None:
        """Multiply or divide a vector by a number."""

        def one(r: str) -> None:
            place = at(vector, r)
            value = code.value(f"{word} {kind} {load(place)}, {number}")
            code.store(kind, value, "%out", place, align=item)

        code.loop("%length", one)

    def orthogonalize(j: str) -> None:
        mine = start(j)

        def against(i: str) -> None:
            other = start(i)
            share = dot(other, mine)

            def take(r: str) -> None:
                product = code.value(f"fmul {kind} {share}, {load(at(other, r))}")
                place = at(mine, r)
                value = code.value(f"fsub {kind} {load(place)}, {product}")
                code.store(kind, value, "%out", place, align=item)

            code.loop("%length", take)

        code.loop(j, against)
        square = dot(mine, mine)
        suffix = "f32" if kind == "float" else "f64"
        each(mine, "fdiv", code.value(f"call {kind} @llvm.sqrt.{suffix}({kind} {square})"))

    code.loop("2", lambda _: code.loop("%count", orthogonalize))
    code.loop("%count", lambda j: each(start(j), "fmul", "%gain"))
    return code.text("void")
