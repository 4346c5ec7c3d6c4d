"""A GPU that is none: memory in an array, and kernels run by the simulator, thread by thread.

It takes the calls that a real one gets through the driver, so that everything above the driver's
own interface runs as it does on a GPU; what it can't show is the machine code and the driver.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from chainrule.codegen.ptx import GpuModule
from chainrule.ir.size import evaluate
from chainrule.loops.launch import Launch
from chainrule.loops.simulate import simulate
from chainrule_runtime.errors import DeviceError

Array = np.ndarray[Any, Any]
#: what memory holds that nobody wrote: of every type no number that anything is
_UNWRITTEN = 0xFF


class FakeGpu:
    """Addresses are real ones of this process, so that an access outside is seen by the simulator.

    `calls` are the words of what was asked, in order.
    """

    name = "a simulated GPU"
    ptx_version = 90

    def __init__(
        self,
        room: int = 1 << 28,
        capability: tuple[int, int] = (8, 0),
        runs_ptx: Callable[..., None] | None = None,
    ) -> None:
        self.capability = capability
        self.room, self.runs_ptx = room, runs_ptx
        self.blocks: dict[int, Array] = {}
        self.calls: list[str] = []
        self.modules: dict[str, Mapping[str, Launch]] = {}
        self.recorded: list[Callable[[], None]] | None = None

    def knows(self, module: GpuModule, ptx: str) -> None:
        """Tell what the kernels of a module are, of which a GPU sees the PTX alone."""
        self.modules[ptx] = module.kernels

    def enter(self) -> None:
        self.calls.append("enter")

    def allocate(self, size: int) -> int:
        self.calls.append("allocate")
        if size > self.room - sum(map(len, self.blocks.values())):
            raise DeviceError(f"{self.name} has no room for {size:,} bytes")
        block = np.full(size + 256, _UNWRITTEN, np.uint8)
        start = -block.__array_interface__["data"][0] % 256
        at = block[start:].__array_interface__["data"][0]
        self.blocks[at] = block[start : start + size]
        return int(at)

    def release(self, at: int) -> None:
        self.calls.append("release")
        del self.blocks[at]

    def bytes_at(self, at: int, size: int) -> Array:
        for start, block in self.blocks.items():
            if start <= at and at + size <= start + len(block):
                return block[at - start : at - start + size]
        raise DeviceError(f"{size} bytes at {at} are in no memory of the GPU")

    def upload(self, at: int, array: Array) -> None:
        self.calls.append("upload")
        assert array.flags.c_contiguous
        self.bytes_at(at, array.nbytes)[:] = np.frombuffer(array.tobytes(), np.uint8)

    def download(self, array: Array, at: int) -> None:
        self.calls.append("download")
        if array.nbytes:
            array.reshape(-1).view(np.uint8)[:] = self.bytes_at(at, array.nbytes)

    def clear(self, at: int, size: int) -> None:
        self.calls.append("clear")
        self.bytes_at(at, size)[:] = 0

    def load(self, ptx: str) -> Mapping[str, Launch]:
        self.calls.append("load")
        assert ".version" in ptx and ".target sm_" in ptx
        self.ptx = ptx
        return self.modules[ptx]

    def kernel(self, module: Mapping[str, Launch], name: str) -> Launch:
        self.calls.append("kernel")
        return module[name]

    def launch(self, kernel: Launch, blocks: int, threads: int, arguments: tuple[int, ...]) -> None:
        self.calls.append("launch")
        self.do(lambda: self.run(kernel, blocks, threads, arguments))

    def do(self, command: Callable[[], None]) -> None:
        if self.recorded is None:
            command()
        else:
            self.recorded.append(command)

    def record(self, commands: Callable[[], None]) -> Sequence[Callable[[], None]]:
        self.calls.append("record")
        self.recorded = []
        try:
            commands()
            return self.recorded
        finally:
            self.recorded = None

    def play(self, recording: Sequence[Callable[[], None]]) -> None:
        self.calls.append("play")
        for command in recording:
            command()

    def wait(self) -> None:
        self.calls.append("wait")

    def run(self, launch: Launch, blocks: int, threads: int, arguments: tuple[int, ...]) -> None:
        if self.runs_ptx is not None:
            self.runs_ptx(self, launch, blocks, threads, arguments)
            return
        program = launch.program
        *given, status = arguments
        assert len(given) == len(program.buffers) + len(program.sizes)
        if self.bytes_at(status, 4).view(np.int32)[0]:
            return
        sizes = dict(zip(program.sizes, given[len(program.buffers) :], strict=True))
        assert (blocks, threads) == (evaluate(launch.blocks, sizes), launch.threads)
        buffers = {
            b.name: self.bytes_at(at, evaluate(b.size, sizes) * b.dtype.itemsize).view(b.dtype.numpy)
            for b, at in zip(program.buffers, given, strict=False)
        }
        code = simulate(launch, buffers, sizes)
        if code:
            self.bytes_at(status, 4).view(np.int32)[0] = code
