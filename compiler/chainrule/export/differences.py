"""Finite differences in the self-test: the slope of the loss along a direction.

All parameters go a step up or down, each by a sign of its own, and back beyond where they were;
what the loss differs by is held to the derivative. That comes from the formulas, which the compiler
evaluates in float64 without any of the code that is tested.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from chainrule.export.entries import Entries
from chainrule.export.golden import Slope
from chainrule.export.model import Model, StateTensor
from chainrule.export.rehearsal import Plan
from chainrule.export.text import Code, number_text
from chainrule.ir.types import dtype as dtype_of

Array = np.ndarray[Any, Any]
#: steps that are tried: the one whose difference is nearest to the derivative stays
STEPS = tuple(2.0**-i for i in range(5, 13))
#: a loss with kinks between the two ends has no derivative to be held to: none is, if even the best
#: difference is so much off
ACCEPTED = 0.05
#: Knuth, The Art of Computer Programming 3, section 6.4: the golden ratio of 32 bits
_FACTOR, _BIT = 0x9E3779B1, 16


def moved(model: Model) -> list[StateTensor]:
    """The parameters that are moved."""
    kinds = ("float32", "float64")
    return [t for t in model.kept if t.role == "parameter" and t.dtype.name in kinds and t.elements]


def runs(model: Model) -> list[list[StateTensor]]:
    """The same by runs that lie beside each other and are of one type: each is moved at once."""
    found: list[list[StateTensor]] = []
    places = {t.name: i for i, t in enumerate(model.kept)}
    for tensor in moved(model):
        last = found[-1][-1] if found else None
        beside = last is not None and places[tensor.name] == places[last.name] + 1
        if last is not None and beside and tensor.dtype == last.dtype:
            found[-1].append(tensor)
        else:
            found.append([tensor])
    return found


def signs(model: Model) -> dict[str, Array]:
    """The signs of the elements of each parameter, by where they lie in their run."""
    found = {}
    for run in runs(model):
        for tensor in run:
            first = model.offsets[tensor.name] - model.offsets[run[0].name]
            places = np.arange(tensor.elements, dtype=np.uint64) + first // tensor.dtype.itemsize
            word = places.astype(np.uint64) * _FACTOR
            found[tensor.name] = np.where(word >> _BIT & 1, 1.0, -1.0)
    return found


def kind_of(model: Model) -> str:
    """The LLVM type of the loss, where it can be a difference; else nothing."""
    of = dtype_of(model.units["loss"].manifest.outputs[0].dtype).name
    return {"float32": "float", "float64": "double"}.get(of, "")


def functions(module: Entries, plan: Plan) -> list[str]:
    """`T @difference(memory, step)` of a state that has begun."""
    model, loss = module.model, kind_of(module.model)
    if not loss:
        return []
    code = Code(f"internal {loss} @difference(ptr %memory, {loss} %step) #0")
    forth, back = code.value(f"fmul {loss} %step, 2.0"), code.value(f"fneg {loss} %step")
    item = 4 if loss == "float" else 8
    total = code.local(loss, item)
    code.store(loss, "0.0", total, align=item)
    (output,) = model.units["loss"].manifest.outputs

    def end(i: str) -> None:
        """First all go back, then forth twice as far; the loss before is taken from that after."""
        first = code.value(f"icmp eq iw {i}, 0")
        by = code.value(f"select i1 {first}, {loss} {back}, {loss} {forth}")
        move(code, model, loss, by)
        plan.call(code, module, "loss", plan.sizes)
        now = code.load(loss, "%memory", plan.places["loss", output.name], align=item)
        less = code.value(f"fsub {loss} {now}, {code.load(loss, total, align=item)}")
        code.store(loss, less, total, align=item)

    code.loop("2", end)
    return [code.text(f"{loss} {code.load(loss, total, align=item)}")]


def move(code: Code, model: Model, kind: str, by: str) -> None:
    """Move all parameters by a number of that LLVM type, each up or down."""
    for run in runs(model):
        start, own, last = model.offsets[run[0].name], _llvm(run[0]), run[-1]
        count = (model.offsets[last.name] - start) // last.dtype.itemsize + last.elements
        word = "fptrunc" if kind == "double" else "fpext"
        given = by if own == kind else code.value(f"{word} {kind} {by} to {own}")
        code.do(
            f"call void @move_{own}(ptr {code.at('%memory', start)}, iw {count}, {own} {given})"
        )


def movers(model: Model) -> list[str]:
    """The functions that move parameters, one for each type."""
    return [_move(kind) for kind in sorted({_llvm(t) for t in moved(model)})]


def _llvm(tensor: StateTensor) -> str:
    return "float" if tensor.dtype.itemsize == 4 else "double"


def _move(kind: str) -> str:
    """`void @move_KIND(data, count, by)`: each number up or down."""
    item = 4 if kind == "float" else 8
    code = Code(f"internal void @move_{kind}(ptr %data, iw %count, {kind} %by) #0")
    other = code.value(f"fneg {kind} %by")

    def one(i: str) -> None:
        word = code.value(f"mul i32 {code.value(f'trunc iw {i} to i32')}, {_FACTOR - (1 << 32)}")
        bit = code.value(f"trunc i32 {code.value(f'lshr i32 {word}, {_BIT}')} to i1")
        by = code.value(f"select i1 {bit}, {kind} %by, {kind} {other}")
        at = code.value(f"mul iw {i}, {item}")
        value = code.value(f"fadd {kind} {code.load(kind, '%data', at, align=item)}, {by}")
        code.store(kind, value, "%data", at, align=item)

    code.loop("%count", one)
    return code.text("void")


def is_other(code: Code, model: Model, slope: Slope) -> str:
    """Whether the difference here is not as it should be, as an i1."""
    kind = kind_of(model)
    step, wanted, within = slope.step, slope.difference, slope.within
    given = f"{kind} {number_text(step, kind)}"
    found = code.value(f"call {kind} @difference(ptr %memory, {given})")
    off = code.value(f"fsub {kind} {found}, {number_text(wanted, kind)}")
    below = code.value(f"fcmp olt {kind} {off}, {number_text(within, kind)}")
    above = code.value(f"fcmp ogt {kind} {off}, {number_text(-within, kind)}")
    return code.value(f"xor i1 {code.value(f'and i1 {below}, {above}')}, true")


def chosen(
    model: Model, arrays: Mapping[str, Array], difference: Callable[[float], float]
) -> Slope | None:
    """The slope to hold machines to, of what this one has for steps; None where there is none.

    `arrays` are the tensors and the data by name. Raises nothing for numbers that are not finite:
    there is no slope then.
    """
    if model.derivative is None or not kind_of(model) or not moved(model):
        return None
    gradients = model.derivative(arrays)
    along = signs(model)
    parts = [
        along[t.name] * np.asarray(gradients[t.name], np.float64).reshape(-1)
        for t in moved(model)
        if t.name in gradients
    ]
    slope = float(sum(part.sum() for part in parts))
    size = math.sqrt(sum(float(part @ part) for part in parts))
    best: Slope | None = None
    for step in STEPS if math.isfinite(slope) and slope else ():
        wanted, found = 2 * step * slope, difference(step)
        off = abs(found - wanted)
        # a slope that nearly cancels out is held to what gradients are like
        if off < ACCEPTED * 2 * step * max(abs(slope), 0.1 * size) and (
            best is None or off / step < best.within / best.step
        ):
            best = Slope(step, wanted, off)
    return best and Slope(best.step, best.difference, 4 * best.within + 1e-6 * abs(best.difference))
