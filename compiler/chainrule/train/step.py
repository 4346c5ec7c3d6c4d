"""`cr.training_step`: forward, backward and update as one program, called once a minibatch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
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
from chainrule.ir.node import Node
from chainrule.ir.passes import uncollected
from chainrule.lang.options import (
    check_budget,
    check_flag,
    check_options,
    check_seed,
    check_tune,
)
from chainrule.lang.tensor import Tensor
from chainrule.nn.numbers import check_int
from chainrule.nn.optim import Optimizer
from chainrule.schedule.recompute import Budget
from chainrule.train import checkpoint, state
from chainrule.train.engine import ENGINES
from chainrule.train.ensemble import Ensemble, check_ensemble
from chainrule.train.epochs import Bound, Epochs
from chainrule.train.export import Export, export
from chainrule.train.hyperparameters import Hyperparameters
from chainrule.train.plan import (
    EPOCH,
    SEED,
    StepPlan,
    label,
    nodes_of,
    plan_step,
)
from chainrule.train.predictor import Predictor
from chainrule.train.updates import RATE, STEP
from chainrule_runtime import NonFiniteError as RuntimeNonFinite
from chainrule_runtime import RuntimeFault, Storage

Array = np.ndarray[Any, Any]
_RUN_OPTIONS = ("batch_size", "epochs", "shuffle")


@uncollected
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
    memory_budget: int | tuple[int, Mapping[str, int]] | None = None,
    ensemble: int | None = None,
    tune: bool | Mapping[str, int] = False,
    seed: int = 0,
) -> TrainingStep:
    """Compile the training of a loss: its gradients and the optimizer's update in one program.

    `metrics` are scalars computed beside the loss, by name. `outputs` is what `predict` gives: a
    Tensor, or a list, tuple or dict of them. `updates` says what states become. `train` limits what
    is updated, by Tensor or by name; `share` is a step whose parameters and states this one uses
    where both have them. `seed`, from 0 to 2**64 - 1, decides initial values, shuffling and what
    random ops draw, other numbers in each step. At most so many `threads` share a step, None for
    every CPU that this process may use: the bits are the same for each number of them. With
    `precision` "bfloat16" products of float32 tensors take bfloat16 factors and add up in float32,
    with "bfloat16x3" each factor is two bfloat16 where that is faster, near float32; parameters and
    optimizer stay float32. Loss, metrics and updates are as in training (dropout), `outputs` as in
    inference.

    An `ensemble` of so many members is trained on the same minibatches, member i with the seed
    `seed` + i: parameters, losses and predictions have members along a first axis.

    `memory_budget` limits the bytes of the arena, `report().reserved(...)["arena"]`, where values
    wait for the backward pass: what does not fit is computed again, to the same bits, products only
    if nothing else suffices; `report()` says what, and how many operations that costs. An arena
    grows with the batch, so a budget goes with its sizes: `(50_000_000, {"batch": 1024})`. With
    bytes alone, and for sizes that are not given, it holds where each symbolic size is 64. A scan
    of a known number of steps runs again in equal segments, one at a time.

    With `tune` the products that take longest are timed in a handful of ways, at the sizes given,
    such as `{"batch": 128}`, or 64 each with True; what is fastest is kept with the compiled code,
    and has the same bits. That takes some seconds, once on a machine.

    Raises CompileError for an option that is not built yet, and for a budget that can't be met: it
    says what can.
    """
    check_options(backend, threads, precision)
    check_seed(seed)
    check_ensemble(ensemble, seed, share)
    if share is not None and not isinstance(share, TrainingStep):
        raise CompileError(f"share is another training step, not {share!r}")
    wanted = nodes_of(outputs)
    measured = {} if metrics is None else metrics
    changed = {} if updates is None else updates
    plan = plan_step(loss, optimizer, measured, wanted, changed, train)
    sizes = driver.sizes_of(plan.inputs)
    budget, timed = (
        check_budget(memory_budget, backend, sizes),
        check_tune(tune, backend, sizes),
    )
    members = Ensemble(ensemble, frozenset([plan.optimizer.count])) if ensemble else None
    return TrainingStep(
        plan, outputs, share, backend, seed, threads, precision, budget, members, timed
    )


class TrainingStep:
    """A compiled training step with its parameters. Made by `training_step`.

    Calls from several threads wait for each other.
    """

    def __init__(
        self,
        plan: StepPlan,
        outputs: Any,
        share: TrainingStep | None,
        backend: str,
        seed: int,
        threads: int | None,
        precision: str | None = None,
        budget: Budget | None = None,
        members: Ensemble | None = None,
        tune: Mapping[str, int] | None = None,
    ) -> None:
        self._plan, self._outputs, self._backend = plan, outputs, backend
        self._precision, self._members = precision, members
        kept = [members.leaf(n) for n in plan.kept] if members else plan.kept
        self._metrics: dict[str, Any] | None = {}  # None: what the last call left, not read yet
        lent = state.lent(plan, share._plan, share._storage.arrays) if share else {}
        tensors = [(label(n), n.type.dtype.numpy, state.static(n)) for n in kept]
        try:
            self._storage: Storage = Storage(tensors, lent, share._storage.lock if share else None)
        except RuntimeFault as fault:
            driver.raise_ours(fault)
        arrays = self._storage.arrays
        if members is None:
            state.begin(plan, arrays, seed, lent)
        else:
            for i in range(members.count):
                state.begin(plan, members.member(i, arrays), seed + i, lent)
        self._arrays = arrays if members is None else members.seen(arrays)
        numbers = plan.optimizer.hyperparameters
        self._hyperparameters = Hyperparameters(numbers, self._arrays, members)
        self._hyperparameters.begin()
        self._parameters = self._seen({p: p for p in plan.parameters})
        graph = members.graph(plan.graph, plan.kept) if members else plan.graph
        make = ENGINES[backend]
        self._engine = make(
            graph, plan.inputs, kept, plan.names, self._storage, True, threads, precision, budget,
            tune,
        )  # fmt: skip
        self._epochs = Epochs(plan, self._engine, self._storage, members)
        self._predictor = Predictor(
            plan, outputs, self._storage, members, backend, threads, precision
        )

    def _seen(self, leaves: Mapping[Node, Node]) -> Mapping[str, Array]:
        """Live arrays, by the names of other leaves."""
        arrays = {label(name): self._arrays[label(node)] for name, node in leaves.items()}
        return MappingProxyType(arrays)

    # training

    def __call__(self, /, **feeds: Any) -> Any:
        """One step on one minibatch; the loss before the update, of an ensemble each member's.

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

    def _checked_call(self, feeds: Mapping[str, Any]) -> Any:
        """One step on whatever was fed, or the error that says why not."""
        try:
            results = self._engine.call(feeds)
        except RuntimeFault as fault:
            self._raise(fault)
        self._metrics = self._named(results)
        loss = results[0] + 0.0  # a loss that is the negative of 0 is 0
        return float(loss) if self._members is None else loss

    def _named(self, results: Sequence[Array]) -> dict[str, Any]:
        """The metrics among the results of a step."""
        named = zip(self._plan.names[1:], results[1:], strict=True)
        return {n: a if a.ndim else a.item() for n, a in named}

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
        batch_size = check_int("batch_size", batch_size, 1)
        epochs = check_int("epochs", epochs, 0)
        if not isinstance(shuffle, (bool, np.bool_)):
            raise FeedError(f"shuffle is True or False, not {shuffle!r}")
        bound = self.bind(data, batch_size)
        logs = self.advance(bound, 0, epochs * bound.cut.steps, bool(shuffle))
        self._metrics = dict(zip(self._plan.names[1:], logs[1:], strict=True))
        return logs[0] + 0.0  # as in a single step: 0 for -0

    def bind(self, data: Mapping[str, Any], batch_size: int) -> Bound:
        """Data made ready for many calls of `advance`. Raises FeedError where it does not fit."""
        try:
            return self._epochs.bind(data, batch_size)
        except RuntimeFault as fault:
            self._raise(fault)

    def advance(self, data: Bound, first: int, last: int, shuffle: bool) -> list[Array]:
        """Steps `first` to `last` - 1; the loss of each, then each metric.

        They are counted from the beginning of the next epoch, or of the one that is under way if
        `first` is not 0. Raises what `run` does.
        """
        try:
            return self._epochs.advance(data, first, last, shuffle)
        except RuntimeFault as fault:
            self._raise(fault)

    def minibatch(self, data: Bound, epoch: int, at: int, shuffle: bool) -> dict[str, Array]:
        """What step `at`, counted from the beginning of epoch number `epoch`, is fed."""
        arrays = self._epochs.minibatch(data, epoch, at, shuffle)
        return dict(zip(self._engine.binder.names, arrays, strict=True))

    def converted(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        """Feeds as arrays that a call takes as they are. Raises FeedError."""
        try:
            arrays = self._engine.binder.arrays(feeds)
        except RuntimeFault as fault:
            self._raise(fault)
        return dict(zip(self._engine.binder.names, arrays, strict=True))

    def begin_epoch(self, goes_on: bool = False) -> int:
        """Count an epoch of minibatches that come one by one, unless it `goes_on`; its number."""
        self._epochs.begun += not goes_on
        return self._epochs.begun - 1

    def _check_run_names(self) -> None:
        clash = [label(n) for n in self._plan.inputs if label(n) in _RUN_OPTIONS]
        if clash:
            raise CompileError(
                f"run has an option {clash[0]!r}, so no input it feeds can be called that"
            )

    def _raise(self, fault: RuntimeFault) -> NoReturn:
        if isinstance(fault, RuntimeNonFinite):
            raise NonFiniteError(
                f"{self._what_is(fault)} in step {self.steps + 1}, counted from 1",
                "it has changed nothing: parameters and optimizer are as they were before it",
                self._why_not_finite(),
            ) from None
        driver.raise_ours(fault)

    def _what_is(self, fault: RuntimeNonFinite) -> str:
        """What is not finite, and of which member."""
        if self._members is None or not fault.place:
            return fault.what
        return f"{fault.named} of member {fault.place[0]} is {fault.number}"

    def _why_not_finite(self) -> str:
        for name, array in self._storage.arrays.items():
            if not np.isfinite(array).all():
                return f"{name} was not finite before it: an earlier step overflowed; load a state"
        return "is there a NaN in the data? else try a smaller learning rate"

    # what it knows

    def predict(self, /, **feeds: Any) -> Any:
        """The `outputs` for given inputs, in the structure they were named in; changes nothing."""
        return self._predictor(False, feeds)

    def predict_averaged(self, /, **feeds: Any) -> Any:
        """`predict` with the moving averages of the parameters (the optimizer's `ema`) for them."""
        if not self._plan.optimizer.averages:
            raise CompileError("no averages are kept of these parameters", "Adam(..., ema=0.999)")
        return self._predictor(True, feeds)

    @property
    def parameters(self) -> Mapping[str, Array]:
        """Live, writable views of the parameters by name: `parameters["W"][...] = new`."""
        return self._parameters

    @property
    def backend(self) -> str:
        """What runs it: "cpu", "cuda" or "reference"."""
        return self._backend

    @property
    def seed(self) -> int:
        """What initial values, the order of rows and random ops are drawn from.

        Of an ensemble the first member's: member i has so much plus i, and all have the rows in the
        order that the first one would.
        """
        return int(self._storage.arrays[SEED].flat[0])

    @property
    def ensemble(self) -> int | None:
        """How many members are trained at once; None where it is one net."""
        return None if self._members is None else self._members.count

    @property
    def metrics(self) -> dict[str, Any]:
        """Of the last call a number for each metric; of the last `run` an array, one a step."""
        if self._metrics is None:
            self._metrics = self._named(self._engine.scalars())
        return dict(self._metrics)

    @property
    def plan(self) -> StepPlan:
        """What it computes, before it was compiled."""
        return self._plan

    @property
    def log_names(self) -> tuple[str, ...]:
        """What is measured in each step: "loss", and the names of the metrics."""
        return self._plan.names

    @property
    def epochs(self) -> int:
        """How many epochs were begun: the number of the next."""
        return self._epochs.begun

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
    def hyperparameters(self) -> Hyperparameters:
        """The numbers of the optimizer by name, which may change between steps."""
        return self._hyperparameters

    @property
    def learning_rate(self) -> Any:
        """The learning rate, which may change between steps; with a schedule, what scales it.

        Of an ensemble as many as there are members; set it to so many, or to one number for all.

        Set it to a number, or to as many as there are members. FeedError unless each is at least 0,
        and finite in the type that the step computes in.
        """
        return self._hyperparameters[RATE]

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self._hyperparameters[RATE] = value

    @property
    def averages(self) -> Mapping[str, Array]:
        """Live views of the moving averages of parameters, by the parameter; none without ema."""
        return self._seen(self._plan.optimizer.averages)

    def show(self, level: str) -> str:
        """The program at one level: graph, optimized, kernels, loops, llvm or asm."""
        return self._engine.show(level)

    def report(
        self, measure: bool = False, sizes: Mapping[str, int] | None = None
    ) -> driver.Report:
        """Passes, kernels with flops, bytes and times, memory plan, code size.

        Times are predicted for symbolic `sizes` as given, such as `{"batch": 32}`, others 64. With
        `measure` each kernel is timed too, on copies of parameters and optimizer and on made-up
        data, and the machine is calibrated first unless it has been, which takes a second.
        """
        with self._alone():
            try:
                return self._engine.report(check_flag("measure", measure), sizes)
            except RuntimeFault as fault:
                self._raise(fault)

    # keeping it

    def state_dict(self, into: dict[str, Array] | None = None) -> dict[str, Array]:
        """Copies of everything that training depends on, by name.

        Parameters and states under their names; the optimizer's under "optimizer."; the seed and
        the number of epochs begun under "training.". `into` is an earlier result, whose arrays are
        used again.
        """
        made = {} if into is None else into
        with self._alone():
            for name, array in self._arrays.items():
                if into is None:
                    made[name] = np.array(array, order="C")
                else:
                    np.copyto(made[name], array)
        made[EPOCH] = np.array(self._epochs.begun, np.int64)
        return made

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
        if problem := self._hyperparameters.problem(given):
            raise ArtifactError(f"no training has this state: {problem}")
        with self._alone():
            for name, array in self._arrays.items():
                array[...] = given[name]
            self._epochs.begun = int(given[EPOCH])

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
        cpu: str | Sequence[str] | None = None,
        features: str | None = None,
        determinism: str = "default",
        optimize: str | None = None,
        examples: Sequence[str] = (),
        max_parts: int = 1,
    ) -> Artifact:
        """Write the step as a kernel with a C interface, which needs nothing besides.

        `target` is "host", a level of x86-64 ("x86-64-v3") or several, one kernel holding them all,
        or an LLVM triple ("aarch64-linux-gnu", "riscv64-linux-gnu", "wasm32"), with LLVM's words
        for `cpu` and `features`. `max_sizes` bounds the symbolic sizes, `max_batch` the first of
        them. With determinism "strict" no multiply-add is fused, and every target has the same
        bits. `optimize` for "speed" or "size": without a word, microcontrollers get the least code,
        all others the fastest. `examples` are languages, of "c", "rust" and "js", to write an
        example and a self-test program in. With `max_parts` above 1 callers may divide a step into
        so many parts, for threads of theirs, with the same bits. docs/export.md tells of the files;
        by default there are those that the target has.
        Raises CompileError and ArtifactError.
        """
        chosen = Export(name, target, formats, max_batch, max_sizes or {}, cpu, features,
                        determinism, optimize, examples, max_parts)  # fmt: skip
        with self._alone():
            stored = {name: array.copy() for name, array in self._storage.arrays.items()}
        return export(
            chosen, self._plan, self._outputs, self._precision, self._members, self.state_dict(),
            stored, folder,
        )  # fmt: skip

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on from a file that `save` wrote. Raises ArtifactError, changing nothing."""
        self.load_state_dict(state.of_step(checkpoint.read(path)))
