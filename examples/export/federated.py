"""Three processes learn, each from digits that nobody else sees; their nets are averaged.

    python examples/export/digits.py build
    python examples/export/federated.py build

Federated averaging (McMahan, Moore, Ramage, Hampson & Agüera y Arcas, Communication-efficient
learning of deep networks from decentralized data, AISTATS 2017). Neither the processes nor this
program need the compiler: the kernel, its manifest and chainrule_runtime are enough.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

import chainrule_runtime

WORKERS, ROUNDS, EPOCHS = 3, 5, 4


def digits(folder: Path) -> tuple[np.ndarray, np.ndarray, int]:
    """Images, what they show, and how many of them are to learn from: what digits.py wrote."""
    data = (folder / "digits.bin").read_bytes()
    train, test = np.frombuffer(data, np.int32, 2)
    rows = int(train + test)
    images = np.frombuffer(data, np.float32, rows * 64, offset=8).reshape(rows, 64)
    labels = np.frombuffer(data, np.int32, rows, offset=8 + images.nbytes)
    return images, labels, int(train)


def work(folder: Path, number: int) -> None:
    """One process: go on from the common state, with digits of its own."""
    images, labels, train = digits(folder)
    mine = slice(number, train, WORKERS)
    kernel = chainrule_runtime.load(folder / "digits.so")
    kernel.load(folder / "common.state")
    kernel.run(x=images[mine], y=labels[mine], batch_size=32, epochs=EPOCHS)
    kernel.save(folder / f"worker{number}.state")


def average(folder: Path, kernel: chainrule_runtime.Kernel) -> None:
    """Put the mean of what the workers know into the kernel."""
    found: list[dict[str, np.ndarray]] = []
    for number in range(WORKERS):
        kernel.load(folder / f"worker{number}.state")
        found.append({name: kernel.get(name) for name in kernel.tensors})
    for name, first in found[0].items():
        if first.dtype.kind == "f":  # counts and the seed are the same in all
            mean = np.mean([state[name] for state in found], axis=0, dtype=np.float64)
            kernel.set(name, mean.astype(first.dtype))


def main(folder: Path) -> None:
    """Rounds of learning apart and of averaging."""
    images, labels, train = digits(folder)
    kernel = chainrule_runtime.load(folder / "digits.so")
    kernel.init(0)
    for turn in range(1, ROUNDS + 1):
        kernel.save(folder / "common.state")
        command = [sys.executable, __file__, str(folder)]
        workers = [subprocess.Popen([*command, str(number)]) for number in range(WORKERS)]
        if any(worker.wait() for worker in workers):
            raise SystemExit("a worker failed")
        average(folder, kernel)
        scores = [kernel.predict(x=images[at : at + 64]) for at in range(train, len(images), 64)]
        right = np.mean(np.concatenate(scores).argmax(axis=1) == labels[train:])
        print(
            f"round {turn}: {100 * right:.1f} % of {len(images) - train} unseen images read right"
        )


if __name__ == "__main__":
    where = Path(sys.argv[1] if len(sys.argv) > 1 else "build")
    if len(sys.argv) > 2:
        work(where, int(sys.argv[2]))
    else:
        main(where)
