"""Metrics by the names that they are told by, and optimizers as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from glob import escape
from typing import Any

from chainrule.errors import ArtifactError, CompileError
from chainrule.lang.tensor import Tensor
from chainrule.nn import metrics as measures
from chainrule.nn import optim
from chainrule.nn.optim import Groups, Optimizer
from chainrule.nn.optim.groups import Members
from chainrule.nn.optim.optimizer import COMMON
from chainrule.nn.schedules import Schedule

Measure = Callable[..., Tensor]
#: the numbers that groups of parameters have together
_OVER_ALL = (*COMMON, "accumulate")


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


def members(optimizer: Optimizer) -> list[Optimizer]:
    """An optimizer; of groups that of the rest, then each group's."""
    if isinstance(optimizer, Groups):
        return [optimizer.rest, *optimizer.groups.values()]
    return [optimizer]


def told(given: Optimizer) -> dict[str, Any]:
    """An optimizer as data: its kind and its numbers; of one of the user's own the kind alone.

    A learning rate that is a schedule is none of its numbers. Of groups each is told, with the
    patterns of names that are in it.
    """
    kind = type(given).__name__
    if type(given) is Groups:
        parts = [told(m) for m in members(given)]
        if not all("numbers" in part for part in parts):
            return {"kind": kind}
        numbers = {name: getattr(given, name) for name in _OVER_ALL}
        groups = [_patterns(members) for members in given.groups]
        return {"kind": kind, "numbers": numbers, "groups": groups, "members": parts}
    numbers = {n: None if n == "lr" and callable(v) else v for n, v in vars(given).items()}
    known = optim.BY_NAME.get(kind.lower()) is type(given)
    if not known or not all(_is_number(v) for v in numbers.values()):
        return {"kind": kind}
    return {"kind": kind, "numbers": dict(numbers)}


def _patterns(members: Members) -> list[str]:
    """The patterns of the names of a group's members; a parameter's name fits itself alone."""
    of = members if isinstance(members, tuple) else (members,)
    return [m if isinstance(m, str) else escape(str(m.name)) for m in of]


def retold(data: Any, schedules: Sequence[Schedule | None]) -> Optimizer | None:
    """The optimizer that data tells of, None if it tells a kind alone; `schedules` are those of its
    members. Raises ArtifactError.
    """
    if not isinstance(data, dict) or not isinstance(data.get("kind"), str):
        raise ArtifactError(f"{str(data)[:60]} is no optimizer")
    if "numbers" not in data:
        return None
    if data["kind"] == Groups.__name__:
        return _regrouped(data, schedules)
    if len(schedules) != 1:
        raise ArtifactError(f"{data['kind'][:60]} has one schedule, not {len(schedules)}")
    (schedule,) = schedules
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


def _regrouped(data: Mapping[str, Any], schedules: Sequence[Schedule | None]) -> Groups:
    """The groups that data tells of. Raises ArtifactError."""
    numbers, groups, parts = data["numbers"], data.get("groups"), data.get("members")
    if not isinstance(numbers, dict) or numbers.keys() != set(_OVER_ALL):
        raise ArtifactError(f"groups have the numbers {', '.join(_OVER_ALL)}")
    if not isinstance(groups, list) or not isinstance(parts, list) or not parts:
        raise ArtifactError("its groups are none")
    if len(parts) != len(groups) + 1 or len(schedules) != len(parts):
        raise ArtifactError(f"{len(groups)} groups have {len(parts)} optimizers")
    if not all(isinstance(g, list) and all(isinstance(n, str) for n in g) for g in groups):
        raise ArtifactError("its groups are no patterns of names")
    rest, *made = (retold(part, [s]) for part, s in zip(parts, schedules, strict=True))
    if rest is None or None in made:
        raise ArtifactError("a group has no optimizer")
    found: dict[Members, Optimizer]
    found = {tuple(g): m for g, m in zip(groups, made, strict=True) if m is not None}
    return Groups(rest, found, **numbers)


def _is_number(value: Any) -> bool:
    return value is None or type(value) in (bool, int, float)
