"""Element types and tensor types."""

from __future__ import annotations

from enum import Enum
from functools import cache

import numpy as np

from chainrule.errors import DTypeError, ShapeError
from chainrule.given import is_int
from chainrule.ir.size import Dim, Shape, Size
from chainrule.records import dataclass

MAX_RANK = 32
#: of 8 bytes each they are still counted by a signed number of 64 bits
MAX_ELEMENTS = 2**59
_SCALAR = np.generic


class Kind(Enum):
    """The families of the array API standard, each of which promotes within itself."""

    BOOL = "bool"
    UINT = "unsigned integer"
    INT = "signed integer"
    FLOAT = "real floating-point"


@dataclass(frozen=True)
class DType:
    """An element type: its standard name, the short name it prints by, its family, its bits."""

    name: str
    short: str
    kind: Kind
    bits: int

    @property
    def numpy(self) -> np.dtype[np.generic]:
        """The NumPy dtype of the same name; of bfloat16 that of ml_dtypes, or DTypeError."""
        return _bfloat16() if self.name == "bfloat16" else np.dtype(self.name)

    @property
    def wide(self) -> DType:
        """The type that its arithmetic is done in: float32 for bfloat16, itself for others."""
        return float32 if self.name == "bfloat16" else self

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return max(self.bits // 8, 1)

    @property
    def is_float(self) -> bool:
        return self.kind is Kind.FLOAT

    @property
    def is_integer(self) -> bool:
        return self.kind in (Kind.INT, Kind.UINT)

    @property
    def is_bool(self) -> bool:
        return self.kind is Kind.BOOL

    @property
    def bounds(self) -> tuple[int, int]:
        """The smallest and the largest integer of an integer type."""
        low = -(2 ** (self.bits - 1)) if self.kind is Kind.INT else 0
        return low, low + 2**self.bits - 1

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The same as `numpy`: by this name NumPy finds it, in `np.zeros(3, x.dtype)`."""
        return self.numpy

    def __eq__(self, other: object) -> bool:
        if isinstance(other, DType):
            return self is other or self.name == other.name
        if isinstance(other, str):
            return self.name == other
        if isinstance(other, type) and issubclass(other, _SCALAR):
            return _is_concrete(other) and self.name == np.dtype(other).name
        return self.name == other.name if isinstance(other, np.dtype) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.name)  # no two share one; types are keys everywhere

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"chainrule.{self.name}"


def _is_concrete(scalar: type[np.generic]) -> bool:
    """Whether a NumPy type is that of elements, and not, as np.floating is, one of such types."""
    try:
        np.dtype(scalar)
    except TypeError:
        return False
    return True


@cache
def _bfloat16() -> np.dtype[np.generic]:
    try:
        import ml_dtypes
    except ImportError:
        raise DTypeError(
            "NumPy has no bfloat16 of its own", "install ml_dtypes, which gives it one"
        ) from None
    known: np.dtype[np.generic] = np.dtype(ml_dtypes.bfloat16)
    return known


bool_ = DType("bool", "bool", Kind.BOOL, 1)
int8, int16 = DType("int8", "i8", Kind.INT, 8), DType("int16", "i16", Kind.INT, 16)
int32, int64 = DType("int32", "i32", Kind.INT, 32), DType("int64", "i64", Kind.INT, 64)
uint8, uint16 = DType("uint8", "u8", Kind.UINT, 8), DType("uint16", "u16", Kind.UINT, 16)
uint32, uint64 = DType("uint32", "u32", Kind.UINT, 32), DType("uint64", "u64", Kind.UINT, 64)
float32, float64 = DType("float32", "f32", Kind.FLOAT, 32), DType("float64", "f64", Kind.FLOAT, 64)
#: the upper half of a float32: memory for numbers, whose arithmetic is float32's, rounded once
bfloat16 = DType("bfloat16", "bf16", Kind.FLOAT, 16)

_ALL = (
    bool_, int8, int16, int32, int64, uint8, uint16, uint32, uint64, bfloat16, float32, float64,
)  # fmt: skip
DTYPES = {d.name: d for d in _ALL}


def dtype(of: object) -> DType:
    """The element type that a name, a NumPy dtype, a Python scalar type or a `DType` stands for."""
    if isinstance(of, DType):
        return of
    if of is None:
        raise DTypeError("None is no element type", f"there are {', '.join(DTYPES)}")
    try:
        name = {bool: "bool", int: "int64", float: "float32"}.get(of) or np.dtype(of).name  # type: ignore[call-overload]
    except (TypeError, ValueError):
        name = str(of)
    if name.startswith("complex"):
        raise DTypeError(
            f"{name} is no element type here: numbers are real",
            "keep the real and the imaginary part as two tensors",
        )
    if name not in DTYPES:
        raise DTypeError(f"no element type is called {name!r}", f"there are {', '.join(DTYPES)}")
    return DTYPES[name]


def promote(a: DType, b: DType) -> DType:
    """The type two tensors meet in, by the array API standard's table.

    Raises DTypeError where the standard leaves it open (a float with an integer, a bool with
    anything else): say with `astype` which is meant.
    """
    if a == b:
        return a
    if a.kind is b.kind:
        return a if a.bits >= b.bits else b
    if a.is_integer and b.is_integer:
        unsigned, signed = (a, b) if a.kind is Kind.UINT else (b, a)
        if unsigned.bits < signed.bits:
            return signed
        wider = {8: int16, 16: int32, 32: int64}
        if unsigned.bits in wider:
            return wider[unsigned.bits]
    raise DTypeError(
        f"{a} and {b} do not promote to one type",
        "the array API standard leaves it open: say which you mean with x.astype(...)",
    )


@dataclass(frozen=True)
class TensorType:
    """What is known of a tensor before it is computed: its element type and its shape."""

    dtype: DType
    shape: Shape

    @property
    def rank(self) -> int:
        return len(self.shape)

    def with_shape(self, shape: Shape) -> TensorType:
        return TensorType(self.dtype, shape)

    def with_dtype(self, dtype: DType) -> TensorType:
        return TensorType(dtype, self.shape)

    def __str__(self) -> str:
        return f"{self.dtype.short}[{', '.join(map(str, self.shape))}]"


def check_shape(shape: object) -> Shape:
    """A shape from an int, a name, a `Size` or a sequence of them. Raises ShapeError."""
    dims = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
    if len(dims) > MAX_RANK:
        raise ShapeError(f"a tensor has at most {MAX_RANK} axes, not {len(dims)}")
    out = tuple(_check_dim(d) for d in dims)
    check_count(out)
    return out


def check_count(shape: Shape) -> None:
    """Refuse a shape whose known sizes alone make more bytes than an address can count."""
    known = 1
    for d in shape:
        known *= d if isinstance(d, int) else 1
    if known >= MAX_ELEMENTS and 0 not in shape:
        raise ShapeError(
            f"the shape {_show(shape)} has more elements than 64 bits can count the bytes of",
            f"the sizes that are known may make {MAX_ELEMENTS} together",
        )


def _check_dim(dim: object) -> Dim:
    if isinstance(dim, str):
        if not dim.isidentifier():
            raise ShapeError(f"a symbolic size needs a name like 'batch', not {dim!r}")
        return Size.symbol(dim)
    if isinstance(dim, Size):
        return dim
    if is_int(dim):
        if dim < 0:
            raise ShapeError(f"a size can't be negative: {dim}")
        return int(dim)
    raise ShapeError(f"a size is an int, a name or a Size, not {dim!r}")


def _show(shape: Shape) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"
