"""What may be chosen for a product by timing or predicting it: none of it shows in a result."""

from __future__ import annotations

from collections.abc import Iterator

from chainrule.records import dataclass
from chainrule.target import Target


@dataclass(frozen=True)
class Choice:
    """What is used in place of what a product's sizes say, where it is not None.

    So many `rows` of a tile at most, which are so many `vectors` wide; whether the second factor is
    `packed` before, or from how many rows of the result on. On a GPU a thread has a square of so
    many to a `side`, or the product is made another `way`, one of WAYS. `why` is for reports. Where
    nothing of the machine was measured, and nothing is chosen, what usually pays is `guessed`.
    """

    rows: int | None = None
    vectors: int | None = None
    packed: bool | None = None
    packed_from: int | None = None
    side: int | None = None
    way: str | None = None
    why: str = ""
    guessed: bool = False


#: nothing but sizes
BY_SIZES = Choice()
#: the same, on a machine of which nothing is known
GUESSED = Choice(guessed=True)
#: products by NVIDIA's library, where that is installed (`loops.outside`)
CUBLASLT = "cublaslt"
#: products of bfloat16 whose panels a copy engine brings, where the GPU has one (`loops.grouped`)
PANELS = "panels"
#: how a product may be made on a GPU but by tiles of our usual ones
WAYS = (PANELS, CUBLASLT)


def candidates(target: Target) -> Iterator[Choice]:
    """Tiles that fill the registers, and half of them, each as it is read and packed."""
    for packed in (None, True, False):
        yield Choice(packed=packed)
        for vectors in (1, 2, 3, 4):
            most = (target.vector_registers - 1) // vectors - 1
            for rows in dict.fromkeys((most, most // 2)):
                yield Choice(min(rows, 14), vectors, packed)


def gpu_candidates(target: Target) -> Iterator[Choice]:
    """Tiles of every size that there are, which have the same bits, then other ways, which may have
    others.
    """
    yield from (Choice(side=side) for side in (8, 4, 2, 1))
    yield from (Choice(way=way) for way in WAYS if way != PANELS or target.engine)
