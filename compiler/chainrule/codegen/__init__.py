"""From loop programs to native code through LLVM."""

from __future__ import annotations

from chainrule.codegen.host import host_target
from chainrule.codegen.module import Call, emit_module
from chainrule.codegen.native import Loaded, NativeObject, compile_object, load

__all__ = [
    "Call",
    "Loaded",
    "NativeObject",
    "compile_object",
    "emit_module",
    "host_target",
    "load",
]
