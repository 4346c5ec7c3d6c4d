"""A net for handwritten digits as a kernel in C: this writes it, and data for it to learn from.

    python examples/export/digits.py build
    cc -O2 -Ibuild examples/export/digits.c build/digits.o -o build/train
    build/train build/digits.bin

With --web it is made for a page instead, build/digits.html, which holds all it needs: open it, draw
digits, and say what they are. There is no server, and nothing is fetched.
"""

from __future__ import annotations

import base64
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


def page(folder: Path) -> Path:
    """Write the page with the kernel, its module and digits to learn from inside."""
    art = step.export(folder, name="digits", target="wasm32", max_batch=64, optimize="size")
    data = cr.datasets.digits(held_out=0.2, seed=0)
    levels = np.rint(data.x_train * 16).astype(np.uint8).reshape(-1, 64)
    images = np.hstack([levels, data.y_train.astype(np.uint8)[:, None]])
    text = (Path(__file__).parent / "digits.html").read_text(encoding="utf-8")
    for place, content in (
        ("$MODULE", art.files["digits.js"].read_text()),
        ("$WASM", base64.b64encode(art.files["digits.wasm"].read_bytes()).decode()),
        ("$IMAGES", base64.b64encode(images.tobytes()).decode()),
    ):
        text = text.replace(place, content)
    path = folder / "digits.html"
    path.write_text(text, encoding="utf-8")
    return path


def main(folder: Path) -> None:
    """Export for this machine, and write the file of digits."""
    art = step.export(folder, name="digits", max_batch=64)
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
    folder = Path(given[0] if given else "build")
    if "--web" in sys.argv:
        print(page(folder))
    else:
        main(folder)
