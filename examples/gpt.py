"""A small GPT learns a text, letter by letter, and writes on.

Each letter looks back at those before it, by attention (Vaswani et al. 2017), and guesses the next.
The net and its training are those that A. Karpathy's nanoGPT proposes for a CPU, but for a rate
three times its 1e-3: four blocks of four heads, 128 wide, 64 letters of context, batches of 12,
AdamW with warm-up and cosine decay. It writes in one native loop, which keeps the keys and values
of what it has read. A text is a file; without one it is some of Python's standard library.

python examples/gpt.py [TEXT] [--steps 2000] [--seed 0] [--rate 3e-3] [--picture loss.png]
"""

from __future__ import annotations

import argparse
import math
import sysconfig
import time
from pathlib import Path
from typing import Any

import numpy as np

import chainrule as cr

CONTEXT, WIDTH, BLOCKS, HEADS = 64, 128, 4, 4
BATCH, STEPS, RATE = 12, 2000, 3e-3


class GPT(cr.nn.Layer):
    """Logits of the next letter at each place; with caches, a pair of them and the caches after."""

    def __init__(self, letters: int) -> None:
        small = cr.init.normal(std=0.02)
        self.letters = cr.nn.Embedding(letters, WIDTH, weight_init=small)
        self.places = cr.nn.LearnedPositions(CONTEXT)
        self.blocks = [
            cr.nn.TransformerBlock(HEADS, causal=True, use_bias=False, weight_init=small)
            for _ in range(BLOCKS)
        ]
        for block in self.blocks:  # two terms a block are added up: they begin smaller
            added = cr.init.normal(std=0.02 / math.sqrt(2 * BLOCKS))
            block.attention.output.weight_init = block.down.weight_init = added
        self.norm = cr.nn.LayerNorm(shift=False)

    def forward(self, ids: Any, caches: Any = None, position: Any = 0) -> Any:
        h, kept = self.places(self.letters(ids), position), []
        for i, block in enumerate(self.blocks):
            if caches is None:
                h = block(h)
            else:
                h, cache = block(h, cache=caches[i], position=position)
                kept.append(cache)
        logits = self.letters.attend(self.norm(h))  # one matrix at both ends
        return logits if caches is None else (logits, kept)


def writer(net: GPT, letters: int) -> cr.Tensor:
    """What follows a prompt, one letter a row of noise, in one native loop that carries the caches.

    The largest of z + noise, where noise is Gumbel's, is drawn with the probabilities softmax(z).
    """
    prompt = cr.input("prompt", ("prompt",), dtype="int32")
    noise = cr.input("noise", ("new", letters))
    temperature = cr.input("temperature", ())

    def step(carry: Any, noise: cr.Tensor) -> Any:
        z, caches, position = carry
        letter = cr.argmax(z / temperature + noise).astype("int32")
        logits, caches = net(cr.reshape(letter, (1, 1)), caches, position)
        return (logits[0, 0], caches, position + 1), letter

    empty = [block.cache(1, CONTEXT) for block in net.blocks]
    logits, caches = net(cr.expand_dims(prompt, axis=0), empty)
    length = cr.sum(cr.ones_like(prompt))
    _, written = cr.scan(step, (logits[0, -1], caches, length), noise)
    return written


def read(path: Path | None) -> str:
    """The text in a file, or without one some modules that every Python has."""
    if path is not None:
        return path.read_text(encoding="utf-8")
    names = ("argparse", "ast", "calendar", "datetime", "doctest", "inspect", "tarfile", "typing")
    folder = Path(sysconfig.get_path("stdlib"))
    return "".join((folder / f"{name}.py").read_text(encoding="utf-8") for name in names)


def windows(ids: np.ndarray, starts: np.ndarray) -> dict[str, np.ndarray]:
    """Stretches of a text, and of each letter in them the one that follows."""
    at = starts[:, None] + np.arange(CONTEXT)
    return {"ids": ids[at], "following": ids[at + 1]}


