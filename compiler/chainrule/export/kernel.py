"""A model to machine code: the module, its object, and the golden digests of its self-test."""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Callable
from dataclasses import field, replace
from typing import Any

import numpy as np

from chainrule.codegen import formats
from chainrule.codegen.cache import key_of, object_cache
from chainrule.codegen.native import (
    NativeObject,
    compile_object,
    data_layout,
    load,
    optimized,
)
from chainrule.errors import CompileError
from chainrule.export.arm import DIVISIONS
from chainrule.export.differences import chosen, kind_of
from chainrule.export.golden import Golden
from chainrule.export.model import ALIGN, Array, Model, Variant
from chainrule.export.module import ModuleText, baseline
from chainrule.export.rehearsal import SEED, Plan
from chainrule.export.selftest import memory_bytes
from chainrule.export.units import Placed
from chainrule.records import dataclass
from chainrule.target import Target
from chainrule_runtime.manifest import element_type, evaluate


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
    goldens: dict[tuple[bool, bool], Golden] = {}
    for variant in model.variants:
        rounds = variant.target.fma, variant.target.pairs  # all that decides which bits
        if rounds not in goldens:
            goldens[rounds] = _golden(
                replace(model, variants=(on_host(variant),), about={}, small=False, parts=1)
            )
    each = [goldens[v.target.fma, v.target.pairs] for v in model.variants]
    native = _compiled(model, ModuleText(model, bits, each).text(layout), base)
    return Kernel(model, base, native.llvm, native)


def _compiled(model: Model, text: str, base: Target) -> NativeObject:
    text = optimized(text, base) if model.small else text
    if not base.arch.startswith(("arm", "thumb")):
        return compile_object(text, base)
    helpers = {n: t.replace(" #0 {", f" {baseline(model)} {{") for n, t in DIVISIONS.items()}
    return compile_object(text, base, helpers)


def base_target(model: Model) -> Target:
    """What the functions that no variant has of its own are compiled for: each variant's least."""
    return base_of(model.variants[0].target)


def base_of(first: Target) -> Target:
    """The least of the machines that a target's triple is for."""
    if first.level.startswith("x86-64") or first.level == "generic":
        return replace(first, cpu="x86-64", features="", vector_bytes=16, vector_registers=16)
    return first


def _check_room(model: Model, bits: int) -> None:
    most = model.most()
    units = [
        Placed(u.manifest, model.fixed).bytes(most)
        for v in model.variants
        for u in v.units.values()
    ]
    total = max(memory_bytes(model), model.state_bytes + max(units))
    if total >= 2 ** (bits - 1):
        raise CompileError(
            f"the kernel would work in {total} bytes, more than addresses of {bits} bits can tell",
            "export it with smaller max_sizes",
        )


def _golden(model: Model) -> Golden:
    """What the self-test has here, on the machine that compiles."""
    base = base_target(model)
    text = ModuleText(replace(model, name="here"), 64, [Golden(0)]).text(data_layout(base))
    for name in ("golden", "begin", "difference"):
        text = re.sub(rf"define internal (\w+) @{name}\(", rf"define \1 @{name}(", text)
    loaded = load(kept_object(text, base))
    memory = np.zeros(memory_bytes(model) + ALIGN, np.uint8)
    memory = memory[-memory.ctypes.data % ALIGN :]
    start = memory.ctypes.data
    begin = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int32, ctypes.c_uint64)
    golden = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)
    begin(loaded.address("begin"))(start, 0, SEED)
    digest = int(golden(loaded.address("golden"))(start))
    begin(loaded.address("begin"))(start, 0, SEED)
    arrays = {
        t.name: _array(memory, model.offsets[t.name], t.dtype.numpy, t.shape) for t in model.kept
    }
    plan = Plan(model)
    for tensor, at in plan.feeds.values():
        shape = tuple(evaluate(d, plan.sizes) for d in tensor.shape)
        arrays[tensor.name] = _array(memory, at, element_type(tensor.dtype), shape)
    of = ctypes.c_double if kind_of(model) == "double" else ctypes.c_float

    def difference(step: float) -> float:
        call = ctypes.CFUNCTYPE(of, ctypes.c_void_p, of)
        begin(loaded.address("begin"))(start, 0, SEED)
        return float(call(loaded.address("difference"))(start, step))

    return Golden(digest, chosen(model, arrays, difference))


def _array(memory: Array, at: int, of: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """A copy of a tensor in memory."""
    count = math.prod(shape)
    return memory[at : at + count * of.itemsize].view(of).reshape(shape).copy()


def kept_object(text: str, target: Target) -> NativeObject:
    """The object of a module: the one that was kept, or a new one."""
    cache, key = object_cache(), key_of([text])
    data = cache.get(key) if cache else None
    if data is not None:
        return NativeObject(data, lambda: text, target, cached=True)
    native = compile_object(text, target)
    if cache:
        cache.put(key, native.object)
    return native


def code_size(kernel: Kernel) -> int:
    """Bytes of machine code."""
    return formats.code_size(kernel.native.object)
