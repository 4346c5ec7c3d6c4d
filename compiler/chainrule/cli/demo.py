"""`chainrule demo`: a net learns real handwritten digits, and everything is shown on the way."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
import time
from dataclasses import asdict, field
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from chainrule.cli.page import Page
from chainrule.cli.save import Files
from chainrule.datasets import digits
from chainrule.datasets.optdigits import Digits
from chainrule.driver.lower import PASSES
from chainrule.driver.report import Report
from chainrule.lang.derive import grad
from chainrule.lang.functions import relu
from chainrule.lang.inspect import explain
from chainrule.lang.leaves import input, parameter
from chainrule.lang.tensor import Tensor
from chainrule.nn.losses import cross_entropy
from chainrule.nn.optim import Adam
from chainrule.records import dataclass
from chainrule.show.text import texts
from chainrule.train.step import TrainingStep, training_step
from chainrule.version import __version__

SIZES = (64, 128, 64, 10)
EPOCHS, BATCH_SIZE, LEARNING_RATE = 30, 64, 3e-3
#: the parameter whose gradient is proved on screen: it stands behind every layer
PROVED = "W1"

#: what to type next: program, arguments, what for; the examples lie in the sources alone
NEXT = (
    ("chainrule", "explain examples/digits.py", "every gradient of this net, with its proof"),
    ("chainrule", "explain examples/digits.py --latex", "the same for a paper"),
    ("python", "examples/perceptron.py", "one neuron, in scalars and by hand"),
    ("python", "examples/digits.py", "this net as a short program: change it"),
    ("chainrule", "demo --seed 1 --save out", "checkpoint, curve (matplotlib), report"),
    ("chainrule", "doctor", "what will work on this machine"),
)


@dataclass(frozen=True)
class Net:
    """The demo's net: what it reads, what it gives, and its parameters by name."""

    x: Tensor
    y: Tensor
    logits: Tensor
    loss: Tensor
    parameters: dict[str, Tensor]


@dataclass
class Figures:
    """What the demo found; `json()` is one object of plain data."""

    accuracy: float
    losses: list[float]
    accuracies: list[float]
    gradients: dict[str, str]
    proof: str
    compiled: dict[str, Any]
    settings: dict[str, Any]
    compile_seconds: float
    train_seconds: float
    total_seconds: float
    versions: dict[str, str] = field(default_factory=lambda: versions())

    def json(self) -> str:
        """The figures as one JSON object, what the compiler did beside the rest."""
        data = asdict(self)
        compiled = data.pop("compiled")
        return json.dumps({**data, **compiled, "seconds": self.stages()}, indent=1)

    def stages(self) -> dict[str, float]:
        """Seconds of compiling, stage by stage, and of training."""
        return {**self.compiled["seconds"], "train": self.train_seconds}


def versions() -> dict[str, str]:
    """Of what this runs on."""
    packages = {name: version(name) for name in ("numpy", "llvmlite")}
    return {"chainrule": __version__, "python": platform.python_version(), **packages}


def build_net() -> Net:
    """64 pixels, two hidden layers of ReLUs, ten scores; softmax cross-entropy as the loss."""
    x = input("x", ("batch", SIZES[0]))
    y = input("y", ("batch",), dtype="int32")
    parameters: dict[str, Tensor] = {}
    h = x
    for i, (fan_in, fan_out) in enumerate(pairwise(SIZES), 1):
        w = parameters[f"W{i}"] = parameter(f"W{i}", (fan_in, fan_out), init="he_normal")
        b = parameters[f"b{i}"] = parameter(f"b{i}", (fan_out,))
        h = (h @ w + b).named("z") if i == len(SIZES) - 1 else relu(h @ w + b).named(f"h{i}")
    return Net(x, y, h, cross_entropy(h, y).named("loss"), parameters)


def run(page: Page, epochs: int, seed: int, save: Path | None = None) -> Figures:
    """Show and train; then write files where `save` says so. Raises ChainruleError."""
    start = time.perf_counter()
    files = Files.into(save) if save is not None else None
    net = build_net()
    show_model(page, net)
    gradients = show_gradients(page, net)
    proof = str(explain(net.loss, net.parameters[PROVED]))
    page.heading(f"3  Why: d{PROVED} by the chain rule, step by step")
    page.verbatim(proof)
    step = training_step(net.loss, Adam(LEARNING_RATE), outputs={"z": net.logits}, seed=seed)
    report = step.report()
    show_report(page, report)
    losses, accuracies, seconds = train(page, step, digits(seed=seed), epochs)
    settings = {
        "sizes": SIZES,
        "epochs": epochs,
        "batch_size": BATCH_SIZE,
        "learning_rate": LEARNING_RATE,
        "seed": seed,
    }
    figures = Figures(
        accuracy=accuracies[-1],
        losses=losses,
        accuracies=accuracies,
        gradients=gradients,
        proof=proof,
        compiled=report.as_dict(),
        settings=settings,
        compile_seconds=report.total_seconds,
        train_seconds=seconds,
        total_seconds=time.perf_counter() - start,
    )
    page.heading("6  Result")
    page.say(f"{figures.accuracy:.2%} of the held-out images are read right.", style="bold green")
    page.say(f"{figures.total_seconds:.1f} s in all, {seconds:.2f} s of them training.")
    if files is not None:
        page.say(f"written to {save}: {', '.join(files.write(step, figures.losses, page.text))}")
    page.heading("7  What to try next")
    page.verbatim(next_steps())
    return figures


