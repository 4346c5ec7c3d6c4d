"""The training loop: epochs, callbacks, validation, and where it stands at every moment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from chainrule.errors import ArtifactError, ChainruleError, NonFiniteError
from chainrule.train.callbacks.base import Callback, overrides
from chainrule.train.callbacks.saving import Checkpoint
from chainrule.train.diverged import last_finite, why
from chainrule.train.plan import FIT
from chainrule.train.progress import Progress
from chainrule.train.source import Logs, Source, joined

if TYPE_CHECKING:
    from chainrule.train.model import Model

Array = np.ndarray[Any, Any]
_EPOCH_METHODS = ("on_epoch_begin", "on_epoch_end")
_BATCH_METHODS = ("on_batch_begin", "on_batch_end")
#: what a checkpoint says of the loop
AT, DONE, STOPPED, HISTORY, PARTIAL = (
    f"{FIT}position", f"{FIT}epoch", f"{FIT}stopped", f"{FIT}history.", f"{FIT}partial."
)  # fmt: skip
CALLBACK = f"{FIT}callback."


class History:
    """What `fit` measured: `history["val_loss"][k]` is of the k-th epoch in `epoch`."""

    def __init__(self) -> None:
        self.epoch: list[int] = []
        self.history: dict[str, list[float]] = {}

    def add(self, epoch: int, logs: Mapping[str, float]) -> None:
        """Add an epoch's numbers."""
        self.epoch.append(epoch)
        for name, value in logs.items():
            self.history.setdefault(name, []).append(value)

    def __repr__(self) -> str:
        return f"<History of {len(self.epoch)} epochs: {', '.join(self.history)}>"


