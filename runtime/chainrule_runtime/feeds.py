"""What is fed: anything array-like becomes a C-contiguous array of the declared type, or an error.

The rules stand in docs/feeds.md. Nothing fed is ever written to, and an array that is contiguous,
aligned and of the type already is used where it lies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from chainrule_runtime.errors import FeedError
from chainrule_runtime.manifest import DimData, Tensor, element_type, evaluate, show

Array = np.ndarray[Any, Any]
_NUMBERS = "biuf"
_BFLOAT16 = "bfloat16"  # to NumPy a kind of its own
#: an error shows so many names that nothing has, and so much of each
_NAMES, _NAME = 5, 60


def convert(tensor: Tensor, value: object) -> Array:
    """`value` as a C-contiguous, aligned array of the tensor's element type. Raises FeedError."""
    wanted = element_type(tensor.dtype)
    array = _as_array(tensor, value)
    try:
        if array.dtype != wanted:
            array = _cast(tensor, array, wanted, untyped=_is_untyped(value))
        if not (array.flags.c_contiguous and array.flags.aligned):
            array = np.array(array, order="C")
    except MemoryError:
        _refuse(tensor, f"an array of shape {array.shape}", "there is no room for a copy of it")
    return array


def _as_array(tensor: Tensor, value: object) -> Array:
    what = type(value).__name__
    if isinstance(value, np.ma.MaskedArray):
        _refuse(tensor, "a masked array", "fill it first: x.filled(0)")
    if isinstance(value, np.ndarray):
        return np.asarray(value)
    if hasattr(value, "toarray") and hasattr(value, "nnz"):
        _refuse(tensor, f"a sparse {what}", "make it dense first: x.toarray()")
    try:
        if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
            return np.from_dlpack(value)
        return np.asarray(value)
    except Exception as error:  # whatever a foreign __array__ or __dlpack__ raises
        if str(getattr(value, "dtype", "")).endswith(_BFLOAT16):
            mend = "NumPy can't read its bfloat16: feed it as float32, which is exact, x.float()"
            _refuse(tensor, f"this {what}", mend)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        _refuse(tensor, f"this {what}", f"it can't be read as an array: {reason}")


def _is_untyped(value: object) -> bool:
    """Whether the numbers are Python's own, which have no width."""
    return isinstance(value, (list, tuple, bool, int, float))


def _cast(tensor: Tensor, array: Array, wanted: np.dtype[Any], untyped: bool) -> Array:
    have = array.dtype
    if untyped and array.size == 0:
        return array.astype(wanted)
    if have.kind == "O" and not array.ndim:
        _refuse(tensor, f"a {type(array[()]).__name__}", "feed an array, or a list of numbers")
    if have.kind not in _NUMBERS and have.name != _BFLOAT16:
        _refuse(tensor, _described(have), _MEND.get(have.kind, "convert it to numbers first"))
    fits = untyped and have.kind in "iu" and wanted.kind in "iu"
    if not fits and not np.can_cast(have, wanted, "same_kind"):
        _refuse(tensor, f"an array of {have}", _advice(have, wanted))
    if have.kind in "iu" and wanted.kind in "iu":
        _check_range(tensor, array, wanted)
    with np.errstate(over="ignore", under="ignore"):
        return array.astype(wanted, order="C")


_MEND = {
    "O": 'convert it first, and say to what: x.astype("float32")',
    "c": "feed real and imaginary part as two inputs",
    "M": 'feed numbers: (x - x[0]).astype("float64")',
    "m": 'feed numbers: x / np.timedelta64(1, "s")',
    "V": "feed plain numbers: a record's fields one by one, others through x.astype(...)",
}


def _described(dtype: np.dtype[Any]) -> str:
    if dtype.kind in "OSU":
        return {"O": "Python objects", "S": "bytes", "U": "text"}[dtype.kind]
    return "structured records" if dtype.names else f"an array of {dtype}"


def _advice(have: np.dtype[Any], wanted: np.dtype[Any]) -> str:
    if (have.kind == "f" or have.name == _BFLOAT16) and wanted.kind in "iu":
        return f'floats would lose their fractions: if they are whole, x.astype("{wanted}")'
    if wanted.kind == "b":
        return "say what is true: x != 0"
    return f'if every value fits: x.astype("{wanted}")'


def _refuse(tensor: Tensor, got: str, mend: str) -> NoReturn:
    raise FeedError(f"{tensor.name} is {tensor}: it can't be fed {got}", mend)


def _check_range(tensor: Tensor, array: Array, wanted: np.dtype[Any]) -> None:
    limits = np.iinfo(wanted)
    if array.size == 0 or (array.min() >= limits.min and array.max() <= limits.max):
        return
    where = np.unravel_index(
        int(np.argmax((array < limits.min) | (array > limits.max))), array.shape
    )
    raise FeedError(
        f"{tensor.name} is {tensor}: {place_of(where)} is {array[where]}",
        f"{wanted} holds numbers from {limits.min} to {limits.max}",
    )


def place_of(index: Sequence[Any]) -> str:
    """A position as text: `[3, 0]`, or "the value" of a scalar."""
    return f"the element at [{', '.join(str(int(i)) for i in index)}]" if index else "the value"


