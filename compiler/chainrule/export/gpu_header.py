"""The C header of a kernel for a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import wrap
from typing import Any

from chainrule.export import gpu_interface
from chainrule.export.codes import checks_of, faults
from chainrule.export.gpu import CUDA_CODES, DATA_WIDTH, ROOM_ALIGN, GpuKernel
from chainrule.export.gpu_selftest import room_of
from chainrule.export.header import safe, tensor_text, wrapped
from chainrule.export.interface import prototype
from chainrule.export.model import ABI
from chainrule.export.names import largest_names
from chainrule.target.gpu import ALONE

_USE = """States, workspaces and data are the caller's memory on the GPU: the first two begin at a
multiple of @U_ALIGN bytes, data at one of @U_DATA_ALIGN. A call puts its work into the stream and
comes back; it may be captured into a CUDA graph. What a call finds when it runs (a label out of
range, a loss that is no number) stops it and those after it, until @N_status has told the code.
The functions below with an int32_t give 0, or a code of what was seen before anything was done;
from @U_ERROR_CUDA on it is the driver's own, CUresult, and then work may have been asked for
already. Any thread may call any function with this context current, as long as no two use one
state or one workspace in different streams at once."""


def _for(level: str) -> str:
    """Which GPUs run code for a level: all later ones too, or those of one generation alone."""
    if level not in ALONE:
        return f"from {level} on"
    return f"of compute capability {'.'.join(map(str, ALONE[level]))} alone ({level})"


def header(kernel: GpuKernel, certificate: Mapping[str, Any]) -> str:
    """The text of NAME.h."""
    model, interface = kernel.model, gpu_interface.interface_of(kernel.model)
    name, upper = model.name, model.name.upper()
    bounds = largest_names(interface.sizes)
    constants = [
        ("ABI", str(ABI)),
        ("ALIGN", str(ROOM_ALIGN)),
        ("DATA_ALIGN", str(DATA_WIDTH)),
        ("STATE_BYTES", str(model.state_bytes)),
        ("SELFTEST_BYTES", str(room_of(model, kernel.golden).bytes)),
        ("KERNELS", str(len(kernel.names))),
        *((f"MAX_{bounds[s.name]}", str(s.most)) for s in model.sizes),
    ]
    tensors = [
        (f"{word}_{interface.tensors[t.name]}", str(at), tensor_text(t.name, t.dtype.name, t.shape))
        for word, places in (("TENSOR", range(len(model.kept))), ("OFFSET", model.offsets.values()))
        for t, at in zip(model.kept, places, strict=True)
    ]
    codes = checks_of([u.manifest for u in model.units.values()])
    errors = [(f.name, str(f.code), f.text) for f in faults(codes)]
    errors.append(("ERROR_CUDA", str(CUDA_CODES), "and above: what CUDA's driver answered"))
    lines = [
        f"/* {name}: a training step as kernels for NVIDIA GPUs {_for(certificate['level'])}.",
        *_paragraph(_USE.replace("@N", name).replace("@U", upper), 97),
        "",
        f"   state      {certificate['state_bytes']} bytes",
        f"   workspace  {certificate['workspace_bytes']} bytes at most",
        f"   a step     {certificate['flops']} floating-point operations",
        "",
        "   The gradients, as the step computes them:",
        "",
        *(f"     {safe(line)}" for line in certificate["mathematics"].splitlines()),
        "*/",
        f"#ifndef {upper}_H",
        f"#define {upper}_H",
        "",
        "#include <cuda.h>",
        "#include <stddef.h>",
        "#include <stdint.h>",
        "",
        *(f"#define {upper}_{key} {value}" for key, value in constants),
        "",
        "/* tensors of the state, by number, and where they lie in it, in bytes */",
        *(f"#define {upper}_{k} {v} /* {safe(text)} */" for k, v, text in tensors),
        "",
        "/* codes */",
        *(
            f"#define {upper}_{k} {v} /* {safe(text.replace('NAME', upper))} */"
            for k, v, text in errors
        ),
        "",
        "#ifdef __cplusplus",
        'extern "C" {',
        "#endif",
        "",
        "/* the kernels in a context */",
        f"typedef struct {name}_net {{",
        "    CUmodule module;",
        "    CUdeviceptr data;",
        f"    CUfunction kernel[{upper}_KERNELS];",
        f"}} {name}_net;",
        "",
    ]
    for result, function, parameters, said in gpu_interface.functions(model):
        shown = prototype(result, f"{name}_{function}", map(gpu_interface.commented, parameters))
        lines += [*_comment(said), *wrapped(f"{shown};"), ""]
    return "\n".join([*lines, "#ifdef __cplusplus", "}", "#endif", "#endif", ""])


def _comment(text: str) -> list[str]:
    """A comment in lines of 100 columns."""
    return wrap(f"{safe(text)} */", 97, initial_indent="/* ", subsequent_indent="   ")


def _paragraph(text: str, width: int) -> list[str]:
    return wrap(text, width, initial_indent="   ", subsequent_indent="   ")
