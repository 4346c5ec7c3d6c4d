"""The grammar of loops: the whole language between kernels and machine code, on one page.

    Program   name, buffers, sizes, body                      one function
    Stmt      Loop var < extent: body    serial | vector | unroll
            | Local name: dtype[shape]                        registers, or one cell a lane
            | Set local[index] = value
            | Store buffer[offset (+ index * stride)] = value
            | Check condition, else leave with `code`
            | When index < bound, ...: body                   for threads only, see below
            | Multiply local += words * words                 for warps of threads only
            | Barrier                                         until every part has come here
            | Note text
    Value     Load buffer[offset (+ index * stride)]
            | Get local[index] | Combine fn over the lanes of local[index]
            | Literal | IndexValue | Apply fn(values)
    offset    an integer polynomial over loop variables and sizes (ir.size)

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

from dataclasses import dataclass

from chainrule.ir.size import Dim
from chainrule.ir.types import DType

LANES = 16


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
    """One element. With `index`, a value known only at run time, at `offset + index * stride`."""

    buffer: Buffer
    offset: Dim
    index: Value | None = None
    stride: Dim = 0

    @property
    def dtype(self) -> DType:
        return self.buffer.dtype


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
class Set:
    """Write a cell of a local."""

    local: Local
    index: tuple[Dim, ...]
    value: Value


@dataclass(frozen=True)
class Store:
    """Write an element of a buffer. `index`, in serial loops only, is a place known at run time."""

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
class Barrier:
    """Wait until every part of the program has come here, outside split loops only; or, on a GPU,
    until every lane of this part has.
    """

    lanes: bool = False


@dataclass(frozen=True)
class When:
    """The body, where every index is below its bound. In programs for GPUs only."""

    bounds: tuple[tuple[Dim, Dim], ...]
    body: tuple[Stmt, ...]


@dataclass(frozen=True)
class Note:
    """A comment that is printed."""

    text: str


@dataclass(frozen=True)
class Multiply:
    """A warp's product of bfloat16 tiles, 16x16 by 16x8, added to 16x8 in float32.

    That is what the tensor cores of a GPU do. Of 32 lanes lane 4g + c, c below 4, gives and gets

        a   words of row g, terms 2c and 2c+8, and of row g+8; in the order g, g+8, g, g+8
        b   words of column g, terms 2c and 2c+8
        local[index, 0..3]   row g, columns 2c and 2c+1, then row g+8

    A word is two terms, the first in its lower half ("PTX ISA 9.0", NVIDIA, mma.m16n8k16). In which
    order the 16 products and the sum so far are added is the machine's affair.
    """

    local: Local
    index: tuple[Dim, ...]
    a: tuple[Value, Value, Value, Value]
    b: tuple[Value, Value]


Stmt = Loop | Local | Set | Store | Check | When | Multiply | Barrier | Note


@dataclass(frozen=True)
class Program:
    """One function: `buffers` then `sizes` are its parameters, 0 or a Check's code its result."""

    name: str
    buffers: tuple[Buffer, ...]
    sizes: tuple[str, ...]
    body: tuple[Stmt, ...]
