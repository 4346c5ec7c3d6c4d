"""Overfitting, and two ways out: dropout, and stopping in time.

Few digits, a fifth of them labelled at random, and a net with room for all of them: it learns the
labels by heart, the wrong ones too, and gets worse at digits that it has not seen. With dropout
(Srivastava et al. 2014) no unit can rely on another; early stopping keeps the weights of the epoch
in which unseen digits were read best.

python examples/overfitting.py [picture.png]
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

import chainrule as cr

ROWS, WRONG = 300, 0.2


def net(dropout: float) -> cr.nn.Sequential:
    return cr.nn.Sequential(
        [
            cr.nn.Dense(128, "relu"), cr.nn.Dropout(dropout),
            cr.nn.Dense(128, "relu"), cr.nn.Dropout(dropout),
            cr.nn.Dense(10),
        ]
    )  # fmt: skip


def early() -> cr.callbacks.Callback:
    return cr.callbacks.EarlyStopping(patience=10, restore_best_weights=True)


#: name -> the dropout, whether training stops in time
WAYS = {"by heart": (0.0, False), "dropout": (0.5, False), "early stopping": (0.0, True)}


def main(epochs: int = 100, seed: int = 0) -> dict[str, Any]:
    data, rng = cr.datasets.digits(seed=seed), np.random.default_rng(seed)
    x, y = data.x_train[:ROWS], data.y_train[:ROWS].copy()
    wrong = rng.random(ROWS) < WRONG
    y[wrong] = rng.integers(0, 10, np.count_nonzero(wrong))

    found: dict[str, Any] = {}
    for name, (dropout, stops) in WAYS.items():
        model = cr.Model(
            net(dropout), "cross_entropy", cr.optim.Adam(1e-3), ["accuracy"], seed=seed
        )
        unseen = (data.x_test, data.y_test)
        stop = [early()] if stops else []
        history = model.fit(x, y, epochs=epochs, validation_data=unseen, callbacks=stop).history
        if not found:
            print(model.gradients()["dense2.weight"], "\n")
        curves = {"shown": history["loss"], "unseen": history["val_loss"]}
        found[name] = {**curves, **model.evaluate(*unseen)}
        print(
            f"{name:15} {found[name]['accuracy']:.1%} of unseen digits read right, loss "
            f"{found[name]['loss']:.3f}, after {len(history['loss'])} epochs"
        )
    return found


def picture(found: dict[str, Any]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3), layout="constrained")
    for axes, (name, way) in zip(figure.subplots(1, 3, sharey=True), found.items(), strict=True):
        axes.plot(way["shown"], label="digits and labels it is shown")
        axes.plot(way["unseen"], label="unseen digits")
        best = int(np.argmin(way["unseen"]))
        axes.plot(best, way["unseen"][best], "ko", markersize=4)
        axes.set(
            title=name, xlabel="epoch", xlim=(0, len(found["by heart"]["unseen"])), ylim=(0, 2.3)
        )
    figure.axes[0].set(ylabel="loss")
    figure.axes[0].legend()
    return figure


if __name__ == "__main__":
    result = main()
    if sys.argv[1:]:
        picture(result).savefig(sys.argv[1])
