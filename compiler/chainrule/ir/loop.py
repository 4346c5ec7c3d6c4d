"""The grammar of loops: the whole language between kernels and machine code, on one page.

    Program   name, buffers, sizes, body                      one function
    Stmt      Loop var < extent: body    serial | vector | unroll
            | Let var = size                                  a name for what is long to work out
            | Local name: dtype[shape]                        registers, or one cell a lane
            | Set local[index] = value
            | Store buffer[offset (+ index * stride)] = value
            | Check condition, else leave with `code`
            | Blocks sums[...] = left[...] * right[...]       products of bfloat16, blocks at a time
            | When index < bound, ..., condition: body        for threads only, see below
            | Multiply local += words * words                 for warps of threads only
            | Fetch buffer[offset] = Load | Close | Await     copies that go on, for threads only
            | Engage | Bring | Hear | MultiplyPanels          for blocks of threads: `ir.engine`
            | Barrier                                         until every part has come here
            | Note text
    Value     Load buffer[offset (+ index * stride)]
            | Get local[index] | Combine fn over the lanes of local[index]
            | Literal | IndexValue | Apply fn(values)
    offset    an integer polynomial over loop variables and sizes (ir.size)

A variable has a name that no size of a user's can have: it ends in '.

A `vector` loop runs LANES elements at a time on every target; iteration i is lane i % LANES. A
local with `lanes=True` has one cell a lane: inside a vector loop Set and Get mean the cell of this
lane; outside, Set writes all of them and Combine folds them in one fixed tree:
((0+8)+(4+12)) + ((2+10)+(6+14)) + ..., halving LANES to 1. A masked last iteration leaves the cells
of absent lanes as they were. Vector loops do not nest, hold only Set and Store and unrolled loops
of them, and their iterations do not read what others wrote, except through lane cells and buffers
at the same offset.

A program may be run by several parts at once. A serial or vector loop that is `split` gives each of
them a share of its iterations, a run of them; everything else is done by every part. So what stores
stands in split loops, which do not nest, and whose iterations read nothing that other iterations
write, before a Barrier lies between them. Barriers stand outside split loops. Of a `private` buffer
each part has one of its own. No sum is split, so the parts' number never shows in a result.

On a GPU a part is so many threads, a lane is one of them, and `loops.launch` says how many there
are: the lanes of a part are then as many as it has threads. What differs among lanes stands in
vector loops, where there may be serial loops and When too; everything else all lanes do alike, but
for its Stores, which one of them does. Lanes see what others wrote after a Barrier among lanes.

`fn` is the name of a machine operation (`chainrule.ir.machine`) or of an elementwise op in the
table of `chainrule.ops`, whose `native` recipe says what it is in machine operations.
"""

from __future__ import annotations

from chainrule.ir.engine import Bring, Engage, Hear, MultiplyPanels
from chainrule.ir.size import Dim
from chainrule.ir.types import DType, int32
from chainrule.records import dataclass

LANES = 16


