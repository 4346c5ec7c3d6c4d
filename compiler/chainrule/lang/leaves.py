"""Leaves: what is fed, what is trained, what training changes, and constants."""

from __future__ import annotations

from typing import Any

import numpy as np

from chainrule.errors import DTypeError, ShapeError
from chainrule.ir import provenance
from chainrule.ir.types import DType, TensorType, check_shape
from chainrule.ir.types import dtype as _dtype
from chainrule.lang.init import resolve
from chainrule.lang.tensor import Tensor
from chainrule.ops.source import constant as constant_node
from chainrule.ops.source import leaf


def input(name: str, shape: Any, *, dtype: object = "float32") -> Tensor:
    """A tensor that is given at each call. A size may be a name: "batch" is known when called."""
    return _leaf("input", name, TensorType(_dtype(dtype), check_shape(shape)), None)


def parameter(name: str, shape: Any, *, init: Any = None, dtype: object = "float32") -> Tensor:
    """A tensor that training changes.

    `init` is the name of an initialiser, an object of `cr.init` or an array, which is cast to
    `dtype`; by default glorot_uniform from rank 2 on, else zeros.
    """
    kind = TensorType(_dtype(dtype), check_shape(shape))
    if not kind.dtype.is_float:
        raise DTypeError(f"a parameter is made of floats, not of {kind.dtype}")
    default = "glorot_uniform" if kind.rank >= 2 else "zeros"
    return _kept("parameter", name, kind, default if init is None else init)


def state(name: str, shape: Any, *, init: Any = None, dtype: object = "float32") -> Tensor:
    """A tensor that lives between steps and changes through `updates={state: next_value}`."""
    return _kept("state", name, TensorType(_dtype(dtype), check_shape(shape)), init)


def constant(array: Any, *, dtype: object = None) -> Tensor:
    """An array that is part of the graph, of NumPy's type for it unless told.

    Raises DTypeError where it is not of numbers, or where `dtype` is an integer type that can't
    hold one of them; what follows a point is cut off.
    """
    values = _numbers("a constant", array)
    kind = _dtype(dtype if dtype is not None else values.dtype)
    return Tensor(constant_node(_fitting("a constant", values, kind), kind))


def _numbers(what: str, value: Any) -> np.ndarray[Any, Any]:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ShapeError(f"{what} is an array, this is none: {error}") from None
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise DTypeError(f"{what} is made of numbers, not of {array.dtype}")
    return array


def _fitting(what: str, array: np.ndarray[Any, Any], kind: DType) -> np.ndarray[Any, Any]:
    """The array, if each number has a place in an integer type. Raises DTypeError where not."""
    if kind.is_integer and array.size:
        low, high = kind.bounds
        finite = bool(np.isfinite(array).all())
        if not finite or int(array.min()) < low or int(array.max()) > high:
            raise DTypeError(
                f"{what} holds {array.min()} to {array.max()}, {kind} holds {low} to {high}"
            )
    return array


def _kept(kind: str, name: str, type: TensorType, init: Any) -> Tensor:
    _check_name(name)
    for dim in type.shape:
        if not isinstance(dim, int):
            raise ShapeError(
                f"{kind} {name} needs known sizes: {type}", "only inputs have symbolic ones"
            )
    if isinstance(init, (np.ndarray, list, tuple, int, float)):
        array = _numbers(f"the beginning of {kind} {name}", init)
        if array.ndim and array.shape != type.shape:
            raise ShapeError(
                f"{kind} {name}: {type} can't begin as an array of shape {array.shape}"
            )
        array = _fitting(f"the beginning of {kind} {name}", array, type.dtype)
        init = np.array(np.broadcast_to(array, type.shape), type.dtype.numpy)  # type: ignore[arg-type]
    return _leaf(kind, name, type, resolve("zeros" if init is None else init, f"{kind} {name}"))


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name) > 200:
        raise ShapeError(f"a name is printable text of 1 to 200 characters, not {str(name)[:40]!r}")


def _leaf(kind: str, name: str, type: TensorType, init: Any) -> Tensor:
    _check_name(name)
    node = leaf(kind, name, type, init)
    provenance.set_name(node, name)
    return Tensor(node)
