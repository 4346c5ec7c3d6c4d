"""Data for a model: arrays that are cut into minibatches, or minibatches that come one by one."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from chainrule.errors import FeedError
from chainrule.given import is_int
from chainrule.lang.tensor import Tensor
from chainrule.nn.numbers import check
from chainrule.records import dataclass
from chainrule.train.problem import INPUT, WEIGHT, target_name

Array = np.ndarray[Any, Any]
#: elements that are looked at in one go
_PIECE = 2**20


@dataclass(frozen=True)
class Table:
    """Arrays of one number of rows: inputs by name, labels (None, one or several), weights.

    `alone` says that there is one input, which was given without a name.
    """

    inputs: Mapping[str, Array]
    target: Any = None
    weight: Array | None = None
    alone: bool = True

    @property
    def targets(self) -> dict[str, Array]:
        """The labels by name."""
        if self.target is None:
            return {}
        if isinstance(self.target, Mapping):
            return dict(self.target)
        return {target_name(self.inputs): self.target}

    @property
    def feeds(self) -> dict[str, Array]:
        """Everything by name."""
        weight = {} if self.weight is None else {WEIGHT: self.weight}
        return {**self.inputs, **self.targets, **weight}

    @property
    def rows(self) -> int:
        """How many rows there are. Raises FeedError where that is not one number, or 0."""
        counts = {n: len(a) for n, a in self.feeds.items()}
        count = next(iter(counts.values()))
        if any(n != count for n in counts.values()):
            shown = ", ".join(f"{name} has {n}" for name, n in counts.items())
            raise FeedError(f"data and labels have one number of rows: {shown}")
        if count == 0:
            raise FeedError(f"there is no data: {', '.join(counts)} of 0 rows")
        return count

    def part(self, rows: Any) -> Table:
        """Some rows: a view for a slice, a copy for row numbers."""
        targets = self.target
        if isinstance(targets, Mapping):
            targets = {n: a[rows] for n, a in targets.items()}
        elif targets is not None:
            targets = targets[rows]
        weight = None if self.weight is None else self.weight[rows]
        inputs = {n: a[rows] for n, a in self.inputs.items()}
        return replace(self, inputs=inputs, target=targets, weight=weight)


def table(x: Any, y: Any = None, weight: Any = None) -> Table:
    """Data as arrays that share the memory they are in, if they are in an array's."""
    alone = not isinstance(x, Mapping)
    given = {INPUT: x} if alone else dict(x)
    if not given or not all(isinstance(n, str) for n in given):
        raise FeedError("inputs are an array, or arrays by name")
    inputs = {n: as_array(n, a) for n, a in given.items()}
    if isinstance(y, Mapping):
        target: Any = {n: as_array(n, a) for n, a in y.items()}
    else:
        target = None if y is None else as_array("y", y)
    made = Table(inputs, target, None, alone)
    rows = made.rows
    return made if weight is None else replace(made, weight=_weights(weight, rows))


def as_array(name: str, value: Any) -> Array:
    """The value as an array, at least of rank 1. Raises FeedError for what is none."""
    if isinstance(value, np.ma.MaskedArray):
        raise FeedError(f"{name} is a masked array", "fill it first: x.filled(0)")
    if hasattr(value, "toarray") and hasattr(value, "nnz"):
        raise FeedError(f"{name} is sparse", "make it dense first: x.toarray()")
    try:
        if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
            array = np.from_dlpack(value)
        else:
            array = np.asarray(value)
    except Exception as error:  # whatever a foreign __array__ raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FeedError(f"{name} can't be read as an array: {reason}") from None
    if array.ndim == 0:
        raise FeedError(f"{name} is {value!r}: data has rows along its first axis")
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise FeedError(f"{name} is an array of {array.dtype}: a net computes with numbers")
    return array


