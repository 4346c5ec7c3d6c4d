"""A model to machine code: the module, its object, and the golden digests of its self-test."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from chainrule.codegen import formats
from chainrule.codegen.native import NativeObject, compile_object, data_layout, load
from chainrule.errors import CompileError
from chainrule.export.model import ALIGN, Model, Variant
from chainrule.export.module import ModuleText
from chainrule.export.selftest import PLACEHOLDER, golden_bytes, memory_bytes
from chainrule.target import Target


@dataclass(frozen=True)
class Kernel:
    """A model compiled: its LLVM text and its object file, and the target of what both begin in."""

    model: Model
    target: Target
    llvm: str = field(repr=False)
    native: NativeObject = field(repr=False)


def compile_kernel(model: Model, on_host: Callable[[Variant], Variant]) -> Kernel:
    """Compile a model; `on_host` gives a variant lowered for this machine, with the same bits.

    Raises CompileError, also where a size does not fit the target.
    """
    base = base_target(model)
    layout = data_layout(base)
    bits = 32 if "p:32:32" in layout else 64
    _check_room(model, bits)
    text = ModuleText(model, bits).text(layout)
    native = compile_object(text, base)
    goldens = [
        _golden(replace(model, variants=(on_host(v),)), i) for i, v in enumerate(model.variants)
    ]
    data, golden_text = native.object, text
    for number, golden in enumerate(goldens):
        old, new = golden_bytes(number, PLACEHOLDER), golden.to_bytes(8, "little")
        if data.count(old) != 1:
            raise CompileError(
                "the self-test's digest has no place in the code: a bug of chainrule"
            )
        data = data.replace(old, new)
        golden_text = golden_text.replace(_escaped(old), _escaped(new))
    return Kernel(model, base, golden_text, replace(native, object=data, write=lambda: golden_text))


def base_target(model: Model) -> Target:
    """What the functions that no variant has of its own are compiled for: each variant's least."""
    first = model.variants[0].target
    if first.level.startswith("x86-64") or first.level == "generic":
        return replace(first, cpu="x86-64", features="", vector_bytes=16, vector_registers=16)
    return first


def _escaped(data: bytes) -> str:
    return "".join(chr(b) if 32 <= b < 127 and b not in (34, 92) else f"\\{b:02X}" for b in data)


def _check_room(model: Model, bits: int) -> None:
    total = memory_bytes(model)
    if total >= 2 ** (bits - 1):
        raise CompileError(
            f"the kernel would work in {total} bytes, more than addresses of {bits} bits can tell",
            "export it with smaller max_sizes",
        )


def _golden(model: Model, number: int) -> int:
    """The digest that the self-test of a variant has here, on the machine that compiles."""
    base = base_target(model)
    named = replace(model, name="golden", seed=model.seed)
    text = ModuleText(named, 64).text(data_layout(base)).replace("i64 @golden(", "i64 @digested(")
    text = text.replace("define internal i64 @digested", "define i64 @digested")
    text = text.replace("define internal void @begin(", "define void @begin(")
    loaded = load(compile_object(text, base))
    memory = (ctypes.c_char * (memory_bytes(named) + ALIGN))()
    start = -(-ctypes.addressof(memory) // ALIGN) * ALIGN
    begin = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int32, ctypes.c_uint64)
    digested = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)
    begin(loaded.address("begin"))(start, 0, number + 1)
    return int(digested(loaded.address("digested"))(start))


def code_size(kernel: Kernel) -> int:
    """Bytes of machine code."""
    return formats.code_size(kernel.native.object)
