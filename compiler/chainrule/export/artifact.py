"""What an export leaves: its files, and the certificate that tells what they hold and need."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from chainrule.codegen.fork import BODY
from chainrule.codegen.native import assembly
from chainrule.codegen.steps import calls_in
from chainrule.errors import CompileError
from chainrule.export import files as filing
from chainrule.export import javascript, packages, rust
from chainrule.export.flops import flops_of, flops_text
from chainrule.export.header import declarations, header
from chainrule.export.interface import Interface
from chainrule.export.kernel import Kernel, code_size
from chainrule.export.manifest import told_of
from chainrule.export.model import ABI, Model, Unit
from chainrule.export.selftest import memory_bytes
from chainrule.export.stack import bounds, frames
from chainrule.export.units import Placed
from chainrule.ir.loop import Loop, Stmt
from chainrule.records import dataclass
from chainrule.target import Target

FORMATS = (
    "o", "a", "so", "h", "ll", "s", "json", "safetensors", "state", "js", "d.ts",
    "cmake", "pc", "rs", "arduino",
)  # fmt: skip
GPU_FORMATS = ("ptx", "cubin", "h", "c", "ll", "json", "safetensors", "state")
#: what a shared library is called, by the format of objects
SHARED = {"ELF": "so", "COFF": "dll", "Mach-O": "dylib", "Wasm": "wasm"}
#: what packages are told: a kernel is as old as its interface
VERSION = f"{ABI}.0.0"
#: languages that there are examples and self-tests in
EXAMPLES = ("c", "rust", "js")


@dataclass(frozen=True)
class Artifact:
    """A kernel in files.

    `files` are their paths by name; `certificate` tells exact bytes of state and workspace, a bound
    of the stack, operations, code size, the gradients as formulas. `notes` say what was left out
    that nobody had asked for by name.
    """

    name: str
    files: Mapping[str, Path]
    certificate: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def about(model: Model, told: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says of a kernel before it is compiled: the memory map and the functions."""
    most = model.most()
    workspace = max(
        Placed(u.manifest, model.fixed).bytes(most)
        for v in model.variants
        for u in v.units.values()
    )
    more = {
        "selftest_bytes": memory_bytes(model),
        "flops": flops_text(model, "step"),
        "most_flops": {name: flops_of(unit, most) for name, unit in model.units.items()},
        "max_parts": model.parts,
    }
    return {**told_of(model, workspace), **more, **told}


def write_kernel(
    kernel: Kernel,
    folder: str | os.PathLike[str],
    formats: Collection[str],
    extra: Mapping[str, bytes],
    native: bool,
    examples: Collection[str] = (),
) -> Artifact:
    """Write a kernel in the formats wanted. Raises CompileError and ArtifactError.

    `extra` are files made elsewhere, by what follows the name; `native` says that the kernel is for
    this machine; of `examples` the languages.
    """
    import hashlib
    import json

    check_formats(formats)
    text = assembly(kernel.native)
    own = frames(text, kernel.target.arch)
    stack = bounds(kernel.llvm, own)
    certificate = dict(kernel.model.about) | {
        "stack_bytes": max(stack.values(), default=0),
        "largest_frame": max([0, *own.values()]),
        "code_bytes": code_size(kernel),
        "loops": {name: loops_of(unit) for name, unit in kernel.model.units.items()},
    }
    if kernel.model.parts > 1:
        each = [most for name, most in stack.items() if name.endswith(BODY)]
        certificate["part_stack_bytes"] = max(each, default=0)
    written = _Files(kernel, certificate, text, native, examples)
    made: dict[str, bytes] = {}
    for kind in dict.fromkeys(formats):
        made |= {f"{kernel.model.name}.{kind}": extra[kind]} if kind in extra else written.of(kind)
    for language in dict.fromkeys(examples):
        made |= written.example(language)
    certificate["sha256"] = {n: hashlib.sha256(content).hexdigest() for n, content in made.items()}
    if not {"json", "so"}.isdisjoint(formats):  # who loads a library reads what it is there
        made[f"{kernel.model.name}.json"] = (json.dumps(certificate, indent=1) + "\n").encode()
    return Artifact(kernel.model.name, filing.write(folder, made), certificate)


def loops_of(unit: Unit) -> list[list[str]]:
    """For each call in order its loops, outermost first, with how often each is gone through."""
    return [list(_loops(call.program.body)) for call in calls_in(unit.calls)]


def _loops(body: Iterable[Stmt], depth: int = 0) -> Iterator[str]:
    for s in body:
        if isinstance(s, Loop):
            yield f"{'  ' * depth}{s.var} < {s.extent}"
            yield from _loops(s.body, depth + 1)


