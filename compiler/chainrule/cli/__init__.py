"""The command line: `chainrule demo`, `explain`, `export`, `inspect`, `bench` and `doctor`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from chainrule.cli import demo as demos
from chainrule.cli import doctor as doctors
from chainrule.cli import explain as explanations
from chainrule.cli import export as exports
from chainrule.cli.bench import report as benches
from chainrule.cli.page import Page, told
from chainrule.errors import ChainruleError
from chainrule.version import __version__

INTERRUPTED = 130  # as shells count: 128 + SIGINT


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="chainrule")
def cli() -> None:
    """A deep-learning compiler that shows its work."""


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with the figures.")
@click.option(
    "--save",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write checkpoint, loss curve and report into this folder.",
)
@click.option("--epochs", type=click.IntRange(1, 1000), default=demos.EPOCHS, show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), default=0, show_default=True)
def demo(as_json: bool, save: Path | None, epochs: int, seed: int) -> None:
    """Train a small net on real handwritten digits, and show everything on the way.

    The model, the gradients as mathematics, a proof by the chain rule, what the compiler did, and
    the accuracy on images that training never saw. Runs offline, in seconds.
    """
    page = Page(quiet=as_json)
    figures = demos.run(page, epochs, seed, save)
    if as_json:
        click.echo(figures.json())


@cli.command()
@click.argument("target", metavar="FILE.py[:NAME]")
@click.option("--latex", is_flag=True, help="Print LaTeX.")
def explain(target: str, latex: bool) -> None:
    """Print the gradient of each parameter, and its proof by the chain rule.

    NAME is a loss or a training step in the file; left out, it is the only one there, or the one
    called loss or step. The file is a Python program, and it is run: explain only files you trust.
    What stands under `if __name__ == "__main__":` is not run.
    """
    explanations.run(Page(), target, latex)


@cli.command()
@click.option("--workloads", metavar="A,B", help="Which training steps; left out, the quick ones.")
@click.option("--peers", metavar="A,B", help="Beside which peers; left out, all but the slow.")
@click.option("--threads", metavar="N,M", default="1", show_default=True, help="1,2 does both.")
@click.option(
    "--seconds",
    type=click.FloatRange(0.001, 60),
    help=f"A block of steps; each peer has six. [default: {benches.QUICK}, full {benches.FULL}]",
)
@click.option(
    "--starts",
    type=click.IntRange(0, 100),
    default=0,
    show_default=True,
    help="Start each peer so often more, with nothing compiled and with what it kept.",
)
@click.option("--full", is_flag=True, help="Every workload, and peers that are slow to start.")
@click.option("--markdown", is_flag=True, help="Print Markdown alone: the tables in the docs.")
@click.option(
    "--json",
    "json_file",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write every figure into this file.",
)
def bench(**asked: Any) -> None:
    """Time whole training steps of this machine, side by side with whichever peers are installed.

    The same weights and data for each, in a process of its own, their blocks interleaved; losses
    of the first steps must agree with float64, or the row says so, as it does where a peer is
    missing, fails, or is silent for five minutes.
    """
    benches.run(benches.Asked(**asked))


@cli.command()
@click.argument("source", metavar="FILE.py[:NAME]")
@click.option(
    "--target",
    default="host",
    show_default=True,
    help="A triple; levels of x86-64, by commas; a GPU, such as sm_80.",
)
@click.option(
    "--out",
    default=".",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the files go.",
)
@click.option("--name", help="What functions begin with; left out, the file's name.")
@click.option("--formats", metavar="A,B", help="Such as o,a,so,h; left out, all of the target's.")
@click.option("--max-batch", type=click.IntRange(1), help="Most rows of a minibatch; else 64.")
@click.option("--max-size", "max_sizes", metavar="NAME=N", multiple=True, help="Bound a size.")
@click.option(
    "--determinism", type=click.Choice(["default", "strict"]), default="default", show_default=True
)
@click.option(
    "--optimize",
    type=click.Choice(["speed", "size"]),
    help="For speed or for little code; without it, microcontrollers get little code.",
)
@click.option(
    "--example",
    "examples",
    multiple=True,
    type=click.Choice(["c", "rust", "js"]),
    help="Write an example and a self-test program in this language too.",
)
@click.option("--cpu", help="LLVM's word for the processor, such as cortex-m4.")
@click.option("--features", help="LLVM's words for what it has, such as +fp-armv8.")
@click.option(
    "--max-parts",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Into how many parts callers may divide a step.",
)
def export(
    source: str,
    target: str,
    out: Path,
    name: str | None,
    formats: str | None,
    max_batch: int | None,
    max_sizes: tuple[str, ...],
    determinism: str,
    optimize: str | None,
    examples: tuple[str, ...],
    cpu: str | None,
    features: str | None,
    max_parts: int,
) -> None:
    """Write a training step as a kernel with a C interface, for this machine or another.

    NAME is a training step or a model in the file; left out, the only one there, or the one called
    step. The file is a Python program, and it is run: export only files you trust.
    """
    exports.run(
        Page(), source, target, out, name, formats, max_batch, max_sizes, determinism, optimize,
        examples, cpu, features, max_parts,
    )  # fmt: skip


@cli.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def inspect(file: Path) -> None:
    """Show what a kernel holds and needs: FILE is any file of an export, its manifest beside it."""
    exports.inspect(Page(), file)


@cli.command()
@click.option("--calibrate", is_flag=True, help="Measure the machine's speeds first: a second.")
def doctor(calibrate: bool) -> None:
    """Show what will work here: CPU, threads, compilers, packages; and test the whole way down.

    Speeds that were measured are kept beside compiled code. They decide what reports predict and
    which steps are shared among threads, never a result.
    """
    if not doctors.run(Page(), calibrate):
        raise SystemExit(1)


def main() -> None:
    """Run the command line: 0 if all went well, 1 or 2 with one clear message, 130 for Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal without ∂ and ᵀ shows ? in their places
            stream.reconfigure(errors="replace")
    try:
        cli.main(prog_name="chainrule", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        raise SystemExit(error.exit_code) from None
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        raise SystemExit(INTERRUPTED) from None
    except ChainruleError as error:
        click.echo(told(error), err=True)
        raise SystemExit(1) from None
    except OSError as error:  # a full disk behind the standard output, say
        if not isinstance(error, BrokenPipeError):  # whoever reads has seen enough
            click.echo(f"chainrule: {error}", err=True)
        # or else Python tries once more to write, when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
