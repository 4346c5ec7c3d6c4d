"""A net for handwritten digits as a kernel in C: this writes it, and data for it to learn from.

    python examples/export/digits.py build
    cc -O2 -Ibuild examples/export/digits.c build/digits.o -o build/train
    build/train build/digits.bin

With --web it is made for a page instead: python -m http.server, and look at digits.html.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import chainrule as cr

x = cr.input("x", ("batch", 64))
y = cr.input("y", ("batch",), dtype="int32")
W1, b1 = cr.parameter("W1", (64, 32), init="he_normal"), cr.parameter("b1", (32,))
W2, b2 = cr.parameter("W2", (32, 10), init="he_normal"), cr.parameter("b2", (10,))

h = cr.relu(x @ W1 + b1).named("h")
z = (h @ W2 + b2).named("z")
step = cr.training_step(cr.losses.cross_entropy(z, y), cr.optim.Adam(3e-3), outputs=z)


def main(folder: Path, target: str) -> None:
    art = step.export(folder, name="digits", target=target, max_batch=64)
    data = cr.datasets.digits(held_out=0.2, seed=0)
    # rows for training, rows that it never sees, then the images and what they show
    with open(folder / "digits.bin", "wb") as file:
        file.write(np.array([len(data.x_train), len(data.x_test)], np.int32).tobytes())
        for images in (data.x_train, data.x_test):
            file.write(images.astype(np.float32).tobytes())
        for labels in (data.y_train, data.y_test):
            file.write(labels.astype(np.int32).tobytes())
    for path in art.files.values():
        print(path)


if __name__ == "__main__":
    given = [a for a in sys.argv[1:] if a != "--web"]
    main(Path(given[0] if given else "build"), "wasm32" if "--web" in sys.argv else "host")
