"""Activations by name: what `activation="relu"` and a text among layers stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from chainrule.errors import DTypeError
from chainrule.lang import activations as a
from chainrule.lang import functions as f
from chainrule.lang.tensor import Tensor
from chainrule.nn.lookup import by_name

#: a function of Tensors, a layer among them
Function = Callable[..., Any]
Activation = str | Function | None


def linear(x: Tensor) -> Tensor:
    """x itself."""
    return x


#: name -> function
BY_NAME: Mapping[str, Function] = MappingProxyType(
    {
        "linear": linear,
        "sigmoid": f.sigmoid,
        "log_sigmoid": f.log_sigmoid,
        "tanh": f.tanh,
        "relu": f.relu,
        "relu6": a.relu6,
        "leaky_relu": a.leaky_relu,
        "elu": a.elu,
        "celu": a.celu,
        "selu": a.selu,
        "gelu": a.gelu,
        "silu": a.silu,
        "swish": a.silu,
        "mish": a.mish,
        "softplus": f.softplus,
        "softsign": a.softsign,
        "softmax": f.softmax,
        "log_softmax": f.log_softmax,
        "tanhshrink": a.tanhshrink,
        "hard_sigmoid": a.hard_sigmoid,
        "hard_swish": a.hard_swish,
        "hard_tanh": a.hard_tanh,
    }
)


def activation(given: Activation, who: str = "a layer") -> Function:
    """The function that a name, a function or None, which is linear, stands for.

    Raises CompileError for a name that is in no table, DTypeError for anything else.
    """
    if given is None:
        return linear
    if isinstance(given, str):
        return by_name(f"activation (of {who})", BY_NAME, given)
    if isinstance(given, type):
        raise DTypeError(
            f"{who} takes layers and functions, {given.__name__} is a class of them",
            f"make one: {given.__name__}(...)",
        )
    if not callable(given):
        raise DTypeError(f"{who} takes an activation by name or as a function, not {given!r}")
    return given