def main(
    path: Path | None = None, steps: int = STEPS, seed: int = 0, rate: float = RATE
) -> dict[str, Any]:
    text = read(path)

    # Letters as numbers; nine tenths of the text to learn from.
    alphabet = sorted(set(text))
    number = {letter: i for i, letter in enumerate(alphabet)}
    every = np.array([number[letter] for letter in text], "int32")
    learnt, held = np.split(every, [len(every) * 9 // 10])

    ids = cr.input("ids", ("batch", CONTEXT), dtype="int32")
    following = cr.input("following", ("batch", CONTEXT), dtype="int32")
    net = GPT(len(alphabet))
    logits = net(ids)
    loss = cr.losses.cross_entropy(logits, following).named("loss")

    # The schedule, and weight decay for matrices alone, are compiled into the step.
    warm_up = min(100, steps // 2)
    decay = cr.schedules.cosine(rate, steps=steps - warm_up, final=rate / 10)
    schedule = cr.schedules.linear_warmup(decay, steps=warm_up)
    adam = cr.optim.AdamW(schedule, betas=(0.9, 0.99), weight_decay=0.1)
    rows = cr.optim.AdamW(schedule, betas=(0.9, 0.99), weight_decay=0.0)
    step = cr.training_step(
        loss,
        cr.optim.Groups(adam, {"*.scale": rows}, clip_norm=1.0),
        outputs={"loss": loss, "right": cr.metrics.accuracy(logits, following)},
        seed=seed,
    )

    # The end of a gradient, a scale's in the last block: what it read, and what came back to it.
    derived = cr.grad(loss, net.blocks[-1].norm2["scale"])
    print("...", *str(derived).splitlines()[-8:], sep="\n")

    # All steps in one native call.
    rng = np.random.default_rng(seed)
    starts = rng.integers(len(learnt) - CONTEXT, size=steps * BATCH)
    began = time.perf_counter()
    losses = step.run(**windows(learnt, starts), batch_size=BATCH, shuffle=False)
    seconds = time.perf_counter() - began
    found = step.predict(**windows(held, np.arange(0, len(held) - CONTEXT, CONTEXT)))

    # After letters that it never saw it writes half a context at a time, and reads that again.
    write = cr.compile(writer(net, len(alphabet)))
    page = held[: CONTEXT // 2].tolist()
    while len(page) < 600:
        prompt = page[-CONTEXT // 2 :]
        noise = rng.gumbel(size=(CONTEXT - len(prompt), len(alphabet)))
        page += write(prompt=prompt, noise=noise, temperature=0.8, **step.parameters).tolist()
    lines = (line[:80].rstrip() for line in "".join(alphabet[i] for i in page).splitlines())

    print(f"\n{seconds:.0f} s for {steps} steps; {len(alphabet)} letters. It writes:\n")
    print(*(f"| {line}" for line in lines if line), sep="\n")
    print(f"loss {losses[0]:.2f} at first, {found['loss']:.3f} at the end, on text it never saw,")
    print(f"of whose letters it guesses {found['right']:.1%}")
    return {"losses": losses, "loss": float(found["loss"]), "right": float(found["right"])}


def picture(found: dict[str, Any]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    losses = found["losses"]
    width = max(1, len(losses) // 50)
    mean = np.convolve(losses, np.ones(width) / width, mode="valid")
    axes.plot(losses, color="C0", alpha=0.25, linewidth=0.5)
    axes.plot(np.arange(len(mean)) + width - 1, mean, color="C0", label="minibatches, smoothed")
    axes.axhline(found["loss"], color="C1", linestyle="--", label="text it never saw, at the end")
    axes.set(xlabel="step", ylabel="nats a letter", xlim=(0, len(losses)))
    axes.legend()
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("text", nargs="?", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    result = main(options.text, options.steps, options.seed, options.rate)
    if options.picture:
        picture(result).savefig(options.picture)