class Fit:
    """One training loop."""

    def __init__(
        self,
        model: Model,
        source: Source,
        epochs: int,
        first: int,
        callbacks: Sequence[Callback],
        validate: Any,
        progress: Progress,
    ) -> None:
        self.model, self.source, self.epochs = model, source, epochs
        self.names = model.step.log_names
        # checkpoints last: they keep what the others have made of the epoch
        self.callbacks = sorted(callbacks, key=lambda c: isinstance(c, Checkpoint))
        self.validate, self.progress = validate, progress
        self.history = History()
        self.first, self.epoch, self.position, self.stopped = first, first, 0, False
        self._parts: list[Logs] = []
        self._resumed: list[tuple[Callback, dict[str, Array]]] = []
        self._before: dict[str, Array] | None = None  # the state when a native call began
        self._by_epoch = validate is not None or any(
            overrides(c, m) for c in callbacks for m in _EPOCH_METHODS
        )
        self._by_step = [
            c
            for c in self.callbacks
            if c.every_steps and any(overrides(c, m) for m in _BATCH_METHODS)
        ]

    # the loop

    def run(self) -> History:
        """Train. Whatever ends it, the model is at the end of a step, and no thread is left."""
        model = self.model
        model.stop_training = self.stopped
        try:
            self._tell("on_train_begin", {})
            for callback, state in self._resumed:
                callback.load_state_dict(state)
            self.progress.begin(self.epoch, self.epochs, self.source.steps)
            while self.epoch < self.epochs and not model.stop_training:
                self._epochs()
            self._tell("on_train_end", {})
        except ChainruleError:
            raise
        except Exception as error:
            error.add_note(f"in step {model.step.steps} of training, epoch {self.epoch}")
            raise
        finally:
            self.source.close()
            self.progress.close()
            for callback in self.callbacks:
                callback.close()
        return self.history

    def _tell(self, method: str, logs: Mapping[str, float], number: int | None = None) -> None:
        for callback in self.callbacks:
            if overrides(callback, method):
                given = (logs,) if number is None else (number, logs)
                getattr(callback, method)(*given)

    def _epochs(self) -> None:
        """The rest of an epoch; where nobody looks in between, as many as may go in one call."""
        if not self.position:  # else it has begun before, and a checkpoint was taken within it
            self._tell("on_epoch_begin", {}, self.epoch)
        self.source.begin_epoch(self.position, self.epoch - self.first, self.epochs - self.epoch)
        steps = self.source.steps
        while steps is None or self.position < steps:
            count = self._span(steps)
            self._begin_batch()
            logs = self._advance(self.position, self.position + count)
            self._parts.append(logs)
            self.position += len(logs)
            self._end_batch(logs)
            self.progress.step(self.position, logs)
            if steps is None and len(logs) < count:
                break
        self._settle()

    def _span(self, steps: int | None) -> int:
        """How many steps may go before somebody wants to look."""
        done = self.model.step.steps
        bounds = [c.every_steps - done % c.every_steps for c in self._by_step]
        if steps is None:
            bounds.append(self.progress.patience() or 64)
        elif self.source.spans and not (self._by_epoch or self._by_step or self.position):
            epochs = self.progress.epochs(steps) or self.epochs - self.epoch
            bounds.append(steps * min(epochs, self.epochs - self.epoch))
        else:
            bounds += [steps - self.position, self.progress.patience() or steps]
        return min(bounds)

    def _begin_batch(self) -> None:
        for callback in self._by_step:
            if callback.every_steps == 1 and overrides(callback, "on_batch_begin"):
                callback.on_batch_begin(self.position, {})

    def _end_batch(self, logs: Logs) -> None:
        if not self._by_step or not len(logs):
            return
        last = {n: float(c[-1]) for n, c in zip(self.names, logs.columns, strict=True)}
        done = self.model.step.steps
        for callback in self._by_step:
            if done % callback.every_steps == 0 and overrides(callback, "on_batch_end"):
                callback.on_batch_end(self.position - 1, last)

    def _settle(self) -> None:
        """Epochs are over: what they measured becomes history."""
        logs = joined(self._parts, len(self.names))
        self._parts, steps = [], self.source.steps or len(logs)
        for first in range(0, len(logs), steps):
            measured = dict(zip(self.names, logs.part(first, first + steps).means(), strict=True))
            if self.validate is not None:
                found = self.validate()
                measured |= {f"val_{n}": v for n, v in found.items()}
            epoch, self.epoch, self.position = self.epoch, self.epoch + 1, 0
            self.history.add(epoch, measured)
            self.progress.epoch(epoch, measured)
            self._tell("on_epoch_end", measured, epoch)

    def _advance(self, first: int, last: int) -> Logs:
        step = self.model.step
        before = None
        if self.source.spans and last - first > 1:
            before = self._before = step.state_dict(into=self._before)
        begun = step.steps
        try:
            return self.source.advance(first, last)
        except NonFiniteError as error:
            at = first + step.steps - begun
            if before is not None:
                at = last_finite(step, self.source, before, first, at)
            feeds = self.source.feeds(at)
            found = [] if feeds is None else why(step, feeds, first_of=self.names[0])
            raise NonFiniteError(error.what, *found, *error.details) from None
        except ChainruleError as error:
            error.details = (*error.details, f"in step {step.steps + 1} of training")
            raise

    # where it stands

    def state_dict(self) -> dict[str, Array]:
        """Where the loop stands, as arrays by name."""
        partial = joined(self._parts, len(self.names)) if self._parts else None
        state = {
            AT: np.array(self.position, np.int64),
            DONE: np.array(self.epoch, np.int64),
            STOPPED: np.array(self.model.stop_training),
            **{f"{HISTORY}{n}": np.array(v) for n, v in self.history.history.items()},
            f"{HISTORY}epoch'": np.array(self.history.epoch, np.int64),
        }
        if partial is not None:
            columns = dict(zip(self.names, partial.columns, strict=True))
            state |= {f"{PARTIAL}{n}": c for n, c in columns.items()}
            state[f"{PARTIAL}rows'"] = partial.rows
        for name, callback in self._by_name():
            own = callback.state_dict()
            state |= {f"{CALLBACK}{name}.{n}": np.asarray(a) for n, a in own.items()}
        return state

    def _by_name(self) -> Iterator[tuple[str, Callback]]:
        """Callbacks by their kind and number in it: others may come and go between two runs."""
        counts: Counter[str] = Counter()
        for callback in self.callbacks:
            kind = type(callback).__name__
            counts[kind] += 1
            yield f"{kind}{counts[kind]}", callback

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Go on from where a checkpoint stood. Raises ArtifactError where it says no such thing."""
        if not {AT, DONE, STOPPED} <= state.keys():
            raise ArtifactError(
                "this file holds a model, but not where its training stood",
                "cr.Model.load(path) reads it; cr.callbacks.Checkpoint writes what resume= reads",
            )
        self.position, self.epoch = int(state[AT]), int(state[DONE])
        self.stopped = bool(state[STOPPED])
        steps = self.source.steps
        if self.position < 0 or self.epoch < 0 or (steps and self.position > steps):
            raise ArtifactError(f"no epoch of {steps} steps stands at step {self.position}")
        history = _below(state, HISTORY)
        self.history.epoch = [int(e) for e in history.pop("epoch'", np.empty(0))]
        self.history.history = {n: [float(v) for v in a] for n, a in history.items()}
        partial = _below(state, PARTIAL)
        if self.position:
            if missing := [n for n in (*self.names, "rows'") if n not in partial]:
                raise ArtifactError(f"the checkpoint of an epoch under way has no {missing[0]}")
            columns = tuple(partial[n] for n in self.names)
            self._parts = [Logs(columns, partial["rows'"])]
        for name, callback in self._by_name():
            own = _below(state, f"{CALLBACK}{name}.")
            if own:
                self._resumed.append((callback, own))


def _below(state: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    """The entries whose names begin so, without that."""
    return {n.removeprefix(prefix): a for n, a in state.items() if n.startswith(prefix)}