def next_steps() -> str:
    """Commands that work where the demo was called, and what each is for."""
    here = [s for s in NEXT if "examples/" not in s[1] or Path("examples").is_dir()]
    rows = [(f"{as_typed(program)} {arguments}", why) for program, arguments, why in here]
    width = max(len(command) for command, _ in rows)
    return "\n".join(f"{command:{width}}   {why}" for command, why in rows)


def as_typed(program: str) -> str:
    """A program of this environment: its name where that finds it, else the way to it."""
    ours = Path(sys.executable).with_name(program)
    if not ours.exists() or shutil.which(program) == str(ours):
        return program
    return os.path.relpath(ours)


def show_model(page: Page, net: Net) -> None:
    """The net as mathematics, and how large it is."""
    page.heading("1  The model", "a net of two hidden layers; softmax cross-entropy is its loss")
    page.verbatim(texts([net.loss.node]))
    shapes = ", ".join(f"{name} {tensor.type}" for name, tensor in net.parameters.items())
    count = sum(a * b for a, b in pairwise(SIZES)) + sum(SIZES[1:])
    page.say(f"{count:,} parameters: {shapes}", style="dim")


def show_gradients(page: Page, net: Net) -> dict[str, str]:
    """The gradient of each parameter, with the parts they share said once; each alone as text."""
    page.heading(
        "2  Its gradients",
        "derived by the chain rule and simplified; ⊙ is the product of elements, [c] is 1 where c",
    )
    found = grad(net.loss, net.parameters)
    page.verbatim(texts([g.node for g in found.values()]))
    return {name: str(g) for name, g in found.items()}


def show_report(page: Page, report: Report) -> None:
    """What the compiler did."""
    page.heading(
        "4  What the compiler did", "forward, backward and update become one native function"
    )
    notes = {p.name: _first_sentence(p.doc) for p in PASSES}
    page.table(
        ("pass", "nodes", "ms", "what it does"),
        [
            (p.name, f"{p.nodes_before} → {p.nodes_after}", f"{p.seconds * 1e3:.1f}", notes[p.name])
            for p in report.passes
        ],
        right="ms",
    )
    page.gap()
    page.table(
        ("kernel", "form", "writes", "flops", "bytes moved"),
        [
            (k.name, k.form, ", ".join(k.writes) or "nothing", str(k.flops), str(k.bytes))
            for k in report.kernels
        ],
    )
    page.gap()
    page.table(("memory", "bytes"), [(name, str(size)) for name, size in report.memory.items()])
    page.gap()
    page.say(f"the arena holds {report.values} values in {report.slots} slots")
    totals = report.totals(batch=BATCH_SIZE)
    page.say(
        f"a step of {BATCH_SIZE} images: {totals['flops'] / 1e6:.1f} million operations, "
        f"{totals['bytes'] / 1e6:.1f} MB moved"
    )
    stages = ", ".join(f"{name} {seconds * 1e3:.0f}" for name, seconds in report.seconds.items())
    page.say(
        f"{report.code_size:,} bytes of machine code in {report.functions} functions "
        f"for {report.target}"
    )
    page.say(f"compiled in {report.total_seconds * 1e3:.0f} ms: {stages}")


def _first_sentence(doc: str) -> str:
    return re.split(r"(?<=\w)\.", " ".join(doc.split()))[0]


def train(
    page: Page, step: TrainingStep, data: Digits, epochs: int
) -> tuple[list[float], list[float], float]:
    """Each epoch's mean loss and held-out accuracy, and the seconds that training took."""
    rows, held_out = len(data.y_train), len(data.y_test)
    page.heading(
        "5  Training",
        f"on {rows:,} images in minibatches of {BATCH_SIZE}, each epoch one native call; "
        f"{held_out} images are held out",
    )
    losses: list[float] = []
    accuracies: list[float] = []
    seconds = 0.0
    with page.progress("epochs", epochs) as advance:
        for epoch in range(1, epochs + 1):
            start = time.perf_counter()
            run = step.run(x=data.x_train, y=data.y_train, batch_size=BATCH_SIZE)
            seconds += time.perf_counter() - start
            found = step.predict(x=data.x_test)["z"].argmax(axis=-1)
            losses.append(float(run.mean()))
            accuracies.append(float((found == data.y_test).mean()))
            page.verbatim(
                f"epoch {epoch:3}   loss {losses[-1]:.4f}   held-out accuracy {accuracies[-1]:.2%}"
            )
            advance()
    return losses, accuracies, seconds
