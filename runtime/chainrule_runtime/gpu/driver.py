"""A GPU through the CUDA driver's interface; `faults` has words for what can be wrong with it.

cuda-bindings gives the interface; it is imported when a GPU is first asked for.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Protocol

from chainrule_runtime.errors import DeviceError
from chainrule_runtime.gpu import blas
from chainrule_runtime.gpu.commands import ProductRun
from chainrule_runtime.gpu.faults import NO_ROOM, missing, told
from chainrule_runtime.memory import Array, address

#: CUDA's version -> the newest PTX that a driver of it reads ("PTX ISA 9.0", NVIDIA, release
#: notes); 12080 is 12.8, 87 is 8.7. A driver newer than all of these reads what the last one does.
_PTX_OF_CUDA = (
    (10000, 63), (11000, 70), (11010, 71), (11020, 72), (11030, 73), (11040, 74), (11050, 75),
    (11060, 76), (11070, 77), (11080, 78), (12000, 80), (12010, 81), (12020, 82), (12030, 83),
    (12040, 84), (12050, 85), (12070, 86), (12080, 87), (12090, 88), (13000, 90),
)  # fmt: skip
#: bytes of shared memory that a block may have without being allowed to
_SHARED = 48 * 1024


@dataclass(frozen=True)
class Attributes:
    """What a kernel takes of the GPU: registers of a thread, bytes of a block's shared memory and
    of a thread's own slow memory; and the share of a multiprocessor's threads that it can fill.
    """

    registers: int
    shared: int
    local: int
    occupancy: float


class Gpu(Protocol):
    """A GPU: memory at addresses, modules of kernels, and recordings of launches."""

    @property
    def name(self) -> str: ...

    @property
    def capability(self) -> tuple[int, int]: ...

    @property
    def ptx_version(self) -> int: ...

    @property
    def version(self) -> int:
        """CUDA's version that the driver is of: 12080 is 12.8."""

    def entered(self) -> AbstractContextManager[None]:
        """Within it this is the thread's GPU, of which alone anything else may be asked, and the
        thread has the one it had before after it.
        """

    def allocate(self, size: int) -> int: ...

    def release(self, at: int) -> None: ...

    def free(self) -> int:
        """Bytes that nobody has."""

    def upload(self, at: int, array: Array) -> None: ...

    def download(self, array: Array, at: int) -> None: ...

    def clear(self, at: int, size: int) -> None: ...

    def load(self, ptx: str) -> Any:
        """A module. Raises DeviceError where the driver refuses it."""

    def unload(self, module: Any) -> None: ...

    def kernel(self, module: Any, name: str) -> Any: ...

    def launch(
        self, kernel: Any, blocks: int, threads: int, arguments: tuple[int, ...], shared: int = 0
    ) -> None:
        """Run a kernel, after what was asked before; its parameters are 8 bytes each, and a block
        is given `shared` bytes of shared memory beside the kernel's own.
        """

    def library(self) -> str:
        """The cuBLASLt that products are asked of, in words. Raises DeviceError where there is
        none.
        """

    def multiplier(self, product: ProductRun, room: tuple[int, int]) -> Callable[[], None]:
        """What asks for products by cuBLASLt, like a launch; `room` are address and bytes of its
        workspace. Not while anything is recorded: a product of a new kind is made once.
        """

    def record(self, commands: Callable[[], None]) -> Any:
        """What `commands` launches, as one thing that can be played; nothing is run."""

    def play(self, recording: Any) -> None: ...

    def forget(self, recording: Any) -> None:
        """It will not be played again."""

    def wait(self) -> None:
        """Until all that was asked is done. Raises DeviceError where a kernel has failed."""

    def attributes(self, kernel: Any, threads: int, shared: int = 0) -> Attributes:
        """What a kernel takes, in blocks of so many threads, given so much shared memory."""

    def timed(self, commands: Sequence[Callable[[], None]]) -> list[float]:
        """The seconds between the beginning and the end of each, one after another."""


