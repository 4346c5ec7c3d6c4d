"""A recurrent net learns a text, letter by letter, and writes on.

A long short-term memory (Hochreiter and Schmidhuber 1997) reads a letter a step and carries on what
it makes of them; the gradient goes back through time in a loop the other way round. It writes in
one native loop too, each letter drawn as probable as the net says. (After A. Karpathy, The
unreasonable effectiveness of recurrent neural networks, 2015.) A text is a file; without one it is
some of Python's standard library.

python examples/lstm_text.py [TEXT] [--steps 1500] [--seed 0] [--picture loss.png]
"""

from __future__ import annotations

import argparse
import sysconfig
import time
from pathlib import Path
from typing import Any

import numpy as np

import chainrule as cr

CONTEXT, WIDTH, UNITS = 64, 32, 128
BATCH, STEPS = 32, 1500


class Reader(cr.nn.Layer):
    """Logits of the next letter at each place, and the state in which it stops reading."""

    def __init__(self, letters: int) -> None:
        self.letters = cr.nn.Embedding(letters, WIDTH)
        self.memory = cr.nn.LSTM(UNITS, return_sequences=True, return_state=True)
        self.next = cr.nn.Dense(letters)

    def forward(self, ids: Any, state: Any = None) -> Any:
        h, state = self.memory(self.letters(ids), state)
        return self.next(h), state


def writer(net: Reader, letters: int) -> cr.Tensor:
    """What follows a prompt, one letter a row of noise, in one native loop that carries the state.

    The largest of z + noise, where noise is Gumbel's, is drawn with the probabilities softmax(z).
    """
    prompt = cr.input("prompt", ("prompt",), dtype="int32")
    noise = cr.input("noise", ("new", letters))
    temperature = cr.input("temperature", ())

    def step(carry: Any, noise: cr.Tensor) -> Any:
        z, state = carry
        letter = cr.argmax(z / temperature + noise).astype("int32")
        logits, state = net(cr.reshape(letter, (1, 1)), state)
        return (logits[0, 0], state), letter

    logits, state = net(cr.expand_dims(prompt, axis=0))
    _, written = cr.scan(step, (logits[0, -1], state), noise)
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


def main(path: Path | None = None, steps: int = STEPS, seed: int = 0) -> dict[str, Any]:
    text = read(path)

    # Letters as numbers; nine tenths of the text to learn from.
    alphabet = sorted(set(text))
    number = {letter: i for i, letter in enumerate(alphabet)}
    every = np.array([number[letter] for letter in text], "int32")
    learnt, held = np.split(every, [len(every) * 9 // 10])

    ids = cr.input("ids", ("batch", CONTEXT), dtype="int32")
    following = cr.input("following", ("batch", CONTEXT), dtype="int32")
    net = Reader(len(alphabet))
    logits, _ = net(ids)
    loss = cr.losses.cross_entropy(logits, following).named("loss")
    step = cr.training_step(
        loss,
        cr.optim.Adam(cr.schedules.cosine(5e-3, steps=steps), clip_norm=1.0),
        outputs={"loss": loss, "right": cr.metrics.accuracy(logits, following)},
        seed=seed,
    )

    print(cr.grad(loss, net.memory["state_weight"]))

    # All steps in one native call.
    rng = np.random.default_rng(seed)
    starts = rng.integers(len(learnt) - CONTEXT, size=steps * BATCH)
    began = time.perf_counter()
    losses = step.run(**windows(learnt, starts), batch_size=BATCH, shuffle=False)
    seconds = time.perf_counter() - began
    found = step.predict(**windows(held, np.arange(0, len(held) - CONTEXT, CONTEXT)))

    # After some letters that it never saw it writes, for as long as there is noise.
    write = cr.compile(writer(net, len(alphabet)))
    prompt = held[: CONTEXT // 2]
    noise = rng.gumbel(size=(600, len(alphabet)))
    written = write(prompt=prompt, noise=noise, temperature=0.8, **step.parameters)
    page = [*prompt, *written]
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
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    result = main(options.text, options.steps, options.seed)
    if options.picture:
        picture(result).savefig(options.picture)
