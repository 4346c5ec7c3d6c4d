"""NVIDIA's GPUs as targets: what each generation is called, and the least PTX that knows it."""

from __future__ import annotations

from dataclasses import replace

from chainrule.errors import CompileError
from chainrule.target import Target

_TRIPLE = "nvptx64-nvidia-cuda"
#: compute capability -> version of PTX that brought it ("PTX ISA 9.0", NVIDIA, release notes; 80
#: is 8.0). Code for one runs on every later one: the driver translates it.
PTX_VERSIONS = {
    (7, 5): 63,
    (8, 0): 70,
    (8, 6): 71,
    (8, 9): 78,
    (9, 0): 78,
    (10, 0): 86,
    (12, 0): 87,
}
#: what is compiled for where no GPU is at hand to ask
OLDEST = min(PTX_VERSIONS)

GPUS = {
    f"sm_{major}{minor}": Target(
        level=f"sm_{major}{minor}",
        triple=_TRIPLE,
        cpu=f"sm_{major}{minor}",
        features=f"+ptx{ptx}",
        vector_bytes=16,
        vector_registers=255,
        fma=True,
        threads=True,
        tensor=(major, minor) >= (8, 0),
    )
    for (major, minor), ptx in PTX_VERSIONS.items()
}

#: what one generation alone has: code for it runs on no later one ("PTX ISA 9.0", NVIDIA, .target).
#: PTX 8.6 is the first in whose assembler tensormap.replace takes strides in bytes, as it should
GPUS["sm_90a"] = replace(
    GPUS["sm_90"], level="sm_90a", cpu="sm_90a", features="+ptx86", engine=True
)
#: the level of those -> the compute capability that alone runs it
ALONE = {"sm_90a": (9, 0)}

#: threads that a GPU runs in step
WARP = 32
#: level -> of a multiprocessor the warps, the blocks, and the KiB of shared memory ("CUDA C++
#: Programming Guide" 13.0, NVIDIA, technical specifications per compute capability)
_ROOM = {
    "sm_75": (32, 16, 64), "sm_80": (64, 32, 164), "sm_86": (48, 16, 100), "sm_89": (48, 24, 100),
    "sm_90": (64, 32, 228), "sm_90a": (64, 32, 228), "sm_100": (64, 32, 228),
    "sm_120": (48, 24, 100),
}  # fmt: skip
#: registers of a multiprocessor, what a warp's are rounded up to a multiple of, and the bytes of
#: shared memory that the system takes of each block from sm_80 on
_REGISTERS, _REGISTER_UNIT, _SYSTEM = 65536, 256, 1024


def occupancy(level: str, threads: int, registers: int, shared: int) -> float:
    """The share of a multiprocessor's warps that blocks of so many threads can fill, each thread
    with so many registers, each block with so many bytes of shared memory.
    """
    warps, blocks, kilobytes = _ROOM[level]
    own = -(-threads // WARP)
    of_warp = -(-registers * WARP // _REGISTER_UNIT) * _REGISTER_UNIT
    of_block = shared + (_SYSTEM if level != "sm_75" else 0)
    fit = [blocks, warps // own, _REGISTERS // max(1, of_warp) // own]
    fit += [kilobytes * 1024 // of_block] if of_block else []
    return min(fit) * own / warps


def lasting(target: Target) -> Target:
    """The newest target that runs wherever this one does, and on all later GPUs."""
    return gpu(ALONE[target.level]) if target.level in ALONE else target


def ptx_of(target: Target) -> int:
    """The version of PTX that code for a target is in: 80 is 8.0."""
    return int(target.features.removeprefix("+ptx"))


def gpu(capability: tuple[int, int], ptx: int | None = None) -> Target:
    """The newest target that a GPU of a compute capability runs, in PTX of a version that its
    driver reads, if that is told (80 is 8.0). Raises CompileError where there is none.
    """
    fits = [c for c, v in PTX_VERSIONS.items() if c <= capability and (ptx is None or v <= ptx)]
    if not fits:
        oldest = ".".join(map(str, OLDEST))
        raise CompileError(
            f"no code for a GPU of compute capability {'.'.join(map(str, capability))}"
            + ("" if ptx is None else f" whose driver reads PTX {ptx / 10}"),
            f"it takes compute capability {oldest} (Turing) and a driver that reads PTX 6.3",
        )
    major, minor = max(fits)
    return GPUS[f"sm_{major}{minor}"]