class CudaGpu:
    """The first GPU that CUDA shows, in its primary context, on one stream.

    Threads ask it one after another: what one of them asks of the stream while another records
    would be recorded, and not done.
    """

    def __init__(self) -> None:
        self._turn = threading.RLock()
        self._api = _bindings()
        self._ask("cuInit", 0)
        self.version = int(self._ask("cuDriverGetVersion"))
        device = self._device = self._ask("cuDeviceGet", 0)
        self.name = bytes(self._ask("cuDeviceGetName", 128, device)).split(b"\0")[0].decode()
        attribute = self._api.CUdevice_attribute
        word = "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_"
        self.capability: tuple[int, int] = (
            int(self._ask("cuDeviceGetAttribute", getattr(attribute, word + "MAJOR"), device)),
            int(self._ask("cuDeviceGetAttribute", getattr(attribute, word + "MINOR"), device)),
        )
        self._context = self._ask("cuDevicePrimaryCtxRetain", device)
        self._process = os.getpid()
        with self.entered():
            self._stream = self._ask("cuStreamCreate", 1)  # CU_STREAM_NON_BLOCKING

    @property
    def ptx_version(self) -> int:
        """The newest PTX that the driver reads: 80 is 8.0."""
        known = [ptx for cuda, ptx in _PTX_OF_CUDA if cuda <= self.version]
        if not known:
            raise DeviceError(
                f"the NVIDIA driver is of CUDA {_version(self.version)}",
                "install one of CUDA 10.0 or newer",
            )
        return known[-1]

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Make it this thread's for a while: others may work on another GPU meanwhile."""
        if os.getpid() != self._process:
            raise DeviceError(
                "this process was forked from one that used the GPU, and can't use it",
                'start processes with multiprocessing.get_context("spawn")',
            )
        self._ask("cuCtxPushCurrent", self._context)
        try:
            yield
        except BaseException:
            with suppress(DeviceError):  # what was raised tells more
                self._ask("cuCtxPopCurrent")
            raise
        self._ask("cuCtxPopCurrent")

    def allocate(self, size: int) -> int:
        """The address of so many bytes."""
        try:
            return int(self._ask("cuMemAlloc", max(size, 1)))
        except DeviceError as fault:
            if fault.code != NO_ROOM:
                raise
            free, total = self._ask("cuMemGetInfo")
            raise DeviceError(
                f"{self.name} has no room for {size:,} bytes: {free:,} of {total:,} are free",
                "take smaller minibatches or a memory_budget, or end what else uses the GPU",
                code=fault.code,
            ) from None

    def free(self) -> int:
        """Bytes of its memory that nobody has."""
        return int(self._ask("cuMemGetInfo")[0])

    def release(self, at: int) -> None:
        """Give memory back."""
        self._ask("cuMemFree", at)

    def upload(self, at: int, array: Array) -> None:
        """Copy an array there, in order with launches."""
        if array.nbytes:
            self._ask("cuMemcpyHtoDAsync", at, address(array), array.nbytes, self._stream)

    def download(self, array: Array, at: int) -> None:
        """Copy to an array from there, once what was asked before is done."""
        if array.nbytes:
            self._ask("cuMemcpyDtoHAsync", address(array), at, array.nbytes, self._stream)
        self.wait()

    def clear(self, at: int, size: int) -> None:
        """Make bytes 0."""
        if size:
            self._ask("cuMemsetD8Async", at, 0, size, self._stream)

    def load(self, ptx: str) -> Any:
        """A module of PTX, translated by the driver."""
        text = ctypes.create_string_buffer(ptx.encode())
        return self._ask("cuModuleLoadData", ctypes.addressof(text))

    def unload(self, module: Any) -> None:
        """Give a module back."""
        self._ask("cuModuleUnload", module)

    def kernel(self, module: Any, name: str) -> Any:
        """A kernel of a module."""
        return self._ask("cuModuleGetFunction", module, name.encode())

    def launch(
        self, kernel: Any, blocks: int, threads: int, arguments: tuple[int, ...], shared: int = 0
    ) -> None:
        """Run a kernel."""
        self._allow(kernel, shared)
        values = (ctypes.c_uint64 * len(arguments))(*arguments)
        start = ctypes.addressof(values)
        places = (ctypes.c_void_p * len(arguments))(*(start + 8 * i for i in range(len(arguments))))
        grid = blocks, 1, 1, threads, 1, 1
        there = ctypes.addressof(places)
        self._ask("cuLaunchKernel", kernel, *grid, shared, self._stream, there, 0)

    def _allow(self, kernel: Any, shared: int) -> None:
        """Let a kernel be given more shared memory than every GPU has."""
        if shared > _SHARED:
            word = self._api.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._ask("cuFuncSetAttribute", kernel, word, shared)

    def library(self) -> str:
        """The cuBLASLt that is here."""
        return blas.find(self.version).name

    def multiplier(self, product: ProductRun, room: tuple[int, int]) -> Callable[[], None]:
        """What asks for products by cuBLASLt, on the stream."""
        with self._turn:
            ready = blas.find(self.version).ready(product, int(self._stream), room)

        def ask() -> None:
            with self._turn:
                ready()

        return ask

    def record(self, commands: Callable[[], None]) -> Any:
        """A CUDA graph of what is launched."""
        with self._turn:
            graph = self._captured(commands)
            try:
                return self._ask("cuGraphInstantiate", graph, 0)
            finally:
                self._ask("cuGraphDestroy", graph)

    def _captured(self, commands: Callable[[], None]) -> Any:
        """A graph that can't be launched yet. What commands raise goes on, whatever the capture's
        end has to say of it.
        """
        # memory may be given back meanwhile, by whatever Python collects, which nothing depends on
        mode = self._api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        self._ask("cuStreamBeginCapture", self._stream, mode)
        try:
            commands()
        except BaseException:
            with suppress(DeviceError):
                self._ask("cuGraphDestroy", self._ask("cuStreamEndCapture", self._stream))
            raise
        return self._ask("cuStreamEndCapture", self._stream)

    def play(self, recording: Any) -> None:
        """Launch a graph: one call of the driver, however many kernels."""
        self._ask("cuGraphLaunch", recording, self._stream)

    def forget(self, recording: Any) -> None:
        """Give a graph back."""
        self._ask("cuGraphExecDestroy", recording)

    def wait(self) -> None:
        """Until the stream has come to its end."""
        self._ask("cuStreamSynchronize", self._stream)

    def attributes(self, kernel: Any, threads: int, shared: int = 0) -> Attributes:
        """What a kernel takes, as the driver has translated it."""
        self._allow(kernel, shared)
        word = self._api.CUfunction_attribute
        registers, own, local = (
            int(self._ask("cuFuncGetAttribute", getattr(word, f"CU_FUNC_ATTRIBUTE_{name}"), kernel))
            for name in ("NUM_REGS", "SHARED_SIZE_BYTES", "LOCAL_SIZE_BYTES")
        )
        word = "cuOccupancyMaxActiveBlocksPerMultiprocessor"
        blocks = self._ask(word, kernel, threads, shared)
        most = self._api.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR
        room = int(self._ask("cuDeviceGetAttribute", most, self._device))
        return Attributes(registers, own + shared, local, int(blocks) * threads / room)

    def timed(self, commands: Sequence[Callable[[], None]]) -> list[float]:
        """Seconds by the GPU's own clock, from an event to the next."""
        events = [self._ask("cuEventCreate", 0) for _ in range(len(commands) + 1)]
        try:
            for event, command in zip(events, commands, strict=False):
                self._ask("cuEventRecord", event, self._stream)
                command()
            self._ask("cuEventRecord", events[-1], self._stream)
            self._ask("cuEventSynchronize", events[-1])
            spent = (self._ask("cuEventElapsedTime", a, b) for a, b in pairwise(events))
            return [float(milliseconds) / 1e3 for milliseconds in spent]
        finally:
            for event in events:
                self._ask("cuEventDestroy", event)

    def _ask(self, word: str, *given: Any) -> Any:
        """Call the driver; its results without the code. Raises DeviceError, which names both."""
        try:
            with self._turn:
                code, *results = getattr(self._api, word)(*given)
        except (OSError, RuntimeError) as error:  # what cuda-bindings raises where no driver is
            raise DeviceError(*missing(error, word)) from None
        if int(code):
            raise told(str(code).split(".")[-1].removeprefix("CUDA_ERROR_"), word)
        return results[0] if len(results) == 1 else tuple(results)


def _version(cuda: int) -> str:
    return f"{cuda // 1000}.{cuda % 1000 // 10}"


def _bindings() -> Any:
    try:
        from cuda.bindings import driver
    except ImportError:
        raise DeviceError(
            'backend="cuda" runs through cuda-bindings, which is not installed',
            "pip install 'chainrule[cuda]'",
        ) from None
    return driver


@lru_cache(maxsize=1)
def find() -> Gpu:
    """This process' GPU. Raises DeviceError where there is none, with what to do."""
    return CudaGpu()


def describe() -> str:
    """The GPU that programs would run on, or why they would not, in one line."""
    try:
        gpu = find()
        major, minor = gpu.capability
        ptx = gpu.ptx_version
        return f"{gpu.name}, compute capability {major}.{minor}; its driver reads PTX {ptx / 10}"
    except DeviceError as fault:
        return "; ".join([fault.what, *fault.details])
