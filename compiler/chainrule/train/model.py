"""`cr.Model`: a net with its loss and optimizer, trained by `fit`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from chainrule.errors import ArtifactError, ChainruleError, CompileError, FeedError
from chainrule.lang.derive import rebuilt
from chainrule.nn.numbers import check_int
from chainrule.nn.optim import Optimizer
from chainrule.train import checkpoint, stored
from chainrule.train.built import Built
from chainrule.train.callbacks.base import Callback
from chainrule.train.data import check_finite, check_fits, gathered, is_batches, table
from chainrule.train.data import weighed as with_classes
from chainrule.train.fitting import Fit, History
from chainrule.train.opening import (
    callbacks_of,
    of_batches,
    of_table,
    resumed,
    split,
    validation_table,
)
from chainrule.train.plan import label
from chainrule.train.progress import progress
from chainrule.train.scoring import ROWS, arrays_of, whole
from chainrule.train.source import Source, read
from chainrule.train.state import like, of_step

if TYPE_CHECKING:
    from chainrule.export import Artifact

Array = np.ndarray[Any, Any]


class Model(Built):
    """A net, a loss and an optimizer: `fit`, `evaluate`, `predict`.

        net = cr.nn.Sequential([cr.nn.Dense(128, "relu"), cr.nn.Dense(10)])
        model = cr.Model(net, "cross_entropy", cr.optim.Adam(1e-3), metrics=["accuracy"])
        history = model.fit(X, Y, epochs=20, batch_size=64)

    `net` is a layer, or any function from Tensors to a Tensor; what it is called on is decided by
    the first data: rows along axis 0, floats as `dtype`, integers as int32, or as float32 where the
    net takes no integers. `loss` and `metrics` are names of `cr.losses` and `cr.metrics`, or
    functions of prediction and labels; metrics may be a dict by name. A `regularizer` is a function
    of the list of parameters, added to the loss. `backend`, `threads`, `precision`,
    `memory_budget`, `tune`, `snapshot_every` and `seed` are those of `cr.training_step`.
    """

    def fit(
        self,
        x: Any,
        y: Any = None,
        epochs: int = 1,
        batch_size: int = 32,
        validation_data: Any = None,
        validation_split: float = 0.0,
        callbacks: Iterable[Callback] = (),
        class_weight: Mapping[Any, float] | None = None,
        sample_weight: Any = None,
        shuffle: bool = True,
        verbose: int | str = "auto",
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        resume: str | os.PathLike[str] | None = None,
        check_data: bool = True,
    ) -> History:
        """Train; gives the history of loss and metrics, as Keras' `fit` does.

        `x` and `y` are arrays (or dicts of them by name) with rows along axis 0, or `x` alone gives
        minibatches (x, y) or (x, y, weights): something that can be gone through once an epoch, or
        an iterator, of which `steps_per_epoch` are taken; a thread makes them ready while the step
        before is at work. Arrays mapped from files are read by minibatches.

        `sample_weight` weighs rows, `class_weight` labels: the loss is the mean of weight · loss.
        `validation_data` is (x, y), (x, y, weights) or minibatches; `validation_split` takes the
        last part of the rows instead. `epochs` is the number of the last epoch: it begins with
        `initial_epoch`, or goes on from the checkpoint `resume`. `verbose` 1 is a bar where there
        is a terminal, 2 a line an epoch, "auto" is 1. `check_data` looks for NaN and infinity.

        Raises FeedError for data that does not fit, before anything is trained; NonFiniteError for
        a loss that is none, naming the operation it came from, with the parameters of the last
        finite step. Ctrl-C comes through at the end of a step.
        """
        self._check_optimizer()
        epochs = check_int("epochs", epochs, 0)
        initial_epoch = check_int("initial_epoch", initial_epoch, 0)
        batch_size, hooks = check_int("batch_size", batch_size, 1), callbacks_of(callbacks)
        shown = progress(verbose)
        if not isinstance(shuffle, (bool, np.bool_)):
            raise FeedError(f"shuffle is True or False, not {shuffle!r}")
        state = resumed(resume, hooks)
        source: Source
        if is_batches(x, y):
            if sample_weight is not None or validation_split:
                raise FeedError("weights and a split need arrays: minibatches bring their weights")
            source = of_batches(
                x,
                lambda data: self._trainable(data, data.weight is not None),
                class_weight,
                steps_per_epoch,
                epochs - initial_epoch,
            )
        else:
            if steps_per_epoch is not None:
                raise FeedError("steps_per_epoch is of minibatches that an iterator gives")
            data = table(x, y, sample_weight)
            data, validation_data = split(data, validation_split, validation_data)
            data = with_classes(data, class_weight)
            if check_data:
                check_finite(data.feeds)
            step = self._trainable(data, data.weight is not None)
            source = of_table(step, self.problem, data, batch_size, bool(shuffle))
        try:
            validate = None
            if validation_data is not None:
                validate = self._validation(validation_data, check_data)
            for callback in hooks:
                callback.model = self
            self._fit = Fit(self, source, epochs, initial_epoch, hooks, validate, shown)
            if state is not None:
                self.step.load_state_dict(of_step(state))
                self._fit.load_state_dict(state)
        except BaseException:
            source.close()
            raise
        inside, self._fitting = self._fitting, True  # a callback may call fit
        try:
            return self._fit.run()
        finally:
            self._fitting = inside

    def _check_optimizer(self) -> None:
        if self.missing_optimizer is not None:
            raise CompileError(
                f"this model was trained by {self.missing_optimizer}, which its file can't hold",
                f"cr.Model.load(path, optimizer={self.missing_optimizer}(...)) goes on training",
            )

    def _validation(self, given: Any, check_data: bool) -> Callable[[], dict[str, float]]:
        data = validation_table(given)
        if data is None:
            return lambda: self.evaluate(given)
        if check_data:
            check_finite(data.feeds, "validation data: ")
        try:
            check_fits(data, {**self.problem.inputs, **self.problem.targets})
        except ChainruleError as error:
            error.details = (*error.details, "in the validation data")
            raise
        return lambda: self._scorer.evaluate(self.step, [data], ROWS)

    def partial_fit(self, x: Any, y: Any = None, sample_weight: Any = None) -> float:
        """One step on one minibatch, for data that streams in; its loss, before the update."""
        self._check_optimizer()
        data = table(x, y, sample_weight)
        step = self._trainable(data, data.weight is not None or self._weighted)
        if self._weighted and data.weight is None:
            data = table(x, y, np.ones(data.rows, np.float32))
        return float(step(**read(step, data.feeds)))

    # using

    def predict(self, x: Any, batch_size: int | None = None, averaged: bool = False) -> Any:
        """The net's result for rows of data, in inference mode; `batch_size` rows at a time.

        `averaged` predicts with the moving averages of the parameters: the optimizer's `ema`.
        """
        size = ROWS if batch_size is None else check_int("batch_size", batch_size, 1)
        tables = list(gathered(x)) if is_batches(x, None) else [table(x)]
        if self._problem is None:
            self._build(tables[0], False, False)
        parts = [arrays_of(self._scorer.predict(self.step, t, size, averaged)) for t in tables]
        made = [whole(column) for column in zip(*parts, strict=True)]
        return rebuilt(self.problem.prediction, made)

    def evaluate(
        self, x: Any, y: Any = None, sample_weight: Any = None, batch_size: int | None = None
    ) -> dict[str, float]:
        """Loss and metrics by name, in inference mode, over all rows at once.

        Predictions are made `batch_size` rows at a time and gathered. `x` alone may give
        minibatches, as in `fit`.
        """
        size = ROWS if batch_size is None else check_int("batch_size", batch_size, 1)
        tables = list(gathered(x)) if is_batches(x, y) else [table(x, y, sample_weight)]
        if self._problem is None:
            self._build(tables[0], tables[0].target is not None, False)
        return self._scorer.evaluate(self.step, tables, size)

    # keeping

    def weights(self) -> dict[str, Array]:
        """Copies of parameters and states by name."""
        plan, state = self.step.plan, self.step.state_dict()
        return {label(n): state[label(n)] for n in (*plan.parameters, *plan.states)}

    def set_weights(self, weights: Mapping[str, Any]) -> None:
        """Put values in the places of parameters and states, by name.

        Numbers of another width are converted. Raises ArtifactError for what does not fit.
        """
        if not isinstance(weights, Mapping):
            raise ArtifactError(
                f"weights are a dict of arrays by name, not {type(weights).__name__}",
                "such as model.weights() gives",
            )
        own = self.step.state_dict()
        given = {n: like(own[n], a) if n in own else a for n, a in weights.items()}
        self.step.load_state_dict({**own, **given})

    def checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Write the model, and where a training under way stands, to a file."""
        standing = {} if self._fit is None else self._fit.state_dict()
        state = {**self.step.state_dict(), **standing}
        checkpoint.write(path, {**state, **stored.described(self, strict=False)})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to a file: its expressions, its parameters, the optimizer and its state.

        It holds data alone: reading it runs nothing. Raises ArtifactError for a net with a
        derivative that is a Python function.
        """
        checkpoint.write(path, {**self.step.state_dict(), **stored.described(self, strict=True)})

    def export(self, folder: str | os.PathLike[str], name: str = "net", **options: Any) -> Artifact:
        """Write the model's training step as a kernel with a C interface: `TrainingStep.export`."""
        return self.step.export(folder, name, **options)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        optimizer: Optimizer | None = None,
        backend: str = "cpu",
        threads: int | None = None,
    ) -> Model:
        """A model from a file that `save` or a Checkpoint wrote; it goes on with the same bits.

        An `optimizer` of your own has to be given again to go on training. Raises ArtifactError
        for a file that is damaged or holds no model.
        """
        model: Model = stored.revived(cls, path, optimizer, backend, threads)
        return model

    def __reduce__(self) -> tuple[Any, ...]:
        """How it is copied and pickled: by what `save` writes, and its optimizer as it is."""
        if self._step is None:
            raise CompileError("a model that has not seen data is copied by making another one")
        arrays = {**self.step.state_dict(), **stored.described(self, strict=True)}
        options = {n: self._options[n] for n in ("backend", "threads")}
        return stored.from_arrays, (type(self), arrays, self.optimizer, options)
