"""What a model is made of: a net, a loss and an optimizer, and the step that they make for data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

from chainrule.errors import CompileError
from chainrule.ir.types import dtype as dtype_of
from chainrule.lang.inspect import explain
from chainrule.lang.options import check_options, check_seed
from chainrule.lang.tensor import Tensor
from chainrule.nn import losses, optim
from chainrule.nn.layer import Layer
from chainrule.nn.optim import Adam, Optimizer
from chainrule.train import named
from chainrule.train.data import Table, table
from chainrule.train.fitting import Fit
from chainrule.train.plan import label
from chainrule.train.problem import Problem, pose, trained_of, type_of
from chainrule.train.scoring import Scorer
from chainrule.train.step import TrainingStep, training_step
from chainrule.train.summary import Summary, summarize

Measure = Callable[..., Tensor]


class Built:
    """A net, a loss and an optimizer, whose expressions and step are made when data is seen."""

    def __init__(
        self,
        net: Callable[..., Any],
        loss: str | Measure = "cross_entropy",
        optimizer: str | Optimizer | None = None,
        metrics: Sequence[str | Measure] | Mapping[str, str | Measure] = (),
        regularizer: Measure | None = None,
        backend: str = "cpu",
        threads: int | None = None,
        precision: str | None = None,
        memory_budget: int | tuple[int, Mapping[str, int]] | None = None,
        tune: bool | Mapping[str, int] = False,
        snapshot_every: int | None = None,
        seed: int = 0,
        dtype: str = "float32",
    ) -> None:
        if not callable(net) or isinstance(net, type):
            raise CompileError(f"a net is a layer or a function of Tensors, not {net!r}")
        if regularizer is not None and not callable(regularizer):
            raise CompileError(
                f"a regularizer is a function of the list of parameters, not {regularizer!r}",
                "such as lambda weights: cr.regularizers.l2(weights, 1e-4)",
            )
        threads = check_options(backend, threads, precision)
        self.net = net
        self.optimizer = Adam(1e-3) if optimizer is None else optim.get(optimizer)
        self.seed = check_seed(seed)
        self._loss, self._measures = losses.get(loss), named.metrics(metrics)
        self._regularizer = regularizer
        self._options: dict[str, Any] = {
            "backend": backend,
            "threads": threads,
            "precision": precision,
            "memory_budget": memory_budget,
            "tune": tune,
            "snapshot_every": snapshot_every,
        }
        self.dtype = dtype_of(dtype)
        if not self.dtype.is_float:
            raise CompileError(f"a net computes with floats, not with {dtype}")
        #: the kind of optimizer that a file named and that has to be given again to train on
        self.missing_optimizer: str | None = None
        self._problem: Problem | None = None
        self._step: TrainingStep | None = None
        self._weighted = False
        self._scoring: tuple[Problem, Scorer] | None = None
        self._fit: Fit | None = None
        self._fitting = False
        self._freezings = Layer.freezings
        self.stop_training = False

    @classmethod
    def from_problem(
        cls, problem: Problem, optimizer: Optimizer, weighted: bool, **options: Any
    ) -> Self:
        """A model of expressions, without a net that could be called again."""
        model = cls(_no_net, optimizer=optimizer, **options)
        model._problem = problem
        model._renew(weighted)
        return model

    # what it is

    @property
    def built(self) -> bool:
        """Whether it knows what its data is like."""
        return self._step is not None

    @property
    def step(self) -> TrainingStep:
        """The compiled training step, which holds the parameters. Raises CompileError before data.

        Weights of rows, given for the first time, make it anew, with the same state; so do layers
        that were frozen or unfrozen, but not while `fit` is at work. Of a net that is frozen whole
        it does everything but train.
        """
        if self._step is None:
            raise CompileError(
                "this model has not seen data yet, so it does not know its sizes",
                "model.build(x, y), or fit, evaluate, predict",
            )
        if self._freezings != Layer.freezings:
            self._heed_freezing()
        return self._step

    @property
    def problem(self) -> Problem:
        """Its expressions. Raises CompileError before data."""
        _ = self.step  # it says what is missing
        return self._known()

    @property
    def weighted(self) -> bool:
        """Whether its step takes weights of rows."""
        return self._weighted

    @property
    def epoch(self) -> int:
        """The number of the epoch that `fit` is in, from 0 on."""
        return 0 if self._fit is None else self._fit.epoch

    @property
    def loss(self) -> Tensor:
        """What is minimised, as an expression."""
        return self.step.loss

    def gradients(self) -> dict[str, Tensor]:
        """The gradient of the loss by each parameter that is trained, as an expression by name."""
        return self.step.gradients

    def explain(self, name: str) -> Any:
        """The proof of a gradient: `model.explain("dense1.weight")`. Raises CompileError."""
        parameters = {label(p): p for p in self.step.plan.parameters}
        if name not in parameters:
            raise CompileError(
                f"no parameter is called {name!r}", f"there are {', '.join(parameters)}"
            )
        return explain(self.loss, Tensor(parameters[name]))

    def summary(self, x: Any = None) -> Summary:
        """Layers, parameters, bytes and operations; `str()` of it is a table.

        `x` is data, for a model that has not seen any.
        """
        if x is not None and self._problem is None:
            self.build(x)
        return summarize(self.net, self.step, self._known())

    def __repr__(self) -> str:
        if self._problem is None:
            return f"<Model of {self.net!r}, not built>"
        count = sum(a.size for a in self.step.parameters.values())
        return f"<Model of {count:,} parameters>"

    # building

    def build(self, x: Any, y: Any = None) -> Self:
        """Compile it for data such as this, of which types and sizes count. Gives the model."""
        data = table(x, y)
        self._build(data, y is not None, weighted=False)
        return self

    def _known(self) -> Problem:
        assert self._problem is not None
        return self._problem

    def _build(self, data: Table, labelled: bool, weighted: bool) -> TrainingStep:
        """The step for data; made anew where labels turn out otherwise, or rows are weighed."""
        free = self.net is not _no_net
        if self._problem is None or (labelled and free and not self._problem.takes(data.targets)):
            self._problem = self._pose(data, labelled)
            self._renew(weighted)
        elif self._step is None or weighted != self._weighted:
            self._renew(weighted)
        self._heed_freezing()
        return self.step

    def _heed_freezing(self) -> None:
        """Make the step anew, with its state, where the net trains other parameters than it did."""
        if self._fitting or self.net is _no_net:
            return
        self._freezings, trained = Layer.freezings, trained_of(self.net)
        if trained != self._known().trained:
            self._problem = replace(self._known(), trained=trained)
            self._renew(self._weighted)

    def _trainable(self, data: Table, weighted: bool) -> TrainingStep:
        """The step for data to train on. Raises CompileError where every parameter is frozen."""
        step = self._build(data, data.target is not None, weighted)
        step.check_trains()
        return step

    def _pose(self, data: Table, labelled: bool) -> Problem:
        inputs = {n: type_of(n, a, self.dtype) for n, a in data.inputs.items()}
        target: Any = ...
        if labelled:
            types = {n: type_of(n, a, self.dtype) for n, a in data.targets.items()}
            target = types if isinstance(data.target, Mapping) else next(iter(types.values()))
        if self._problem is not None:
            known = self._problem
            return known.relabelled(self._loss, self._measures, target)
        return pose(
            self.net, self._loss, self._measures, self._regularizer, inputs, data.alone, target
        )

    def _renew(self, weighted: bool) -> None:
        """Make the step, with the state of the one before."""
        before, problem = self._step, self._known()
        self._step = training_step(
            problem.minimised(weighted),
            self.optimizer,
            metrics=problem.metrics,
            outputs=problem.outputs,
            train=problem.trained or None,
            seed=self.seed,
            **self._options,
        )
        self._step.trains = problem.trained != ()
        self._weighted = weighted
        if before is not None:
            own = self._step.state_dict()
            kept = {n: a for n, a in before.state_dict().items() if n in own}
            self._step.load_state_dict({**own, **kept})

    @property
    def _scorer(self) -> Scorer:
        """What evaluates; made anew with the expressions it is of."""
        problem = self.problem
        if self._scoring is None or self._scoring[0] is not problem:
            options = {n: self._options[n] for n in ("backend", "threads", "precision")}
            self._scoring = problem, Scorer(problem, options)
        return self._scoring[1]


def _no_net(*inputs: Tensor, **named_inputs: Tensor) -> Tensor:
    raise CompileError("a model from a file has no net to call: its expressions are there")
