"""Adversarial images: a little noise that nobody would notice, and the net reads another digit.

The gradient of the loss by the image says which way each pixel errs most. A small step along its
sign is the fast gradient sign method (Goodfellow, Shlens and Szegedy 2015). What helps is to train
on such images: the attack is an expression, so the loss under attack is one too, and compiles into
one step with everything else.

python examples/adversarial.py [picture.png]
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

import chainrule as cr

STRENGTHS = np.linspace(0, 0.3, 13)  # of pixels that go from 0 to 1

x = cr.input("x", ("n", 64))
y = cr.input("y", ("n",), dtype="int32")
e = cr.input("ε", ())
net = cr.nn.Sequential([cr.nn.Dense(128, "relu"), cr.nn.Dense(64, "relu"), cr.nn.Dense(10)])

loss = cr.losses.cross_entropy(net(x), y).named("J")
dx = cr.grad(loss, x)
attacked = cr.clip(x + e * cr.sign(dx), 0.0, 1.0).named("attacked")
z = net(attacked)
robust = (loss + cr.losses.cross_entropy(z, y)) / 2

WAYS = {"trained on digits": loss, "trained on attacked digits": robust}


def main(epochs: int = 30, seed: int = 0) -> dict[str, Any]:
    print(dx, "\n")
    data = cr.datasets.digits(seed=seed)
    attack = cr.compile({"attacked": attacked, "read": cr.argmax(z, axis=1)})
    found: dict[str, Any] = {"y": data.y_test}
    for name, minimised in WAYS.items():
        step = cr.training_step(minimised, cr.optim.Adam(3e-3), seed=seed)
        strength = {"ε": 0.15} if minimised is robust else {}
        step.run(x=data.x_train, y=data.y_train, **strength, batch_size=64, epochs=epochs)
        weights = dict(step.parameters)
        tried = [attack(x=data.x_test, y=data.y_test, ε=s, **weights) for s in STRENGTHS]
        accuracy = [float(np.mean(one["read"] == data.y_test)) for one in tried]
        found[name] = {"accuracy": accuracy, **tried[6]}
        print(f"{name}: {accuracy[0]:.1%} read right, {accuracy[6]:.1%} under attack by 0.15")
    return found


def picture(found: dict[str, Any]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3), layout="constrained")
    curves, *images = figure.subplots(1, 7, width_ratios=[4, 1, 1, 1, 1, 1, 1])
    for name in WAYS:
        curves.plot(STRENGTHS, found[name]["accuracy"], label=name)
    curves.set(xlabel="strength ε of the attack", ylabel="accuracy", ylim=(0, 1))
    curves.legend()
    plain = found["trained on digits"]
    for axes, row in zip(images, np.flatnonzero(plain["read"] != found["y"]), strict=False):
        axes.imshow(plain["attacked"][row].reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
        axes.set(title=f"a {found['y'][row]},\nread as {plain['read'][row]}", xticks=[], yticks=[])
    return figure


if __name__ == "__main__":
    result = main()
    if sys.argv[1:]:
        picture(result).savefig(sys.argv[1])
