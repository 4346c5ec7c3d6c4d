"""Blocks of bfloat16 products on AMX: eight tiles of registers, 16 rows of 64 bytes each.

How tiles are shaped is a thread's own and is told before a loop that multiplies blocks, and taken
back behind it; in between no function is called (Intel 64 and IA-32 Architectures Software
Developer's Manual, volume 1, chapter "Programming with Intel AMX"; the System V psABI lets every
call change tiles). Tile t of an instruction is named by its number, so nothing is left to LLVM.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

from chainrule.codegen.addresses import AddressCode
from chainrule.codegen.registers import Builder
from chainrule.ir.loop import LANES, Blocks, Loop, Panels
from chainrule.ir.size import Dim, Size
from chainrule.ir.types import float32

TILES, ROW_BYTES = 8, 64
#: the configuration that `ldtilecfg` reads: palette 1, then for each tile bytes a row, and rows
_SHAPES = [
    1,
    *[0] * 15,
    *[byte for t in range(16) for byte in (ROW_BYTES if t < TILES else 0, 0)],
    *[LANES if t < TILES else 0 for t in range(16)],
]
_CONFIGURATION = (
    f"@tiles = internal constant [64 x i8] [{', '.join(f'i8 {b}' for b in _SHAPES)}], align 64"
)
_STEP = "step'"


class BlockCode:
    """Emits `Blocks` into a function: pointers by `address`, loops by the function's `counted`."""

    def __init__(self, builder: Builder, address: AddressCode) -> None:
        self.builder, self.address = builder, address

    def begin(self) -> None:
        """Tell this thread how tiles are shaped."""
        self.builder.declarations.add(_CONFIGURATION)
        self.instruction("ldtilecfg", "ptr @tiles")

    def end(self) -> None:
        """Give the tiles back."""
        self.instruction("tilerelease")

    def multiply(self, s: Blocks, counted: Callable[[Loop, str, Callable[[], None]], None]) -> None:
        """One statement: sums stay in tiles over all steps, then are stored."""
        places = product(range(min(s.parts, 2)), range(s.rows), range(s.columns))
        sums = {place: tile for tile, place in enumerate(places)}
        stride = f"i64 {s.columns * LANES * float32.itemsize}"
        where = {
            tile: f"ptr {self.address.pointer(s.sums, s.at + self.place(s, *place))}"
            for place, tile in sums.items()
        }
        for tile, pointer in where.items():
            if s.more:
                self.instruction("tileloadd64", f"i8 {tile}", pointer, stride)
            else:
                self.instruction("tilezero", f"i8 {tile}")
        loop = Loop(_STEP, s.steps, ())
        counted(loop, self.address.number(s.steps), lambda: self.step(s, sums))
        for tile, pointer in where.items():
            self.instruction("tilestored64", f"i8 {tile}", pointer, stride)

    def place(self, s: Blocks, kind: int, r: int, c: int) -> int:
        """Where a block's sums begin."""
        return ((kind * s.rows + r) * LANES * s.columns + c) * LANES

    def step(self, s: Blocks, sums: dict[tuple[int, int, int], int]) -> None:
        """The products of one step: right blocks are held, left ones loaded when their turn comes.

        A sum is used again when three others have been: a product takes as long as three begin.
        """
        held = {at: len(sums) + i for i, at in enumerate(product(range(s.columns), range(s.parts)))}
        for (c, part), tile in held.items():
            self.load(tile, s.right, c, part, s.parts)
        free = range(len(sums) + len(held), TILES)
        for turn, (part, r) in enumerate(product(range(s.parts), range(s.rows))):
            left = free[turn % len(free)]
            self.load(left, s.left, r, part, s.parts)
            for (c, other), right in held.items():
                tiles = sums[part ^ other, r, c], left, right
                self.instruction("tdpbf16ps", *(f"i8 {t}" for t in tiles))

    def load(self, tile: int, panels: Panels, number: int, part: int, parts: int) -> None:
        words = LANES * LANES
        at: Dim = panels.offset + number * panels.apart + part * words
        where = self.address.pointer(panels.buffer, at + Size.symbol(_STEP) * (parts * words))
        self.instruction("tileloadd64", f"i8 {tile}", f"ptr {where}", f"i64 {ROW_BYTES}")

    def instruction(self, name: str, *operands: str) -> None:
        kinds = (f"{o.split()[0]}{' immarg' if o.startswith('i8') else ''}" for o in operands)
        self.builder.declare(f"void @llvm.x86.{name}({', '.join(kinds)})")
        self.builder.effect(f"call void @llvm.x86.{name}({', '.join(operands)})")
