"""`chainrule export FILE.py[:NAME]` and `chainrule inspect FILE`: kernels written, and shown."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import click

from chainrule.cli.explain import load, split
from chainrule.cli.page import Page
from chainrule.train.model import Model
from chainrule.train.step import TrainingStep

_LARGEST = 64 << 20


def run(
    page: Page,
    target_file: str,
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
    """Run the file, export its step and say what was written. Raises ClickException."""
    path, wanted = split(target_file)
    step = chosen(load(path), wanted, path)
    bounds = dict(map(_bound, max_sizes))
    art = step.export(
        out,
        name=name or path.stem.replace("-", "_"),
        target=target if "," not in target else target.split(","),
        formats=None if formats is None else tuple(formats.split(",")),
        max_batch=max_batch,
        max_sizes=bounds,
        determinism=determinism,
        optimize=optimize,
        examples=examples,
        cpu=cpu,
        features=features,
        max_parts=max_parts,
    )
    show(page, art.certificate)
    page.heading("Files")
    for file in art.files.values():
        page.verbatim(f"{file}  {os.path.getsize(file)} bytes")
    for note in art.notes:
        page.verbatim(note)


def _bound(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    if not name or not number.isdigit():
        raise click.ClickException(f"a size is bounded as NAME=NUMBER, not {text!r}")
    return name, int(number)


def chosen(found: Mapping[str, Any], name: str | None, path: Path) -> TrainingStep:
    """The training step called `name`, or the only one, or the one called step."""
    steps = {n: s for n, value in found.items() if (s := as_step(value)) is not None}
    names = ", ".join(steps) or "none"
    if not steps:
        raise click.ClickException(
            f"{path} defines no training step: none that has a name at its top level, outside of "
            f"functions and of `if __name__ == ...`"
        )
    if name is not None and name not in steps:
        raise click.ClickException(f"{path} has no training step {name!r}; there are: {names}")
    if name is None and "step" not in steps and len(steps) != 1:
        raise click.ClickException(f"which one? say {path}:NAME; training steps there: {names}")
    return steps[name or ("step" if "step" in steps else next(iter(steps)))]


def as_step(value: object) -> TrainingStep | None:
    """A training step, or that of a model."""
    if isinstance(value, Model):
        return value.step
    return value if isinstance(value, TrainingStep) else None


def inspect(page: Page, file: Path) -> None:
    """Show what the manifest beside a file of a kernel tells. Raises ClickException."""
    base = file.with_suffix(".json")
    stem = file.name.removesuffix(".d.ts")
    beside = [base, file.with_name(f"{stem.removeprefix('lib').partition('.')[0]}.json")]
    path = next((p for p in beside if p.is_file()), None)
    text = embedded(file) if path is None and file.is_file() else None
    if path is None and text is None:
        raise click.ClickException(f"there is no manifest {base}, and none in {file}")
    path = path or file
    if path.stat().st_size > _LARGEST:
        raise click.ClickException(f"{path} is too large for a manifest")
    try:
        told = json.loads(path.read_text(encoding="utf-8") if text is None else text)
    except (ValueError, RecursionError, OSError) as error:
        raise click.ClickException(f"{path} can't be read as JSON: {error}") from None
    if not isinstance(told, dict) or told.get("format") != "chainrule-kernel":
        raise click.ClickException(f"{path} is no manifest of a kernel")
    digests = told.get("sha256")
    wanted = digests.get(file.name) if isinstance(digests, dict) else None
    if wanted and file.is_file() and sha256(file.read_bytes()).hexdigest() != wanted:
        raise click.ClickException(
            f"{file} is not the file that {path} tells of: its SHA-256 is another"
        )
    try:
        show(page, told)
    except (KeyError, TypeError, AttributeError) as error:
        raise click.ClickException(f"{path} is not whole: {error!r}") from None


def embedded(file: Path) -> bytes | None:
    """What NAME_describe gives, of a file of code, which is not run for it; None where it has none.

    Alone it tells of all but what was known after compiling: bytes of code and of the stack.
    """
    if file.stat().st_size > _LARGEST:
        raise click.ClickException(f"{file} is too large for a kernel")
    data = file.read_bytes()
    begin = data.find(b'{"format": "chainrule-kernel"')
    end = data.find(b"\0", begin)
    return None if begin < 0 or end < 0 else data[begin:end]


def show(page: Page, told: Mapping[str, Any]) -> None:
    """The certificate of a kernel."""
    page.heading(f"{told['name']}", f"a training step for {told['target']}, model {told['model']}")
    levels = ", ".join(v["level"] for v in told["variants"])
    sizes = ", ".join(f"{n} up to {m}" for n, m in told["sizes"].items()) or "all known"
    rows = [
        ("code", f"{_code(told)} for {levels}, made for {told['optimize']}"),
        ("state", f"{told['state_bytes']} bytes in {len(told['tensors'])} tensors"),
        ("workspace", f"{told['workspace_bytes']} bytes at most"),
        _taken(told),
        *(
            [("a part", f"{told['part_stack_bytes']} bytes of stack at most, of {parts} parts")]
            if "part_stack_bytes" in told and (parts := told["max_parts"])
            else []
        ),
        ("a step", f"{told['flops']} floating-point operations"),
        ("sizes", sizes),
        ("determinism", told["determinism"]),
    ]
    page.verbatim("\n".join(f"{key:<12} {value}" for key, value in rows))
    page.heading("Functions")
    for name, function in told["functions"].items():
        inputs = ", ".join(t["name"] for t in function["inputs"])
        outputs = ", ".join(t["name"] for t in function["outputs"])
        page.verbatim(f"{told['name']}_{name}({inputs}) -> {outputs}")
        for number, loops in enumerate(told.get("loops", {}).get(name, [])):
            page.verbatim("\n".join([f"  call {number}", *(f"    {line}" for line in loops)]))
    page.heading("State")
    page.verbatim(
        "\n".join(
            f"{t['offset']:>10}  {t['name']}: {t['dtype']}{t['shape']}" for t in told["tensors"]
        )
    )
    page.heading("Gradients")
    page.verbatim(told["mathematics"])


def _code(told: Mapping[str, Any]) -> str:
    if "ptx_bytes" in told:
        return f"{told['ptx_bytes']} bytes of PTX"
    return _known(told, "code_bytes")


def _taken(told: Mapping[str, Any]) -> tuple[str, str]:
    """What running takes: of a processor its stack, of a GPU registers."""
    kernels = told.get("kernels")
    if kernels is None:
        return "stack", f"{_known(told, 'stack_bytes')} at most"
    registers = [k["registers"] for k in kernels if "registers" in k]
    most = f"{max(registers)} registers of a thread at most" if registers else "ptxas would tell"
    return "kernels", f"{len(kernels)}; {most}"


def _known(told: Mapping[str, Any], key: str) -> str:
    return f"{told[key]} bytes" if key in told else "? bytes (the manifest tells)"
