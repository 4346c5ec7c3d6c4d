"""Element types and what the array API standard asks about them; its constants and its namespace.

An element type is a `DType`: `cr.float32` is one, equal to "float32" and to `numpy.float32`.
"""

from __future__ import annotations

import builtins
import math

import numpy as np

from chainrule.errors import DTypeError
from chainrule.ir.types import DTYPES, MAX_RANK, DType, Kind, promote
from chainrule.ir.types import dtype as _dtype
from chainrule.lang.tensor import Tensor, as_node, check_device
from chainrule.records import dataclass

bool = DTYPES["bool"]
int8, int16, int32, int64 = (DTYPES[f"int{bits}"] for bits in (8, 16, 32, 64))
uint8, uint16, uint32, uint64 = (DTYPES[f"uint{bits}"] for bits in (8, 16, 32, 64))
bfloat16, float32, float64 = DTYPES["bfloat16"], DTYPES["float32"], DTYPES["float64"]
e, pi, inf, nan = math.e, math.pi, math.inf, math.nan
newaxis = None

#: the types that the standard names; there may be more
STANDARD = (
    bool, int8, int16, int32, int64, uint8, uint16, uint32, uint64, float32, float64,
)  # fmt: skip
_KINDS: dict[str, tuple[Kind, ...]] = {
    "bool": (Kind.BOOL,),
    "signed integer": (Kind.INT,),
    "unsigned integer": (Kind.UINT,),
    "integral": (Kind.INT, Kind.UINT),
    "real floating": (Kind.FLOAT,),
    "complex floating": (),
    "numeric": (Kind.INT, Kind.UINT, Kind.FLOAT),
}
OfType = Tensor | DType | str | type
Scalar = builtins.bool | int | float


@dataclass(frozen=True)
class FloatInfo:
    """The limits of a float type, as Python floats; `bits` of one element."""

    bits: int
    eps: float
    max: float
    min: float
    smallest_normal: float
    dtype: DType


@dataclass(frozen=True)
class IntegerInfo:
    """The limits of an integer type; `bits` of one element."""

    bits: int
    max: int
    min: int
    dtype: DType


def finfo(type: OfType, /) -> FloatInfo:
    """The limits of a float type, or of a Tensor's. Raises DTypeError for others."""
    of = _type_of(type)
    if not of.is_float:
        raise DTypeError(f"finfo is of float types, not of {of}", "integers have cr.iinfo")
    significand = {"bfloat16": 8, "float32": 24, "float64": 53}[of.name]
    least, most = {"float64": (-1022, 1024)}.get(of.name, (-126, 128))
    top = math.ldexp(2 - math.ldexp(1, 1 - significand), most - 1)
    return FloatInfo(of.bits, math.ldexp(1, 1 - significand), top, -top, math.ldexp(1, least), of)


def iinfo(type: OfType, /) -> IntegerInfo:
    """The limits of an integer type, or of a Tensor's. Raises DTypeError for others."""
    of = _type_of(type)
    if not of.is_integer:
        raise DTypeError(f"iinfo is of integer types, not of {of}", "floats have cr.finfo")
    low, high = of.bounds
    return IntegerInfo(of.bits, high, low, of)


def isdtype(dtype: object, kind: object) -> builtins.bool:
    """Whether an element type is of a kind ("integral"), is a type, or is one of several."""
    if isinstance(kind, tuple):
        return any(isdtype(dtype, k) for k in kind)
    of = _dtype(dtype)
    if isinstance(kind, str) and kind not in DTYPES and kind not in _KINDS:
        raise DTypeError(f"no kind of types is called {kind!r}", f"there are {', '.join(_KINDS)}")
    if isinstance(kind, str) and kind in _KINDS:
        return of.kind in _KINDS[kind]
    return of == _dtype(kind)


def can_cast(from_: OfType, to: object, /) -> builtins.bool:
    """Whether promotion can make one element type, or a Tensor's, into another."""
    of = _dtype(to)
    try:
        return promote(_type_of(from_), of) == of
    except DTypeError:
        return False


def result_type(*arrays_and_dtypes: OfType | Scalar) -> DType:
    """The element type that Tensors, types and numbers meet in; a number takes what is beside it.

    Raises DTypeError where the standard leaves it open, and without a Tensor or a type.
    """
    numbers = [x for x in arrays_and_dtypes if isinstance(x, (builtins.bool, int, float))]
    types = [_type_of(x) for x in arrays_and_dtypes if not isinstance(x, Scalar)]
    if not types:
        raise DTypeError("result_type needs a Tensor or an element type beside numbers")
    out = types[0]
    for other in types[1:]:
        out = promote(out, other)
    for x in numbers:
        fits = out.is_float or (out.is_integer and not isinstance(x, float))
        if isinstance(x, builtins.bool):
            fits = True
        if not fits:
            raise DTypeError(f"{x!r} does not promote to {out}", "convert with .astype(...) first")
    return out


def _type_of(x: object) -> DType:
    return as_node(x).type.dtype if isinstance(x, (Tensor, np.ndarray)) else _dtype(x)


class NamespaceInfo:
    """What the standard lets a library say of itself."""

    def capabilities(self) -> dict[str, builtins.bool | int]:
        """What depends on data is not there: shapes are known before."""
        return {
            "boolean indexing": False,
            "data-dependent shapes": False,
            "max dimensions": MAX_RANK,
        }

    def default_device(self) -> str:
        """The device of every expression: where it runs is said when it is compiled."""
        return "cpu"

    def devices(self) -> list[str]:
        """The devices that `device=` takes."""
        return ["cpu"]

    def default_dtypes(self, *, device: object = None) -> dict[str, DType | None]:
        """The element types of numbers and positions for which none is given; complex: None."""
        check_device(device)
        return {
            "real floating": float32,
            "complex floating": None,
            "integral": int64,
            "indexing": int64,
        }

    def dtypes(
        self, *, device: object = None, kind: str | tuple[str, ...] | None = None
    ) -> dict[str, DType]:
        """The element types of the standard by name, all or those of a kind."""
        check_device(device)
        return {of.name: of for of in STANDARD if kind is None or isdtype(of, kind)}


def __array_namespace_info__() -> NamespaceInfo:
    """What there is to know of this namespace, as the array API standard asks it."""
    return NamespaceInfo()


__array_api_version__ = "2024.12"