class Binder:
    """The feeds of a program: their names, their types, and the sizes that their shapes give."""

    def __init__(
        self, feeds: Sequence[Tensor], sizes: Sequence[str], nonempty: Sequence[DimData] = ()
    ) -> None:
        self.feeds = tuple(feeds)
        self.names = [t.name for t in self.feeds]
        self._wanted = [(t.name, element_type(t.dtype), t) for t in self.feeds]
        self.size_names = tuple(sizes)
        self.nonempty = tuple(nonempty)

    def arrays(self, given: Mapping[str, object]) -> list[Array]:
        """One C-contiguous array for each feed, in order. Raises FeedError."""
        if len(given) != len(self.feeds):
            self.check_names(given)
        arrays: list[Array] = []
        for name, dtype, tensor in self._wanted:
            if name not in given:
                self.check_names(given)
            value = given[name]
            ready = (
                type(value) is np.ndarray
                and value.dtype is dtype
                and value.flags.c_contiguous
                and value.flags.aligned
            )
            arrays.append(value if ready else convert(tensor, value))  # type: ignore[arg-type]
        return arrays

    def check_names(self, given: Mapping[str, object]) -> None:
        """Raise FeedError unless just the names of the feeds are given."""
        import difflib  # for the words of an error alone

        extra = [name for name in given if name not in self.names]
        missing = [name for name in self.names if name not in given]
        if not extra and not missing:
            return
        said = []
        if missing:
            said.append(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not given")
        shown = [str(name)[:_NAME] for name in extra[:_NAMES]]
        if extra:
            rest = f" and {len(extra) - _NAMES} more" if len(extra) > _NAMES else ""
            said.append(f"there is no input {', '.join(map(repr, shown))}{rest}")
        by_lower = {name.lower(): name for name in missing or self.names}
        close = [
            f"{name!r}: did you mean {by_lower[near[0]]!r}?"
            for name in shown
            if (near := difflib.get_close_matches(name.lower(), by_lower, n=1))
        ]
        takes = ", ".join(f"{t.name}: {t}" for t in self.feeds)
        raise FeedError("; ".join(said), *close, f"it takes {takes or 'nothing'}")

    def sizes(self, shapes: Sequence[tuple[int, ...]]) -> dict[str, int]:
        """The number that each symbolic size is. Raises FeedError where shapes do not fit."""
        axes: list[tuple[Tensor, int, int]] = []
        for tensor, shape in zip(self.feeds, shapes, strict=True):
            if len(shape) != len(tensor.shape):
                raise _misshapen(
                    tensor, shape, f"it has {len(shape)} axes, not {len(tensor.shape)}"
                )
            axes += [(tensor, axis, size) for axis, size in enumerate(shape)]
        found: dict[str, int] = {}
        giver: dict[str, Tensor] = {}
        waiting = axes
        while waiting:
            left = [a for a in waiting if not _bind(*a, found, giver)]
            if len(left) == len(waiting):
                tensor, axis, _ = left[0]
                raise FeedError(f"{tensor.name} is {tensor}: axis {axis} does not tell its sizes")
            waiting = left
        by_name = dict(zip(self.names, shapes, strict=True))
        for tensor, axis, size in axes:
            wanted = evaluate(tensor.shape[axis], found)
            if wanted != size:
                raise _disagreement(tensor, axis, wanted, by_name, giver)
        self._check_nonempty(found)
        return found

    def _check_nonempty(self, found: Mapping[str, int]) -> None:
        for dim in self.nonempty:
            if evaluate(dim, found) < 1:
                raise FeedError(
                    f"the size {show(dim)} is {evaluate(dim, found)}",
                    "this program has no meaning for an empty one: it needs at least 1",
                )


def _bind(
    tensor: Tensor, axis: int, size: int, found: dict[str, int], giver: dict[str, Tensor]
) -> bool:
    """Whether an axis has nothing unknown any more; it may give one size, if it is linear in it."""
    dim = tensor.shape[axis]
    unknown = symbols(dim) - found.keys()
    if len(unknown) > 1:
        return False
    if unknown:
        (name,) = unknown
        zero, one, two = (evaluate(dim, {**found, name: n}) for n in (0, 1, 2))
        slope = one - zero
        if slope == 0 or two - one != slope or _divides(dim):
            return False
        value, over = divmod(size - zero, slope)
        if over or value < 0:
            raise FeedError(
                f"{tensor.name} is {tensor}: axis {axis} can't be {size}",
                f"no {name} makes {show(dim)} that number",
            )
        found[name], giver[name] = value, tensor
    return True


def symbols(dim: DimData) -> set[str]:
    """The names of the symbolic sizes in a size."""
    if isinstance(dim, int):
        return set()
    names: set[str] = set()
    for _, factors in dim["terms"]:
        for factor in factors:
            names |= (
                {factor} if isinstance(factor, str) else symbols(factor[1]) | symbols(factor[2])
            )
    return names


def _divides(dim: DimData) -> bool:
    return not isinstance(dim, int) and any(
        not isinstance(f, str) for _, factors in dim["terms"] for f in factors
    )


def _misshapen(tensor: Tensor, shape: tuple[int, ...], *why: str) -> FeedError:
    return FeedError(f"{tensor.name} is {tensor}, got an array of shape {shape}", *why)


def _disagreement(
    tensor: Tensor,
    axis: int,
    wanted: int,
    shapes: Mapping[str, tuple[int, ...]],
    giver: Mapping[str, Tensor],
) -> FeedError:
    shape = shapes[tensor.name]
    why = [f"axis {axis} is {shape[axis]}, not {wanted}"]
    for name in sorted(symbols(tensor.shape[axis])):
        source = giver[name]
        if source.name != tensor.name:
            why.append(f"{name} is what {source.name} of shape {shapes[source.name]} makes it")
    return _misshapen(tensor, shape, *why)
