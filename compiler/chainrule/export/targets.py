"""What a kernel can be exported for: names and triples, as the targets of its variants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from chainrule.codegen.host import host_target
from chainrule.errors import CompileError
from chainrule.target import TARGETS, Target
from chainrule.target.gpu import GPUS

_LINUX = "unknown-linux-gnu"
#: what code for an architecture is compiled for where nothing else is said. Machines without wide
#: vectors are told so: 4 bytes are one float.
ARCHITECTURES = {
    "aarch64": TARGETS["aarch64"],
    "riscv64": Target(
        "riscv64", f"riscv64-{_LINUX}", "generic-rv64", "+m,+a,+f,+d,+c", 4, 32, True
    ),
    "wasm32": Target("wasm32", "wasm32-unknown-unknown", "generic", "+simd128", 16, 16, False),
    # NEON would flush denormals on 32-bit ARM, so floats are computed one by one there
    "armv7": Target(
        "armv7", "armv7-unknown-linux-gnueabihf", "generic", "+vfp3,-neon,-d32", 4, 16, False
    ),
    "thumbv7em": Target("thumbv7em", "thumbv7em-none-eabihf", "cortex-m4", "", 4, 16, False),
}
_SPELLINGS = {
    "arm64": "aarch64",
    "amd64": "x86_64",
    "wasm": "wasm32",
    "arm": "armv7",
    "armv7a": "armv7",
}
_SYSTEMS = ("linux", "none", "windows", "macos", "darwin", "freebsd", "wasi")
#: the variants of a kernel for any x86-64 machine, the best first
PORTABLE = ("x86-64-v4", "x86-64-v3", "generic")
#: every level of x86-64 but that of AMX, whose tiles each process would have to ask the system for;
#: the best first
LEVELS = tuple(t.level for t in TARGETS.values() if t.arch == "x86_64" and not t.blocks)


def targets_of(
    target: str | Sequence[str],
    cpu: str | Sequence[str] | None,
    features: str | None,
    strict: bool,
) -> tuple[Target, ...]:
    """The targets of the variants, the best first. Raises CompileError.

    `target` is "host", a level of x86-64 or several, or an LLVM triple; `cpu` and `features` are
    LLVM's words for a triple; several of `cpu` are levels too. With `strict` no multiply-add is
    fused anywhere.
    """
    if cpu is not None and not isinstance(cpu, str):
        first = _named(target)[0] if isinstance(target, str) else TARGETS["generic"]
        if first.arch != "x86_64" or features is not None:
            raise CompileError("several of cpu in one kernel are levels of x86-64, and no features")
        found, cpu = tuple(replace(t, triple=first.triple) for t in _levels(cpu)), None
    else:
        found = _named(target) if isinstance(target, str) else _levels(target)
    if cpu is not None or features is not None:
        if target == "host":
            raise CompileError("cpu and features are for other machines", "name a triple as target")
        found = (
            replace(found[0], cpu=cpu or found[0].cpu, features=features or found[0].features),
        )
    return tuple(replace(t, fma=False, pairs=False) for t in found) if strict else found


def _levels(levels: Sequence[str]) -> tuple[Target, ...]:
    names = list(levels) if isinstance(levels, list | tuple) else []
    if not names or not all(isinstance(n, str) and n in LEVELS for n in names):
        raise CompileError(
            f"several targets in one kernel are levels of x86-64, not {levels!r}",
            f"such as {PORTABLE}",
        )
    order = list(TARGETS)
    return tuple(TARGETS[n] for n in sorted(dict.fromkeys(names), key=order.index))


def narrow(target: Target) -> Target:
    """The target, but as if it had few and narrow registers: what is made for them is short."""
    return replace(target, vector_bytes=4, vector_registers=16)


def _named(name: str) -> tuple[Target, ...]:
    if name == "host":
        host = host_target()
        return (replace(TARGETS[LEVELS[0]], triple=host.triple) if host.blocks else host,)
    if name in TARGETS:
        if TARGETS[name].blocks:
            raise CompileError(
                f"no kernel is exported for {name}: processes have to ask the system for its tiles",
                f"export it for {LEVELS[0]}",
            )
        return (TARGETS[name],)
    arch, *rest = name.split("-")
    arch = _SPELLINGS.get(arch, arch)
    if rest and rest[0] in _SYSTEMS:
        rest = ["unknown", *rest]  # the vendor, which is usually left out; LLVM misreads it then
    triple = "-".join([arch, *rest])
    if arch == "x86_64":
        triple = triple if rest else f"x86_64-{_LINUX}"
        return tuple(replace(TARGETS[level], triple=triple) for level in PORTABLE)
    family = (
        arch
        if arch in ARCHITECTURES
        else next((a for a in ARCHITECTURES if arch.startswith(a)), "")
    )
    if not family:
        known = ", ".join(["host", *TARGETS, "x86_64", *ARCHITECTURES, "cuda", *GPUS])
        raise CompileError(
            f"no target is called {name!r}", f"there are {known}, and triples of them"
        )
    known_target = ARCHITECTURES[family]
    return (replace(known_target, triple=triple) if rest else known_target,)
