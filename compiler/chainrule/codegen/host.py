"""The machine this process runs on, as a target."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import replace
from functools import lru_cache

from chainrule import config
from chainrule.errors import CompileError
from chainrule.records import dataclass
from chainrule.target import LEVEL_FEATURES, Target, best_level, target

#: the level whose tiles need permission
TILES = "x86-64-v4+amx"
#: arch_prctl(2) of x86-64, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA (Linux, asm/prctl.h)
ASK = (158, 0x1023, 18)


@dataclass(frozen=True)
class Host:
    """This machine as LLVM sees it: its name for the CPU, the feature bits, LLVM's own version."""

    cpu: str
    features: frozenset[str]
    llvm: str


def describe_host() -> Host:
    """This machine, for people to look at; code is made for `host_target()`."""
    from llvmlite import binding

    features = frozenset(name for name, on in binding.get_host_cpu_features().items() if on)
    llvm = ".".join(map(str, binding.llvm_version_info))
    return Host(binding.get_host_cpu_name(), features, llvm)


@lru_cache(maxsize=1)
def permits_tiles() -> bool:
    """Whether this process may use AMX's tiles; Linux is asked for them, once.

    What the system saves of a thread grows by 8 KiB then, so it wants to be asked (Linux,
    Documentation/arch/x86/xstate.rst); permission holds for all threads, and in processes that are
    forked later. It is refused where a thread's stack for signals is too small for that, or by a
    system that does not know of tiles.
    """
    if sys.platform != "linux":
        return False
    ask = ctypes.CDLL(None).syscall
    ask.restype = ctypes.c_long
    return bool(ask(*map(ctypes.c_long, ASK)) == 0)


def about_tiles() -> str:
    """Whether there are AMX tiles, and may be used; '' on processors that are no x86-64."""
    from llvmlite import binding

    if binding.get_process_triple().split("-")[0] not in ("x86_64", "amd64"):
        return ""
    if not describe_host().features.issuperset(LEVEL_FEATURES[TILES]):
        return "none"
    if permits_tiles():
        return "AMX, permitted by the system"
    return "AMX is there, but the system refuses it: products of bfloat16 do without"


def host_target() -> Target:
    """This machine's target by its feature bits, or the level that CHAINRULE_TARGET names."""
    return _host_target(config.TARGET.value())


@lru_cache(maxsize=8)
def _host_target(forced: str) -> Target:
    from llvmlite import binding

    triple = binding.get_process_triple()
    if binding.get_object_format(triple) != "ELF":
        triple += "-elf"
    arch = triple.split("-")[0]
    if arch in ("aarch64", "arm64"):
        here, fits = target("aarch64"), ["aarch64"]
    elif arch in ("x86_64", "amd64"):
        bits = frozenset(name for name, on in binding.get_host_cpu_features().items() if on)
        if bits.issuperset(LEVEL_FEATURES[TILES]) and not permits_tiles():
            bits -= set(LEVEL_FEATURES[TILES])
        here = target(best_level(bits))
        levels = ["generic", *LEVEL_FEATURES]
        fits = levels[: levels.index(here.level) + 1]
    else:
        raise CompileError(f"no native code for {arch} yet", 'use backend="reference"')
    chosen = target(forced) if forced else here
    if chosen.level not in fits:
        raise CompileError(
            f"{config.TARGET.variable}={forced} asks for more than this machine has",
            f"it runs {', '.join(fits)}",
        )
    return replace(chosen, triple=triple)
