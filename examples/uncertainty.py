"""Regression that says how sure it is: a mean and a spread for every patient.

The net gives two numbers, μ and s = log σ², and learns both by maximum likelihood: an error costs
less where σ is large, and a large σ costs its logarithm (Nix and Weigend 1994). Five such nets,
begun differently, disagree where they have not learnt enough, which adds to the spread
(Lakshminarayanan, Pritzel and Blundell 2017). The data are 442 patients with diabetes.

python examples/uncertainty.py [picture.png]
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from sklearn.datasets import load_diabetes

import chainrule as cr

x = cr.input("x", ("n", 10))
y = cr.input("y", ("n", 1))
h = cr.nn.Dense(32, "tanh")(x).named("h")
to_mean, to_s = cr.nn.Dense(1, name="to_mean"), cr.nn.Dense(1, name="to_s")
mean, s = to_mean(h).named("μ"), to_s(h).named("s")  # s is log σ²
# The Gaussian's negative log-likelihood, without log √2π.
loss = cr.mean(cr.square(y - mean) * cr.exp(-s) + s).named("J") / 2


def patients(seed: int) -> dict[str, np.ndarray]:
    """Age, sex, body mass, blood values; the disease a year on. A fifth is held out."""
    data = load_diabetes()
    rows = np.random.default_rng(seed).permutation(len(data.target))
    train, test = rows[88:], rows[:88]
    middle, wide = data.target[train].mean(), data.target[train].std()
    X = data.data * np.sqrt(len(rows))  # columns of variance 1
    Y = (data.target[:, None] - middle) / wide
    return {"x": X[train], "y": Y[train], "x_test": X[test], "y_test": Y[test]}


def trained(data: dict[str, np.ndarray], epochs: int, seed: int) -> dict[str, np.ndarray]:
    """What one net says of the patients that it never saw."""
    adam = cr.optim.AdamW(3e-3, weight_decay=0.1)
    step = cr.training_step(loss, adam, outputs={"μ": mean, "σ": cr.exp(s / 2)}, seed=seed)
    step.run(x=data["x"], y=data["y"], batch_size=32, epochs=epochs)
    return step.predict(x=data["x_test"])


def cost(y: np.ndarray, mean: np.ndarray, sigma: np.ndarray | float) -> float:
    """The loss with its constant: nats a patient."""
    return float(np.mean(((y - mean) / sigma) ** 2 / 2 + np.log(sigma * np.sqrt(2 * np.pi))))


def asked(data: dict[str, np.ndarray], epochs: int, seeds: range) -> dict[str, Any]:
    """What nets of these seeds say together: the variance within them, and that between them."""
    found = [trained(data, epochs, seed) for seed in seeds]
    means, sigmas = (np.array([one[name] for one in found]) for name in ("μ", "σ"))
    mean, spread = means.mean(0), np.sqrt((sigmas**2).mean(0) + means.var(0))
    truth = data["y_test"]
    costs = [
        cost(truth, 0 * mean, 1.0),
        cost(truth, means[0], sigmas[0]),
        cost(truth, mean, spread),
    ]
    inside = float(np.mean(np.abs(truth - mean) < 1.645 * spread))
    drawn = {"mean": mean[:, 0], "spread": spread[:, 0], "truth": truth[:, 0]}
    return {"costs": costs, "inside": inside, **drawn}


def main(epochs: int = 40, splits: int = 5, members: int = 5) -> dict[str, Any]:
    print(cr.grad(loss, to_s["weight"]), "\n")
    seeds = [range(k * members, (k + 1) * members) for k in range(splits)]
    found = [asked(patients(k), epochs, seeds[k]) for k in range(splits)]
    nothing, alone, together = np.mean([one["costs"] for one in found], axis=0)
    inside = float(np.mean([one["inside"] for one in found]))
    print(f"nats a patient: {nothing:.3f} by mean and variance of all, {alone:.3f} by one net,")
    print(f"{together:.3f} by {members}; means over {splits} splits of the patients")
    print(f"{inside:.1%} of unseen patients are inside the intervals that should hold 90 %")
    kept = {"nothing": nothing, "alone": alone, "together": together, "inside": inside}
    return {**found[0], **kept}


def picture(found: dict[str, Any]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots()
    order = np.argsort(found["mean"])
    mean, spread, truth = (found[name][order] for name in ("mean", "spread", "truth"))
    rows = np.arange(len(order))
    axes.fill_between(rows, mean - 1.645 * spread, mean + 1.645 * spread, color="C0", alpha=0.25)
    axes.plot(rows, mean, color="C0", label="μ, with the interval of 90 %")
    axes.plot(rows, truth, "k.", label="what became of them")
    axes.set(xlabel="unseen patients, by prediction", ylabel="progression")
    axes.legend(loc="upper left")
    return figure


if __name__ == "__main__":
    result = main()
    if sys.argv[1:]:
        picture(result).savefig(sys.argv[1])
