"""Models in files: expressions as data, beside the state of a step."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from chainrule import driver
from chainrule.errors import ArtifactError, ChainruleError
from chainrule.ir.graph import replace
from chainrule.ir.node import Node
from chainrule.ir.types import TensorType
from chainrule.lang.derive import flatten
from chainrule.lang.leaves import input as input_leaf
from chainrule.lang.options import check_options
from chainrule.lang.tensor import Tensor
from chainrule.nn import optim
from chainrule.nn.optim import SGD, Groups, Optimizer
from chainrule.nn.schedules import Schedule, schedule_of
from chainrule.ops.source import Leaf
from chainrule.show.stored import at, read, written
from chainrule.train import checkpoint, named
from chainrule.train.plan import MODEL, label
from chainrule.train.problem import WEIGHT, Problem
from chainrule.train.state import of_step

if TYPE_CHECKING:
    from chainrule.train.model import Model

Array = np.ndarray[Any, Any]
VERSION = 1
TEXT, CONSTANT = f"{MODEL}text", f"{MODEL}constant."
#: the element types that a step computes its learning rate in
_RATES = ("float32", "float64")
#: the parts that are Tensors, as `Problem` names them, and all parts
_TENSORS = ("inputs", "prediction", "target", "loss", "rows", "metrics", "penalty", "weight")
_PARTS = {
    "version", "graph", *_TENSORS, "trained", "weighted", "optimizer", "schedule", "seed", "dtype",
}  # fmt: skip


def described(model: Model, strict: bool) -> dict[str, Array]:
    """A model's expressions and optimizer as arrays by name: a text, and the constants.

    Without `strict` nothing where they are not data alone; else ArtifactError.
    """
    try:
        return _described(model)
    except ArtifactError:
        if strict:
            raise
        return {}


def _described(model: Model) -> dict[str, Array]:
    import json

    problem = model.problem
    roots: list[Node] = []

    def place(structure: Any) -> Any:
        if isinstance(structure, Tensor):
            roots.append(structure.node)
            return len(roots) - 1
        if isinstance(structure, Mapping):
            return {n: place(part) for n, part in structure.items()}
        if isinstance(structure, (list, tuple)):
            return [place(part) for part in structure]
        return structure

    parts = {name: place(getattr(problem, name)) for name in _TENSORS}
    parts["schedule"] = place(_schedule(model.optimizer))
    entries, numbers, arrays = written(roots)

    def numbered(structure: Any) -> Any:
        if isinstance(structure, dict):
            return {n: numbered(part) for n, part in structure.items()}
        if isinstance(structure, list):
            return [numbered(part) for part in structure]
        return numbers[structure] if type(structure) is int else structure

    whole = {
        "version": VERSION,
        **{name: numbered(part) for name, part in parts.items()},
        "trained": None if problem.trained is None else list(problem.trained),
        "weighted": model.weighted,
        "optimizer": named.told(model.optimizer),
        "seed": model.seed,
        "dtype": str(model.dtype),
    }
    lines = ",\n".join(json.dumps(e, separators=(",", ":"), ensure_ascii=False) for e in entries)
    text = json.dumps(whole, ensure_ascii=False)[:-1] + f',\n"graph": [\n{lines}\n]}}\n'
    data = np.frombuffer(text.encode(), np.uint8)
    return {TEXT: data, **{f"{CONSTANT}{n}": a for n, a in arrays.items()}}


def _schedule(optimizer: Optimizer) -> Any:
    """The learning rate's schedule as expressions of t, where it has one; of groups a list."""
    if isinstance(optimizer, Groups):
        return [_schedule(member) for member in named.members(optimizer)]
    if not callable(optimizer.lr):
        return None
    rate, t = schedule_of(optimizer.lr), input_leaf("t", (), dtype="int32")
    return {"base": rate.base, "t": t, **{of: rate.factor(t, of) for of in _RATES}}


def _rescheduled(said: Any, nodes: Sequence[Node]) -> Schedule | None:
    """The schedule of the expressions that a file holds. Raises ArtifactError."""
    if said is None:
        return None
    if not isinstance(said, dict) or said.keys() != {"base", "t", *_RATES}:
        raise ArtifactError("its schedule is none")
    t, factors = at(nodes, said["t"]), {of: at(nodes, said[of]) for of in _RATES}
    if not _is_input(Tensor(t)) or any(str(f.type.dtype) != of for of, f in factors.items()):
        raise ArtifactError("its schedule is no function of a step")

    def factor(now: Tensor, dtype: Any) -> Tensor:
        return Tensor(*replace([factors[str(dtype)]], {t: now.node}))

    return Schedule(said["base"], factor)


def revived(
    cls: type[Model],
    path: str | os.PathLike[str],
    optimizer: Optimizer | None,
    backend: str,
    threads: int | None,
) -> Model:
    """The model that a file holds. Raises ArtifactError, and CompileError for bad options."""
    threads = check_options(backend, threads, None)
    optimizer = None if optimizer is None else optim.get(optimizer)
    state = checkpoint.read(path)
    if TEXT not in state:
        raise ArtifactError(
            f"{os.fspath(path)} holds the state of a training step, and no model",
            "build the model as it was and let fit go on from it: fit(..., resume=path)",
        )
    options = {"backend": backend, "threads": threads}
    try:
        return from_arrays(cls, state, optimizer, options)
    except ChainruleError as error:
        raise ArtifactError(
            f"{os.fspath(path)} holds no model: {error.what}", *error.details
        ) from None


