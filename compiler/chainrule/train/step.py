"""`cr.training_step`: forward, backward and update as one program, called once a minibatch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Never, NoReturn

import numpy as np

from chainrule import driver
from chainrule.collector import uncollected
from chainrule.errors import CompileError, DeviceError, FeedError, NonFiniteError
from chainrule.lang.arguments import refuse_unnamed
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
from chainrule.train.engine import Options
from chainrule.train.engines import ENGINES
from chainrule.train.ensemble import Ensemble, check_ensemble
from chainrule.train.epochs import Bound, Epochs
from chainrule.train.kept import Kept
from chainrule.train.plan import StepPlan, label, nodes_of, plan_step
from chainrule.train.predictor import Predictor
from chainrule_runtime import NonFiniteError as RuntimeNonFinite
from chainrule_runtime import RuntimeFault
from chainrule_runtime.errors import DeviceError as RuntimeDeviceError

if TYPE_CHECKING:
    from chainrule.driver.report import Report

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
    snapshot_every: int | None = None,
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
    with "bfloat16x3" each factor is two bfloat16 where that is faster, near float32; with "tf32" a
    GPU that has tensor cores rounds factors to TF32; parameters and optimizer stay float32. Loss,
    metrics and updates are as in training (dropout), `outputs` as in inference.

    An `ensemble` of so many members is trained on the same minibatches, member i with the seed
    `seed` + i: parameters, losses and predictions have members along a first axis.

    `memory_budget` limits the bytes of the arena, `report().reserved(...)["arena"]`, where values
    wait for the backward pass: what does not fit is computed again, to the same bits, products only
    if nothing else suffices; `report()` says what, and how many operations that costs. An arena
    grows with the batch, so a budget goes with its sizes: `(50_000_000, {"batch": 1024})`. With
    bytes alone, and for sizes that are not given, it holds where each symbolic size is 64. A scan
    of a known number of steps runs again in equal segments, one at a time.

    With `tune` the products that take longest are timed in a handful of ways, at the sizes given,
    such as `{"batch": 128}`, or 64 each with True, then steps on 1, 2, 4 ... of the `threads`; what
    is fastest is kept with the compiled code, and has the same bits. That takes some seconds, once
    on a machine. On a GPU cuBLASLt is one of the ways, where it is installed: its sums have an
    order of their own.

    On a GPU `run`, and `Model.fit`, bring parameters and optimizer to the host when they are done;
    with `snapshot_every` after every so many steps too, so that they are there where a kernel
    fails or the GPU is lost. A CPU has them on the host at every step.

    Raises CompileError for an option that is not built yet, and for a budget that can't be met: it
    says what can.
    """
    threads = check_options(backend, threads, precision)
    seed = check_seed(seed)
    ensemble = check_ensemble(ensemble, seed, share)
    if share is not None and not isinstance(share, TrainingStep):
        raise CompileError(f"share is another training step, not {share!r}")
    wanted = nodes_of(outputs)
    measured = {} if metrics is None else metrics
    changed = {} if updates is None else updates
    plan = plan_step(loss, optimizer, measured, wanted, changed, train)
    sizes = driver.sizes_of(plan.inputs)
    members = Ensemble(ensemble, frozenset([plan.optimizer.count])) if ensemble else None
    options = Options(
        threads,
        precision,
        check_budget(memory_budget, backend, sizes),
        check_tune(tune, backend, sizes),
        None if snapshot_every is None else check_int("snapshot_every", snapshot_every, 1),
    )
    return TrainingStep(plan, outputs, share, backend, seed, options, members)


