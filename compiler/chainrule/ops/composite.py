"""Composites: functions of other ops that have a name, a good derivative and a good form.

Derivations and printing see the name; `expand` is what it stands for, in ops that have loops.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np

from chainrule.errors import DTypeError, ShapeError
from chainrule.ir.formula import Formula, fold, names, parse
from chainrule.ir.node import Array, Node, Op, Sample, apply
from chainrule.ir.notation import ATOM, Notation, call
from chainrule.ir.size import Dim
from chainrule.ir.types import TensorType, bool_, float64, int64
from chainrule.ops import reading
from chainrule.ops.axes import Sum
from chainrule.ops.build import broadcast, formula, keep_axes
from chainrule.ops.build import call as op
from chainrule.ops.elementwise import TABLE, chain, check_accepts
from chainrule.ops.index import OneHot
from chainrule.ops.reduce import Max
from chainrule.records import dataclass


@dataclass(frozen=True)
class _AlongAxis(Op):
    """A function of the float vectors that lie along one axis."""

    axis: int
    composite = True
    letter = "p"

    def infer(self, *inputs: TensorType) -> TensorType:
        check_accepts(str(self.name), "float", inputs[0].dtype)
        if not 0 <= self.axis < inputs[0].rank:
            raise ShapeError(f"{self.name} along axis {self.axis} does not fit {inputs[0]}")
        return inputs[0]

    def total(self, x: Node) -> Node:
        """The sum along the axis, repeated along it."""
        return broadcast(keep_axes(apply(Sum((self.axis,)), x), (self.axis,)), x.type.shape)

    def below_top(self, x: Node) -> Node:
        """`x` less its maximum along the axis, so that exp can't overflow."""
        if x.type.shape[self.axis] == 0:
            return x
        return op("sub", x, keep_axes(apply(Max((self.axis,)), x), (self.axis,)))

    def top_of(self, x: Array) -> Array:
        """The maximum along the axis, which stays; of no elements -inf."""
        return np.asarray(x.max(axis=self.axis, keepdims=True, initial=-np.inf))

    def notation(self, *inputs: Node) -> Notation:
        rank = inputs[0].type.rank if inputs else self.axis + 1
        name = str(self.name)
        if self.axis == rank - 1:
            return call(name, 1)
        tex = name.replace("_", r"\_")
        return Notation(
            f"{name}({{0}}, axis={self.axis})",
            rf"\operatorname{{{{{tex}}}}}_{{{{{self.axis}}}}}\left({{0}}\right)",
        )

    @classmethod
    def words(cls) -> dict[str, reading.Word]:
        return {str(cls.name): reading.along(cls)}

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield cls(1), [TensorType(float64, (3, 4))]
        yield cls(0), [TensorType(float64, (3, 2))]


@dataclass(frozen=True)
class Softmax(_AlongAxis):
    """exp(x) / sum(exp(x)) along an axis.

    A vector of nothing but -inf has none: NaN, or, as what `logsumexp` passes on, 0 for `nothing`.
    """

    nothing: bool = False
    name = "softmax"

    def ref(self, *inputs: Array) -> Array:
        top = self.top_of(inputs[0])
        e = np.exp(inputs[0] - (np.where(top == -np.inf, 0, top) if self.nothing else top))
        total = e.sum(axis=self.axis, keepdims=True)
        return np.asarray(e / (np.where(total == 0, 1, total) if self.nothing else total))

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        return (op("mul", out, op("sub", ct, self.total(op("mul", ct, out)))),)

    def expand(self, *inputs: Node) -> Node:
        (x,), axes = inputs, (self.axis,)
        if not self.nothing or x.type.shape[self.axis] == 0:
            return self.definition(self.below_top(x))
        top = apply(Max(axes), x)
        top = op("where", op("eq", top, -np.inf), 0.0, top)  # not -inf - -inf
        e = op("exp", op("sub", x, keep_axes(top, axes)))
        total = apply(Sum(axes), e)
        return op("div", e, keep_axes(op("where", op("eq", total, 0.0), 1.0, total), axes))

    def definition(self, *inputs: Node) -> Node:
        e = op("exp", inputs[0])
        return op("div", e, self.total(e))


@dataclass(frozen=True)
class LogSoftmax(_AlongAxis):
    """x - log(sum(exp(x))) along an axis: the logarithm of softmax."""

    name = "log_softmax"

    def ref(self, *inputs: Array) -> Array:
        x = inputs[0] - self.top_of(inputs[0])
        return np.asarray(x - np.log(np.exp(x).sum(axis=self.axis, keepdims=True)))

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        return (op("sub", ct, op("mul", apply(Softmax(self.axis), inputs[0]), self.total(ct))),)

    def expand(self, *inputs: Node) -> Node:
        return self.definition(self.below_top(inputs[0]))

    def definition(self, *inputs: Node) -> Node:
        (x,) = inputs
        log_total = op("log", apply(Sum((self.axis,)), op("exp", x)))
        return op("sub", x, keep_axes(log_total, (self.axis,)))


