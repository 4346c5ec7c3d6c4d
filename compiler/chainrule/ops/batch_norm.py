"""Batch norm: by the minibatch's mean and variance in training, by those kept in inference."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from chainrule.errors import DTypeError, FormulaError, ShapeError
from chainrule.ir.node import Array, Node, Sample, apply
from chainrule.ir.notation import Notation
from chainrule.ir.types import TensorType, float64
from chainrule.ops import build, reading
from chainrule.ops.axes import Expand
from chainrule.ops.build import call as op
from chainrule.ops.normalization import EPS, LayerNorm
from chainrule.ops.phase import Switched, Tracked, phase
from chainrule.records import dataclass


@dataclass(frozen=True)
class BatchNorm(Switched):
    """(x - mean) / sqrt(variance + eps), with mean and variance over axes of x itself in training,
    the second and third operands, what is kept of them, in inference.

    Ioffe and Szegedy (arXiv:1502.03167), without scale and shift. In training its derivative by x
    is layer norm's over the same axes; what is kept gets none.
    """

    name = "batch_norm"
    letter = "h"
    domain = (0.5, 2.0)  # a variance is above 0
    axes: tuple[int, ...]
    eps: float = EPS

    def infer(self, *inputs: TensorType) -> TensorType:
        x, *kept = inputs
        LayerNorm(self.axes, self.eps).infer(x)
        channels = tuple(d for i, d in enumerate(x.shape) if i not in self.axes)
        shown = ", ".join(map(str, inputs))
        if any(k.shape != channels for k in kept):
            raise ShapeError(f"batch_norm needs a mean and a variance for each channel: {shown}")
        if any(k.dtype != x.dtype.wide for k in kept):
            raise DTypeError(f"batch_norm keeps mean and variance in {x.dtype.wide}: {shown}")
        return x

    def reaches(self, operand: int) -> bool:
        return operand == 0

    def in_phase(self, training: bool, *inputs: Node) -> Node:
        x, mean, _ = inputs
        if training:
            return apply(LayerNorm(self.axes, self.eps), x)
        wide = build.cast(x, x.type.dtype.wide)
        out = op("div", op("sub", wide, self.back(_kept(mean), x)), self.root(*inputs))
        return build.cast(out, x.type.dtype)

    def back(self, folded: Node, x: Node) -> Node:
        """What has a number for each channel, in the shape of x."""
        return apply(Expand(x.type.shape, self.axes), folded)

    def root(self, *inputs: Node) -> Node:
        """What is divided by in inference."""
        x, _, variance = inputs
        return self.back(op("sqrt", op("add", _kept(variance), self.eps)), x)

    def ref(self, *inputs: Array) -> Array:
        return LayerNorm(self.axes, self.eps).ref(inputs[0])

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        (inward,) = LayerNorm(self.axes, self.eps).vjp(ct, out, inputs[0])
        assert inward is not None
        wide = build.cast(ct, ct.type.dtype.wide)
        fixed = build.cast(op("div", wide, self.root(*inputs)), ct.type.dtype)
        return phase(inward, fixed), None, None

    def notation(self, *inputs: Node) -> Notation:
        options = [f"axis={self.axes[0] if len(self.axes) == 1 else self.axes}"]
        options += [] if self.eps == EPS else [f"eps={self.eps!r}"]
        hidden = len(inputs) == 3 and isinstance(inputs[1].op, Tracked)  # they follow from x
        shown = ", ".join([*(("{0}",) if hidden else ("{0}", "{1}", "{2}")), *options])
        tex = rf"\operatorname{{{{batch\_norm}}}}\left({shown}\right)"
        parts = inputs[:1] if hidden else None
        return Notation(f"batch_norm({shown})", tex, shown=parts)

    @classmethod
    def words(cls) -> dict[str, reading.Word]:
        return {"batch_norm": _read}

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        row = TensorType(float64, (2,))
        yield cls((0,)), [TensorType(float64, (3, 2)), row, row]
        yield cls((0, 2), 0.25), [TensorType(float64, (3, 2, 2)), row, row]


def _kept(node: Node) -> Node:
    """The state behind a tracked mean or variance."""
    return node.inputs[1] if isinstance(node.op, Tracked) else node


def _read(
    x: Node,
    mean: Node | None = None,
    variance: Node | None = None,
    axis: Any = 0,
    eps: float = EPS,
) -> Node:
    if mean is None or variance is None:
        raise FormulaError("batch_norm of a layer reads states that its text does not show")
    return apply(BatchNorm(reading.axes_of(axis, x), eps), x, mean, variance)
