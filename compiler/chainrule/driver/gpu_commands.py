"""What the runtime of a GPU is told to do: launches, copies and products, as plain data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from chainrule.codegen.steps import Call, Copy, Place, Step
from chainrule.driver.sizes import dim_data
from chainrule.ir.size import Size, divide, typical
from chainrule.ir.types import uint8, uint32
from chainrule.loops import minibatch
from chainrule.loops.build import Built
from chainrule.loops.launch import BLOCK, Launch
from chainrule.loops.outside import Lying, Outside
from chainrule_runtime.gpu.commands import (
    PER_LAUNCH,
    Command,
    KernelLaunch,
    Matrices,
    Product,
    Repeated,
    Spot,
)

#: of more launches one kernel would be long in compiling
FEW = 40
_COPY_WORDS, _COPY_BYTES = "copy_words", "copy_bytes"


def is_tiny(built: Sequence[Built]) -> bool:
    """Whether launches are of about a block each at usual sizes, and few: others had better be on
    all of a GPU.
    """
    if any(b.outside for b in built):
        return False
    blocks = [typical(x.blocks) for b in built for x in b.launches]
    return len(blocks) <= FEW and sum(blocks) <= PER_LAUNCH * len(blocks)


def copies() -> dict[str, Launch]:
    """The kernels that `commands_of` copies by, by name."""
    return {_COPY_WORDS: minibatch.copy(uint32), _COPY_BYTES: minibatch.copy(uint8)}


def commands_of(
    steps: Sequence[Step],
    built: Iterable[Built],
    names: Mapping[int, str],
    parts: Mapping[int, int] = {},
) -> tuple[Command, ...]:
    """What the runtime does in the place of each step, of programs that were `built`; `parts` are
    what kernels' numbers are, by the identity of calls.
    """
    outside = {id(b.program): b.outside for b in built if b.outside}
    launches = {id(b.program): b.launches for b in built}
    return launched(steps, launches, names, parts, outside)


def launched(
    steps: Sequence[Step],
    launches: Mapping[int, Sequence[Launch]],
    names: Mapping[int, str],
    parts: Mapping[int, int] = {},
    outside: Mapping[int, Outside] = {},
) -> tuple[Command, ...]:
    """The same where the launches of programs are known, and the products that are made outside, by
    the identity of programs.
    """
    out: list[Command] = []
    for step in steps:
        if isinstance(step, Call):
            spots, part = tuple(map(_spot, step.buffers)), parts.get(id(step), -1)
            if id(step.program) in outside:
                out.append(_product(outside[id(step.program)], step, part))
            for x in launches[id(step.program)]:
                sizes = tuple(dim_data(Size.symbol(s)) for s in x.program.sizes)
                blocks = dim_data(x.blocks)
                out.append(
                    KernelLaunch(names[id(x)], spots, sizes, blocks, x.threads, part, x.dynamic)
                )
        elif isinstance(step, Copy):
            out.append(_copy(step))
        else:
            inside = launched(step.steps, launches, names, parts, outside)
            out.append(Repeated(dim_data(step.length), inside, step.reverse))
    return tuple(out)


def _copy(step: Copy) -> KernelLaunch:
    """A copy by a kernel, as what follows a failed check must change nothing: by words of 4 bytes
    where all places are multiples of them.
    """
    places = (step.source, step.target)
    moves = [place.start for place in places]
    moves += [size for place in places for _, size in place.moves]
    words = divide(step.size, 4)
    if words is None or any(divide(size, 4) is None for size in moves):
        name, count = _COPY_BYTES, step.size
    else:
        name, count = _COPY_WORDS, words
    spots = _spot(step.source), _spot(step.target)
    blocks = (count + BLOCK - 1) // BLOCK
    return KernelLaunch(name, spots, (dim_data(count),), dim_data(blocks), BLOCK)


def _spot(place: int | Place) -> Spot:
    if isinstance(place, int):
        return Spot(place)
    moves = tuple((loop, dim_data(size)) for loop, size in place.moves)
    return Spot(place.entry, moves, dim_data(place.start))


def _product(outside: Outside, call: Call, part: int) -> Product:
    """A product that a library makes, of what a call is given."""

    def matrices(lying: Lying) -> Matrices:
        place = call.buffers[call.program.buffers.index(lying.buffer)]
        place = Place(place) if isinstance(place, int) else place
        spot = _spot(place.after(lying.start * lying.buffer.dtype.itemsize))
        group, row, column = map(dim_data, lying.steps)
        return Matrices(spot, (group, row, column))

    count, rows, columns, terms = map(dim_data, outside.sizes)
    x, y, out = map(matrices, (outside.first, outside.second, outside.result))
    return Product(outside.kind, (count, rows, columns, terms), x, y, out, part)