def _weights(given: Any, rows: int) -> Array:
    weight = as_array(WEIGHT, given)
    if weight.shape != (rows,):
        raise FeedError(f"{WEIGHT} is one number a row, ({rows},), not of shape {weight.shape}")
    weight = weight.astype(np.float32)
    if not np.isfinite(weight).all() or (weight < 0).any():
        at = int(np.argmax(~np.isfinite(weight) | (weight < 0)))
        raise FeedError(f"{WEIGHT} is {weight[at]} in row {at}: weights are finite, from 0 on")
    return weight


def weighed(data: Table, classes: Mapping[Any, float] | None) -> Table:
    """The data with each row's weight multiplied by that of its class; a class not named has 1."""
    if classes is None:
        return data
    labels = data.target
    if not isinstance(classes, Mapping):
        raise FeedError(f"class_weight is a dict from class to weight, not {classes!r}")
    if not isinstance(labels, np.ndarray) or labels.ndim != 1 or labels.dtype.kind not in "biu":
        raise FeedError("class_weight needs labels that are one class number a row")
    factor = np.ones(len(labels), np.float32)
    for label, weight in classes.items():
        if not is_int(label):
            raise FeedError(
                f"class_weight has a weight for {label!r}, which is no class number",
                f"labels are {labels.dtype}: {{0: 1.0, 1: 2.0}}",
            )
        factor[labels == label] = check(f"class_weight[{label}]", weight)
    own = factor if data.weight is None else factor * data.weight
    return replace(data, weight=_weights(own, len(labels)))


def check_finite(data: Mapping[str, Array], where: str = "") -> None:
    """Raise FeedError at the first NaN or infinity, with its input, row and feature."""
    for name, array in data.items():
        if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
            continue
        rows = max(1, _PIECE // max(1, array[:1].size))
        for start in range(0, len(array), rows):
            finite = np.isfinite(np.asarray(array[start : start + rows], dtype=None))
            if not finite.all():
                raise _not_finite(name, array, start, finite, where)


def _not_finite(name: str, array: Array, start: int, finite: Array, where: str) -> FeedError:
    at = [int(i) for i in np.unravel_index(int(np.argmin(finite)), finite.shape)]
    at[0] += start
    place = f"row {at[0]}" + (f", feature {', '.join(map(str, at[1:]))}" if at[1:] else "")
    value = array[tuple(at)]
    return FeedError(
        f"{where}{name} holds {value} in {place}",
        "a net can't learn from it: mend the data, or leave the row out; check_data=False goes on",
    )


def is_mapped(array: Array) -> bool:
    """Whether an array lies in a file that is mapped to memory."""
    owner: Any = array
    while owner is not None:
        if isinstance(owner, np.memmap | mmap.mmap):
            return True
        owner = owner.obj if isinstance(owner, memoryview) else getattr(owner, "base", None)
    return False


def is_batches(x: Any, y: Any) -> bool:
    """Whether data is something that gives minibatches, and not arrays."""
    if y is not None or isinstance(x, Mapping) or hasattr(x, "__array__"):
        return False
    if isinstance(x, (list, tuple)):
        return isinstance(x, list) and bool(x) and isinstance(x[0], tuple)
    return isinstance(x, Iterable)


def minibatch(item: Any) -> Table:
    """A minibatch as (x, y), (x, y, weights), or x alone."""
    if isinstance(item, tuple):
        if not 1 <= len(item) <= 3:
            raise FeedError(f"a minibatch is (x, y) or (x, y, weights), not {len(item)} things")
        return table(*item)
    return table(item)


def gathered(batches: Iterable[Any]) -> Iterator[Table]:
    """Each minibatch of some. Raises FeedError if there is none."""
    empty = True
    for item in batches:
        empty = False
        yield minibatch(item)
    if empty:
        raise FeedError("there is no data: no minibatch came")


def check_fits(data: Table, leaves: Mapping[str, Tensor]) -> None:
    """Raise FeedError for data that does not fit the leaves that it is for."""
    for name, leaf in leaves.items():
        array = data.feeds.get(name)
        if array is None:
            raise FeedError(f"{name} is not given: it is {leaf.type}")
        if array.shape[1:] != leaf.shape[1:]:
            raise FeedError(
                f"{name} is {leaf.type}, not of shape {array.shape}",
                "the model was made for the data it first saw",
            )