def from_arrays(
    cls: type[Model],
    state: Mapping[str, Array],
    optimizer: Optimizer | None,
    options: Mapping[str, Any],
) -> Model:
    """The model that the arrays of a file make. Raises ArtifactError."""
    whole = _parsed(state[TEXT])
    nodes = _nodes(whole, state)
    problem, weighted = _problem(whole, nodes)
    kept = of_step(state)
    _check_kept(problem, kept)
    said = whole["schedule"]
    schedules = [_rescheduled(part, nodes) for part in (said if isinstance(said, list) else [said])]
    rule = optimizer or named.retold(whole["optimizer"], schedules)
    model = cls.from_problem(
        problem,
        rule or SGD(1.0),
        weighted,
        seed=_of(whole, "seed", int),
        dtype=_of(whole, "dtype", str),
        **options,
    )
    if rule is None:
        model.missing_optimizer = str(whole["optimizer"]["kind"])
        names = {label(n) for n in (*model.step.plan.parameters, *model.step.plan.states)}
        own = model.step.state_dict()
        kept = {**own, **{n: a for n, a in kept.items() if n in names}}
    model.step.load_state_dict(kept)
    return model


def _parsed(data: Array) -> dict[str, Any]:
    import json

    try:
        whole = json.loads(data.astype(np.uint8).tobytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"its text is none: {error}") from None
    if not isinstance(whole, dict) or whole.get("version") != VERSION:
        version = whole.get("version") if isinstance(whole, dict) else None
        raise ArtifactError(f"it is of version {version!r}, this reads version {VERSION}")
    if whole.keys() != _PARTS:
        raise ArtifactError(f"its text has {', '.join(sorted(whole.keys() ^ _PARTS))} or has not")
    return whole


def _of(whole: Mapping[str, Any], name: str, kind: type) -> Any:
    if type(whole[name]) is not kind:
        raise ArtifactError(f"its {name} is {str(whole[name])[:60]}")
    return whole[name]


def _nodes(whole: Mapping[str, Any], state: Mapping[str, Array]) -> list[Node]:
    """The nodes of its graph, by their numbers."""
    arrays = {n.removeprefix(CONSTANT): a for n, a in state.items() if n.startswith(CONSTANT)}
    entries = _of(whole, "graph", list)
    return read(entries, range(len(entries)), arrays)


def _problem(whole: Mapping[str, Any], nodes: Sequence[Node]) -> tuple[Problem, bool]:
    def tensors(structure: Any) -> Any:
        if structure is None:
            return None
        if isinstance(structure, dict):
            return {n: tensors(part) for n, part in structure.items()}
        if isinstance(structure, list):
            return [tensors(part) for part in structure]
        return Tensor(at(nodes, structure))

    parts = {name: tensors(whole[name]) for name in _TENSORS}
    for name in ("inputs", "metrics"):
        table = parts[name]
        if not isinstance(table, dict) or not all(isinstance(t, Tensor) for t in table.values()):
            raise ArtifactError(f"its {name} are no tensors by name")
    for name in ("loss", "weight"):
        if not isinstance(parts[name], Tensor):
            raise ArtifactError(f"its {name} is no tensor")
    for name in ("rows", "penalty"):
        if not isinstance(parts[name], Tensor | None):
            raise ArtifactError(f"its {name} are no tensor")
    targets = parts["target"].values() if isinstance(parts["target"], dict) else [parts["target"]]
    for leaf in (*parts["inputs"].values(), *targets, parts["weight"]):
        if leaf is not None and not _is_input(leaf):
            raise ArtifactError("its inputs and labels are no inputs")
    if any(n != t.name for n, t in parts["inputs"].items()) or parts["weight"].name != WEIGHT:
        raise ArtifactError("its inputs have other names in its graph")
    trained = whole["trained"]
    if trained is not None and not all(isinstance(n, str) for n in trained):
        raise ArtifactError("what it trains has no names")
    weighted = bool(_of(whole, "weighted", bool))
    return Problem(**parts, trained=None if trained is None else tuple(trained)), weighted


def _is_input(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.node.op.name == "input"


def _check_kept(problem: Problem, kept: Mapping[str, Array]) -> None:
    """Raise ArtifactError unless the file holds what each parameter is, before room is made."""
    roots = flatten([problem.loss, [*problem.metrics.values()], problem.outputs])
    wrong: list[str] = []
    for node in driver.leaves_of(roots):
        if isinstance(node.op, Leaf) and node.op.kind in ("parameter", "state"):
            array = kept.get(label(node))
            have = None if array is None else TensorType(node.type.dtype, array.shape)
            if array is None or have != node.type or array.dtype != node.type.dtype.numpy:
                wrong.append(f"{label(node)} is {node.type}, the file has {have or 'none'}")
    if wrong:
        raise ArtifactError("its graph and its arrays do not fit", *wrong)
