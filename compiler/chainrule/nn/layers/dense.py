"""Layers of feed-forward nets: Dense, Dropout, Flatten, and checks that layers share."""

from __future__ import annotations

from chainrule.errors import DTypeError, ShapeError
from chainrule.given import is_int, is_real
from chainrule.lang import functions as f
from chainrule.lang import random
from chainrule.lang.arguments import flag
from chainrule.lang.tensor import Tensor, TensorLike, as_node
from chainrule.nn.activations import Activation, activation
from chainrule.nn.layer import Layer


class Dense(Layer):
    """activation(x @ weight + bias) over the last axis: x (..., in) gives (..., units).

    `weight` is (in, units), glorot_uniform by default; `bias` (units,), zeros. Raises ShapeError
    for a last axis whose size is not known.
    """

    def __init__(
        self,
        units: int,
        activation: Activation = None,
        use_bias: bool = True,
        weight_init: object = None,
        bias_init: object = None,
        *,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self.units, self.use_bias = count("Dense: units", units), flag("Dense: use_bias", use_bias)
        self.weight_init, self.bias_init = weight_init, bias_init
        self.activation = checked(activation, "Dense")

    def forward(self, x: TensorLike) -> Tensor:
        x = floats(x, "Dense", least=1)
        width = known(x, -1, "Dense")
        z = x @ self.parameter("weight", (width, self.units), self.weight_init)
        if self.use_bias:
            z = z + self.parameter("bias", (self.units,), self.bias_init)
        return activated(self.activation, z)


class Dropout(Layer):
    """In training, elements made 0 with probability `rate`, the others divided by 1 - rate.

    In inference x itself (Srivastava et al., JMLR 15, 2014). Raises ShapeError for a rate outside
    0 to 1.
    """

    def __init__(self, rate: float = 0.5, *, name: str | None = None) -> None:
        super().__init__(name)
        if not is_real(rate) or not 0 <= rate <= 1:
            raise ShapeError(f"Dropout: rate is a number from 0 to 1, not {rate!r}")
        self.rate = float(rate)

    def forward(self, x: TensorLike) -> Tensor:
        return random.dropout(x, self.rate)


class Flatten(Layer):
    """Every axis but the first made one: (batch, a, b, ...) gives (batch, a*b*...)."""

    def forward(self, x: TensorLike) -> Tensor:
        x = Tensor(as_node(x))
        if x.ndim == 0:
            raise ShapeError(f"Flatten takes (batch, ...), not {x.type}")
        return f.reshape(x, (x.shape[0], -1))


# what several layers check


def count(what: str, value: object, least: int = 1) -> int:
    """An int from `least` on. Raises ShapeError for anything else."""
    if not is_int(value) or value < least:
        raise ShapeError(f"{what} is an int of at least {least}, not {value!r}")
    return int(value)


def floats(x: TensorLike, who: str, least: int, axes: str = "") -> Tensor:
    """x as a Tensor of floats and of the rank that a layer takes, which is `least` or, unless its
    `axes` are named, above; else DTypeError or ShapeError.
    """
    tensor = Tensor(as_node(x))
    if not tensor.dtype.is_float:
        raise DTypeError(f"{who} takes floats, not {tensor.type}", 'x.astype("float32")')
    if tensor.ndim < least or (axes and tensor.ndim > least):
        wanted, hint = (f"{least}", [f"its axes are {axes}"]) if axes else (f"at least {least}", [])
        raise ShapeError(f"{who} takes a tensor of rank {wanted}, not {tensor.type}", *hint)
    return tensor


def known(x: Tensor, axis: int, who: str) -> int:
    """The size of an axis. Raises ShapeError where it is known only when called, or 0."""
    size = x.shape[axis]
    if not isinstance(size, int) or size == 0:
        raise ShapeError(
            f"{who} makes parameters for axis {axis % x.ndim} of {x.type}, whose size is {size}",
            "that size must be a number above 0 when the layer is called",
        )
    return size


def checked(given: Activation, who: str) -> Activation:
    """What was given, if it is an activation. Raises CompileError or DTypeError if not."""
    activation(given, who)
    return given


def activated(given: Activation, z: Tensor) -> Tensor:
    """What an activation makes of z."""
    y = activation(given)(z)
    if not isinstance(y, Tensor):
        raise DTypeError(f"an activation gives a Tensor, {given!r} gave {y!r}")
    return y
