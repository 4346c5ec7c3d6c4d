"""Words of the grammar of loops for a block of threads with a copy engine, which brings boxes of
matrices to shared memory while others compute, and tensor cores that multiply panels from there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from chainrule.ir.size import Dim
from chainrule.records import dataclass

if TYPE_CHECKING:
    from chainrule.ir.loop import Buffer, Local

#: neighbours in a line of a box, and terms of a panel: of bfloat16 128 bytes
SPAN = 64
#: words of 8 bytes that describe a matrix to a copy engine
CHART = 16


@dataclass(frozen=True)
class Matrix:
    """A matrix of bfloat16 in memory, as a copy engine knows it, in boxes of so many lines.

    It has `lines` of `along` neighbours, each `apart` elements behind the one before; that and
    `offset`, where the first begins, are multiples of 8.
    """

    source: Buffer
    offset: Dim
    lines: Dim
    along: Dim
    apart: Dim
    box: int


@dataclass(frozen=True)
class Engage:
    """Tell a block's copy engine of matrices, before all else that is asked of it.

    Private to it are `room`, in the GPU's memory, CHART words for each matrix, and `desk`, in
    shared memory, CHART words, behind which stands a bell for each stage.
    """

    matrices: tuple[Matrix, ...]
    room: Buffer
    desk: Buffer


@dataclass(frozen=True)
class Box:
    """A box of a matrix, by its number: SPAN neighbours from `first` on in each of its lines from
    `line` on. It goes to `at`, a multiple of 8 * SPAN, and SPAN * lines elements there are its own:
    in which order is the affair of the engine and of MultiplyPanels, for nobody else may read it.
    """

    matrix: int
    line: Dim
    first: Dim
    to: Buffer
    at: Dim


@dataclass(frozen=True)
class Bring:
    """Ask the copy engine that an Engage has told of matrices for boxes. One lane asks, and nobody
    waits; what lies outside of a matrix comes as 0. Once all are there the bell rings.
    """

    engine: Engage
    boxes: tuple[Box, ...]
    bell: Dim


@dataclass(frozen=True)
class Hear:
    """Wait, all lanes, until a bell has rung `turn` times and once more: what it rings for may be
    multiplied then. No turn is left out.
    """

    engine: Engage
    bell: Dim
    turn: Dim


@dataclass(frozen=True)
class Panel:
    """SPAN terms of a factor as boxes have brought them, from `at` on: lines are rows, or columns,
    with terms along them; or if `turned` terms, with rows or columns along them, a box for SPAN.
    """

    buffer: Buffer
    at: Dim
    turned: bool


@dataclass(frozen=True)
class MultiplyPanels:
    """A block's product of panels, of all its lanes, added to what is there in float32: 64 rows for
    each 128 lanes by `columns`, a multiple of 8 up to 256, and of SPAN where `b` is turned.

    Of each 128 lanes lane 32w + 4g + c, c below 4, has in local[4n, ..] the sums of row 16w + g,
    columns 8n + 2c and the next, then those of row 16w + g + 8 ("PTX ISA 9.0", NVIDIA,
    wgmma.mma_async, register fragments). Terms ascend, 16 at a time; in which order products of
    those and the sum so far are added is the machine's affair.
    """

    local: Local
    a: Panel
    b: Panel
    columns: int