@dataclass(frozen=True)
class _Files:
    """What is written of a kernel, by path."""

    kernel: Kernel
    certificate: Mapping[str, Any]
    assembly: str
    native: bool
    examples: Collection[str]

    def of(self, kind: str) -> dict[str, bytes]:
        """The files of a format; those of "json" are the certificate, which tells of all others."""
        kernel, model, target = self.kernel, self.kernel.model, self.kernel.target
        name, data = model.name, kernel.native.object
        symbols = [f"{name}_{f[1]}" for f in declarations(model, Interface(model))]
        page = target.format == "Wasm"
        if kind in ("js", "d.ts") and not page:
            raise CompileError(f'the format "{kind}" is for target="wasm32"')
        if kind in SHARED.values():  # "so" stands for what each system has
            own = SHARED[target.format]
            if kind not in ("so", own):
                raise CompileError(f'no "{kind}" is made for {target.triple}', f'ask for "{own}"')
            library = filing.link(data, name, target, symbols, self.native)
            return {f"{name}.{own}": library}
        if kind in ("a", "rs", "arduino"):
            archive = filing.archive(f"{name}.o", data, symbols)
            if kind == "rs":
                return rust.crate(model, VERSION, archive, "rust" in self.examples)
            if kind == "arduino":
                text = header(model, self.certificate).encode()
                return packages.arduino(name, VERSION, target, text, archive)
            return {f"lib{name}.a": archive}
        if kind == "o":
            return {f"{name}.o": data}
        texts: dict[str, Callable[[], dict[str, str]]] = {
            "h": lambda: {f"{name}.h": header(model, self.certificate)},
            "ll": lambda: {f"{name}.ll": kernel.llvm},
            "s": lambda: {f"{name}.s": self.assembly},
            "js": lambda: {f"{name}.js": javascript.module(model)},
            "d.ts": lambda: {f"{name}.d.ts": javascript.types(model)},
            "cmake": lambda: {f"{name}Config.cmake": packages.cmake(name)},
            "pc": lambda: {f"{name}.pc": packages.pkg_config(name, VERSION)},
            "json": lambda: {},
        }
        return {path: text.encode() for path, text in texts[kind]().items()}

    def example(self, language: str) -> dict[str, bytes]:
        """An example and a self-test; those in Rust are of the crate."""
        model, name = self.kernel.model, self.kernel.model.name
        texts: dict[str, str] = {}
        if language == "c":
            texts = {
                "example.c": packages.c_example(model),
                "selftest.c": packages.c_selftest(model),
            }
        if language == "js":
            texts = {"example.mjs": javascript.example(model)}
            texts["selftest.mjs"] = javascript.selftest(model)
        return {f"{name}_{ending}": text.encode() for ending, text in texts.items()}


def formats_of(target: Target, members: int | None, native: bool) -> tuple[str, ...]:
    """What is written where nothing is said: all that people use on such a machine."""
    linked = target.format == "Wasm" or (not target.bare and filing.has_linker(target, native))
    usual = _usual(target, linked)
    return tuple(f for f in usual if members is None or f not in _OF_ONE)


def left_out(target: Target, formats: Collection[str]) -> tuple[str, ...]:
    """What is told of formats that were chosen here: which file of them there is not, and why."""
    if "so" in formats or target.bare:
        return ()
    what, how = filing.without_linker(target)
    return (f"NAME.{SHARED[target.format]} is left out: {what} ({how})",)


def _usual(target: Target, linked: bool) -> tuple[str, ...]:
    if target.format == "Wasm":
        return ("so", "js", "d.ts", "json", "safetensors", "state")
    if target.bare:
        return ("o", "a", "h", "ll", "json", "safetensors", "state", "arduino")
    shared = ("so",) if linked else ()
    return ("o", "a", *shared, "h", "ll", "json", "safetensors", "state", "cmake", "pc", "rs")


def check_examples(examples: Collection[str], target: Target) -> None:
    """Raise CompileError for languages that there are no examples in, or not for the target."""
    page = target.format == "Wasm"
    known = [e for e in EXAMPLES if (e == "js") == page]
    several = isinstance(examples, Collection) and not isinstance(examples, str)
    if not several or any(e not in known for e in examples):
        raise CompileError(
            f"there are no examples={examples!r} for {target.triple}",
            f"there are some in {', '.join(known)}: examples=({known[0]!r},)",
        )


#: what tells of one net alone
_OF_ONE = ("js", "d.ts", "rs")


def check_members(formats: Collection[str], examples: Collection[str]) -> None:
    """Raise CompileError where something is wanted of an ensemble that tells of one net alone."""
    wanted = [f for f in formats if f in _OF_ONE]
    if wanted or examples:
        raise CompileError(
            f"of an ensemble there is no {(*wanted, 'example')[0]}: they take one loss for all",
            'leave it out: formats=("o", "a", "so", "h", "json")',
        )


def check_formats(formats: Collection[str], gpu: bool = False) -> None:
    """Raise CompileError for formats that there are not, on processors or on GPUs."""
    every = (*FORMATS, *(f for f in SHARED.values() if f not in FORMATS))
    known, what = (GPU_FORMATS, "GPU") if gpu else (every, "processor")
    if isinstance(formats, str):
        raise CompileError(f"formats are several, not {formats!r}", 'such as ("so", "h")')
    unknown = [f for f in formats if f not in known]
    if unknown or not formats:
        raise CompileError(
            f"no format is called {unknown or formats} for a {what}", f"there are {known}"
        )
