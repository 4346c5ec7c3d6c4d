"""A training step as kernels for a GPU, in files: what `export` does for target="sm_80"."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from chainrule.driver.figures import figures
from chainrule.driver.gpu import gpu_target
from chainrule.driver.gpu_commands import copies, launched
from chainrule.driver.lower import Lowered
from chainrule.errors import CompileError
from chainrule.export import (
    Artifact,
    GpuGolden,
    Model,
    Unit,
    check_gpu_formats,
    compile_gpu_kernel,
    gpu_formats,
    write_gpu_kernel,
)
from chainrule.target import Target
from chainrule.target.gpu import GPUS, lasting
from chainrule.train.asked import Export


def gpu_named(target: str | Sequence[str]) -> Target | None:
    """The GPU that an export is for: "cuda" is the one here, or the oldest; None for no GPU."""
    if target == "cuda":
        return lasting(gpu_target())  # what later GPUs do not run has to be named
    return GPUS.get(target) if isinstance(target, str) else None


def check_gpu(wanted: Export) -> None:
    """Raise CompileError for what is asked of an export that there is not for GPUs."""
    refused = {
        "cpu": wanted.cpu is not None,
        "features": wanted.features is not None,
        'determinism="strict"': wanted.determinism == "strict",
        'optimize="size"': wanted.optimize == "size",
        "examples but in C": not set(wanted.examples) <= {"c"},
        "max_parts": wanted.max_parts != 1,
    }
    for word, asked in refused.items():
        if asked:
            raise CompileError(
                f"an export for a GPU has no {word}", f"leave it out for target={wanted.target!r}"
            )
    if wanted.formats is not None:
        check_gpu_formats(wanted.formats)


def write_for_gpu(
    model: Model,
    lowered: Mapping[str, Lowered],
    folder: str | os.PathLike[str],
    wanted: Export,
    extra: Mapping[str, bytes],
    told: Mapping[str, Any],
    golden: GpuGolden,
) -> Artifact:
    """Compile and write a model that was lowered for a GPU. Raises CompileError, ArtifactError."""

    def commands(
        unit: Unit, launches: Mapping[int, Any], names: Mapping[int, str]
    ) -> tuple[Any, ...]:
        return launched(unit.calls, launches, names)

    # of the mathematics: lanes of tiles that hold no element do more, and nothing with it
    flops = sum((figures(k, "").flops for k in lowered["step"].kernels), start=0)
    told = {**told, "flops": str(flops)}
    launches = {name: low.launches for name, low in lowered.items()}
    kernel = compile_gpu_kernel(model, launches, copies(), commands, golden)
    formats = wanted.formats or gpu_formats()
    return write_gpu_kernel(kernel, folder, formats, extra, told, bool(tuple(wanted.examples)))
