"""A policy gradient: a net learns to balance a pole on a cart, told only how long it stood.

The net says how probable it is to push right; an episode is played by drawing from that. Each push
is then made more probable by what came after it, compared with how well pushes did on average:
REINFORCE (Williams 1992). The game is that of Barto, Sutton and Anderson (1983), in NumPy, many
carts at a time.

python examples/reinforce.py [picture.png]
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

import chainrule as cr

LONGEST = 500  # steps of a game, 10 s

x = cr.input("x", ("n", 4))  # place and speed of the cart, angle and speed of the pole
a = cr.input("a", ("n", 1))  # 1 where it was pushed right, 0 where left
r = cr.input("r", ("n", 1))  # how much better than usual it went on
hidden, last = cr.nn.Dense(32, "tanh"), cr.nn.Dense(1)
z = last(hidden(x)).named("z")
# -log of the probability of what was done, weighted by what came of it.
loss = cr.mean(r * cr.losses.binary_cross_entropy(z, a, reduction="none")).named("J")


def push(state: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The carts 0.02 s later: a cart of 1 kg, a pole of 0.1 kg and 1 m, a force of 10 N."""
    _, speed, angle, turning = state.T
    sin, cos = np.sin(angle), np.cos(angle)
    force = (np.where(right, 10.0, -10.0) + 0.05 * turning**2 * sin) / 1.1
    turn = (9.8 * sin - cos * force) / (0.5 * (4 / 3 - 0.1 * cos**2 / 1.1))
    move = force - 0.05 * turn * cos / 1.1
    return state + 0.02 * np.stack([speed, move, turning, turn], axis=1)


def play(step: cr.TrainingStep, rng: np.random.Generator, carts: int) -> dict[str, np.ndarray]:
    """A game of each cart: states, pushes and which of them were still in the game, by time."""
    state, alive, seen = rng.uniform(-0.05, 0.05, (carts, 4)), np.ones(carts, bool), []
    while alive.any() and len(seen) < LONGEST:
        right = rng.random(carts) < 1 / (1 + np.exp(-step.predict(x=state)[:, 0]))
        seen.append((state, right, alive))
        state = push(state, right)
        alive = alive & (np.abs(state[:, 0]) < 2.4) & (np.abs(state[:, 2]) < np.radians(12))
    states, rights, alives = (np.array(part) for part in zip(*seen, strict=True))
    return {"x": states, "a": rights, "alive": alives}


def main(rounds: int = 120, carts: int = 16, seed: int = 0) -> dict[str, Any]:
    print(cr.grad(loss, last["weight"]), "\n")
    step = cr.training_step(loss, cr.optim.Adam(1e-2), outputs=z, seed=seed)
    rng, lengths = np.random.default_rng(seed), []
    for _ in range(rounds):
        game = play(step, rng, carts)
        alive = game["alive"]
        lengths.append(alive.sum(axis=0).mean())
        # What comes after a push: the seconds that the pole still stands, later ones counting less.
        future, ahead = np.zeros(alive.shape), np.zeros(carts)
        for t in reversed(range(len(alive))):
            future[t] = ahead = alive[t] + 0.99 * ahead
        after = (future[alive] - future[alive].mean()) / (future[alive].std() + 1e-6)
        step(x=game["x"][alive], a=game["a"][alive][:, None], r=after[:, None])
    final = play(step, rng, 100)["alive"].sum(axis=0)
    print(f"{lengths[0]:.0f} steps on average at first, {final.mean():.0f} after {rounds} rounds")
    print(f"{np.mean(final == LONGEST):.0%} of 100 poles stand for all {LONGEST} steps")
    return {"lengths": lengths, "final": final.mean(), "whole": np.mean(final == LONGEST)}


def picture(found: dict[str, Any]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(found["lengths"])
    axes.axhline(LONGEST, color="grey", linestyle=":")
    axes.set(
        xlabel="round: one update by the games of 16 carts", ylabel="steps that the pole stood"
    )
    return figure


if __name__ == "__main__":
    result = main()
    if sys.argv[1:]:
        picture(result).savefig(sys.argv[1])
