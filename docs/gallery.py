"""Runs the examples, writes docs/gallery.md and its pictures: `python docs/gallery.py [NAME...]`.

Names choose examples to run again; the rest of the page stays as it is. A test runs each example
for a moment, and holds what the page says of its gradients to what it prints.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

PAGE = Path(__file__).with_suffix(".md")
PICTURES = PAGE.with_suffix("")
EXAMPLES = PAGE.parents[1] / "examples"
LARGEST = 60_000  # bytes of a picture
COLOURS = 96

#: files of examples/, in the order of a course -> their headings
COURSE = {
    "perceptron": "One neuron",
    "descent": "Gradient descent, and its rate",
    "overfitting": "Overfitting, dropout, early stopping",
    "cnn": "A convolutional net",
    "uncertainty": "Regression with uncertainty",
    "vae": "A variational autoencoder",
    "lstm_text": "A recurrent net that writes",
    "gpt": "A small GPT",
    "reinforce": "A policy gradient",
    "adversarial": "Adversarial images",
}

#: what is asked of an example beyond its defaults -> how it is asked on the command line
ASKED = {"cnn": ({"seeds": 10}, "cnn.png 10")}

HEAD = """\
# Gallery

The nets of an introductory course, each in one short file that needs no network and trains within
seconds, those that write texts in a minute or two: what it is, a gradient that it was trained by,
as it printed it, and what came of it. This page and its pictures are written by
`python docs/gallery.py`; tests run every example, and hold the page's gradients to what is derived
and its figures to bounds. [Gradients](gradients.md) has those of many more, one by one.

The examples need the extras that draw and that bring data: `pip install -e '.[plot,sklearn]'`.
"""


def load(name: str) -> ModuleType:
    """An example as a module, without running it."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(module: ModuleType, **options: Any) -> tuple[dict[str, Any], str, str]:
    """What an example finds, the gradient it prints first, the lines it prints last."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        found = module.main(**options)
    parts = printed.getvalue().strip().split("\n\n")
    lines = [line.rstrip() for line in parts[0].splitlines()]
    return found, "\n".join(lines), parts[-1]


def draw(module: ModuleType, found: dict[str, Any], path: Path) -> None:
    """The example's picture, in few colours, so that it is small."""
    from PIL import Image

    drawn = io.BytesIO()
    module.picture(found).savefig(drawn, format="png", dpi=90)
    picture = Image.open(drawn).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    path.parent.mkdir(exist_ok=True)
    picture.save(path, optimize=True)
    assert path.stat().st_size < LARGEST, f"{path}: {path.stat().st_size} bytes"


def entry(name: str) -> str:
    """An example's part of the page; its picture is drawn."""
    module = load(name)
    begun = time.process_time()
    options, arguments = ASKED.get(name, ({}, ""))
    found, gradient, figures = run(module, **options)
    seconds = time.process_time() - begun
    draw(module, found, PICTURES / f"{name}.png")
    title, _, text = (module.__doc__ or "").partition("\n\n")
    about = text.strip().rpartition("\n\n")[0]
    command = f"python examples/{name}.py {arguments}".strip()
    print(f"{name}: {seconds:.1f} s\n{figures}\n")
    return (
        f"\n## {COURSE[name]}\n\n{title}\n\n{about}\n\n"
        f"![{COURSE[name]}](gallery/{name}.png)\n\n"
        f"Trained by, among others,\n\n```\n{gradient}\n```\n\n"
        f"and it found\n\n```\n{figures}\n```\n\n"
        f"`{command}` ([the file](../examples/{name}.py)), "
        f"{seconds:.1f} s of processor time.\n"
    )


def entries(page: str) -> dict[str, str]:
    """The parts of a page by example."""
    _, *parts = page.split("\n## ")
    names = {heading: name for name, heading in COURSE.items()}
    found = {part.partition("\n")[0]: f"\n## {part.rstrip()}\n" for part in parts}
    return {names[heading]: part for heading, part in found.items() if heading in names}


def main(*names: str) -> None:
    """Run the examples called so, or all, and write the page."""
    known = entries(PAGE.read_text(encoding="utf-8")) if PAGE.exists() else {}
    again = names or tuple(COURSE)
    parts = [entry(name) if name in again or name not in known else known[name] for name in COURSE]
    PAGE.write_text("".join([HEAD, *parts]), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
