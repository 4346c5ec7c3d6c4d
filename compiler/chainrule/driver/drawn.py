"""The code that draws initial values, as LLVM's text: a loop over vectors of elements."""

from __future__ import annotations

from chainrule.codegen.module import emit_module
from chainrule.codegen.steps import Call
from chainrule.ir.types import float32
from chainrule.loops.begin import drawing
from chainrule.target import Target


def drawing_text(distribution: str, target: Target) -> str:
    """`i32 step(table, sizes)`, whose table is of the buffers of `loops.begin.drawing`."""
    program = drawing(distribution, float32, vectors=True)
    return emit_module([Call(program, (0, 1, 2, 3))], ("n",), target)
