"""Held-out accuracy of the demo's net over several seeds: split, initial values and shuffling.

python benchmarks/digits_accuracy.py [--first 0] [--seeds 10] [--epochs 30]
"""

from __future__ import annotations

import argparse
import statistics
import time

from chainrule.cli.demo import BATCH_SIZE, EPOCHS, LEARNING_RATE, build_net
from chainrule.datasets import digits
from chainrule.nn.optim import Adam
from chainrule.train.step import training_step


def accuracy(seed: int, epochs: int, batch_size: int, rate: float) -> float:
    """Of one training, with everything that is random drawn from one seed."""
    net, data = build_net(), digits(seed=seed)
    step = training_step(net.loss, Adam(rate), outputs={"z": net.logits}, seed=seed)
    step.run(x=data.x_train, y=data.y_train, batch_size=batch_size, epochs=epochs)
    found = step.predict(x=data.x_test)["z"].argmax(axis=-1)
    return float((found == data.y_test).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=10, help="how many")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE)
    parser.add_argument("--rate", type=float, default=LEARNING_RATE)
    asked = parser.parse_args()
    start = time.perf_counter()
    seeds = range(asked.first, asked.first + asked.seeds)
    found = [accuracy(seed, asked.epochs, asked.batch_size, asked.rate) for seed in seeds]
    seconds = (time.perf_counter() - start) / asked.seeds
    print("seed  held-out accuracy")
    for seed, value in zip(seeds, found, strict=True):
        print(f"{seed:4}  {value:.2%}")
    print(
        f"mean {statistics.mean(found):.2%}, standard deviation {statistics.stdev(found):.2%}, "
        f"least {min(found):.2%}, most {max(found):.2%}; {seconds:.2f} s a training"
    )


if __name__ == "__main__":
    main()
