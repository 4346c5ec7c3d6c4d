"""Layers that bring numbers to a like spread: BatchNorm, LayerNorm, RMSNorm."""

from __future__ import annotations

from chainrule.errors import CompileError, ShapeError
from chainrule.ir.node import apply
from chainrule.ir.size import product
from chainrule.lang import functions as f
from chainrule.lang import normalization
from chainrule.lang.arguments import flag, number
from chainrule.lang.statistics import var
from chainrule.lang.tensor import Tensor, TensorLike, as_node
from chainrule.nn.layer import Layer
from chainrule.nn.layers.dense import floats, known
from chainrule.ops import batch_norm, phase
from chainrule.ops.source import Leaf, size_of


class BatchNorm(Layer):
    """(x - mean) / sqrt(variance + eps) · scale + shift, by channel (arXiv:1502.03167).

    Mean and variance are the minibatch's in training, and running ones in inference, the states
    `mean` and `variance`: each training step takes running + momentum · (batch's - running). They
    go over every axis but the channels', which is axis 1 from rank 3 on (batch, channel, ...), the
    last of a matrix, or `axis`. As in PyTorch the variance that divides is the mean square, the one
    that is kept is larger by n/(n - 1); a minibatch of one number a channel gives 0, and a variance
    of 0. `scale` and `shift` may be left out. Raises ShapeError and DTypeError.
    """

    def __init__(
        self,
        momentum: float = 0.1,
        eps: float = 1e-5,
        scale: bool = True,
        shift: bool = True,
        axis: int | None = None,
        *,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self.momentum, self.eps = _fraction("momentum", momentum), _small("BatchNorm", eps)
        self.scale, self.shift = flag("BatchNorm: scale", scale), flag("BatchNorm: shift", shift)
        self.axis = axis

    def forward(self, x: TensorLike) -> Tensor:
        x = floats(x, "BatchNorm", least=2)
        at = self._channels(x)
        width, axes = known(x, at, "BatchNorm"), tuple(i for i in range(x.ndim) if i != at)
        mean, variance = self._statistics(x, axes)
        op = batch_norm.BatchNorm(axes, self.eps)
        h = Tensor(apply(op, x.node, mean.node, variance.node))
        form = (width, *(1,) * (x.ndim - 1 - at))
        if self.scale:
            h = h * f.reshape(self.parameter("scale", (width,), "ones"), form)
        if self.shift:
            h = h + f.reshape(self.parameter("shift", (width,), "zeros"), form)
        return h

    def _channels(self, x: Tensor) -> int:
        if self.axis is None:
            return 1
        if not isinstance(self.axis, int) or not -x.ndim <= self.axis < x.ndim:
            raise ShapeError(f"BatchNorm: {x.type} has no axis {self.axis!r}")
        return self.axis % x.ndim

    def _statistics(self, x: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        wide = x.astype(x.dtype.wide)
        count = Tensor(size_of(product(tuple(x.shape[a] for a in axes)), wide.dtype))
        mean, variance = f.mean(wide, axis=axes), var(wide, axis=axes)
        seen = variance * (count / f.maximum(count - 1.0, 1.0))
        return (
            self._track("mean", "zeros", mean, mean),
            self._track("variance", "ones", variance, seen),
        )

    def _track(self, name: str, begin: str, batch: Tensor, seen: Tensor) -> Tensor:
        kept = self.state(name, batch.shape, begin, batch.dtype)
        return tracked(batch, kept, (1 - self.momentum) * kept + self.momentum * seen)


class LayerNorm(Layer):
    """(x - mean) / sqrt(variance + eps) · scale + shift over the last axis (arXiv:1607.06450).

    `scale` begins as 1, `shift` as 0; either may be left out. Raises ShapeError and DTypeError.
    """

    def __init__(
        self, eps: float = 1e-5, scale: bool = True, shift: bool = True, *, name: str | None = None
    ) -> None:
        super().__init__(name)
        self.eps = _small("LayerNorm", eps)
        self.scale, self.shift = flag("LayerNorm: scale", scale), flag("LayerNorm: shift", shift)

    def forward(self, x: TensorLike) -> Tensor:
        x = floats(x, "LayerNorm", least=1)
        width = known(x, -1, "LayerNorm")
        scale = self.parameter("scale", (width,), "ones") if self.scale else None
        shift = self.parameter("shift", (width,), "zeros") if self.shift else None
        return normalization.layer_norm(x, scale, shift, self.eps)


class RMSNorm(Layer):
    """x / sqrt(mean(x²) + eps) · scale over the last axis (arXiv:1910.07467).

    `scale` begins as 1, and may be left out. Raises ShapeError and DTypeError.
    """

    def __init__(self, eps: float = 1e-5, scale: bool = True, *, name: str | None = None) -> None:
        super().__init__(name)
        self.eps, self.scale = _small("RMSNorm", eps), flag("RMSNorm: scale", scale)

    def forward(self, x: TensorLike) -> Tensor:
        x = floats(x, "RMSNorm", least=1)
        width = known(x, -1, "RMSNorm")
        scale = self.parameter("scale", (width,), "ones") if self.scale else None
        return normalization.rms_norm(x, scale, self.eps)


def tracked(batch: TensorLike, kept: Tensor, after: TensorLike) -> Tensor:
    """A minibatch's value in training, in inference the state `kept`, of which `after` is the next.

    A training step whose loss or metrics hold it changes the state, unless `updates` names it.
    Derivatives go to `batch`. Raises ShapeError and DTypeError where the three differ in type.
    """
    if not isinstance(kept, Tensor) or not isinstance(kept.node.op, Leaf):
        raise CompileError(f"tracked keeps a value in a state, not in {kept!r}", "cr.state(...)")
    return Tensor(phase.tracked(as_node(batch, kept), kept.node, as_node(after, kept)))


def _fraction(what: str, value: float) -> float:
    given = number(f"BatchNorm: {what}", value)
    if not 0 <= given <= 1:
        raise ShapeError(f"BatchNorm: {what} is a number from 0 to 1, not {value!r}")
    return given


def _small(who: str, eps: float) -> float:
    given = number(f"{who}: eps", eps)
    if given < 0:
        raise ShapeError(f"{who}: eps is a number from 0 up, not {eps!r}")
    return given