@dataclass(frozen=True)
class LogSumExp(_AlongAxis):
    """log(sum(exp(x))) along an axis, which goes: a smooth maximum."""

    name = "logsumexp"

    def infer(self, *inputs: TensorType) -> TensorType:
        shape = super().infer(*inputs).shape
        return inputs[0].with_shape(shape[: self.axis] + shape[self.axis + 1 :])

    def folds(self, x: TensorType) -> tuple[int, ...]:
        return (self.axis,)

    def ref(self, *inputs: Array) -> Array:
        top = self.top_of(inputs[0])
        top = np.where(np.isinf(top), 0, top)
        total = np.exp(inputs[0] - top).sum(axis=self.axis)
        return np.asarray(np.log(total) + np.squeeze(top, self.axis))

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        share = apply(Softmax(self.axis, nothing=True), inputs[0])
        return (op("mul", share, keep_axes(ct, (self.axis,))),)

    def expand(self, *inputs: Node) -> Node:
        (x,) = inputs
        if x.type.shape[self.axis] == 0:
            return self.definition(x)
        top = apply(Max((self.axis,)), x)
        top = op("where", op("eq", op("abs", top), np.inf), 0.0, top)  # not inf - inf
        return op("add", self.definition(op("sub", x, keep_axes(top, (self.axis,)))), top)

    def definition(self, *inputs: Node) -> Node:
        return op("log", apply(Sum((self.axis,)), op("exp", inputs[0])))


@dataclass(frozen=True)
class Pick(Op):
    """The element along the last axis that an integer names: x[..., y]."""

    name = "pick"
    composite = True
    domain = (0.0, 3.0)

    def infer(self, *inputs: TensorType) -> TensorType:
        x, y = inputs
        if not y.dtype.is_integer:
            raise DTypeError(f"pick takes integer classes, not {y}")
        if x.shape[:-1] != y.shape:
            raise ShapeError(f"pick needs one class a row: {x}, {y}")
        return x.with_shape(y.shape)

    def bounds(self, *inputs: TensorType) -> tuple[tuple[int, Dim], ...]:
        return ((1, inputs[0].shape[-1]),)

    def ref(self, *inputs: Array) -> Array:
        return np.take_along_axis(inputs[0], inputs[1][..., None], -1)[..., 0]

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        x, y = inputs
        code = apply(OneHot(x.type.shape[-1], x.type.dtype), y)
        return (op("mul", code, keep_axes(ct, (x.type.rank - 1,))), None)

    def expand(self, *inputs: Node) -> Node:
        x, y = inputs
        chosen = op("where", apply(OneHot(x.type.shape[-1], bool_), y), x, 0)
        return apply(Sum((x.type.rank - 1,)), chosen)

    def notation(self, *inputs: Node) -> Notation:
        return Notation("{0}[{1}]", r"{0}\left[{1}\right]", operands=(ATOM,))

    def folds(self, x: TensorType) -> tuple[int, ...]:
        return (x.rank - 1,)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield cls(), [TensorType(float64, (3, 4)), TensorType(int64, (3,))]


@dataclass(frozen=True, eq=False)
class Defined(Op):
    """An elementwise op made from a formula; its partial derivatives are formulas too.

    Those are in terms of the parameters and of the result, `out`. See `derive.define_elementwise`.
    `shown` are numbers in it that print as options.
    """

    label: str
    params: tuple[str, ...]
    meaning: Formula
    partials: tuple[Formula, ...]
    shown: tuple[tuple[str, float], ...] = ()
    composite = True

    @property
    def name(self) -> str:
        """What no op of ours is called: rules go by the names of ops; users may repeat those."""
        return f"elementwise:{self.label}"

    def infer(self, *inputs: TensorType) -> TensorType:
        if len(inputs) != len(self.params):
            raise ShapeError(f"{self.label} takes {len(self.params)} operands, not {len(inputs)}")
        if self._strange:
            raise ShapeError(f"{self.label} is of {self.params}, and speaks of {self._strange}")
        check_accepts(self.label, "float", inputs[0].dtype)
        if any(t != inputs[0] for t in inputs):
            shown = ", ".join(map(str, inputs))
            raise ShapeError(f"{self.label} needs one shape and type: {shown}")
        return inputs[0]

    @cached_property
    def _strange(self) -> list[str]:
        """What the formulas speak of that is not given."""
        spoken = {n for p in self.partials for n in names(p)} - {"out"} | {*names(self.meaning)}
        return sorted(spoken - {*self.params})

    def ref(self, *inputs: Array) -> Array:
        at = dict(zip(self.params, inputs, strict=True))
        number = inputs[0].dtype.type
        value = fold(self.meaning, number, at.__getitem__, lambda fn, args: TABLE[fn].ref(*args))
        return np.array(np.broadcast_to(value, inputs[0].shape))

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        at = dict(zip(self.params, inputs, strict=True))
        at["out"] = out
        return tuple(chain(ct, p, at) for p in self.partials)

    def expand(self, *inputs: Node) -> Node:
        return formula(self.meaning, dict(zip(self.params, inputs, strict=True)), like=inputs[0])

    def notation(self, *inputs: Node) -> Notation:
        plain = call(self.label, len(self.params))
        if not self.shown:
            return plain
        options = "".join(f", {name}={value!r}" for name, value in self.shown)
        inside = ", ".join(f"{{{i}}}" for i in range(len(self.params))) + options
        tex = plain.latex.removesuffix(r"\right)") + options.replace("_", r"\_") + r"\right)"
        return Notation(f"{self.label}({inside})", tex)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        slope = parse("x*exp(y)/out")
        length = cls("length", ("x", "y"), parse("sqrt(x**2*exp(y))"), (slope, parse("out/2")))
        yield length, [TensorType(float64, (2, 3))] * 2

    domain = (0.5, 2.0)
