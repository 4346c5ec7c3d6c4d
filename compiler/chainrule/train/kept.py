"""What a training step keeps between its calls: parameters, states and optimizer, by name."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from chainrule import driver
from chainrule.errors import ArtifactError, CompileError, FeedError
from chainrule.ir.node import Node
from chainrule.train import checkpoint, state
from chainrule.train.arrays import Arrays
from chainrule.train.ensemble import Ensemble
from chainrule.train.epochs import Epochs
from chainrule.train.hyperparameters import Hyperparameters
from chainrule.train.plan import EPOCH, SEED, StepPlan, label
from chainrule.train.updates import RATE, STEP
from chainrule_runtime import RuntimeFault, Storage

if TYPE_CHECKING:
    from chainrule.export import Artifact

Array = np.ndarray[Any, Any]
#: how to change what is read alone; a step made anew is the way for all others
_CHANGED = {
    "averages": "write into one: step.averages[name][...] = value",
    "backend": 'it is chosen when the step is made: cr.training_step(..., backend="reference")',
    "ensemble": "it is chosen when the step is made: cr.training_step(..., ensemble=4)",
    "epochs": "step.load_state_dict(state) and step.load(path) set it",
    "hyperparameters": "set one of them: step.hyperparameters[name] = value",
    "parameters": "write into one: step.parameters[name][...] = value",
    "seed": "it is chosen when the step is made: cr.training_step(..., seed=1)",
    "steps": "step.load_state_dict(state) and step.load(path) set it",
}


class Kept:
    """A step's arrays as they are, as copies, in files, and as a kernel that is exported.

    Where `share` has a parameter or a state too, it is one array.
    """

    _epochs: Epochs

    def __init__(
        self,
        plan: StepPlan,
        outputs: Any,
        share: Kept | None,
        seed: int,
        precision: str | None,
        members: Ensemble | None,
        natively: bool,
    ) -> None:
        self._plan, self._outputs = plan, outputs
        self._precision, self._members = precision, members
        self._kept = [members.leaf(n) for n in plan.kept] if members else plan.kept
        lent = state.lent(plan, share._plan, share._storage.arrays) if share else {}
        tensors = [(label(n), n.type.dtype.numpy, state.static(n)) for n in self._kept]
        try:
            self._storage: Storage = Storage(tensors, lent, share._storage.lock if share else None)
        except RuntimeFault as fault:
            driver.raise_ours(fault)
        arrays = self._storage.arrays
        if members is None:
            state.begin(plan, arrays, seed, lent, natively)
        else:
            for i in range(members.count):
                state.begin(plan, members.member(i, arrays), seed + i, lent, natively)
        self._arrays = arrays if members is None else members.seen(arrays)
        numbers = plan.optimizer.hyperparameters
        self._hyperparameters = Hyperparameters(numbers, self._arrays, members)
        self._hyperparameters.begin()
        self._parameters = self._seen("parameters", {p: p for p in plan.parameters})

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse what is no attribute, as a misspelt hyper-parameter would be kept and not used."""
        own = getattr(type(self), name, None)
        if not name.startswith("_") and (own is None or callable(own)):
            raise self._no_attribute(name)
        if isinstance(own, property) and own.fset is None:
            mend = _CHANGED.get(name, "it follows from what the step was made of: make another")
            raise FeedError(f"{name} of a training step can be read, not set", mend)
        object.__setattr__(self, name, value)

    def _no_attribute(self, name: str) -> FeedError:
        """What is said of an attribute that can't be set."""
        what = f"a training step has no {name!r} to set"
        if name in self._hyperparameters:
            return FeedError(what, f"step.hyperparameters[{name!r}] = ...")
        others = ", ".join(n for n in self._hyperparameters if n != RATE)
        more = f", and step.hyperparameters[...] of {others}" if others else ""
        return FeedError(what, f"there is step.{RATE}{more}")

    def _seen(self, what: str, leaves: Mapping[Node, Node]) -> Mapping[str, Array]:
        """Live arrays, by the names of other leaves."""
        arrays = {label(name): self._arrays[label(node)] for name, node in leaves.items()}
        return Arrays(what, arrays)

    @property
    def plan(self) -> StepPlan:
        """What it computes, before it was compiled."""
        return self._plan

    @property
    def parameters(self) -> Mapping[str, Array]:
        """Live, writable views of the parameters by name: `parameters["W"][...] = new`."""
        return self._parameters

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
    def epochs(self) -> int:
        """How many epochs were begun: the number of the next."""
        return self._epochs.begun

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
        FeedError unless each is at least 0, and finite in the type that the step computes in.
        """
        return self._hyperparameters[RATE]

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self._hyperparameters[RATE] = value

    @property
    def averages(self) -> Mapping[str, Array]:
        """Live views of the moving averages of parameters, by the parameter; none without ema."""
        return self._seen("averages", self._plan.optimizer.averages)

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
        max_batch: int | None = None,
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
        for `cpu` and `features`; or an NVIDIA GPU, "sm_75" to "sm_120", "cuda" for the one here.
        `max_sizes` bounds the symbolic sizes; the rows of a minibatch are 64 at most, or what
        `max_batch` or `max_sizes`, one of them, says. With determinism "strict" no multiply-add is
        fused, and every target has the same bits. `optimize` for "speed" or "size": without a word,
        microcontrollers get the least code, all others the fastest. `examples` are languages, of
        "c", "rust" and "js", to write an example and a self-test program in. With `max_parts` above
        1 callers may divide a step into so many parts, for threads of theirs, with the same bits.
        docs/export.md tells of the files; by default there are those that the target has.
        Raises CompileError and ArtifactError.
        """
        from chainrule.train.asked import Export
        from chainrule.train.export import export

        chosen = Export(name, target, formats, max_batch, max_sizes or {}, cpu, features,
                        determinism, optimize, examples, max_parts)  # fmt: skip
        with self._alone():
            stored = {name: array.copy() for name, array in self._storage.arrays.items()}
        return export(
            chosen, self._plan, self._outputs, self._precision, self._members, self.state_dict(),
            stored, folder,
        )  # fmt: skip

    def __reduce__(self) -> NoReturn:
        """Refuse to be copied and pickled."""
        raise CompileError(
            "a training step can't be copied or pickled",
            "make it again and load_state_dict(step.state_dict()), or save and load a file",
        )

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on from a file that `save` wrote. Raises ArtifactError, changing nothing."""
        self.load_state_dict(state.of_step(checkpoint.read(path)))
