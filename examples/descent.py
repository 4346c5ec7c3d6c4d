"""Gradient descent on a real landscape: a rate too low, one that suits, one too high, and Adam.

The loss of a regression with two weights is a surface over a plane, so that the way down can be
drawn. Two blood values of the diabetes data rise and fall together, which makes the surface a
ravine: steep across, almost level along. What a rate may be is decided by the steep way, how long
it takes by the other.

python examples/descent.py [picture.png]
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from sklearn.datasets import load_diabetes

import chainrule as cr

# Two columns, cholesterol and low-density lipoproteins, and the disease's progression a year on.
data = load_diabetes()
X = data.data[:, [4, 5]] / data.data[:, [4, 5]].std(axis=0)
Y = (data.target - data.target.mean()) / data.target.std()

x = cr.input("x", ("n", 2))
y = cr.input("y", ("n",))
w = cr.parameter("w", (2,), init=[2.0, 0.5])
loss = cr.losses.mse(x @ w, y).named("J")

WAYS = {
    "rate 0.02: too low": cr.optim.SGD(0.02),
    "rate 0.4: good": cr.optim.SGD(0.4),
    "rate 0.53: too high": cr.optim.SGD(0.53),
    "Adam, rate 0.3": cr.optim.Adam(0.3),
}


def descend(optimizer: cr.optim.Optimizer, steps: int) -> dict[str, Any]:
    """Where the weights were before each step, and what the loss was there."""
    step = cr.training_step(loss, optimizer)
    path, losses = [step.parameters["w"].copy()], []
    for _ in range(steps):
        losses.append(step(x=X, y=Y))
        path.append(step.parameters["w"].copy())
    return {"path": np.array(path), "losses": losses}


def main(steps: int = 40) -> dict[str, Any]:
    print(cr.grad(loss, w), "\n")
    H = cr.compile(cr.hessian(loss, w))(x=X)
    steepest = float(np.linalg.eigvalsh(H)[-1])
    print(f"curvatures {np.linalg.eigvalsh(H).round(3)}: a rate above {2 / steepest:.3f} diverges")
    least = float(np.linalg.lstsq(X, Y)[1][0] / len(Y))
    found = {name: descend(optimizer, steps) for name, optimizer in WAYS.items()}
    for name, way in found.items():
        print(f"{name:20} loss {way['losses'][-1]:10.4f} after {steps} steps, least {least:.4f}")
    return {**found, "least": least, "limit": 2 / steepest}


def picture(found: dict[str, Any]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.3), layout="constrained")
    a, b = np.meshgrid(np.linspace(-2.4, 2.4, 80), np.linspace(-2.4, 2.4, 80))
    height = ((X @ [a.ravel(), b.ravel()] - Y[:, None]) ** 2).mean(0).reshape(a.shape)
    for axes, name in zip(figure.subplots(1, 4, sharey=True), WAYS, strict=True):
        axes.contour(a, b, height - found["least"], np.geomspace(0.02, 20, 9), colors="lightgrey")
        axes.plot(*found[name]["path"].T, "o-", color="C3", markersize=3, linewidth=1)
        axes.set(title=name, xlim=(-2.4, 2.4), ylim=(-2.4, 2.4), xlabel="w₁", aspect="equal")
    return figure


if __name__ == "__main__":
    result = main()
    if sys.argv[1:]:
        picture(result).savefig(sys.argv[1])
