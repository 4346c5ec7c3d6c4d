"""From what users give `fit` to where its steps come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any

from chainrule.errors import FeedError
from chainrule.nn.numbers import check, check_int
from chainrule.train.data import Table, is_mapped, minibatch, weighed
from chainrule.train.problem import Problem
from chainrule.train.source import OneByOne, Source, Whole, by_rows
from chainrule.train.step import TrainingStep


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
