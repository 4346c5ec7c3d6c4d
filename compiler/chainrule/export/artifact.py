"""What an export leaves: its files, and the certificate that tells what they hold and need."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chainrule.codegen.native import assembly
from chainrule.errors import CompileError
from chainrule.export import files as filing
from chainrule.export import javascript
from chainrule.export.codes import checks_of, faults
from chainrule.export.header import declarations, header
from chainrule.export.interface import Interface
from chainrule.export.kernel import Kernel, code_size
from chainrule.export.minibatches import batch_size_of
from chainrule.export.model import ABI, ALIGN, Model
from chainrule.export.selftest import memory_bytes
from chainrule.export.stack import bound, frames
from chainrule.export.targets import is_bare
from chainrule.export.units import Placed
from chainrule.target import Target
from chainrule_runtime.manifest import Tensor

FORMATS = ("o", "a", "so", "h", "ll", "s", "json", "safetensors", "state", "js", "d.ts")


@dataclass(frozen=True)
class Artifact:
    """A kernel in files.

    `files` are their paths by name; `certificate` tells exact bytes of state and workspace, a bound
    of the stack, operations, code size, the gradients as formulas.
    """

    name: str
    files: Mapping[str, Path]
    certificate: Mapping[str, Any]


def about(model: Model, told: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says of a kernel before it is compiled: the memory map and the functions."""
    interface = Interface(model)
    most = model.most()
    workspace = max(
        Placed(u.manifest, model.fixed).bytes(most)
        for v in model.variants
        for u in v.units.values()
    )
    codes = checks_of([u.manifest for u in model.units.values()])

    def data(tensor: Tensor) -> dict[str, Any]:
        return {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}

    functions = {
        name: {
            "sizes": [s.name for s in interface.sizes_of(unit)],
            "inputs": [data(t) for t in unit.manifest.feeds],
            "outputs": [data(t) for t in unit.manifest.outputs],
            "nonempty": [d for d in unit.manifest.nonempty if not isinstance(d, int)],
        }
        for name, unit in model.units.items()
    }
    tensors = [
        {
            "name": t.name, "dtype": t.dtype.name, "shape": list(t.shape), "role": t.role,
            "offset": model.offsets[t.name], "bytes": t.bytes,
        }
        for t in model.kept
    ]  # fmt: skip
    return {
        "format": "chainrule-kernel",
        "abi": ABI,
        "name": model.name,
        "model": f"{model.digest:016x}",
        "align": ALIGN,
        "target": ", ".join(dict.fromkeys(v.target.triple for v in model.variants)),
        "variants": [
            {"level": v.target.level, "cpu": v.target.cpu, "features": v.target.features}
            for v in model.variants
        ],
        "state_bytes": model.state_bytes,
        "workspace_bytes": workspace,
        "selftest_bytes": memory_bytes(model),
        "sizes": most,
        "rows": batch_size_of(model) if model.sliced else None,
        "sliced": sorted(model.sliced),
        "tensors": tensors,
        "functions": functions,
        "numbers": [
            {
                "name": n.name,
                "function": f"set_{interface.numbers[n.called]}",
                "tensor": n.kept,
                "complement": n.complement,
            }
            for n in model.numbers
        ],
        "codes": {f.name: f.code for f in faults(codes)},
        **told,
    }


def write_kernel(
    kernel: Kernel,
    folder: str | os.PathLike[str],
    formats: Collection[str],
    extra: Mapping[str, bytes],
    native: bool,
) -> Artifact:
    """Write a kernel in the formats wanted. Raises CompileError and ArtifactError.

    `extra` are files made elsewhere, by what follows the name; `native` says that the kernel is for
    this machine.
    """
    import hashlib
    import json

    check_formats(formats)
    model, name = kernel.model, kernel.model.name
    symbols = [f"{name}_{f[1]}" for f in declarations(model, Interface(model))]
    text = assembly(kernel.native)
    own = frames(text, kernel.target.arch)
    certificate = dict(model.about) | {
        "stack_bytes": bound(kernel.llvm, own),
        "largest_frame": max([0, *own.values()]),
        "code_bytes": code_size(kernel),
    }
    data = kernel.native.object
    made: dict[str, bytes] = {}
    library = {"Wasm": f"{name}.wasm"}.get(kernel.target.format, f"{name}.so")
    for kind in dict.fromkeys(formats):
        if kind == "o":
            made[f"{name}.o"] = data
        elif kind == "a":
            made[f"lib{name}.a"] = filing.archive(f"{name}.o", data, symbols)
        elif kind == "so":
            made[library] = filing.link(data, name, kernel.target, symbols, native)
        elif kind == "h":
            made[f"{name}.h"] = header(model, certificate).encode()
        elif kind == "ll":
            made[f"{name}.ll"] = kernel.llvm.encode()
        elif kind == "s":
            made[f"{name}.s"] = text.encode()
        elif kind in ("js", "d.ts"):
            if kernel.target.format != "Wasm":
                raise CompileError(f'the format "{kind}" is for target="wasm32"')
            write = javascript.module if kind == "js" else javascript.types
            made[f"{name}.{kind}"] = write(model).encode()
    made |= {f"{name}.{kind}": content for kind, content in extra.items() if kind in formats}
    certificate["sha256"] = {n: hashlib.sha256(content).hexdigest() for n, content in made.items()}
    if "json" in formats:
        made[f"{name}.json"] = (json.dumps(certificate, indent=1) + "\n").encode()
    return Artifact(name, filing.write(folder, made), certificate)


def formats_of(target: Target) -> tuple[str, ...]:
    """What is written where nothing is said: all that people use on such a machine."""
    if target.format == "Wasm":
        return ("so", "js", "d.ts", "json", "safetensors", "state")
    shared = ("so",) if target.format == "ELF" and not is_bare(target) else ()
    return ("o", "a", *shared, "h", "ll", "json", "safetensors", "state")


def check_formats(formats: Collection[str]) -> None:
    """Raise CompileError for formats that there are not."""
    if isinstance(formats, str):
        raise CompileError(f"formats are several, not {formats!r}", 'such as ("so", "h")')
    unknown = [f for f in formats if f not in FORMATS]
    if unknown or not formats:
        raise CompileError(f"no format is called {unknown or formats}", f"there are {FORMATS}")