def fills(size: Dim, share: float) -> bool:
    """Whether of vectors along so many elements at least that share is filled."""
    return isinstance(size, int) and size >= share * (-(-size // LANES) * LANES)


@dataclass(frozen=True)
class Buffer:
    """Memory a program is given: `size` elements, row-major, aligned to 64 bytes when ours.

    A `private` one is workspace of which each part has its own.
    """

    name: str
    dtype: DType
    size: Dim
    private: bool = False

    def __hash__(self) -> int:
        return hash(self.name)


@dataclass(frozen=True)
class Load:
    """One element. With `index`, a value known only at run time, at `offset + index * stride`.

    Of bfloat16 a `pair` is that element and the next as one word, the first in its lower half.
    """

    buffer: Buffer
    offset: Dim
    index: Value | None = None
    stride: Dim = 0
    pair: bool = False

    @property
    def dtype(self) -> DType:
        return int32 if self.pair else self.buffer.dtype


@dataclass(frozen=True)
class Get:
    """A cell of a local."""

    local: Local
    index: tuple[Dim, ...] = ()

    @property
    def dtype(self) -> DType:
        return self.local.dtype


@dataclass(frozen=True)
class Combine:
    """All lanes of a local's cell folded by `fn`, in the fixed tree."""

    fn: str
    local: Local
    index: tuple[Dim, ...] = ()

    @property
    def dtype(self) -> DType:
        return self.local.dtype


@dataclass(frozen=True)
class Literal:
    """A number."""

    value: float | int | bool
    dtype: DType


@dataclass(frozen=True)
class IndexValue:
    """An index or a size, as a number of the given type."""

    index: Dim
    dtype: DType


@dataclass(frozen=True)
class Apply:
    """A scalar function of values. `dtype` is the result's: bool for comparisons."""

    fn: str
    args: tuple[Value, ...]
    dtype: DType


Value = Load | Get | Combine | Literal | IndexValue | Apply


@dataclass(frozen=True)
class Local:
    """Registers: a small array whose sizes are known; every index into it is, after unrolling."""

    name: str
    dtype: DType
    shape: tuple[int, ...] = ()
    lanes: bool = False

    def __hash__(self) -> int:
        return hash(self.name)


@dataclass(frozen=True)
class Loop:
    """`for var in range(extent)`. An unrolled loop's extent is an int."""

    var: str
    extent: Dim
    body: tuple[Stmt, ...]
    mode: str = "serial"
    split: bool = False


@dataclass(frozen=True)
class Let:
    """A name, to the end of the body it stands in, for a number that is not below 0."""

    var: str
    value: Dim


@dataclass(frozen=True)
class Set:
    """Write a cell of a local."""

    local: Local
    index: tuple[Dim, ...]
    value: Value


@dataclass(frozen=True)
class Store:
    """Write an element of a buffer. `index` is a place known at run time, one for all lanes."""

    buffer: Buffer
    offset: Dim
    value: Value
    index: Value | None = None
    stride: Dim = 0


@dataclass(frozen=True)
class Check:
    """Leave the program with `code` (not 0) unless the condition holds. In serial loops only."""

    condition: Value
    code: int


@dataclass(frozen=True)
class Panels:
    """Panels of a factor in words of two bfloat16: the first from `offset` on, `apart` words each.

    A panel is LANES rows of the left factor, or columns of the right one; step by step it has a
    block for each part of the factor, of LANES x LANES words: a left block row by row, a right one
    pair by pair.
    """

    buffer: Buffer
    offset: Dim
    apart: Dim


@dataclass(frozen=True)
class Blocks:
    """Sums of products of bfloat16: `rows` x `columns` blocks of LANES x LANES of them, written.

    They stand in `sums` from `at` on, row by row, LANES * columns to a row. To a sum, from 0 or,
    with `more`, from what stands there, is added, for each of the `steps`, the sum of two chains of
    LANES multiply-adds from 0, that of the lower halves of its words and that of the upper ones.
    Where factors have two `parts` there is such a step for each product of a part of one and a part
    of the other, in `order()`; what products of different parts come to is a sum by itself, which
    stands behind all the others. Subnormal factors, products and sums may be taken as 0.
    """

    sums: Buffer
    at: Dim
    left: Panels
    right: Panels
    steps: Dim
    rows: int
    columns: int
    parts: int = 1
    more: bool = False

    def order(self) -> tuple[tuple[int, int], ...]:
        """The products of a step, by the parts of the left and of the right factor."""
        return ((0, 0), (0, 1), (1, 0), (1, 1)) if self.parts == 2 else ((0, 0),)


@dataclass(frozen=True)
class Barrier:
    """Wait until every part of the program has come here, outside split loops only; or, on a GPU,
    until every lane of this part has.
    """

    lanes: bool = False


@dataclass(frozen=True)
class When:
    """The body, where every index is below its bound, and where the test holds, if there is one. In
    programs for GPUs only.
    """

    bounds: tuple[tuple[Dim, Dim], ...]
    body: tuple[Stmt, ...]
    test: Value | None = None


@dataclass(frozen=True)
class Note:
    """A comment that is printed."""

    text: str


@dataclass(frozen=True)
class Words:
    """A factor of a warp's product in shared memory: lines of 8 words, the first from `at` on, each
    `line` words behind the one before; multiples of 4 both, and the same for all of a warp.
    """

    buffer: Buffer
    at: Dim
    line: int


@dataclass(frozen=True)
class Multiply:
    """A warp's product of tiles, 16 rows by 8 columns of it, added to what is there in float32.

    That is what the tensor cores of a GPU do. `a` has a line for each row, `b` one for each column.
    Of 32 lanes lane 4g + c, c below 4, has in local[index, 0..3] the sums of row g, columns 2c and
    2c+1, then those of row g+8.

    A word is two terms in bfloat16, the first in its lower half, of 16 in all; or with `tf32` one
    term of 8, a float32 that is rounded to TF32's 10 bits, to nearest, ties away from 0 ("PTX ISA
    9.0", NVIDIA, mma.m16n8k16, mma.m16n8k8, cvt.rna.tf32). In which order the products and the sum
    so far are added is the machine's affair.
    """

    local: Local
    index: tuple[Dim, ...]
    a: Words
    b: Words
    tf32: bool = False


@dataclass(frozen=True)
class Fetch:
    """Ask for `count` neighbours to be copied into a part's shared memory while this lane goes on.

    They may be read once this lane has come to an Await for them, by others after a barrier among
    lanes that follows it. Several have so many bytes together as one access, and begin at multiples
    of that on both sides.
    """

    buffer: Buffer
    offset: Dim
    source: Load
    count: int = 1


@dataclass(frozen=True)
class Close:
    """What this lane has asked for since the last one is a group, be it empty."""


@dataclass(frozen=True)
class Await:
    """Wait until what this lane has asked for is there, but for the last so many groups."""

    but: int


Stmt = (
    Loop | Let | Local | Set | Store | Check | Blocks | When | Multiply | Barrier | Note
    | Fetch | Close | Await | Engage | Bring | Hear | MultiplyPanels
)  # fmt: skip


@dataclass(frozen=True)
class Program:
    """One function: `buffers` then `sizes` are its parameters, 0 or a Check's code its result."""

    name: str
    buffers: tuple[Buffer, ...]
    sizes: tuple[str, ...]
    body: tuple[Stmt, ...]
