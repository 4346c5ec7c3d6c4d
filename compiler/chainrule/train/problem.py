"""What a model computes: net, loss and metrics as expressions over leaves for data."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from chainrule import driver
from chainrule.errors import CompileError, DTypeError, FeedError
from chainrule.ir.graph import replace as substituted
from chainrule.ir.size import Size
from chainrule.ir.types import TensorType, float32, int32
from chainrule.ir.types import dtype as dtype_of
from chainrule.lang import functions as f
from chainrule.lang.derive import flatten, rebuilt
from chainrule.lang.leaves import input as input_leaf
from chainrule.lang.tensor import Tensor
from chainrule.nn import losses
from chainrule.nn.layer import Layer
from chainrule.records import dataclass

Array = np.ndarray[Any, Any]
T = TypeVar("T")
#: what the number of rows of a minibatch is called
ROWS = "batch"
#: the leaf of one input; of the labels, unless an input is called so; of the weights of rows
INPUT, TARGETS, WEIGHT = "x", ("y", "target", "target_"), "sample_weight"


@dataclass(frozen=True)
class Problem:
    """Expressions of a model. A target is a Tensor, Tensors by name, or None where there is none.

    `loss` is the mean over a minibatch; `rows` is it for each row, where the loss says it, for
    weights. `penalty` is what regularizers add. `trained` names what is trained, None: everything.
    """

    inputs: Mapping[str, Tensor]
    prediction: Any
    target: Any
    loss: Tensor
    rows: Tensor | None
    metrics: Mapping[str, Tensor]
    penalty: Tensor | None = None
    trained: tuple[str, ...] | None = None
    weight: Tensor = field(default_factory=lambda: input_leaf(WEIGHT, (ROWS,)))

    @property
    def targets(self) -> dict[str, Tensor]:
        """The leaves of the labels by name."""
        return named(self.target)

    @property
    def outputs(self) -> dict[str, Any]:
        """What is computed in inference."""
        penalty = {} if self.penalty is None else {"penalty": self.penalty}
        return {"prediction": self.prediction, **penalty}

    @property
    def read(self) -> set[str]:
        """The names of the inputs that the prediction depends on."""
        leaves = driver.leaves_of(flatten(self.prediction))
        return {n for n, t in self.inputs.items() if t.node in leaves}

    def takes(self, targets: Mapping[str, Array]) -> bool:
        """Whether labels are of the names, ranks and kinds that this was posed for."""
        own = self.targets
        return own.keys() == targets.keys() and all(
            own[n].ndim == a.ndim and own[n].dtype.is_float >= (a.dtype.kind == "f")
            for n, a in targets.items()
        )

    def minimised(self, weighted: bool) -> Tensor:
        """What training minimises: with weights the mean over rows of weight · loss, as Keras."""
        loss = self.measured(weighted)
        return loss if self.penalty is None else loss + self.penalty.astype(loss.dtype)

    def measured(self, weighted: bool) -> Tensor:
        """The loss without what regularizers add."""
        if not weighted:
            return self.loss
        if self.rows is None:
            raise CompileError(
                "this loss says one number for a whole minibatch, so rows can't be weighed",
                'give it an option reduction="none" that leaves one loss a row, as cr.losses have',
            )
        return f.mean(self.rows * self.weight.astype(self.rows.dtype))

    def apart(self, weighted: bool) -> tuple[Any, dict[str, Tensor]]:
        """The prediction as leaves of its own, and loss and metrics as functions of those."""
        nodes = flatten(self.prediction)
        names = fresh([*self.targets, WEIGHT], len(nodes))
        leaves = [
            input_leaf(n, t.type.shape, dtype=t.type.dtype)
            for n, t in zip(names, nodes, strict=True)
        ]
        roots = {"loss": self.measured(weighted), **self.metrics}
        values = dict(zip(nodes, (t.node for t in leaves), strict=True))
        made = substituted([t.node for t in roots.values()], values)
        return rebuilt(self.prediction, leaves), dict(zip(roots, map(Tensor, made), strict=True))

    def relabelled(
        self, loss: Callable[..., Tensor], metrics: Mapping[str, Callable[..., Tensor]], target: Any
    ) -> Problem:
        """The same net with labels of other types."""
        ways = [None] if target is None else _readings(target)
        attempts = [partial(_lost, loss, metrics, self.inputs, self.prediction, w) for w in ways]
        posed = _first(attempts)
        return replace(posed, penalty=self.penalty, trained=self.trained)


def named(target: Any) -> dict[str, Tensor]:
    """The leaves of a target by name."""
    if target is None:
        return {}
    leaves = list(target.values()) if isinstance(target, Mapping) else [target]
    return {t.name: t for t in leaves}


def fresh(taken: Sequence[str], count: int) -> list[str]:
    """Names for predictions."""
    names = ["prediction"] if count == 1 else [f"prediction{i + 1}" for i in range(count)]
    return [n if n not in taken else f"{n}_" for n in names]


def target_name(inputs: Mapping[str, Any]) -> str:
    """What the labels are called."""
    return next(n for n in TARGETS if n not in inputs)


def pose(
    net: Callable[..., Any],
    loss: Callable[..., Tensor],
    metrics: Mapping[str, Callable[..., Tensor]],
    regularizer: Callable[..., Tensor] | None,
    inputs: Mapping[str, TensorType],
    alone: bool,
    target: Any,
) -> Problem:
    """The expressions of a model on data of these types.

    `alone` says that the net takes its one input as it is, else it takes inputs by name. `target`
    is a type, types by name, None, or `...`: then it is what the loss takes. Integers that the net
    or the loss does not take are fed as float32.
    """
    ways: list[Any] = [None] if target is None else [*_readings(target)]
    leaves, prediction = _first([partial(_predicted, net, t, alone) for t in _readings(inputs)])
    if target is ...:
        ways = _guesses(prediction)
    posed = _first([partial(_lost, loss, metrics, leaves, prediction, way) for way in ways])
    penalty = _penalty(regularizer, posed.loss)
    return replace(posed, penalty=penalty, trained=trained_of(net))


def _first(attempts: Sequence[Callable[[], T]]) -> T:
    """What the first attempt gives that no element type fails; the first failure, if all do."""
    failures: list[DTypeError] = []
    for attempt in attempts:
        try:
            return attempt()
        except DTypeError as error:
            failures.append(error)
    raise failures[0]


def _readings(types: Any) -> list[Any]:
    """A type, or types by name, as they are; and with float32 for integers, if there are any."""
    if types is ...:
        return []
    if isinstance(types, Mapping):
        floats: Any = {n: _as_floats(t) for n, t in types.items()}
    else:
        floats = _as_floats(types)
    return [types] if floats == types else [types, floats]


def _as_floats(kind: TensorType) -> TensorType:
    return kind.with_dtype(float32) if kind.dtype.is_integer else kind


def _guesses(prediction: Any) -> list[TensorType | None]:
    """What labels may be, where they are not known yet."""
    nodes = flatten(prediction)
    kind = nodes[0].type
    if len(nodes) > 1 or not kind.rank:
        return [None]
    return [kind.with_shape(kind.shape[:-1]).with_dtype(int32), kind.with_dtype(float32), None]


def _predicted(
    net: Callable[..., Any], types: Mapping[str, TensorType], alone: bool
) -> tuple[dict[str, Tensor], Any]:
    leaves = {n: input_leaf(n, t.shape, dtype=t.dtype) for n, t in types.items()}
    if not alone:
        _check_names(net, leaves)
    prediction = net(*leaves.values()) if alone else net(**leaves)
    if not flatten(prediction):
        raise CompileError(f"a net gives a Tensor, or several, not {prediction!r}")
    return leaves, prediction


def _check_names(net: Callable[..., Any], given: Mapping[str, Tensor]) -> None:
    """Raise FeedError unless a net takes just inputs of these names."""
    try:
        signature = inspect.signature(net.forward if isinstance(net, Layer) else net)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(**given)
    except TypeError as error:
        raise FeedError(
            f"the net can't be called on inputs called {', '.join(given)}: {error}",
            f"it takes {', '.join(signature.parameters) or 'nothing'}: data is a dict by those",
        ) from None


def _lost(
    loss: Callable[..., Tensor],
    metrics: Mapping[str, Callable[..., Tensor]],
    inputs: Mapping[str, Tensor],
    prediction: Any,
    kind: Any,
) -> Problem:
    name = target_name(inputs)
    if isinstance(kind, Mapping):
        target: Any = {n: input_leaf(n, t.shape, dtype=t.dtype) for n, t in kind.items()}
        if clash := [n for n in target if n in inputs]:
            raise CompileError(f"an input and a label are both called {clash[0]!r}")
    else:
        target = None if kind is None else input_leaf(name, kind.shape, dtype=kind.dtype)
    given = (prediction,) if target is None else (prediction, target)
    value = _tensor("the loss", loss, given)
    rows = _by_rows(loss, value, given)
    scalar = f.mean(value) if value.ndim else value
    measured = {n: _metric(n, m, given) for n, m in metrics.items()}
    return Problem(inputs, prediction, target, scalar, rows, measured)


def _tensor(
    what: str, function: Callable[..., Tensor], given: tuple[Any, ...], **options: Any
) -> Tensor:
    value = function(*given, **options)
    if not isinstance(value, Tensor):
        raise CompileError(f"{what} is a function that gives a Tensor, not {value!r}")
    return value


def _metric(name: str, metric: Callable[..., Tensor], given: tuple[Any, ...]) -> Tensor:
    value = _tensor(f"the metric {name}", metric, given)
    return f.mean(value) if value.ndim else value


def _by_rows(loss: Callable[..., Tensor], value: Tensor, given: tuple[Any, ...]) -> Tensor | None:
    """The loss of each row, where it can be had."""
    if not value.ndim:
        if "reduction" not in _options(loss):
            return None
        value = _tensor("the loss", loss, given, reduction="none")
        if loss in losses.ROW_SUMS:
            value = f.sum(value, axis=-1)
    if not value.ndim or value.shape[0] != Size.symbol(ROWS):
        return None
    return f.mean(value, axis=tuple(range(1, value.ndim))) if value.ndim > 1 else value


def _options(function: Callable[..., Any]) -> list[str]:
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return []


def _penalty(regularizer: Callable[..., Tensor] | None, loss: Tensor) -> Tensor | None:
    if regularizer is None:
        return None
    weights = [n for n in driver.leaves_of([loss.node]) if n.op.name == "parameter"]
    return _tensor("a regularizer", regularizer, ([Tensor(n) for n in weights],))


def trained_of(net: Any) -> tuple[str, ...] | None:
    """The names of what is trained, where the net freezes something."""
    every, trained = getattr(net, "parameters", None), getattr(net, "trainable_parameters", None)
    if (
        not isinstance(every, Mapping)
        or not isinstance(trained, Mapping)
        or len(every) == len(trained)
    ):
        return None
    return tuple(trained)


def type_of(name: str, array: Array, dtype: Any) -> TensorType:
    """The type of the leaf for some data: floats become `dtype`, integers int32, rows symbolic."""
    if array.ndim == 0:
        raise FeedError(f"{name} is a single number: data has rows along its first axis")
    kind = array.dtype.kind
    if kind not in "biuf" and array.dtype.name != "bfloat16":
        raise FeedError(f"{name} is an array of {array.dtype}: a net computes with numbers")
    of = dtype_of("bool") if kind == "b" else int32 if kind in "iu" else dtype_of(dtype)
    return TensorType(of, (Size.symbol(ROWS), *array.shape[1:]))
