"""What an optimizer is, and what all of them can do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, TypedDict

from chainrule.errors import CompileError, FeedError
from chainrule.given import is_int
from chainrule.lang.tensor import Tensor
from chainrule.nn.numbers import check
from chainrule.nn.optim.values import ABOVE_ZERO, ANY, Range
from chainrule.nn.schedules import Schedule

Slots = Mapping[str, Tensor]
Rate = float | Schedule | Callable[[Tensor], Tensor]

#: what every optimizer's gradients may go through, and what may follow its update
COMMON: Mapping[str, Range] = {
    "clip_value": ABOVE_ZERO,
    "clip_norm": ABOVE_ZERO,
    "ema": Range(above=0.0, below=1.0, decay=True),
}


class Common(TypedDict, total=False):
    """The options that every optimizer takes by name."""

    clip_value: float | None
    clip_norm: float | None
    accumulate: int
    ema: float | None


class Optimizer:
    """A rule for updates. A subclass says what it remembers of each parameter, and the rule.

    `lr` is the learning rate that training begins with, a schedule of `cr.schedules`, or a function
    of the step t. The gradients of `accumulate` minibatches are averaged for one update; then each
    element is held to ±`clip_value`, then all of them together to a Euclidean norm of at most
    `clip_norm`. `ema` keeps a moving average of the parameters, e ← ema·e + (1 - ema)·w, which
    begins as they are after the first update. Raises FeedError for numbers that are out of range.

    `hyperparameters` are names of attributes, numbers, that may change between steps
    (`step.hyperparameters`): in `update` each is a scalar Tensor of w's element type. A mapping
    gives each its `Range`. One that is 0 when a step is made stays the number 0.
    """

    lr: Rate = 0.01  # for a subclass that has an __init__ of its own; so are these
    clip_value: float | None = None
    clip_norm: float | None = None
    accumulate: int = 1
    ema: float | None = None
    hyperparameters: ClassVar[Sequence[str] | Mapping[str, Range]] = ()

    def __init__(
        self,
        lr: Rate = 0.01,
        *,
        clip_value: float | None = None,
        clip_norm: float | None = None,
        accumulate: int = 1,
        ema: float | None = None,
    ) -> None:
        self.lr = lr if callable(lr) else check("lr", lr, above=0.0)
        for name, value in (("clip_value", clip_value), ("clip_norm", clip_norm), ("ema", ema)):
            setattr(self, name, value if value is None else COMMON[name].check(name, value))
        if not is_int(accumulate) or accumulate < 1:
            raise FeedError(f"accumulate is an int from 1 on, not {accumulate!r}")
        self.accumulate = int(accumulate)

    def ranges(self) -> Mapping[str, Range]:
        """The range of each hyper-parameter, by name."""
        own = self.hyperparameters
        return own if isinstance(own, Mapping) else dict.fromkeys(own, ANY)

    def init(self, w: Tensor) -> Slots:
        """What is remembered of a parameter, as it is before the first step; by default nothing."""
        return {}

    def update(
        self, w: Tensor, g: Tensor, state: Slots, lr: Tensor, t: Tensor
    ) -> tuple[Tensor, Slots]:
        """The next parameter and the next state, of the same names and types.

        `g` is the gradient; `lr` is a scalar of w's element type; `t` counts updates, an int32 that
        is 1 in the first.
        """
        raise CompileError(f"{type(self).__name__} is an optimizer without an update")
