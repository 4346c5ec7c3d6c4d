"""Launches as one module of PTX: LLVM's text for a GPU, and what LLVM makes of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from chainrule.codegen.native import assembled
from chainrule.codegen.resident import emit_resident, row_of
from chainrule.codegen.threads import emit_launch
from chainrule.loops.launch import Launch
from chainrule.loops.text import signature
from chainrule.records import dataclass
from chainrule.target import Target


@dataclass(frozen=True)
class GpuModule:
    """Kernels by name, their LLVM text, and what they are called by the identity of launches; of
    those in `resident` there is one besides that goes through them by their numbers.
    """

    kernels: dict[str, Launch]
    names: dict[int, str]
    llvm: str
    target: Target
    resident: tuple[str, ...] = ()

    @property
    def row(self) -> int:
        """The words of a row of the table that the resident kernel goes through."""
        return row_of(self.kernels) if self.resident else 0

    def ptx(self) -> str:
        """The module in PTX, which a driver reads. Raises CompileError where LLVM refuses it."""
        return assembled(self.llvm, self.target)


#: what a module's constants are called there, and what they begin at a multiple of
DATA, DATA_ALIGN = "data", 256


def emit_gpu_module(
    programs: Iterable[Sequence[Launch]],
    helpers: Mapping[str, Launch],
    target: Target,
    data: bytes = b"",
    resident: bool = False,
) -> GpuModule:
    """One kernel for each distinct launch of programs, and `helpers` by their names; `data` are
    bytes that lie in the GPU's memory with the module, under the name DATA. With `resident` there
    is a kernel that goes through all of these, if they have room together.
    """
    known: dict[tuple[str, int, bool], str] = {}
    kernels: dict[str, Launch] = {}
    names: dict[int, str] = {}
    texts: list[str] = []
    declarations: set[str] = set()
    for number, launches in enumerate(programs):
        for i, launch in enumerate(launches):
            key = signature(launch.program), launch.lanes, launch.aligned
            if key not in known:
                name = f"kernel{number}" + (f"_{i}" if len(launches) > 1 else "")
                known[key] = name
                kernels[name] = launch
                text, needed = emit_launch(launch, name, target)
                texts.append(text)
                declarations |= needed
            names[id(launch)] = known[key]
    for name, launch in helpers.items():
        kernels[name] = launch
        text, needed = emit_launch(launch, name, target)
        texts.append(text)
        declarations |= needed
    stays = emit_resident(kernels, target) if resident else None
    if stays is not None:
        texts.append(stays[0])
        declarations |= stays[1]
    # convergent: lanes meet in them, so no instruction may be moved to where not all of them come
    attributes = 'attributes #0 = { nounwind convergent "no-builtins" }'
    if data:
        text = "".join(f"\\{byte:02X}" for byte in data)
        kind = f"[{len(data)} x i8]"
        texts.append(f'@{DATA} = addrspace(1) constant {kind} c"{text}", align {DATA_ALIGN}')
    parts = [f'target triple = "{target.triple}"', *texts, *sorted(declarations), attributes, ""]
    return GpuModule(kernels, names, "\n\n".join(parts), target, tuple(kernels) if stays else ())
