"""Optimizers: how a parameter follows its gradient, as expressions.

    class HeavyBall(cr.optim.Optimizer):
        def init(self, w): return {"m": cr.zeros_like(w)}
        def update(self, w, g, state, lr, t):
            m = 0.9 * state["m"] + g
            return w - lr * m, {"m": m}

Trajectories are PyTorch's. One thing is part of the meaning on every backend: numbers so small that
they, or a product with them, would be denormal count as 0 (see `quiet`), since a decaying average
would otherwise spend its days among denormals, where processors are slow.
"""

from chainrule.errors import CompileError
from chainrule.nn.lookup import by_name
from chainrule.nn.optim.adam import Adam, AdamW, NAdam
from chainrule.nn.optim.adaptive import Adadelta, Adagrad, RMSprop
from chainrule.nn.optim.groups import Groups
from chainrule.nn.optim.optimizer import Optimizer
from chainrule.nn.optim.sgd import SGD, Lion
from chainrule.nn.optim.values import (
    DECAY,
    Decay,
    Range,
    average,
    average_square,
    off,
    one_minus_power,
    quiet,
    quiet_square,
    shrunk,
)

__all__ = [
    "DECAY",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Decay",
    "Groups",
    "Lion",
    "NAdam",
    "Optimizer",
    "RMSprop",
    "Range",
    "average",
    "average_square",
    "get",
    "off",
    "one_minus_power",
    "quiet",
    "quiet_square",
    "shrunk",
]

#: each optimizer by the name that it goes by in a text
BY_NAME: dict[str, type[Optimizer]] = {
    "sgd": SGD,
    "adagrad": Adagrad,
    "adadelta": Adadelta,
    "rmsprop": RMSprop,
    "adam": Adam,
    "adamw": AdamW,
    "nadam": NAdam,
    "lion": Lion,
}


def get(optimizer: str | Optimizer) -> Optimizer:
    """An optimizer by name, with its usual numbers: "adam" is `Adam()`.

    One that is an optimizer already comes back. Raises CompileError for anything else, with the
    names that are near.
    """
    if isinstance(optimizer, Optimizer):
        return optimizer
    if isinstance(optimizer, type):
        kind = optimizer.__name__
        raise CompileError(f"{kind} is a class of optimizers", f"make one: {kind}(1e-3)")
    return by_name("optimizer", BY_NAME, optimizer)()
