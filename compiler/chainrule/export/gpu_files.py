"""What an export for a GPU leaves: its files, and the certificate that tells what they need."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from chainrule.codegen import ptxas
from chainrule.export import files as filing
from chainrule.export import gpu_example, gpu_header, gpu_source
from chainrule.export.artifact import GPU_FORMATS, Artifact, check_formats
from chainrule.export.gpu import DATA_WIDTH, ROOM_ALIGN, GpuKernel, Placed
from chainrule.export.manifest import told_of


def gpu_formats() -> tuple[str, ...]:
    """What is written where nothing is said: a cubin where there is what makes one."""
    without = () if ptxas.find() else ("cubin",)
    return tuple(f for f in GPU_FORMATS if f not in without)


def check_gpu_formats(formats: Collection[str]) -> None:
    """Raise CompileError for formats that there are not on GPUs, or nothing here makes."""
    check_formats(formats, gpu=True)
    if "cubin" in formats:
        ptxas.needed()


def gpu_about(
    kernel: GpuKernel, assembled: ptxas.Assembled | None, told: Mapping[str, Any]
) -> dict[str, Any]:
    """The certificate: the memory map, the functions, and each kernel with what ptxas tells of it,
    where there is one.
    """
    model = kernel.model
    workspace = max(Placed(u.manifest).bytes(model.most()) for u in model.units.values())
    known = assembled.resources if assembled else {}
    kernels = [
        {"name": name, "threads": launch.threads}
        | ({"registers": r.registers, "shared_bytes": r.shared, "stack_bytes": r.stack}
           if (r := known.get(name)) else {})
        | ({"asked_shared_bytes": launch.dynamic} if launch.dynamic else {})
        for name, launch in kernel.module.kernels.items()
    ]  # fmt: skip
    return {
        **told_of(model, workspace, ROOM_ALIGN),
        "data_align": DATA_WIDTH,
        "level": kernel.target.level,
        "ptx": kernel.ptx.partition(".version ")[2].split()[0],
        "ptx_bytes": len(kernel.ptx),
        "kernels": kernels,
        **told,
    }


def write_gpu_kernel(
    kernel: GpuKernel,
    folder: str | os.PathLike[str],
    formats: Collection[str],
    extra: Mapping[str, bytes],
    told: Mapping[str, Any],
    example: bool,
) -> Artifact:
    """Write a kernel in the formats wanted, and an example in C if there is to be one. Raises
    CompileError and ArtifactError.

    `extra` are files made elsewhere, by what follows the name; `told` goes into the manifest.
    """
    check_gpu_formats(formats)
    assembled = ptxas.assemble(kernel.ptx, kernel.target.level) if ptxas.find() else None
    name, certificate = kernel.model.name, gpu_about(kernel, assembled, told)
    kernel = replace(kernel, model=replace(kernel.model, about=certificate))
    texts = {
        "ptx": lambda: kernel.ptx,
        "ll": lambda: kernel.module.llvm,
        "c": lambda: gpu_source.source(kernel),
        "h": lambda: gpu_header.header(kernel, certificate),
    }
    made: dict[str, bytes] = {}
    for kind in dict.fromkeys(formats):
        if kind == "cubin":
            assert assembled is not None  # check_gpu_formats
            content = assembled.cubin
        elif kind in extra:
            content = extra[kind]
        elif kind == "json":
            continue
        else:
            content = texts[kind]().encode()
        made[f"{name}.{kind}"] = content
    if example:
        made[f"{name}_example.c"] = gpu_example.c_example(kernel.model).encode()
    certificate["sha256"] = {n: hashlib.sha256(c).hexdigest() for n, c in made.items()}
    if "json" in formats:
        made[f"{name}.json"] = (json.dumps(certificate, indent=1) + "\n").encode()
    return Artifact(name, filing.write(folder, made), certificate)
