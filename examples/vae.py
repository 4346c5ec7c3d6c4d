"""A variational autoencoder: handwritten digits that nobody wrote.

An encoder says of each image where its code may be, a normal distribution with mean μ and
logarithm of variance s; a decoder draws an image from a code z = μ + exp(s/2)·ε. What is minimised
is the bound of Kingma and Welling (2014): how badly the image is drawn again, and how far the codes
are from a standard normal. So the decoder makes digits of noise.

python examples/vae.py [picture.png]
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

import chainrule as cr

CODES = 8  # numbers in a code

x = cr.input("x", ("n", 64))
h = cr.nn.Dense(256, "relu")(x).named("h")
to_mean, to_s = cr.nn.Dense(CODES, name="to_mean"), cr.nn.Dense(CODES, name="to_s")
mean, s = to_mean(h).named("μ"), to_s(h).named("s")
noise = cr.random.normal(mean.shape).named("ε")
decoder = cr.nn.Sequential([cr.nn.Dense(256, "relu"), cr.nn.Dense(64)], name="decoder")
z = (mean + cr.exp(s / 2) * noise).named("z")
pixels = decoder(z).named("pixels")  # logits: how dark each pixel is

drawn = cr.losses.binary_cross_entropy(pixels, x, reduction="sum") / x.shape[0]
far = cr.sum(mean**2 + cr.exp(s) - s - 1) / (2 * x.shape[0])  # Kullback and Leibler's divergence
loss = (drawn + far).named("J")

# The decoder alone, from codes that are given; and the encoder's mean drawn again.
given = cr.input("given", ("m", CODES))
images = cr.sigmoid(decoder(given))
again = cr.sigmoid(decoder(mean))


def main(epochs: int = 150, seed: int = 0) -> dict[str, Any]:
    print(cr.grad(loss, to_s["weight"]), "\n")
    data = cr.datasets.digits(seed=seed)
    step = cr.training_step(
        loss,
        cr.optim.Adam(2e-3),
        metrics={"drawn": drawn, "far": far},
        outputs={"images": images, "again": again},
        seed=seed,
    )
    losses = step.run(x=data.x_train, batch_size=64, epochs=epochs)
    codes = np.random.default_rng(seed).standard_normal((72, CODES))
    found = step.predict(x=data.x_test, given=codes)
    error = float(np.mean((found["again"] - data.x_test) ** 2))
    spread = float(np.mean((data.x_train.mean(axis=0) - data.x_test) ** 2))
    print(f"bound {losses[0]:.1f} nats an image at first, {losses[-22:].mean():.1f} at the end")
    print(f"{1 - error / spread:.1%} of the variance of unseen images is in the {CODES} numbers")
    return {**found, "x": data.x_test, "bound": losses[-22:].mean(), "kept": 1 - error / spread}


def tiled(images: np.ndarray, rows: int) -> np.ndarray:
    """Images of 64 pixels side by side, with a little space between them."""
    tiles = np.pad(images.reshape(rows, -1, 8, 8), ((0, 0), (0, 0), (1, 1), (1, 1)))
    return tiles.transpose(0, 2, 1, 3).reshape(rows * 10, -1)


def picture(found: dict[str, Any]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.3), layout="constrained")
    pairs = np.stack(
        [found["x"][:36].reshape(3, 12, 64), found["again"][:36].reshape(3, 12, 64)], 1
    )
    shown = {"unseen digits, each above its copy": pairs, "digits from noise": found["images"]}
    for axes, (title, images) in zip(figure.subplots(1, 2), shown.items(), strict=True):
        axes.imshow(tiled(images, rows=6), cmap="gray_r")
        axes.set(title=title, xticks=[], yticks=[])
    return figure


if __name__ == "__main__":
    result = main()
    if sys.argv[1:]:
        picture(result).savefig(sys.argv[1])
