"""`cr.training_step`: forward, backward and update as one program, called once a minibatch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np

from chainrule import driver
from chainrule.errors import (
    ArtifactError,
    CompileError,
    FeedError,
    NonFiniteError,
)
from chainrule.export import Artifact
from chainrule.ir import provenance
from chainrule.lang.options import check_options, check_seed
from chainrule.lang.tensor import Tensor
from chainrule.nn.optim import Optimizer, check
from chainrule.ops import philox
from chainrule.train import checkpoint, state
from chainrule.train.engine import ENGINES, Engine, cut_rows
from chainrule.train.export import Export, export
from chainrule.train.plan import (
    EPOCH,
    RATE,
    SEED,
    STEP,
    StepPlan,
    label,
    nodes_of,
    plan_step,
)
from chainrule_runtime import Lock, Minibatches, RuntimeFault, Storage
from chainrule_runtime import NonFiniteError as RuntimeNonFinite

Array = np.ndarray[Any, Any]
_RUN_OPTIONS = ("batch_size", "epochs", "shuffle")
#: one native call takes as many epochs as have so many rows together, and at least one
_ROW_LIMIT = 2**16


def training_step(
    loss: Tensor,
    optimizer: Optimizer,
    metrics: Mapping[str, Tensor] | None = None,
    outputs: Any = None,
    updates: Mapping[Tensor, Tensor] | None = None,
    train: Iterable[Tensor | str] | None = None,
    share: TrainingStep | None = None,
    backend: str = "cpu",
    threads: int | None = None,
    precision: str | None = None,
    memory_budget: int | None = None,
    ensemble: int | None = None,
    seed: int = 0,
) -> TrainingStep:
    """Compile the training of a loss: its gradients and the optimizer's update in one program.

    `metrics` are scalars computed beside the loss, by name. `outputs` is what `predict` gives: a
    Tensor, or a list, tuple or dict of them. `updates` says what states become. `train` limits what
    is updated, by Tensor or by name; `share` is a step whose parameters and states this one uses
    where both have them. `seed`, from 0 to 2**64 - 1, decides initial values, shuffling and what
    random ops draw, other numbers in each step. At most so many `threads` share a step, None for
    every CPU that this process may use: the bits are the same for each number of them. Loss,
    metrics and updates are as in training (dropout), `outputs` as in inference. Raises CompileError
    for an option that is not built yet.
    """
    check_options(backend, threads, precision, memory_budget=memory_budget, ensemble=ensemble)
    check_seed(seed)
    if share is not None and not isinstance(share, TrainingStep):
        raise CompileError(f"share is another training step, not {share!r}")
    wanted = nodes_of(outputs)
    measured = {} if metrics is None else metrics
    changed = {} if updates is None else updates
    plan = plan_step(loss, optimizer, measured, wanted, changed, train)
    return TrainingStep(plan, optimizer, outputs, share, backend, seed, threads)


class TrainingStep:
    """A compiled training step with its parameters. Made by `training_step`.

    Calls from several threads wait for each other.
    """

    def __init__(
        self,
        plan: StepPlan,
        optimizer: Optimizer,
        outputs: Any,
        share: TrainingStep | None,
        backend: str,
        seed: int,
        threads: int | None,
    ) -> None:
        self._plan, self._outputs, self._backend = plan, outputs, backend
        self._threads = threads
        self._epoch = 0
        self._turn = Lock()  # one run after another: each counts its epochs
        self._last_cut: tuple[tuple[int, list[tuple[int, ...]]], Minibatches] | None = None
        self._metrics: dict[str, Any] | None = {}  # None: what the last call left, not read yet
        self._predictor: Engine | None = None
        lent = state.lent(plan, share._plan, share._storage.arrays) if share else {}
        tensors = [(label(n), n.type.dtype.numpy, state.static(n)) for n in plan.kept]
        try:
            self._storage: Storage = Storage(tensors, lent, share._storage.lock if share else None)
        except RuntimeFault as fault:
            driver.raise_ours(fault)
        state.begin(plan, self._storage.arrays, seed, lent)
        self.learning_rate = optimizer.lr
        arrays = self._storage.arrays
        self._parameters = MappingProxyType({label(p): arrays[label(p)] for p in plan.parameters})
        names = plan.names
        make = ENGINES[backend]
        self._engine = make(plan.graph, plan.inputs, plan.kept, names, self._storage, True, threads)

    # training

    def __call__(self, /, **feeds: Any) -> float:
        """One step on one minibatch; the loss before the update.

        Raises FeedError for data that does not fit and NonFiniteError for a loss that is infinite
        or NaN; nothing is changed then. Of a finite loss the gradient may still overflow: that is
        seen in the next step, whose error names the parameter that holds no number any more.
        """
        direct, lock = self._engine.direct, self._storage.lock
        if direct is not None and not lock.is_mine():
            with lock.guard:
                loss = direct(feeds)
            if loss == loss:
                self._metrics = None
                return loss
        return self._checked_call(feeds)

    def _checked_call(self, feeds: Mapping[str, Any]) -> float:
        """One step on whatever was fed, or the error that says why not."""
        try:
            results = self._engine.call(feeds)
        except RuntimeFault as fault:
            self._raise(fault)
        self._metrics = self._named(results)
        return float(results[0]) + 0.0  # a loss that is the negative of 0 is 0

    def _named(self, results: Sequence[Array]) -> dict[str, Any]:
        """The metrics among the results of a step."""
        return {n: a.item() for n, a in zip(self._plan.names[1:], results[1:], strict=True)}

    def run(
        self, /, *, batch_size: int = 32, epochs: int = 1, shuffle: bool = True, **data: Any
    ) -> Array:
        """Whole epochs of minibatches in one native call; the loss of each step, before its update.

        Inputs whose axis 0 is the first symbolic size are cut into minibatches of `batch_size`
        rows, the last of an epoch smaller if need be; others are whole in every step. A
        `batch_size` above the number of rows is one minibatch of them all. `shuffle` draws a new
        order of rows for each epoch from the seed. Shapes and labels are checked before the first
        update. Raises FeedError and NonFiniteError, which leave what the steps before them made;
        Ctrl-C comes through at the end of a step.
        """
        self._check_run_names()
        batch_size = _check_count("batch_size", batch_size, 1)
        epochs = _check_count("epochs", epochs, 0)
        if not isinstance(shuffle, (bool, np.bool_)):
            raise FeedError(f"shuffle is True or False, not {shuffle!r}")
        try:
            arrays = self._engine.binder.arrays(data)
            cut = self._cut(arrays, batch_size)
            self._engine.check(arrays, cut)
            with self._turn.guard:
                logs = self._run(arrays, cut, epochs, bool(shuffle))
        except RuntimeFault as fault:
            self._raise(fault)
        self._metrics = dict(zip(self._plan.names[1:], logs[1:], strict=True))
        return logs[0] + 0.0  # as in a single step: 0 for -0

    def _run(
        self, arrays: list[Array], cut: Minibatches, epochs: int, shuffle: bool
    ) -> list[Array]:
        """Native calls of some epochs each; an epoch that was begun counts, whatever ended it."""
        group = max(1, _ROW_LIMIT // cut.rows)
        parts: list[Sequence[Array]] = []
        for first in range(0, epochs, group):
            count = min(group, epochs - first)
            begin, before = self._epoch, self.steps
            order = philox.permutations(self.seed, begin, count, cut.rows) if shuffle else None
            try:
                outcome = self._engine.loop(arrays, cut, count, order)
            except BaseException:
                self._epoch = begin + -(-(self.steps - before) // cut.steps)
                raise
            self._epoch = begin + -(-outcome.steps // cut.steps)
            if outcome.fault is not None:
                raise outcome.fault
            parts.append(outcome.logs)
        if len(parts) == 1:
            return list(parts[0])
        kinds = [n.type.dtype.numpy for n in self._plan.graph.outputs]
        return [
            np.concatenate([np.empty(0, kind), *(logs[i] for logs in parts)])
            for i, kind in enumerate(kinds)
        ]

    def _cut(self, arrays: Sequence[Array], batch_size: int) -> Minibatches:
        """How the data is cut into minibatches."""
        form = batch_size, [a.shape for a in arrays]
        if self._last_cut is None or self._last_cut[0] != form:
            self._last_cut = form, cut_rows(self._plan.inputs, arrays, batch_size)
        return self._last_cut[1]

    def _check_run_names(self) -> None:
        clash = [label(n) for n in self._plan.inputs if label(n) in _RUN_OPTIONS]
        if clash:
            raise CompileError(
                f"run has an option {clash[0]!r}, so no input it feeds can be called that"
            )

    def _raise(self, fault: RuntimeFault) -> NoReturn:
        if isinstance(fault, RuntimeNonFinite):
            raise NonFiniteError(
                f"{fault.what} in step {self.steps + 1}, counted from 1",
                "it has changed nothing: parameters and optimizer are as they were before it",
                self._why_not_finite(),
            ) from None
        driver.raise_ours(fault)

    def _why_not_finite(self) -> str:
        for name, array in self._storage.arrays.items():
            if not np.isfinite(array).all():
                return f"{name} was not finite before it: an earlier step overflowed; load a state"
        return "is there a NaN in the data? else try a smaller learning rate"

    # what it knows

    def predict(self, /, **feeds: Any) -> Any:
        """The `outputs` for given inputs, in the structure they were named in; changes nothing."""
        if self._outputs is None:
            raise CompileError(
                "this step has no outputs to predict", "training_step(..., outputs=z)"
            )
        if self._predictor is None:
            self._predictor = self._make_predictor()
        try:
            results = iter(self._predictor.call(feeds))
        except RuntimeFault as fault:
            driver.raise_ours(fault)
        return _like(self._outputs, results)

    def _make_predictor(self) -> Engine:
        nodes = nodes_of(self._outputs)
        graph = self._plan.predicted(nodes)
        leaves = driver.leaves_of(graph.outputs)
        kept = [n for n in leaves if n in self._plan.kept]
        inputs = [n for n in leaves if n not in self._plan.kept]
        names = [provenance.name_of(n) or f"output {i}" for i, n in enumerate(nodes)]
        make = ENGINES[self._backend]
        return make(graph, inputs, kept, names, self._storage, False, self._threads)

    @property
    def parameters(self) -> Mapping[str, Array]:
        """Live, writable views of the parameters by name: `parameters["W"][...] = new`."""
        return self._parameters

    @property
    def backend(self) -> str:
        """What runs it: "cpu" or "reference"."""
        return self._backend

    @property
    def seed(self) -> int:
        """What initial values, the order of rows and random ops are drawn from."""
        return int(self._storage.arrays[SEED])

    @property
    def metrics(self) -> dict[str, Any]:
        """Of the last call a number for each metric; of the last `run` an array, one a step."""
        if self._metrics is None:
            self._metrics = self._named(self._engine.scalars())
        return dict(self._metrics)

    @property
    def loss(self) -> Tensor:
        """What is minimised, as an expression."""
        return Tensor(self._plan.loss)

    @property
    def gradients(self) -> dict[str, Tensor]:
        """The gradient of the loss by each parameter that is trained, as an expression."""
        return {label(w): Tensor(g) for w, g in self._plan.gradients.items()}

    @property
    def steps(self) -> int:
        """How many steps have been made."""
        return int(self._storage.arrays[STEP])

    @property
    def learning_rate(self) -> float:
        """The learning rate, which may change between steps.

        FeedError unless it is at least 0, and finite in the type that the step computes in.
        """
        rate = self._storage.arrays[RATE]
        return float(str(rate[()]))  # the shortest number that is this one in its type: 0.001

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        rate, array = check("learning_rate", value, least=0.0), self._storage.arrays[RATE]
        if rate > float(np.finfo(array.dtype).max):
            raise FeedError(f"learning_rate {rate} is infinite as {array.dtype}")
        array[...] = rate

    def show(self, level: str) -> str:
        """The program at one level: graph, optimized, kernels, loops, llvm or asm."""
        return self._engine.show(level)

    def report(self) -> driver.Report:
        """Passes, kernels with flops and bytes, memory plan, code size."""
        return self._engine.report()

    # keeping it

    def state_dict(self) -> dict[str, Array]:
        """Copies of everything that training depends on, by name.

        Parameters and states under their names; the optimizer's under "optimizer."; the seed and
        the number of epochs begun under "training.".
        """
        with self._alone():
            kept = {name: a.copy() for name, a in self._storage.arrays.items()}
        return {**kept, EPOCH: np.array(self._epoch, np.int64)}

    def load_state_dict(self, given: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave.

        Raises ArtifactError, which lists every difference, and changes nothing then.
        """
        if not isinstance(given, Mapping):
            raise ArtifactError(f"a state is a dict of arrays by name, not {type(given).__name__}")
        own = self.state_dict()
        differences = state.differences(own, given)
        if differences:
            raise ArtifactError("this is the state of another training step", *differences)
        given = {name: np.asarray(a) for name, a in given.items()}
        state.check_counts(given)
        with self._alone():
            for name, array in self._storage.arrays.items():
                array[...] = given[name]
            self._epoch = int(given[EPOCH])

    def _alone(self) -> AbstractContextManager[object]:
        """What to hold while nothing else may use the storage."""
        try:
            return self._storage.lock.guard
        except RuntimeFault as fault:
            driver.raise_ours(fault)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a safetensors file, whole or not at all. Raises ArtifactError."""
        checkpoint.write(path, self.state_dict())

    def export(
        self,
        folder: str | os.PathLike[str],
        name: str = "net",
        target: str | Sequence[str] = "host",
        formats: Sequence[str] | None = None,
        max_batch: int = 64,
        max_sizes: Mapping[str, int] | None = None,
        *,
        cpu: str | None = None,
        features: str | None = None,
        determinism: str = "default",
    ) -> Artifact:
        """Write the step as a kernel with a C interface, which needs nothing besides.

        `target` is "host", a level of x86-64 ("x86-64-v3") or several, one kernel holding them all,
        or an LLVM triple ("aarch64-linux-gnu", "riscv64-linux-gnu", "wasm32"), with LLVM's words
        for `cpu` and `features`. `max_sizes` bounds the symbolic sizes, `max_batch` the first of
        them. With determinism "strict" no multiply-add is fused, and every target has the same
        bits. docs/export.md tells of the files; by default there are those that the target has.
        Raises CompileError and ArtifactError.
        """
        chosen = Export(name, target, formats, max_batch, max_sizes or {}, cpu, features,
                        determinism)  # fmt: skip
        return export(chosen, self._plan, nodes_of(self._outputs), self.state_dict(), folder)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on from a file that `save` wrote. Raises ArtifactError, changing nothing."""
        self.load_state_dict(checkpoint.read(path))


def _check_count(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise FeedError(f"{name} is an int from {least} on, not {value!r}")
    return int(value)


def _like(structure: Any, results: Iterator[Array]) -> Any:
    """The arrays in the structure of the Tensors they are of."""
    if isinstance(structure, dict):
        return {k: _like(v, results) for k, v in structure.items()}
    if isinstance(structure, (list, tuple)):
        parts = [_like(v, results) for v in structure]
        return type(structure)(*parts) if hasattr(structure, "_fields") else type(structure)(parts)
    return next(results)
