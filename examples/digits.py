"""A net learns to read handwritten digits: the whole program, top to bottom.

python examples/digits.py
"""

from __future__ import annotations

import chainrule as cr
from chainrule.datasets import digits

# What the net is given: images of 64 pixels, and the digit that each shows.
# How many there are at a time, "batch", is known only when it is called.
x = cr.input("x", ("batch", 64))
y = cr.input("y", ("batch",), dtype="int32")

# What the net learns.
W1, b1 = cr.parameter("W1", (64, 128), init="he_normal"), cr.parameter("b1", (128,))
W2, b2 = cr.parameter("W2", (128, 64), init="he_normal"), cr.parameter("b2", (64,))
W3, b3 = cr.parameter("W3", (64, 10), init="he_normal"), cr.parameter("b3", (10,))

# The net itself: two layers of ReLUs, then a score for each of the ten digits.
h1 = cr.relu(x @ W1 + b1).named("h1")
h2 = cr.relu(h1 @ W2 + b2).named("h2")
z = (h2 @ W3 + b3).named("z")
loss = cr.losses.cross_entropy(z, y).named("loss")


def main(epochs: int = 30) -> float:
    # The gradient is an expression like any other: here is the first layer's.
    print(cr.grad(loss, W1), "\n")

    # Forward, backward and update, compiled into one native function.
    step = cr.training_step(loss, cr.optim.Adam(3e-3), outputs={"z": z}, seed=0)

    data = digits(held_out=0.2, seed=0)
    losses = step.run(x=data.x_train, y=data.y_train, batch_size=64, epochs=epochs)
    found = step.predict(x=data.x_test)["z"].argmax(axis=1)
    accuracy = float((found == data.y_test).mean())
    print(f"loss {losses[0]:.3f} at first, {losses[-1]:.5f} after {len(losses)} steps")
    print(f"{accuracy:.1%} of {len(found)} images that it never saw are read right")
    return accuracy


if __name__ == "__main__":
    main()
