"""What code is compiled for: instruction levels, their registers, and caches, as data."""

from __future__ import annotations

from chainrule.errors import CompileError
from chainrule.records import dataclass

#: bytes that a core's nearest cache and its second one are taken to hold, wherever code is to run.
#: Loops are cut into pieces that stay near, and a cut may depend neither on the machine that
#: compiles nor on the one that runs: a program is to be the same code from everywhere, and some
#: cuts decide the order of a sum. So these are constants, of a server's core of the 2020s. Each
#: form of loops takes a share, and says beside it what is to stay there. Shares were chosen by
#: timing, not by a rule.
NEAREST, SECOND = 2**15, 2**20


@dataclass(frozen=True)
class Target:
    """A machine, as far as code generation asks.

    `level` names the instruction set; `triple`, `cpu` and `features` are what LLVM is told (the cpu
    is a generic level, never a product); `vector_bytes` and `vector_registers` are its widest
    vectors; `fma` says that multiply-add rounds once there, and with it whether bits are shared;
    `pairs` that it adds the products of two pairs of bfloat16 in one instruction, `blocks` that it
    does so for whole blocks of them; `threads` that it is a GPU, where lanes are threads and not
    parts of a vector, `tensor` that it multiplies tiles of bfloat16 in one instruction, and copies
    to shared memory while it computes, `engine` that it has a copy engine for boxes of matrices and
    multiplies panels from shared memory.
    """

    level: str
    triple: str
    cpu: str
    features: str
    vector_bytes: int
    vector_registers: int
    fma: bool
    pairs: bool = False
    blocks: bool = False
    threads: bool = False
    tensor: bool = False
    engine: bool = False

    @property
    def arch(self) -> str:
        """What the triple begins with: the processor's family."""
        return self.triple.split("-")[0]

    @property
    def bare(self) -> bool:
        """Whether there is no system: a microcontroller, whose memory is little."""
        return "-none" in self.triple

    @property
    def format(self) -> str:
        """What object files are: ELF, COFF, Mach-O or Wasm."""
        if self.arch.startswith("wasm"):
            return "Wasm"
        if "windows" in self.triple and not self.triple.endswith("-elf"):
            return "COFF"
        apple = any(word in self.triple for word in ("apple", "darwin", "macos"))
        return "Mach-O" if apple and not self.triple.endswith("-elf") else "ELF"

    def registers_of(self, itemsize: int, lanes: int) -> int:
        """How many registers a vector of so many elements takes."""
        return max(1, -(-lanes * itemsize // self.vector_bytes))


_X86 = "x86_64-unknown-linux-gnu"
_ARM = "aarch64-unknown-linux-gnu"

#: the x86-64 levels are those of the System V psABI supplement, section "Micro-Architecture
#: Levels"; what follows a + is there besides
TARGETS = {
    t.level: t
    for t in (
        Target(
            "x86-64-v4+amx", _X86, "x86-64-v4", "+avx512bf16,+amx-tile,+amx-bf16", 64, 32, True,
            pairs=True, blocks=True,
        ),
        Target("x86-64-v4+bf16", _X86, "x86-64-v4", "+avx512bf16", 64, 32, True, pairs=True),
        Target("x86-64-v4", _X86, "x86-64-v4", "", 64, 32, True),
        Target("x86-64-v3", _X86, "x86-64-v3", "", 32, 16, True),
        Target("x86-64-v2", _X86, "x86-64-v2", "", 16, 16, False),
        Target("generic", _X86, "x86-64", "", 16, 16, False),
        Target("aarch64", _ARM, "generic", "+neon", 16, 32, True),
    )
}  # fmt: skip

#: the feature bits that a level asks for beyond those of the level below
LEVEL_FEATURES = {
    "x86-64-v2": ("cx16", "popcnt", "sahf", "sse3", "sse4.1", "sse4.2", "ssse3"),
    "x86-64-v3": ("avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe"),
    "x86-64-v4": ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
    "x86-64-v4+bf16": ("avx512bf16",),
    "x86-64-v4+amx": ("amx-tile", "amx-bf16"),
}


def target(level: str) -> Target:
    """The target of that level. Raises CompileError where there is none of the name."""
    if level not in TARGETS:
        raise CompileError(f"no target is called {level!r}", f"there are {', '.join(TARGETS)}")
    return TARGETS[level]


def best_level(features: frozenset[str]) -> str:
    """The highest x86-64 level whose feature bits are all there."""
    best = "generic"
    for level, needed in LEVEL_FEATURES.items():
        if not features.issuperset(needed):
            return best
        best = level
    return best
