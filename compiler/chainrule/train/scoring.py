"""Predictions of a model, and its loss and metrics over all rows at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from chainrule.lang.compiled import Function, compile
from chainrule.lang.derive import flatten, rebuilt
from chainrule.lang.tensor import Tensor
from chainrule.train.data import Table, check_fits
from chainrule.train.problem import WEIGHT, Problem
from chainrule.train.step import TrainingStep

Array = np.ndarray[Any, Any]
#: rows that are predicted in one native call, unless told
ROWS = 1024


class Scorer:
    """What a model makes of data in inference. `options` are those of `cr.compile`."""

    def __init__(self, problem: Problem, options: Mapping[str, Any]) -> None:
        self._problem, self._options = problem, dict(options)
        self._functions: dict[bool, tuple[list[str], Function]] = {}

    def predict(self, step: TrainingStep, data: Table, size: int, averaged: bool = False) -> Any:
        """The prediction for each row, made `size` rows at a time."""
        parts = []
        for first in range(0, data.rows, size):
            feeds = self._read(data.part(slice(first, first + size)))
            made = step.predict_averaged(**feeds) if averaged else step.predict(**feeds)
            parts.append(arrays_of(made["prediction"]))
        return rebuilt(self._problem.prediction, [whole(c) for c in zip(*parts, strict=True)])

    def evaluate(self, step: TrainingStep, parts: list[Table], size: int) -> dict[str, float]:
        """Loss and metrics by name, of all parts together."""
        problem = self._problem
        for data in parts:
            check_fits(data, {**problem.inputs, **problem.targets})
        made = [arrays_of(self.predict(step, data, size)) for data in parts]
        weighted = any(data.weight is not None for data in parts)
        names, score = self._score(weighted)
        feeds = dict(zip(names, (whole(c) for c in zip(*made, strict=True)), strict=True))
        feeds |= {n: whole([data.feeds[n] for data in parts]) for n in problem.targets}
        if weighted:
            ones = (np.ones(d.rows, np.float32) if d.weight is None else d.weight for d in parts)
            feeds[WEIGHT] = whole(list(ones))
        found = score(**{n: feeds[n] for n in score.inputs})
        numbers = {name: float(value) for name, value in found.items()}
        if problem.penalty is not None:
            some = self._read(parts[0].part(slice(0, 1)))
            numbers["loss"] += float(step.predict(**some)["penalty"])
        return numbers

    def _read(self, data: Table) -> dict[str, Array]:
        return {n: a for n, a in data.inputs.items() if n in self._problem.read}

    def _score(self, weighted: bool) -> tuple[list[str], Function]:
        """The names of predictions, and loss and metrics as functions of those and of labels."""
        if weighted not in self._functions:
            leaves, measures = self._problem.apart(weighted)
            names = [str(Tensor(n).name) for n in flatten(leaves)]
            self._functions[weighted] = names, compile(measures, **self._options)
        return self._functions[weighted]


def arrays_of(structure: Any) -> list[Array]:
    """The arrays in a structure of tuples, lists and dicts."""
    if isinstance(structure, Mapping):
        return [a for part in structure.values() for a in arrays_of(part)]
    if isinstance(structure, (list, tuple)):
        return [a for part in structure for a in arrays_of(part)]
    return [structure]


def whole(parts: Any) -> Array:
    """Parts as one array, which is not copied if it is alone."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
