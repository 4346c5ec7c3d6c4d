"""`chainrule explain FILE.py[:NAME]`: the gradient of each parameter, with its proof."""

from __future__ import annotations

import contextlib
import linecache
import runpy
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from chainrule.cli.page import Page
from chainrule.driver import leaves_of
from chainrule.errors import ChainruleError, GradientError
from chainrule.lang.derive import grad
from chainrule.lang.inspect import explain
from chainrule.lang.tensor import Tensor
from chainrule.ops.source import Leaf
from chainrule.train.step import TrainingStep

#: what a file is called while it is run, so that `if __name__ == "__main__":` stays out
MODULE = "__explained__"
USUAL = ("step", "loss")


def run(page: Page, target: str, latex: bool) -> None:
    """Run the file and print. Raises ClickException where there is nothing to explain."""
    path, name = split(target)
    loss = chosen(load(path), name, path)
    parameters = [n for n in leaves_of([loss.node]) if _is_parameter(n.op)]
    if not parameters:
        raise click.ClickException(f"{loss!r} depends on no parameter: there is nothing to derive")
    write = show_latex if latex else show
    for node in parameters:
        write(page, loss, Tensor(node))


def show(page: Page, loss: Tensor, parameter: Tensor) -> None:
    """One gradient and its proof, or why there is none."""
    page.heading(f"The gradient of {parameter.name}: {parameter.type}")
    try:
        gradient, proof = grad(loss, parameter), explain(loss, parameter)
    except GradientError as error:
        page.say(f"there is none: {error.what}")
        return
    page.verbatim(str(gradient))
    page.gap()
    page.say("by the chain rule", style="dim")
    page.verbatim(str(proof))


def show_latex(page: Page, loss: Tensor, parameter: Tensor) -> None:
    """The same as LaTeX, with comments between."""
    page.verbatim(f"% the gradient of {parameter.name}", indent=0)
    try:
        gradient, proof = grad(loss, parameter), explain(loss, parameter)
    except GradientError as error:
        page.verbatim(f"% there is none: {error.what}", indent=0)
        return
    page.verbatim(f"{gradient.latex()}\n% its proof\n{proof.latex()}", indent=0)


def split(target: str) -> tuple[Path, str | None]:
    """File and name. Raises ClickException where there is no such file."""
    path, name = Path(target), None
    if not path.exists() and ":" in target:
        file, _, name = target.rpartition(":")
        path = Path(file)
    if path.is_dir():
        raise click.ClickException(f"{path} is a folder: name a Python file in it")
    if not path.is_file():
        raise click.ClickException(f"there is no file {path}")
    return path, name or None


def load(path: Path) -> Mapping[str, Any]:
    """What the file defines. It is run as a program of the user's own, beside its neighbours.

    It sees no arguments, and what it prints goes to the standard error: the standard output is for
    what is explained. Raises ClickException with the file's own error where it fails.
    """
    sys.path.insert(0, str(path.resolve().parent))
    sys.argv[1:] = []
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return runpy.run_path(str(path), run_name=MODULE)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise click.ClickException(f"{path} failed while it was run\n{own(error, path)}") from None


def own(error: BaseException, path: Path) -> str:
    """An error as the file raised it: what it says, and the file's lines on the way to it."""
    if isinstance(error, SystemExit):
        return f"it ended itself with {error.code!r}"
    if isinstance(error, ChainruleError):
        return f"{type(error).__name__}: {error}"
    said = "".join(traceback.format_exception_only(error)).rstrip()
    if isinstance(error, SyntaxError):
        return said
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f"  at {f.filename}:{f.lineno}    {_line(f)}" for f in frames if _is(f, path)]
    lines = dict.fromkeys(ours)  # each once, however often it called itself
    return "\n".join([said, *lines])


def _is(frame: traceback.FrameSummary, path: Path) -> bool:
    return Path(frame.filename) == path


def _line(frame: traceback.FrameSummary) -> str:
    return linecache.getline(frame.filename, frame.lineno or 0).strip()


def chosen(found: Mapping[str, Any], name: str | None, path: Path) -> Tensor:
    """The loss called `name`, or the only one, or the one called step or loss."""
    losses = {n: loss for n, value in found.items() if (loss := as_loss(value)) is not None}
    names = ", ".join(losses) or "none"
    if not losses:
        raise click.ClickException(
            f"{path} defines no loss, which is a float scalar, and no training step: none that has "
            f"a name at its top level, outside of functions and of `if __name__ == ...`"
        )
    if name is not None and name not in found:
        raise click.ClickException(f"{path} defines no {name!r}; losses and steps there: {names}")
    if name is not None and name not in losses:
        raise click.ClickException(
            f"{name} in {path} is {_shown(found[name])}: neither a loss, which is a float scalar, "
            f"nor a training step; there are: {names}"
        )
    different = {id(loss.node) for loss in losses.values()}
    usual = [n for n in USUAL if n in losses]
    if name is None and not usual and len(different) != 1:
        raise click.ClickException(f"which one? say {path}:NAME; losses and steps there: {names}")
    return losses[name or next(iter(usual or losses))]


def _shown(value: object) -> str:
    return repr(value) if isinstance(value, Tensor) else f"of type {type(value).__name__}"


def as_loss(value: object) -> Tensor | None:
    """The loss of a training step, or a tensor that can be one."""
    if isinstance(value, TrainingStep):
        return value.loss
    scalar = isinstance(value, Tensor) and value.shape == () and value.dtype.is_float
    computed = isinstance(value, Tensor) and bool(value.node.inputs)
    return value if scalar and computed and isinstance(value, Tensor) else None


def _is_parameter(op: object) -> bool:
    return isinstance(op, Leaf) and op.kind == "parameter"
