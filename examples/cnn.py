"""A convolutional net reads handwritten digits.

Three convolutions, each normalized over its minibatch (Ioffe and Szegedy 2015), find strokes, then
parts of digits; pooling keeps what was found and forgets where exactly; dropout before the scores.
Sizes are inferred, so that the same lines train on images of 28 by 28 pixels, such as MNIST's.

python examples/cnn.py [picture.png [how many seeds]]
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

import chainrule as cr


def block(filters: int) -> list[Any]:
    return [cr.nn.Conv2D(filters, 3, padding="same"), cr.nn.BatchNorm(), "relu"]


def net() -> cr.nn.Sequential:
    convolutions = [*block(32), *block(32), cr.nn.MaxPool(2), *block(64), cr.nn.MaxPool(2)]
    return cr.nn.Sequential([*convolutions, cr.nn.Flatten(), cr.nn.Dropout(0.4), cr.nn.Dense(10)])


def trained(epochs: int, seed: int) -> tuple[cr.Model, dict[str, Any]]:
    """A model, and what it says of images that it never saw."""
    data = cr.datasets.digits(seed=seed)
    x, unseen = (a.reshape(-1, 1, 8, 8) for a in (data.x_train, data.x_test))
    rate = cr.schedules.cosine(4e-3, steps=epochs * -(-len(x) // 64))
    adam = cr.optim.AdamW(rate, weight_decay=0.01)
    model = cr.Model(net(), "cross_entropy", adam, metrics=["accuracy"], seed=seed)
    model.fit(x, data.y_train, epochs=epochs, batch_size=64)
    read = model.predict(unseen).argmax(axis=1)
    return model, {"x": unseen, "y": data.y_test, "read": read}


def main(epochs: int = 25, seeds: int = 2) -> dict[str, Any]:
    accuracy = []
    for seed in range(seeds):
        model, found = trained(epochs, seed)
        if seed == 0:
            print(model.gradients()["conv2d3.weight"], "\n")
        accuracy.append(float(np.mean(found["read"] == found["y"])))
        print(f"seed {seed}: {accuracy[-1]:.2%} of {len(found['y'])} unseen digits are read right")
    print(f"mean {np.mean(accuracy):.2%}, least {min(accuracy):.2%}")
    kernels = model.weights()["conv2d1.weight"]
    return {**found, "kernels": kernels, "mean": np.mean(accuracy), "least": min(accuracy)}


def picture(found: dict[str, Any]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 2.6), layout="constrained")
    left, *right = figure.subplots(1, 6, width_ratios=[2.3, 1, 1, 1, 1, 1])
    tiles = np.pad(found["kernels"].reshape(4, 8, 3, 3), ((0, 0), (0, 0), (0, 1), (0, 1)))
    left.imshow(tiles.transpose(0, 2, 1, 3).reshape(16, 32), cmap="RdBu_r", vmin=-0.4, vmax=0.4)
    left.set(title="the first layer's kernels", xticks=[], yticks=[])
    wrong = found["read"] != found["y"]
    rows = np.argsort(~wrong, kind="stable")[: len(right)]  # those read wrong first
    for axes, row in zip(right, rows, strict=True):
        axes.imshow(found["x"][row, 0], cmap="gray_r")
        title = f"a {found['y'][row]}, read\nas {found['read'][row]}"
        axes.set(title=title, xticks=[], yticks=[])
    return figure


if __name__ == "__main__":
    result = main(seeds=int(sys.argv[2]) if sys.argv[2:] else 2)
    if sys.argv[1:]:
        picture(result).savefig(sys.argv[1])
