"""What may be chosen for a product by timing or predicting it: none of it shows in a result."""

from __future__ import annotations

from collections.abc import Iterator

from chainrule.records import dataclass
from chainrule.target import Target


@dataclass(frozen=True)
class Choice:
    """What is used in place of what a product's sizes say, where it is not None.

    So many `rows` of a tile at most, which are so many `vectors` wide; whether the second factor is
    `packed` before, or from how many rows of the result on. `why` is for reports. Where nothing of
    the machine was measured, what usually pays is `guessed` for what is not chosen here.
    """

    rows: int | None = None
    vectors: int | None = None
    packed: bool | None = None
    packed_from: int | None = None
    why: str = ""
    guessed: bool = False


#: nothing but sizes
BY_SIZES = Choice()
#: the same, on a machine of which nothing is known
GUESSED = Choice(guessed=True)


def candidates(target: Target) -> Iterator[Choice]:
    """Tiles that fill the registers, and half of them, each as it is read and packed."""
    for packed in (None, True, False):
        yield Choice(packed=packed)
        for vectors in (1, 2, 3, 4):
            most = (target.vector_registers - 1) // vectors - 1
            for rows in dict.fromkeys((most, most // 2)):
                yield Choice(min(rows, 14), vectors, packed)
