"""From loop programs to native code through LLVM."""

from __future__ import annotations

from chainrule.codegen.host import host_target
from chainrule.codegen.module import emit_module
from chainrule.codegen.native import Loaded, NativeObject, compile_object, load
from chainrule.codegen.steps import Call

__all__ = [
    "Call",
    "Loaded",
    "NativeObject",
    "compile_object",
    "emit_module",
    "host_target",
    "load",
]
