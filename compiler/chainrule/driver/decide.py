"""What the cost model chooses, where the machine has been measured: none of it shows in a result.

Whether a product's second factor had better be packed is a matter of how often it is read, which is
the number of rows, and of how fast the caches are that it would be read from otherwise. Where a's
rows lie apart, or b's columns, packing is of another kind, and sizes alone decide.
"""

from __future__ import annotations

from collections.abc import Sequence

from chainrule.driver.predict import predict
from chainrule.ir.size import TYPICAL, Dim, evaluate, symbols_of
from chainrule.loops.build import Built, build_kernel
from chainrule.loops.choice import BY_SIZES, Choice
from chainrule.loops.contract import BLOCKED_ROWS
from chainrule.schedule.kernel import Kernel
from chainrule.target import Target
from chainrule.target.speeds import Speeds

#: numbers of rows from which packing may pay; of more it always does, as far as can be told: what
#: it takes is shared by all of them
ROWS = tuple(BLOCKED_ROWS * 2**i for i in range(5))
#: by how much less time reading b where it stands has to take: what the model does not see is more
GAIN = 0.015


def decided(
    kernels: Sequence[Kernel], built: Sequence[Built], target: Target, speeds: Speeds
) -> dict[int, Choice]:
    """Choices other than by sizes, by the number of the first kernel of each program."""
    found: dict[int, Choice] = {}
    seen: set[int] = set()
    for i, (kernel, b) in enumerate(zip(kernels, built, strict=True)):
        if b.rows is None or id(b.program) in seen:
            continue
        seen.add(id(b.program))
        choice = _packing(kernel, b, b.rows, target, speeds)
        if choice != BY_SIZES:
            found[i] = choice
    return found


def _packing(kernel: Kernel, now: Built, rows: Dim, target: Target, speeds: Speeds) -> Choice:
    """From how many rows on b is packed."""
    direct = build_kernel(kernel, now.program.name, target, Choice(packed=False))
    symbols = symbols_of(rows)
    if len(symbols) > 1:
        return BY_SIZES
    all_sizes = {*now.program.sizes, *direct.program.sizes} - symbols
    usual = dict.fromkeys(all_sizes, TYPICAL)

    def pays(**size: int) -> bool:
        packed, apart = (
            predict([kernel], [b], {**usual, **size}, target, speeds)[0].seconds
            for b in (now, direct)
        )
        return packed * (1 - GAIN) <= apart

    if isinstance(rows, int):
        if rows >= ROWS[-1] or pays():
            return BY_SIZES
        return Choice(packed=False, why="not packed, which should take longer here")
    (symbol,) = symbols
    each = max(1, evaluate(rows, {symbol: 1}))
    least = next((r for r in ROWS[:-1] if pays(**{symbol: -(-r // each)})), ROWS[-1])
    if least <= max(each, ROWS[0]):
        return BY_SIZES
    return Choice(packed_from=least, why=f"packed from {least} rows on, where it should pay")
