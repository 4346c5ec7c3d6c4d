"""What a step predicts: its outputs in inference, from the parameters that it trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from chainrule import driver
from chainrule.errors import CompileError
from chainrule.ir import provenance
from chainrule.train.engine import Engine, Options
from chainrule.train.engines import ENGINES
from chainrule.train.ensemble import Ensemble, members_first
from chainrule.train.plan import StepPlan, nodes_of
from chainrule_runtime import RuntimeFault, Storage

Array = np.ndarray[Any, Any]


class Predictor:
    """The `outputs` of a step as programs, each compiled when it is first called.

    They read the arrays of the step's `storage` and change none. Raises CompileError where there
    are no outputs, FeedError for data that does not fit.
    """

    def __init__(
        self,
        plan: StepPlan,
        outputs: Any,
        storage: Storage,
        members: Ensemble | None,
        backend: str,
        options: Options,
    ) -> None:
        self._plan, self._outputs, self._storage, self._members = plan, outputs, storage, members
        self._backend, self._options = backend, Options(options.threads, options.precision)
        self._engines: dict[bool, Engine] = {}  # with averages or not

    def __call__(self, averaged: bool, feeds: Mapping[str, Any]) -> Any:
        """The outputs for what is fed, with the moving averages of parameters if `averaged`."""
        if self._outputs is None:
            raise CompileError(
                "this step has no outputs to predict", "training_step(..., outputs=z)"
            )
        if averaged not in self._engines:
            self._engines[averaged] = self._make(averaged)
        try:
            results = iter(self._engines[averaged].call(feeds))
        except RuntimeFault as fault:
            driver.raise_ours(fault)
        if self._members is not None:
            results = map(members_first, results)
        return _like(self._outputs, results)

    def _make(self, averaged: bool) -> Engine:
        nodes = nodes_of(self._outputs)
        graph = self._plan.predicted(nodes, averaged)
        leaves = driver.leaves_of(graph.outputs)
        kept = [n for n in leaves if n in self._plan.kept]
        inputs = [n for n in leaves if n not in self._plan.kept]
        if self._members is not None:
            graph = self._members.graph(graph, kept)
            kept = [self._members.leaf(n) for n in kept]
        names = [provenance.name_of(n) or f"output {i}" for i, n in enumerate(nodes)]
        make = ENGINES[self._backend]
        return make(graph, inputs, kept, names, self._storage, False, self._options)


def _like(structure: Any, results: Iterator[Array]) -> Any:
    """The arrays in the structure of the Tensors they are of."""
    if isinstance(structure, dict):
        return {k: _like(v, results) for k, v in structure.items()}
    if isinstance(structure, (list, tuple)):
        parts = [_like(v, results) for v in structure]
        return type(structure)(*parts) if hasattr(structure, "_fields") else type(structure)(parts)
    return next(results)
