"""Metrics by the names that they are told by, and optimizers as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from chainrule.errors import ArtifactError, CompileError
from chainrule.lang.tensor import Tensor
from chainrule.nn import metrics as measures
from chainrule.nn import optim
from chainrule.nn.optim import Optimizer
from chainrule.nn.schedules import Schedule

Measure = Callable[..., Tensor]


def metrics(given: Any) -> dict[str, Measure]:
    """Metrics by the names that they are told by. Raises CompileError for what is none."""
    if isinstance(given, str) or callable(given):
        given = [given]
    if isinstance(given, Mapping):
        return {str(name): measures.get(metric) for name, metric in given.items()}
    if not isinstance(given, Sequence):
        raise CompileError(f"metrics are a list of names or functions, or a dict, not {given!r}")
    found: dict[str, Measure] = {}
    for metric in given:
        name = metric if isinstance(metric, str) else getattr(metric, "__name__", "metric")
        if name in found or name == "loss":
            raise CompileError(
                f"two numbers would be called {name!r}", f'name them: metrics={{"{name}2": ...}}'
            )
        found[name] = measures.get(metric)
    return found


def told(given: Optimizer) -> dict[str, Any]:
    """An optimizer as data: its kind and its numbers; of one of the user's own the kind alone.

    A learning rate that is a schedule is none of its numbers.
    """
    kind = type(given).__name__
    numbers = {n: None if n == "lr" and callable(v) else v for n, v in vars(given).items()}
    known = optim.BY_NAME.get(kind.lower()) is type(given)
    if not known or not all(_is_number(v) for v in numbers.values()):
        return {"kind": kind}
    return {"kind": kind, "numbers": dict(numbers)}


def retold(data: Any, schedule: Schedule | None) -> Optimizer | None:
    """The optimizer that data tells of, None if it tells a kind alone. Raises ArtifactError."""
    if not isinstance(data, dict) or not isinstance(data.get("kind"), str):
        raise ArtifactError(f"{str(data)[:60]} is no optimizer")
    if "numbers" not in data:
        return None
    cls, numbers = optim.BY_NAME.get(data["kind"].lower()), data["numbers"]
    if cls is None:
        raise ArtifactError(f"there is no optimizer {data['kind'][:60]!r}")
    made = cls() if schedule is None else cls(schedule)
    wanted = vars(made)
    if not isinstance(numbers, dict) or numbers.keys() != wanted.keys():
        raise ArtifactError(f"{cls.__name__} has the numbers {', '.join(wanted)}")
    for name, value in numbers.items():
        if name == "lr" and schedule is not None:
            continue
        if not _is_number(value) or (type(wanted[name]) in (bool, int)) != (
            type(value) in (bool, int)
        ):
            raise ArtifactError(f"{cls.__name__}: {name} is no {value!r}")
        setattr(made, name, value)
    for name, kind in made.ranges().items():
        kind.check(name, numbers[name])
    return made


def _is_number(value: Any) -> bool:
    return value is None or type(value) in (bool, int, float)
