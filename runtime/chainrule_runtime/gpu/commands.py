"""What is launched in which order, as plain data: the contract between a compiler and a GPU's
runtime. Sizes are as in `chainrule_runtime.manifest`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from chainrule_runtime.manifest import DimData, evaluate

#: threads of a block of the kernels that go around a step
BLOCK, WARP = 256, 32
#: what the kernel is called that goes through others
RESIDENT = "resident"
#: so many blocks a launch are worth a kernel that stays, which does one after the other: about what
#: a launch by itself costs beside it
PER_LAUNCH = 3


@dataclass(frozen=True)
class Spot:
    """Where a buffer starts: so many bytes from an address in the table, and further on by so many
    for each slice that the loops around it have come to: `moves` are (loop, bytes), the outermost
    loop 0.
    """

    entry: int
    moves: tuple[tuple[int, DimData], ...] = ()
    start: DimData = 0


@dataclass(frozen=True)
class KernelLaunch:
    """A kernel by its name in the module, what it is given, and how many run it: `blocks` of so
    many `threads`. After its buffers and sizes it is given the address of the status. `part_of`
    numbers what the program's maker calls a kernel, of which it is a part; -1 for a copy. A block
    is given so many bytes of `shared` memory beside the kernel's own.
    """

    name: str
    buffers: tuple[Spot, ...]
    sizes: tuple[DimData, ...]
    blocks: DimData
    threads: int
    part_of: int = -1
    shared: int = 0


@dataclass(frozen=True)
class Repeated:
    """Commands once for each slice, from the first or, with `reverse`, from the last."""

    length: DimData
    commands: tuple[Command, ...]
    reverse: bool = False


@dataclass(frozen=True)
class Matrices:
    """Where matrices lie: at a spot, and so many elements on to the next of them, to the next row
    and to the next column.
    """

    spot: Spot
    steps: tuple[DimData, DimData, DimData]


@dataclass(frozen=True)
class Product:
    """Products by cuBLASLt: `sizes` are how many, their rows, their columns, the terms of each sum;
    `kind` is one of `KINDS` in `chainrule_runtime.gpu.blas`. The result lies in one piece.
    """

    kind: str
    sizes: tuple[DimData, DimData, DimData, DimData]
    first: Matrices
    second: Matrices
    result: Matrices
    part_of: int = -1


Command = KernelLaunch | Repeated | Product


@dataclass(frozen=True)
class GpuCode:
    """A module of PTX and what is launched of it in a call; `changed` are the kept tensors that it
    writes.

    Where it runs over minibatches there are kernels besides: `gather_T` and `log_T` for element
    types T, and `advance`. The first is given data, order, cursor and minibatch, then the rows of a
    minibatch, the elements of a row, an epoch's rows, its steps, the rows of a full minibatch, the
    step that the cursor's 0 is, and how many epochs there are; the second a result, its log, the
    cursor, how many elements, and how many results; the last the cursor. The cursor is an int64
    that counts steps, the order int64 row numbers, epoch after epoch.

    Where there are kernels in `resident`, one more of that name, of one block of BLOCK threads,
    goes through them step after step: it is given a table, how many rows that has, a first step and
    one behind the last, an epoch's steps, and the status. A row, of `row`
    words, has a kernel's number, its blocks, 1 for what is done in an epoch's last step and 0 in
    the others, and what it is given but for the status.
    """

    ptx: str
    commands: tuple[Command, ...]
    changed: tuple[str, ...]
    resident: tuple[str, ...] = ()
    row: int = 0


@dataclass(frozen=True)
class Run:
    """A launch whose numbers are known: `arguments` are addresses and sizes, 8 bytes each."""

    name: str
    blocks: int
    threads: int
    arguments: tuple[int, ...]
    part_of: int = -1
    shared: int = 0


@dataclass(frozen=True)
class ProductRun:
    """Products by cuBLASLt whose numbers are known: addresses of both factors and the result, and
    the steps of each.
    """

    kind: str
    count: int
    rows: int
    columns: int
    terms: int
    places: tuple[int, int, int]
    steps: tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]]
    part_of: int = -1

    @property
    def size(self) -> int:
        """Bytes of the result."""
        return self.count * self.rows * self.columns * (8 if self.kind == "float64" else 4)


def resolved(
    commands: Sequence[Command],
    sizes: Mapping[str, int],
    table: Mapping[int, int],
    status: int,
    loops: tuple[int, ...] = (),
) -> Iterator[Run | ProductRun]:
    """The launches of commands in order, where sizes and addresses are known; what has nothing to
    do is left out.
    """

    def address(spot: Spot) -> int:
        moved = sum(loops[loop] * evaluate(size, sizes) for loop, size in spot.moves)
        return table[spot.entry] + evaluate(spot.start, sizes) + moved

    def steps(matrices: Matrices) -> tuple[int, int, int]:
        group, row, column = (evaluate(step, sizes) for step in matrices.steps)
        return group, row, column

    def product(command: Product) -> ProductRun:
        matrices = command.first, command.second, command.result
        x, y, out = (address(m.spot) for m in matrices)
        a, b, c = (steps(m) for m in matrices)
        count, rows, columns, terms = (evaluate(d, sizes) for d in command.sizes)
        where = (x, y, out), (a, b, c)
        return ProductRun(command.kind, count, rows, columns, terms, *where, command.part_of)

    for command in commands:
        if isinstance(command, KernelLaunch):
            blocks = evaluate(command.blocks, sizes)
            if blocks > 0:
                given = *map(address, command.buffers), *(evaluate(s, sizes) for s in command.sizes)
                arguments = *given, status
                yield Run(
                    command.name, blocks, command.threads, arguments, command.part_of,
                    command.shared,
                )  # fmt: skip
        elif isinstance(command, Product):
            run = product(command)
            if run.count * run.rows * run.columns > 0:
                yield run
        else:
            order = range(evaluate(command.length, sizes))
            for i in reversed(order) if command.reverse else order:
                yield from resolved(command.commands, sizes, table, status, (*loops, i))
