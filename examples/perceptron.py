"""One neuron, as a lecture writes it: ŷ = σ(x·w + b), how it errs, and how it learns.

The weights are a direction in the plane of inputs, and the line w·x + b = 0 across it, the decision
boundary, is where the neuron says one half.

python examples/perceptron.py [picture.png]
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

import chainrule as cr

# The neuron: two inputs, two weights, a bias. t is what it should have said.
x = cr.input("x", (2,))
t = cr.input("t", ())
w = cr.parameter("w", (2,), init=[0.5, -0.3])
b = cr.parameter("b", ())
y = cr.sigmoid((x @ w + b).named("z")).named("ŷ")
J = cr.square(y - t).named("J")

# How J changes with w and with b. These are expressions too: they can be printed and compiled.
dw, db = cr.grad(J, [w, b])

# The same neuron for many samples at once, with the loss that suits a sigmoid.
xs = cr.input("xs", ("batch", 2))
ts = cr.input("ts", ("batch",))
scores = (xs @ w + b).named("z")
loss = cr.losses.binary_cross_entropy(scores, ts).named("loss")


def by_hand(steps: int) -> None:
    """Descend along the gradient on one sample, the way one does it on paper."""
    f = cr.compile({"y": y, "J": J, "dw": dw, "db": db})
    weights, bias, rate = np.array([0.5, -0.3], "float32"), np.float32(0), 1.0
    for step in range(1, steps + 1):
        now = f(x=[1.0, 2.0], t=1.0, w=weights, b=bias)
        print(f"step {step}: ŷ = {now['y']:.3f}, J = {now['J']:.4f}, ∂J/∂w = {now['dw'].round(4)}")
        weights, bias = weights - rate * now["dw"], bias - rate * now["db"]


def trained(epochs: int) -> dict[str, Any]:
    """Train on points left and right of a line."""
    points = np.random.default_rng(0).standard_normal((200, 2)).astype("float32")
    side = (points @ [2.0, -1.0] > 0.5).astype("float32")
    step = cr.training_step(loss, cr.optim.SGD(0.5), outputs={"z": scores})
    losses = step.run(xs=points, ts=side, batch_size=20, epochs=epochs)
    print(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} after {len(losses)} steps")
    print(f"w = {step.parameters['w'].round(2)}, b = {step.parameters['b']:.2f}")
    right = float(((step.predict(xs=points)["z"] > 0) == side).mean())
    return {"points": points, "side": side, "right": right, "predict": step.predict}


def main(steps: int = 4, epochs: int = 50) -> dict[str, Any]:
    print(cr.grad(loss, w), "\n")
    print("One sample. The neuron, its error, and how that changes with each weight:")
    print(cr.scalars(J))
    print("\nWhy, by the chain rule:")
    print(cr.explain(J, w))
    print("\nSteps by hand, on the sample x = (1, 2), t = 1:")
    by_hand(steps)
    print("\nTrained on 200 points, in one native call:")
    found = trained(epochs)
    print(f"{found['right']:.1%} of them are on the right side")
    return found


def picture(found: dict[str, Any]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    a, b = np.meshgrid(np.linspace(-3, 3, 61), np.linspace(-3, 3, 61))
    z = found["predict"](xs=np.stack([a.ravel(), b.ravel()], axis=1))["z"].reshape(a.shape)
    said = axes.contourf(
        a, b, 1 / (1 + np.exp(-z)), np.linspace(0, 1, 11), cmap="RdBu_r", alpha=0.5
    )
    figure.colorbar(said, label="ŷ")
    axes.contour(a, b, z, [0], colors="black")  # the decision boundary, where w·x + b = 0
    axes.scatter(
        *found["points"].T, c=found["side"], cmap="RdBu_r", s=14, edgecolors="k", linewidths=0.3
    )
    axes.set(xlabel="x₁", ylabel="x₂", xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
    return figure


if __name__ == "__main__":
    result = main()
    if sys.argv[1:]:
        picture(result).savefig(sys.argv[1])
