"""A GPU that is none: memory in an array, and kernels run by the simulator, thread by thread.

It takes the calls that a real one gets through the driver, so that everything above the driver's
own interface runs as it does on a GPU; what it can't show is the machine code and the driver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from chainrule.codegen.ptx import GpuModule
from chainrule.ir.size import evaluate
from chainrule.loops.launch import Launch
from chainrule.loops.simulate import simulate
from chainrule_runtime.errors import DeviceError
from chainrule_runtime.gpu.blas import Blas
from chainrule_runtime.gpu.commands import BLOCK, RESIDENT, ProductRun
from chainrule_runtime.gpu.driver import Attributes

Array = np.ndarray[Any, Any]
#: what memory holds that nobody wrote: of every type no number that anything is
_UNWRITTEN = 0xFF


@dataclass(frozen=True)
class Stays:
    """A kernel that goes through launches, by their numbers in a table of rows of so many words."""

    launches: tuple[Launch, ...]
    row: int


class FakeGpu:
    """Addresses are real ones of this process, so that an access outside is seen by the simulator.

    `calls` are the words of what was asked, in order.
    """

    name = "a simulated GPU"
    ptx_version = 90
    version = 12080
    #: what products by a library are made by
    blas: Blas | None = None

    def __init__(self, room: int = 1 << 28, capability: tuple[int, int] = (8, 0)) -> None:
        self.capability = capability
        self.room = room
        self.blocks: dict[int, Array] = {}
        self.calls: list[str] = []
        self.modules: dict[str, Mapping[str, Launch]] = {}
        self.recorded: list[Callable[[], None]] | None = None

    def knows(self, module: GpuModule, text: str) -> None:
        """Tell what the kernels of a module are, of which a GPU sees a text alone."""
        stays = {RESIDENT: Stays(tuple(module.kernels[n] for n in module.resident), module.row)}
        self.modules[text] = module.kernels | (stays if module.resident else {})

    @contextmanager
    def entered(self) -> Iterator[None]:
        self.calls.append("enter")
        try:
            yield
        finally:
            self.calls.append("leave")

    def allocate(self, size: int) -> int:
        self.calls.append("allocate")
        if size > self.free():
            raise DeviceError(f"{self.name} has no room for {size:,} bytes")
        block = np.full(size + 256, _UNWRITTEN, np.uint8)
        start = -block.__array_interface__["data"][0] % 256
        at = block[start:].__array_interface__["data"][0]
        self.blocks[at] = block[start : start + size]
        return int(at)

    def free(self) -> int:
        return self.room - sum(map(len, self.blocks.values()))

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
        self.do(lambda: self.bytes_at(at, size).fill(0))

    def library(self) -> str:
        if self.blas is None:
            raise DeviceError("cuBLASLt is not installed", "install it")
        return self.blas.name

    def multiplier(self, product: ProductRun, room: tuple[int, int]) -> Callable[[], None]:
        assert self.blas is not None
        if self.recorded is not None:
            raise DeviceError("no algorithm is found while a stream is recorded")
        ready = self.blas.ready(product, 77, room)

        def ask() -> None:
            self.calls.append("multiply")
            self.do(ready)

        return ask

    def multiply(self, product: ProductRun, room: tuple[int, int]) -> None:
        """Products at once."""
        self.multiplier(product, room)()

    def load(self, ptx: str) -> Mapping[str, Any]:
        self.calls.append("load")
        return self.modules[ptx]

    def kernel(self, module: Mapping[str, Any], name: str) -> Any:
        self.calls.append("kernel")
        return module[name]

    def launch(
        self, kernel: Any, blocks: int, threads: int, arguments: tuple[int, ...], shared: int = 0
    ) -> None:
        self.calls.append("launch")
        self.do(lambda: self.run(kernel, blocks, threads, arguments, shared))

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

    def forget(self, recording: object) -> None:
        self.calls.append("forget")

    def unload(self, module: object) -> None:
        self.calls.append("unload")

    def wait(self) -> None:
        self.calls.append("wait")

    def attributes(self, kernel: Any, threads: int, shared: int = 0) -> Attributes:
        self.calls.append("attributes")
        return Attributes(32, 1024 + shared, 0, 0.5)

    def timed(self, commands: Sequence[Callable[[], None]]) -> list[float]:
        """Each takes a microsecond more than the one before."""
        for command in commands:
            command()
        return [1e-6 * (i + 1) for i in range(len(commands))]

    def arguments_of(self, launch: Any) -> int:
        """How many parameters of 8 bytes a kernel has."""
        return len(launch.program.buffers) + len(launch.program.sizes) + 1

    def stay(self, kernel: Stays, arguments: tuple[int, ...]) -> None:
        """What a kernel that stays does: launch after launch, step after step."""
        at, count, first, last, period, status = arguments
        table = self.bytes_at(at, 8 * count * kernel.row).view(np.int64).reshape(count, kernel.row)
        for step in range(first, last):
            for number, blocks, which, *given in table.tolist():
                if which == (step % period == period - 1):
                    launch = kernel.launches[number]
                    size = self.arguments_of(launch) - 1
                    self.run(launch, blocks, launch.threads, (*given[:size], status))

    def run(
        self, launch: Any, blocks: int, threads: int, arguments: tuple[int, ...], shared: int = 0
    ) -> None:
        if isinstance(launch, Stays):
            assert (blocks, threads) == (1, BLOCK)
            self.stay(launch, arguments)
            return
        program = launch.program
        *given, status = arguments
        assert len(given) == len(program.buffers) + len(program.sizes)
        if self.bytes_at(status, 4).view(np.int32)[0]:
            return
        sizes = dict(zip(program.sizes, given[len(program.buffers) :], strict=True))
        wanted = evaluate(launch.blocks, sizes), launch.threads, launch.dynamic
        assert (blocks, threads, shared) == wanted
        buffers = {
            b.name: self.bytes_at(at, evaluate(b.size, sizes) * b.dtype.itemsize).view(
                b.dtype.numpy
            )
            for b, at in zip(program.buffers, given, strict=False)
        }
        code = simulate(launch, buffers, sizes)
        if code:
            self.bytes_at(status, 4).view(np.int32)[0] = code


class FailingGpu(FakeGpu):
    """One that is lost for good once so many recordings were played; as a real one it says so at
    the next call that waits.
    """

    def __init__(self, plays: int) -> None:
        super().__init__()
        self.left, self.downloads_left = plays, 1 << 30

    def play(self, recording: Sequence[Callable[[], None]]) -> None:
        self.left -= 1
        if self.left >= 0:
            super().play(recording)

    def stay(self, kernel: Stays, arguments: tuple[int, ...]) -> None:
        """Each of its steps counts as a recording that is played."""
        table, count, first, last, period, status = arguments
        for step in range(first, last):
            self.left -= 1
            if self.left >= 0:
                super().stay(kernel, (table, count, step, step + 1, period, status))

    def wait(self) -> None:
        if self.left < 0 or self.downloads_left < 0:
            raise DeviceError("the GPU is lost: it was pulled out", lost=True)
        super().wait()

    def download(self, array: Array, at: int) -> None:
        self.downloads_left -= 1
        self.wait()
        super().download(array, at)


class FakeApi:
    """The driver's functions, as cuda-bindings has them: each answers a code and what is asked.

    `asked` are calls in order; `fails` maps a function's name to the code that it answers instead.
    """

    class CUdevice_attribute:
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = "major"
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = "minor"

        CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR = "room"

    class CUfunction_attribute:
        CU_FUNC_ATTRIBUTE_NUM_REGS = "registers"
        CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES = "shared"
        CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES = "local"

    class CUstreamCaptureMode:
        CU_STREAM_CAPTURE_MODE_RELAXED = "relaxed"

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.fails: dict[str, str] = {}
        self.cuda = 12080

    def __getattr__(self, word: str) -> Callable[..., tuple[Any, ...]]:
        def ask(*given: Any) -> tuple[Any, ...]:
            self.asked.append((word, *given))
            if word in self.fails:
                return (Code(self.fails[word]), None)
            if word in ("cuDeviceGetAttribute", "cuFuncGetAttribute"):
                known = {"major": 8, "minor": 9, "room": 1536}
                known |= {"registers": 40, "shared": 2048, "local": 8}
                return (Code(), known[given[0]])
            answers = {
                "cuDriverGetVersion": (self.cuda,),
                "cuDeviceGetName": (b"GPU of a test\0\0",),
                "cuMemAlloc": (4096,),
                "cuMemGetInfo": (1000, 2000),
                "cuOccupancyMaxActiveBlocksPerMultiprocessor": (3,),
                "cuEventElapsedTime": (0.25,),
            }
            return (Code(), *answers.get(word, (f"<{word}>",)))

        return ask

    @property
    def words(self) -> list[str]:
        return [word for word, *_ in self.asked]


class Code:
    """A code of the driver; 0 where all is well."""

    def __init__(self, name: str = "CUDA_SUCCESS") -> None:
        self.name = name

    def __int__(self) -> int:
        return int(self.name != "CUDA_SUCCESS")

    def __str__(self) -> str:
        return f"CUresult.{self.name}"
