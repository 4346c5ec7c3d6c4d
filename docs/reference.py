"""Writes docs/reference.md from what is public: `python docs/reference.py`. A test compares them.

Names come from `chainrule.__all__`, what each does from the first sentence of its docstring, what
it takes from its signature; so nothing here has to be kept in step by hand but the headings.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import ModuleType, NoneType
from typing import Any

import chainrule as cr
from chainrule.ir.types import DType

PAGE = Path(__file__).with_suffix(".md")

#: heading -> the modules whose names stand under it
HEADINGS = {
    "Leaves": ("lang.leaves", "lang.tensor", "ir.size"),
    "Arithmetic and elementary functions": ("lang.pointwise", "lang.elementary"),
    "Activations": ("lang.activations",),
    "Shapes": ("lang.functions", "lang.manipulation", "lang.creation"),
    "Products, convolution, pooling": ("lang.products", "lang.windows"),
    "Reductions": ("lang.statistics",),
    "Choosing, searching, sorting": ("lang.searching",),
    "Element types": ("lang.dtypes",),
    "Layers' functions": ("lang.normalization", "lang.random"),
    "Loops, and slices by tensors": ("lang.scan", "lang.dynamic"),
    "Derivatives": (
        "lang.derive", "lang.forward", "lang.jacobian", "lang.check", "lang.custom",
        "lang.elementwise",
    ),
    "Looking at them": ("lang.inspect", "lang.reading"),
    "Compiling and training": ("lang.compiled", "train.step", "train.model"),
}  # fmt: skip
#: where a name belongs though it is defined elsewhere
PLACES = {
    "Reductions": ("sum", "mean", "max", "min", "logsumexp"),
    "Activations": (
        "relu", "sigmoid", "log_sigmoid", "softplus", "softmax", "log_softmax", "tanh"
    ),
    "Products, convolution, pooling": ("matmul", "outer"),
    "Choosing, searching, sorting": ("where", "take", "pick", "one_hot"),
    "Derivatives": ("stop_gradient",),
}  # fmt: skip
#: what is not called by users
MADE_ELSEWHERE = ("Function", "Size", "Tensor", "TrainingStep")
MODULES = (
    "nn",
    "losses",
    "metrics",
    "regularizers",
    "optim",
    "schedules",
    "callbacks",
    "init",
    "random",
    "datasets",
    "errors",
)

HEAD = """\
# Reference

Everything public, a line each; `help(cr.name)` says more. This page is written by
`python docs/reference.py`, and a test holds it to `chainrule.__all__`.

Array functions follow the [array API standard 2024.12](https://data-apis.org/array-api/2024.12/).
A Tensor has Python's operators (`+ - * / // % ** @ < <= == != >= > & | ^ ~ << >>`), indexing by
integers, slices, `None`, `...` and arrays of integers, `.name .shape .dtype .ndim .size .T .mT`,
`.named(name)`, `.astype(dtype)`, `.latex()` and `.sympy()`. Element types are `cr.bool`,
`cr.int8` to `cr.int64`, `cr.uint8` to `cr.uint64`, `cr.bfloat16`, `cr.float32` and `cr.float64`, or
their names as text; the constants are `cr.e`, `cr.pi`, `cr.inf`, `cr.nan` and `cr.newaxis`.
"""

TAIL = """
## What the standard asks for and a compiled graph can't do

A shape is known before the data are: it may hold names of sizes, never numbers that depend on values.
[The array API](array-api.md) lists what is refused for that reason, with the error and what to use instead.
"""  # noqa: E501


def public() -> dict[str, list[str]]:
    """Names by heading, in order of the alphabet. KeyError for a module without a heading."""
    moved = {name: heading for heading, names in PLACES.items() for name in names}
    home = {f"chainrule.{m}": heading for heading, ms in HEADINGS.items() for m in ms}
    found: dict[str, list[str]] = {heading: [] for heading in HEADINGS}
    for name in sorted(cr.__all__, key=str.lower):
        thing = getattr(cr, name)
        if not isinstance(thing, (ModuleType, str, float, DType, NoneType)):
            found[moved.get(name) or home[thing.__module__]].append(name)
    return found


def members(module: ModuleType) -> list[str]:
    """The public classes and functions that a module defines; of errors the errors alone."""
    found = [
        name
        for name, thing in vars(module).items()
        if (inspect.isclass(thing) or inspect.isfunction(thing))
        and thing.__module__.startswith(module.__name__)
        and not name.startswith("_")
        and name in getattr(module, "__all__", [name])
    ]
    return sorted(n for n in found if module is not cr.errors or n.endswith("Error"))


def takes(thing: Any) -> str:
    """What it is called with: names and defaults, without types."""
    try:
        parameters = inspect.signature(thing).parameters.values()
    except ValueError:
        return "(...)"
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
    return re.sub(r"<.*?>", "...", str(inspect.Signature(plain)))


def line(label: str, thing: Any) -> str:
    """A row of a table: how it is called, and the first sentence of what it says of itself."""
    doc = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
    first = re.split(r"(?<!et al)\.(?: |$)", doc)[0]
    made_elsewhere = label in MADE_ELSEWHERE or label.endswith("Error")
    call = label if made_elsewhere else label + takes(thing)
    return "| `{}` | {} |".format(*(cell.replace("|", r"\|") for cell in (call, first)))


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for heading, names in public().items():
        rows = [line(name, getattr(cr, name)) for name in names]
        parts.append(
            "\n".join([f"\n## {heading}\n", "| name | what it is |", "|---|---|", *rows, ""])
        )
    for name in MODULES:
        module = getattr(cr, name)
        about = (module.__doc__ or "").split("\n\n")[0].strip()
        rows = [line(f"{name}.{n}", getattr(module, n)) for n in members(module)]
        head = [f"\n## cr.{name}\n", about, "", "| name | what it is |", "|---|---|"]
        parts.append("\n".join([*head, *rows, ""]))
    return "".join([*parts, TAIL])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
