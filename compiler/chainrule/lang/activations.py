"""Activations: functions of one tensor, elementwise, by the names that PyTorch gives them."""

from __future__ import annotations

from chainrule.errors import DTypeError
from chainrule.ir.node import apply
from chainrule.lang.arguments import number
from chainrule.lang.tensor import Tensor, TensorLike, as_node, elementwise
from chainrule.ops.activations import ACTIVATIONS


def relu6(x: TensorLike, /) -> Tensor:
    """x between 0 and 6; the derivative at either is 0."""
    return elementwise("relu6", x)


def leaky_relu(x: TensorLike, /, slope: float = 0.01) -> Tensor:
    """x above 0, slope * x elsewhere; the derivative at 0 is the slope."""
    return _choose(x, Tensor(as_node(x)) * slope)


def elu(x: TensorLike, /, alpha: float = 1.0) -> Tensor:
    """x above 0, alpha * (exp(x) - 1) elsewhere (Clevert et al., arXiv:1511.07289)."""
    y, alpha = _activation("elu", x), number("alpha", alpha)
    return y if alpha == 1.0 else _choose(x, alpha * y)


def celu(x: TensorLike, /, alpha: float = 1.0) -> Tensor:
    """x above 0, alpha * (exp(x / alpha) - 1) elsewhere (Barron, arXiv:1704.07483).

    Raises DTypeError unless alpha is a number above 0.
    """
    y, alpha = Tensor(as_node(x)), number("alpha", alpha)
    if alpha <= 0:
        raise DTypeError(f"celu's alpha is above 0, not {alpha}")
    return _choose(y, alpha * _activation("elu", y / alpha)) if alpha != 1.0 else elu(y)


def _choose(x: TensorLike, below: Tensor) -> Tensor:
    return elementwise("where", Tensor(as_node(x)) > 0, x, below)


def gelu(x: TensorLike, /, approximate: str = "none") -> Tensor:
    """x times the normal distribution's mass below x; or "tanh", its approximation by tanh."""
    if not isinstance(approximate, str) or approximate not in ("none", "tanh"):
        raise DTypeError(f'gelu is approximated by "none" or "tanh", not by {approximate!r}')
    return _activation("gelu" if approximate == "none" else "gelu_tanh", x)


def _activation(name: str, x: TensorLike) -> Tensor:
    return Tensor(apply(ACTIVATIONS[name], as_node(x)))


def silu(x: TensorLike, /) -> Tensor:
    """x * sigmoid(x), also called swish."""
    return _activation("silu", x)


def mish(x: TensorLike, /) -> Tensor:
    """x * tanh(softplus(x))."""
    return _activation("mish", x)


def softsign(x: TensorLike, /) -> Tensor:
    """x / (1 + |x|)."""
    return _activation("softsign", x)


def tanhshrink(x: TensorLike, /) -> Tensor:
    """x - tanh(x)."""
    return _activation("tanhshrink", x)


def hard_sigmoid(x: TensorLike, /) -> Tensor:
    """relu6(x + 3) / 6."""
    return _activation("hard_sigmoid", x)


def hard_swish(x: TensorLike, /) -> Tensor:
    """x * relu6(x + 3) / 6."""
    return _activation("hard_swish", x)


def hard_tanh(x: TensorLike, /) -> Tensor:
    """x between -1 and 1; the derivative at either is 0."""
    return _activation("hard_tanh", x)


def selu(x: TensorLike, /) -> Tensor:
    """elu with the scale and the alpha that keep mean 0 and variance 1."""
    return _activation("selu", x)
