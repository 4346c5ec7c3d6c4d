"""PyTorch's operators spelled in chainrule: a table from names of OpInfos to functions of Tensors.

Each takes what PyTorch's takes, by the same names, with Tensors for its tensors. What has no
counterpart raises `Absent`, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import chainrule as cr

T = Any  # a chainrule Tensor
TABLE: dict[str, Callable[..., Any]] = {}


class Absent(Exception):
    """A sample that the language has no spelling for."""


def entry(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Put a function into the table under PyTorch's names."""

    def put(function: Callable[..., Any]) -> Callable[..., Any]:
        TABLE.update(dict.fromkeys(names, function))
        return function

    return put


def need(condition: bool, reason: str) -> None:
    if not condition:
        raise Absent(reason)


def name_of(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def of(x: T, dtype: object) -> T:
    """x as one of PyTorch's element types."""
    if dtype is None:
        return x
    need(name_of(dtype) not in ("float16", "complex64", "complex128"), "no such element type")
    return x.astype(name_of(dtype))


def is_tensor(x: object) -> bool:
    return isinstance(x, cr.Tensor)


def like(value: Any, x: T) -> Any:
    """A number or tensor in the element type of x, where PyTorch converts without being asked."""
    if is_tensor(value):
        return value if value.dtype == x.dtype else value.astype(x.dtype)
    return float(value) if x.dtype.is_float and not isinstance(value, bool) else value


def joined(x: Any, y: Any) -> tuple[Any, Any]:
    """Two operands in PyTorch's common type: a float wins over an integer."""
    if is_tensor(x) and is_tensor(y):
        if x.dtype.is_float and not y.dtype.is_float:
            return x, y.astype(x.dtype)
        if y.dtype.is_float and not x.dtype.is_float:
            return x.astype(y.dtype), y
        return x, y
    if is_tensor(x):
        return x, like(y, x)
    return (like(x, y), y) if is_tensor(y) else (x, y)


def wide(x: T) -> T:
    """Without the axis-less case: PyTorch lets axis 0 of a number be named."""
    return cr.reshape(x, (1,)) if x.ndim == 0 else x


def at_axis(x: T, dim: Any) -> tuple[T, Any]:
    """A tensor and the axis that is meant, None for all."""
    if dim is None or (isinstance(dim, Sequence) and not len(dim)):
        return x, None
    return wide(x), tuple(dim) if isinstance(dim, Sequence) else dim


def reduced(function: Callable[..., T], x: T, dim: Any, keepdim: bool, /, **options: Any) -> T:
    scalar = x.ndim == 0 and dim is not None
    x, axis = at_axis(x, dim)
    y = function(x, axis=axis, keepdims=keepdim, **options)
    return cr.reshape(y, ()) if scalar else y


def along(function: Callable[..., T], x: T, axis: int, /, **options: Any) -> T:
    """A function that keeps the shape, along an axis, of a number too."""
    return cr.reshape(function(wide(x), axis=axis, **options), x.shape)


def finished(x: T, reduction: str = "mean") -> T:
    """A loss, reduced as PyTorch's `reduction` says."""
    return {"mean": cr.mean, "sum": cr.sum, "none": lambda t: t}[reduction](x)


def narrow(x: T, dim: int, start: int, length: int) -> T:
    ranges = [slice(None)] * x.ndim
    ranges[dim] = slice(start, start + length)
    return x[tuple(ranges)]


# elementwise, of one tensor

SAME = (
    "abs acos acosh asin asinh atan atanh ceil cos cosh exp exp2 expm1 erf erfc floor isfinite "
    "isinf isnan log log10 log1p log2 positive reciprocal rsqrt sigmoid sign sin sinh sqrt square "
    "tan tanh trunc signbit logical_not"
)
TABLE.update({name: getattr(cr, name) for name in SAME.split()})
TABLE.update(
    {
        "neg": cr.negative,
        "sgn": cr.sign,
        "bitwise_not": cr.bitwise_invert,
        "frac": lambda x: x - cr.trunc(x),
        "deg2rad": lambda x: x * (math.pi / 180),
        "rad2deg": lambda x: x * (180 / math.pi),
        "isposinf": lambda x: x == math.inf,
        "isneginf": lambda x: x == -math.inf,
        "isreal": lambda x: cr.ones_like(x, dtype="bool"),
        "angle": lambda x: cr.where(x < 0, math.pi, cr.where(cr.isnan(x), x, 0.0)),
        "clone": lambda x, **_: x,
        "contiguous": lambda x, **_: x,
        "conj": cr.positive,
        "conj_physical": cr.positive,
        "resolve_conj": cr.positive,
        "resolve_neg": cr.positive,
        "real": cr.positive,
        "alias_copy": cr.positive,
        "special.ndtr": lambda x: 0.5 * cr.erfc(x * -math.sqrt(0.5)),
        "special.entr": lambda x: cr.where(x < 0, -math.inf, -cr.xlogy(x, x)),
        "nn.functional.relu": lambda x, inplace=False: cr.relu(x),
        "nn.functional.relu6": lambda x, inplace=False: cr.relu6(x),
        "nn.functional.selu": lambda x, inplace=False: cr.selu(x),
        "nn.functional.silu": lambda x, inplace=False: cr.silu(x),
        "nn.functional.mish": lambda x, inplace=False: cr.mish(x),
        "nn.functional.hardswish": lambda x, inplace=False: cr.hard_swish(x),
        "nn.functional.hardsigmoid": lambda x, inplace=False: cr.hard_sigmoid(x),
        "nn.functional.logsigmoid": cr.log_sigmoid,
        "nn.functional.softsign": cr.softsign,
        "nn.functional.tanhshrink": cr.tanhshrink,
        "nn.functional.gelu": lambda x, approximate="none": cr.gelu(x, approximate),
    }
)
for _name in ("bfloat16", "bool", "double", "float", "int", "long", "short", "char", "byte"):
    _to = {"double": "float64", "float": "float32", "int": "int32", "long": "int64"}.get(_name)
    _to = _to or {"short": "int16", "char": "int8", "byte": "uint8"}.get(_name, _name)
    TABLE[_name] = lambda x, memory_format=None, to=_to: x.astype(to)


@entry("round", "round:decimals_0", "round:decimals_3", "round:decimals_neg_3")
def _round(x: T, decimals: int = 0) -> T:
    scale = 10.0 ** abs(decimals)
    if decimals == 0:
        return cr.round(x)
    return cr.round(x * scale) / scale if decimals > 0 else cr.round(x / scale) * scale


@entry("nan_to_num")
def _nan_to_num(x: T, nan: Any = None, posinf: Any = None, neginf: Any = None) -> T:
    most = float(np.finfo(x.dtype.numpy).max)
    x = cr.where(x == math.inf, most if posinf is None else float(posinf), x)
    x = cr.where(x == -math.inf, -most if neginf is None else float(neginf), x)
    return cr.where(cr.isnan(x), 0.0 if nan is None else float(nan), x)


@entry("sinc")
def _sinc(x: T) -> T:
    z = cr.where(x == 0, 1.0, x) * math.pi
    return cr.where(x == 0, 1.0, cr.sin(z) / z)


@entry("logit")
def _logit(x: T, eps: float | None = None) -> T:
    p = x if eps is None else cr.clip(x, eps, 1 - eps)
    return cr.log(p / (1 - p))


@entry("nn.functional.elu")
def _elu(x: T, alpha: float = 1.0, inplace: bool = False) -> T:
    return cr.elu(x, alpha)


@entry("nn.functional.celu")
def _celu(x: T, alpha: float = 1.0, inplace: bool = False) -> T:
    return cr.where(x <= 0, alpha * cr.expm1(cr.minimum(x, 0.0) / alpha), x)


@entry("nn.functional.leaky_relu")
def _leaky_relu(x: T, negative_slope: float = 0.01, inplace: bool = False) -> T:
    return cr.leaky_relu(x, negative_slope)


@entry("nn.functional.prelu")
def _prelu(x: T, weight: T) -> T:
    weight = cr.reshape(weight, (-1, *[1] * (x.ndim - 2)) if x.ndim > 1 else x.shape[:0])
    return cr.where(x > 0, x, weight * x)


@entry("nn.functional.rrelu")
def _rrelu(x: T, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, **_: Any) -> T:
    need(not training, "random numbers")
    return cr.leaky_relu(x, (lower + upper) / 2)


@entry("nn.functional.threshold")
def _threshold(x: T, threshold: float, value: float, inplace: bool = False) -> T:
    return cr.where(x <= threshold, value, x)


@entry("nn.functional.hardtanh")
def _hardtanh(x: T, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> T:
    inside = cr.where(x <= min_val, min_val, cr.where(x >= max_val, max_val, x))
    return inside


@entry("nn.functional.softshrink")
def _softshrink(x: T, lambd: float = 0.5) -> T:
    return cr.where(x > lambd, x - lambd, cr.where(x < -lambd, x + lambd, x * 0.0))


@entry("nn.functional.hardshrink")
def _hardshrink(x: T, lambd: float = 0.5) -> T:
    return cr.where((x >= -lambd) & (x <= lambd), 0.0, x)


@entry("nn.functional.softplus")
def _softplus(x: T, beta: float = 1.0, threshold: float = 20.0) -> T:
    return cr.where(x * beta > threshold, x, cr.softplus(x * beta) / beta)


@entry("nn.functional.glu")
def _glu(x: T, dim: int = -1) -> T:
    half = x.shape[dim] // 2
    a, b = (narrow(x, dim, start, half) for start in (0, half))
    return a * cr.sigmoid(b)


@entry("special.log_ndtr")
def _log_ndtr(x: T) -> T:
    return cr.log(0.5 * cr.erfc(x * -math.sqrt(0.5)))


# elementwise, of more


def binary(function: Callable[..., T]) -> Callable[..., T]:
    def spelled(x: Any, y: Any = None, *, other: Any = None) -> T:
        return function(*joined(x, other if y is None else y))

    return spelled


TABLE.update(
    {
        name: binary(function)
        for name, function in {
            "mul": cr.multiply,
            "true_divide": cr.divide,
            "div:no_rounding_mode": cr.divide,
            "floor_divide": cr.floor_divide,
            "remainder": cr.remainder,
            "atan2": cr.atan2,
            "copysign": cr.copysign,
            "eq": cr.equal,
            "ne": cr.not_equal,
            "lt": cr.less,
            "le": cr.less_equal,
            "gt": cr.greater,
            "ge": cr.greater_equal,
            "hypot": cr.hypot,
            "logaddexp": cr.logaddexp,
            "logaddexp2": lambda x, y: cr.logaddexp(x * math.log(2), y * math.log(2)) / math.log(2),
            "maximum": cr.maximum,
            "minimum": cr.minimum,
            "max:binary": cr.maximum,
            "min:binary": cr.minimum,
            "fmax": lambda x, y: cr.where((x >= y) | cr.isnan(y), x, y),
            "fmin": lambda x, y: cr.where((x <= y) | cr.isnan(y), x, y),
            "fmod": lambda x, y: x - cr.trunc(x / y) * y,
            "pow": cr.pow,
            "xlogy": cr.xlogy,
            "special.xlog1py": lambda x, y: cr.xlogy(x, 1 + y),
            "logical_and": cr.logical_and,
            "logical_or": cr.logical_or,
            "logical_xor": cr.logical_xor,
            "bitwise_and": cr.bitwise_and,
            "bitwise_or": cr.bitwise_or,
            "bitwise_xor": cr.bitwise_xor,
            "heaviside": lambda x, y: cr.where(x == 0, y, cr.where(x > 0, 1.0, 0.0)),
            "__radd__": lambda x, y: y + x,
            "__rdiv__": lambda x, y: y / x,
            "__rmul__": lambda x, y: y * x,
            "__rmod__": lambda x, y: y % x,
            "__rpow__": lambda x, y: y**x,
            "__rsub__": lambda x, y: y - x,
            "__rmatmul__": lambda x, y: y @ x,
            "ldexp": lambda x, y: x * cr.exp2(y),
        }.items()
    }
)


@entry("float_power")
def _float_power(x: T, y: Any) -> T:
    wide_y = y.astype("float64") if is_tensor(y) else float(y)
    return cr.pow(x.astype("float64"), wide_y)


@entry("add")
def _add(x: T, y: Any, alpha: float = 1) -> T:
    x, y = joined(x, y)
    return x + (y if alpha == 1 else y * like(alpha, y))


@entry("sub")
def _sub(x: T, y: Any, alpha: float = 1) -> T:
    x, y = joined(x, y)
    return x - (y if alpha == 1 else y * like(alpha, y))


@entry("rsub")
def _rsub(x: T, y: Any, alpha: float = 1) -> T:
    x, y = joined(x, y)
    return y - (x if alpha == 1 else x * like(alpha, x))


@entry("div:trunc_rounding", "div:floor_rounding")
def _div(x: T, y: Any, rounding_mode: str | None = None) -> T:
    x, y = joined(x, y)
    return cr.trunc(cr.stop_gradient(x / y)) if rounding_mode == "trunc" else x // y


@entry("isclose")
def _isclose(x: T, y: T, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> T:
    near = (x == y) | (cr.isfinite(x - y) & (cr.abs(x - y) <= atol + rtol * cr.abs(y)))
    return near | (cr.isnan(x) & cr.isnan(y)) if equal_nan else near


@entry("clamp")
def _clamp(x: T, low: Any = None, high: Any = None, **bounds: Any) -> T:
    low, high = bounds.get("min", low), bounds.get("max", high)
    low, high = (None if b is None else like(b, x) for b in (low, high))
    return cr.clip(x, low, high)


@entry("clamp_min")
def _clamp_min(x: T, low: Any) -> T:
    return cr.clip(x, min=like(low, x))


@entry("clamp_max")
def _clamp_max(x: T, high: Any) -> T:
    return cr.clip(x, max=like(high, x))


@entry("lerp")
def _lerp(x: T, end: T, weight: Any) -> T:
    return x + like(weight, x) * (end - x)


@entry("addcmul")
def _addcmul(x: T, a: T, b: T, value: float = 1) -> T:
    return x + like(value, a) * a * b


@entry("addcdiv")
def _addcdiv(x: T, a: T, b: T, value: float = 1) -> T:
    return x + like(value, a) * a / b


@entry("where")
def _where(x: T, condition: T, y: Any) -> T:
    return cr.where(condition, x, y)


@entry("masked_fill")
def _masked_fill(x: T, mask: T, value: Any) -> T:
    return cr.where(mask, like(value, x), x)