class TrainingStep(Kept):
    """A compiled training step with its parameters. Made by `training_step`.

    Calls from several threads wait for each other.
    """

    #: whether calls change parameters: not those of a model whose net is frozen whole
    trains = True

    def __init__(
        self,
        plan: StepPlan,
        outputs: Any,
        share: TrainingStep | None,
        backend: str,
        seed: int,
        options: Options,
        members: Ensemble | None,
    ) -> None:
        natively = backend != "reference"
        super().__init__(plan, outputs, share, seed, options.precision, members, natively)
        self._backend = backend
        self._metrics: dict[str, Any] | None = {}  # None: what the last call left, not read yet
        one = plan.unwritten
        graph = members.unwritten(one, plan.kept) if members else one
        make = ENGINES[backend]
        self._engine = make(
            graph, plan.inputs, self._kept, plan.names, self._storage, True, options
        )
        self._snapshot_every = options.snapshot_every
        self._epochs = Epochs(plan, self._engine, self._storage, members)
        self._predictor = Predictor(plan, outputs, self._storage, members, backend, options)

    # training

    def __call__(self, /, *unnamed: Never, **feeds: Any) -> Any:
        """One step on one minibatch; the loss before the update, of an ensemble each member's.

        Raises FeedError for data that does not fit and NonFiniteError for a loss that is infinite
        or NaN; nothing is changed then. Of a finite loss the gradient may still overflow: that is
        seen in the next step, whose error names the parameter that holds no number any more.
        """
        if unnamed:
            refuse_unnamed(unnamed, self._engine.binder.names)
        direct, lock = self._engine.direct, self._storage.lock
        if direct is not None and self.trains and not lock.is_mine():
            with lock.guard:
                loss = direct(feeds)
            if loss == loss:
                if self._metrics is not None:  # to set it takes longer than to look
                    self._metrics = None
                return loss
        return self._checked_call(feeds)

    def _checked_call(self, feeds: Mapping[str, Any]) -> Any:
        """One step on whatever was fed, or the error that says why not."""
        self.check_trains()
        try:
            results = self._engine.call(feeds)
        except RuntimeFault as fault:
            self._raise(fault)
        self._metrics = self._named(results)
        loss = results[0] + 0.0  # a loss that is the negative of 0 is 0
        return float(loss) if self._members is None else loss

    def check_trains(self) -> None:
        """Raise CompileError where there is nothing to train."""
        if not self.trains:
            raise CompileError(
                "every parameter of the net is frozen: there is nothing to train",
                "net.unfreeze(); predict and evaluate need no training",
            )

    def _named(self, results: Sequence[Array]) -> dict[str, Any]:
        """The metrics among the results of a step."""
        named = zip(self._plan.names[1:], results[1:], strict=True)
        return {n: a if a.ndim else a.item() for n, a in named}

    def run(
        self,
        /,
        *unnamed: Never,
        batch_size: int = 32,
        epochs: int = 1,
        shuffle: bool = True,
        **data: Any,
    ) -> Array:
        """Whole epochs of minibatches in one native call; the loss of each step, before its update.

        Inputs whose axis 0 is the first symbolic size are cut into minibatches of `batch_size`
        rows, the last of an epoch smaller if need be; others are whole in every step. A
        `batch_size` above the number of rows is one minibatch of them all. `shuffle` draws a new
        order of rows for each epoch from the seed. Shapes and labels are checked before the first
        update. Raises FeedError and NonFiniteError, which leave what the steps before them made;
        Ctrl-C comes through at the end of a step.
        """
        if unnamed:
            refuse_unnamed(unnamed, self._engine.binder.names)
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
        self.check_trains()
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
        if isinstance(fault, RuntimeDeviceError) and fault.lost:
            more = "" if self._snapshot_every else "; snapshot_every=1000 would bring later ones"
            raise DeviceError(
                fault.what,
                *fault.details,
                f"parameters and optimizer on the host are those after step {self.steps}{more}",
                "save() them, and go on in a new process",
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

    def predict(self, /, *unnamed: Never, **feeds: Any) -> Any:
        """The `outputs` for given inputs, in the structure they were named in; changes nothing."""
        if unnamed:
            refuse_unnamed(unnamed, self._engine.binder.names)
        return self._predictor(False, feeds)

    def predict_averaged(self, /, **feeds: Any) -> Any:
        """`predict` with the moving averages of the parameters (the optimizer's `ema`) for them."""
        if not self._plan.optimizer.averages:
            raise CompileError("no averages are kept of these parameters", "Adam(..., ema=0.999)")
        return self._predictor(True, feeds)

    @property
    def backend(self) -> str:
        """What runs it: "cpu", "cuda" or "reference"."""
        return self._backend

    @property
    def metrics(self) -> dict[str, Any]:
        """Of the last call a number for each metric; of the last `run` an array, one a step."""
        if self._metrics is None:
            self._metrics = self._named(self._engine.scalars())
        return dict(self._metrics)

    @property
    def log_names(self) -> tuple[str, ...]:
        """What is measured in each step: "loss", and the names of the metrics."""
        return self._plan.names

    @property
    def loss(self) -> Tensor:
        """What is minimised, as an expression."""
        return Tensor(self._plan.loss)

    @property
    def gradients(self) -> dict[str, Tensor]:
        """The gradient of the loss by each parameter that is trained, as an expression."""
        return {label(w): Tensor(g) for w, g in self._plan.gradients.items()}

    def show(self, level: str) -> str:
        """The program at one level: graph, optimized, kernels, loops, llvm or asm."""
        return self._engine.show(level)

    def report(self, measure: bool = False, sizes: Mapping[str, int] | None = None) -> Report:
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
