"""The floating-point operations of a unit: those of its calls, as often as they are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from chainrule.codegen.steps import Call, Repeat, Step
from chainrule.export.model import Model, Unit
from chainrule.ir.size import Dim, Size, substitute
from chainrule.loops.arithmetic import arithmetic_of


def flops_of(unit: Unit, sizes: Mapping[str, int]) -> int:
    """What a call does at given sizes, where no check fails; loops.arithmetic says what counts."""
    found = _of_steps(unit.calls, sizes)
    assert isinstance(found, int)  # all is known
    return found


def flops_text(model: Model, name: str) -> str:
    """The same as a polynomial of the symbolic sizes; where it is none, at the largest of them."""
    unit, most = model.units[name], model.most()
    known = {s: Size.symbol(s) for s in unit.manifest.sizes}
    found = _of_steps(unit.calls, known)
    if found is not None:
        return str(found)
    return f"{flops_of(unit, most)} at {', '.join(f'{s} = {most[s]}' for s in known)}"


def _of_steps(steps: Sequence[Step], sizes: Mapping[str, Dim]) -> Dim | None:
    total: Dim = 0
    for step in steps:
        done: Dim | None = 0
        if isinstance(step, Call):
            done = arithmetic_of(step.program, sizes)
        elif isinstance(step, Repeat):
            once = _of_steps(step.steps, sizes)
            done = None if once is None else substitute(step.length, sizes) * once
        if done is None:
            return None
        total = total + done
    return total
