"""What users give `fit`: its data, where its steps come from, callbacks, a checkpoint to go on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from chainrule.errors import CompileError, FeedError
from chainrule.lang.arguments import is_several
from chainrule.nn.numbers import check, check_int
from chainrule.train import checkpoint
from chainrule.train.callbacks.base import Callback
from chainrule.train.callbacks.saving import Checkpoint
from chainrule.train.data import Table, is_batches, is_mapped, minibatch, table, weighed
from chainrule.train.problem import Problem
from chainrule.train.source import OneByOne, Source, Whole, by_rows
from chainrule.train.step import TrainingStep

Array = np.ndarray[Any, Any]


def split(data: Table, part: float, given: Any) -> tuple[Table, Any]:
    """Data without its last part, which becomes the validation data."""
    if not part:
        return data, given
    if given is not None:
        raise FeedError("validation_data and validation_split can't both be given")
    part = check("validation_split", part, below=1.0)
    first = int(data.rows * (1 - part))
    if not 0 < first < data.rows:
        raise FeedError(f"{part} of {data.rows} rows leaves nothing to train on, or to validate")
    return data.part(slice(0, first)), data.part(slice(first, None))


def of_table(step: TrainingStep, problem: Problem, data: Table, size: int, shuffle: bool) -> Source:
    """Arrays whole, unless one lies in a file and would have to be converted."""
    wanted = {n: t.node.dtype.numpy for n, t in {**problem.inputs, **problem.targets}.items()}
    copied = any(
        is_mapped(a) and not (a.flags.c_contiguous and a.dtype == wanted.get(n))
        for n, a in data.feeds.items()
    )
    if not copied:
        return Whole(step, data, size, shuffle)
    opened = by_rows(data, step, size, shuffle)
    return OneByOne(step, opened, None, data.weight is not None, -(-data.rows // size), owns=True)


def of_batches(
    given: Any,
    build: Callable[[Table], TrainingStep],
    classes: Mapping[Any, float] | None,
    steps: int | None,
    epochs: int,
) -> Source:
    """Minibatches that are given; the first tells what the step is to be like."""
    if steps is not None:
        check_int("steps_per_epoch", steps, 1)
    items = iter(given)
    once = items is given
    if once and steps is None and epochs > 1:
        raise FeedError(
            "an iterator is used up after one epoch",
            "steps_per_epoch=n takes n minibatches of it an epoch; a list, or an object whose "
            "__iter__ begins anew, is gone through once an epoch",
        )
    try:
        first = next(items)
    except StopIteration:
        raise FeedError("there is no data: no minibatch came") from None
    data = weighed(minibatch(first), classes)
    step = build(data)
    begun: list[Iterator[Any]] = [chain([first], items)]

    def of_epoch(number: int) -> Iterator[Any]:
        return begun.pop() if begun else iter(given)

    weighted = data.weight is not None
    return OneByOne(step, of_epoch, classes, weighted, steps, lasting=once, owns=not once)


def validation_table(given: Any) -> Table | None:
    """Validation data as a table; None for minibatches that can be gone through once an epoch.

    Raises FeedError for anything else.
    """
    if isinstance(given, Table):
        return given
    if isinstance(given, tuple) and 2 <= len(given) <= 3:
        return table(*given)
    if is_batches(given, None) and iter(given) is not given:
        return None
    raise FeedError(
        "validation_data is (x, y), (x, y, weights), or minibatches that can be gone "
        f"through once an epoch, not {type(given).__name__}"
    )


def callbacks_of(given: Any) -> list[Callback]:
    """Callbacks as a list: one, several or None. Raises CompileError for what is none."""
    several = () if given is None else given if is_several(given) else (given,)
    hooks = list(several)
    for hook in hooks:
        if not isinstance(hook, Callback):
            raise CompileError(
                f"a callback is an object of a class made from cr.callbacks.Callback, not {hook!r}"
            )
    return hooks


def resumed(path: Any, hooks: Sequence[Callback]) -> dict[str, Array] | None:
    """The checkpoint to go on from, if there is one. Raises ArtifactError."""
    if path is not None:
        return checkpoint.read(path)
    found = (h.path for h in hooks if isinstance(h, Checkpoint) and h.resume)
    return next((checkpoint.read(p) for p in found if os.path.exists(p)), None)
