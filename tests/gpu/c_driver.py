"""CUDA's driver for C: what a kernel's source calls through a stub, done on a GPU of ours."""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

STUB = Path(__file__).with_name("stub")
STRICT = ["-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror"]
WORD, POINTER, SIZE = ctypes.c_uint64, ctypes.c_void_p, ctypes.c_size_t
NOT_FOUND, INVALID_VALUE, INVALID_ADDRESS = 500, 1, 700


def library(source: Path, folder: Path, cc: str, *more: Path | str) -> ctypes.CDLL:
    """A kernel's source with the stub beneath it, and more, as a library of this machine."""
    out = folder / f"{source.stem}_on_stub.so"
    words = [cc, *STRICT, "-O1", "-shared", "-fPIC", f"-I{STUB}", f"-I{source.parent}"]
    subprocess.run([*words, "-o", out, source, STUB / "stub.c", *more], check=True)
    return ctypes.CDLL(str(out))


class Driver:
    """The functions of a driver over a fake GPU; `gpu.load` gives kernels by the text of a module.

    `asked` are calls in order; `fails` maps a function to the code that it answers instead.
    """

    def __init__(self, gpu: Any, library: ctypes.CDLL) -> None:
        self.gpu, self.asked, self.streams = gpu, list[str](), set[int]()
        self.fails: dict[str, int] = {}
        self.loaded: list[Any] = []
        self.functions: list[Any] = []
        self.callbacks: list[Any] = []
        self.allowed: dict[int, int] = {}
        for word, kinds in {
            "cuInit": (ctypes.c_uint,),
            "cuDeviceGet": (ctypes.POINTER(ctypes.c_int), ctypes.c_int),
            "cuDevicePrimaryCtxRetain": (ctypes.POINTER(WORD), ctypes.c_int),
            "cuCtxSetCurrent": (WORD,),
            "cuMemAlloc": (ctypes.POINTER(WORD), SIZE),
            "cuModuleLoadData": (ctypes.POINTER(WORD), ctypes.c_char_p),
            "cuModuleUnload": (WORD,),
            "cuModuleGetFunction": (ctypes.POINTER(WORD), WORD, ctypes.c_char_p),
            "cuFuncSetAttribute": (WORD, ctypes.c_int, ctypes.c_int),
            "cuModuleGetGlobal": (ctypes.POINTER(WORD), POINTER, WORD, ctypes.c_char_p),
            "cuMemcpyHtoDAsync": (WORD, POINTER, SIZE, WORD),
            "cuMemcpyDtoHAsync": (POINTER, WORD, SIZE, WORD),
            "cuMemcpyDtoDAsync": (WORD, WORD, SIZE, WORD),
            "cuMemsetD8Async": (WORD, ctypes.c_uint8, SIZE, WORD),
            "cuMemsetD16Async": (WORD, ctypes.c_uint16, SIZE, WORD),
            "cuMemsetD32Async": (WORD, ctypes.c_uint32, SIZE, WORD),
            "cuMemsetD2D32Async": (WORD, SIZE, ctypes.c_uint32, SIZE, SIZE, WORD),
            "cuStreamSynchronize": (WORD,),
            "cuLaunchKernel": (WORD, *[ctypes.c_uint] * 7, WORD, ctypes.POINTER(POINTER), POINTER),
        }.items():
            self.give(library, word, kinds)

    def give(self, library: ctypes.CDLL, word: str, kinds: tuple[Any, ...]) -> None:
        own: Callable[..., int | None] = getattr(self, word)

        def call(*given: Any) -> int:
            self.asked.append(word)
            if word in self.fails:
                return self.fails[word]
            try:
                return own(*given) or 0
            except Exception as error:  # what a GPU would call an illegal address
                self.problem = error
                return INVALID_ADDRESS

        self.callbacks.append(ctypes.CFUNCTYPE(ctypes.c_int, *kinds)(call))
        place = POINTER.in_dll(library, f"on_{word}")
        place.value = ctypes.cast(self.callbacks[-1], POINTER).value

    def room(self, size: int) -> int:
        """Memory of the caller's on the GPU."""
        return int(self.gpu.allocate(size))

    def put(self, array: np.ndarray) -> int:
        at = self.room(max(1, array.nbytes))
        self.gpu.upload(at, np.ascontiguousarray(array))
        return at

    def get(self, at: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        found = np.zeros(shape, dtype)
        self.gpu.download(found, at)
        return found

    # the driver's functions

    def cuInit(self, flags: int) -> None:
        assert flags == 0

    def cuDeviceGet(self, device: Any, number: int) -> None:
        device[0] = 7 + number

    def cuDevicePrimaryCtxRetain(self, context: Any, device: int) -> None:
        assert device == 7
        context[0] = 77

    def cuCtxSetCurrent(self, context: int) -> None:
        assert context == 77

    def cuMemAlloc(self, at: Any, size: int) -> None:
        at[0] = self.room(size)

    def cuModuleLoadData(self, module: Any, image: bytes) -> None:
        text = image.decode()
        data = re.search(r"\.b8 data\[\d+\] = \{([^}]*)\}", text)
        assert data, "the module has constants"
        content = np.array([int(n) for n in data[1].split(",")], np.uint8)
        self.loaded.append((self.gpu.load(text), self.put(content)))
        module[0] = len(self.loaded)

    def cuModuleUnload(self, module: int) -> None:
        self.gpu.release(self.loaded[module - 1][1])

    def cuModuleGetFunction(self, function: Any, module: int, name: bytes) -> int:
        kernels, _ = self.loaded[module - 1]
        if name.decode() not in kernels:
            return NOT_FOUND
        self.functions.append(kernels[name.decode()])
        function[0] = len(self.functions)
        return 0

    def cuModuleGetGlobal(self, start: Any, size: Any, module: int, name: bytes) -> None:
        assert name == b"data"
        start[0] = self.loaded[module - 1][1]

    def bytes_at(self, at: int, size: int, stream: int | None) -> np.ndarray:
        if stream is not None:
            self.streams.add(stream)
        return self.gpu.bytes_at(at, size)

    def cuMemcpyHtoDAsync(self, to: int, source: int, size: int, stream: int) -> None:
        self.bytes_at(to, size, stream)[:] = np.frombuffer(ctypes.string_at(source, size), np.uint8)

    def cuMemcpyDtoHAsync(self, to: int, source: int, size: int, stream: int) -> None:
        ctypes.memmove(to, self.bytes_at(source, size, stream).tobytes(), size)

    def cuMemcpyDtoDAsync(self, to: int, source: int, size: int, stream: int) -> None:
        self.bytes_at(to, size, stream)[:] = self.bytes_at(source, size, stream).copy()

    def fill(self, at: int, value: int, count: int, stream: int, kind: Any) -> None:
        self.bytes_at(at, count * np.dtype(kind).itemsize, stream).view(kind)[:] = value

    def cuMemsetD8Async(self, at: int, value: int, count: int, stream: int) -> None:
        self.fill(at, value, count, stream, np.uint8)

    def cuMemsetD16Async(self, at: int, value: int, count: int, stream: int) -> None:
        self.fill(at, value, count, stream, np.uint16)

    def cuMemsetD32Async(self, at: int, value: int, count: int, stream: int) -> None:
        self.fill(at, value, count, stream, np.uint32)

    def cuMemsetD2D32Async(
        self, at: int, pitch: int, value: int, width: int, height: int, stream: int
    ) -> None:
        for row in range(height):
            self.fill(at + row * pitch, value, width, stream, np.uint32)

    def cuStreamSynchronize(self, stream: int) -> None:
        self.streams.add(stream)

    def cuFuncSetAttribute(self, function: int, attribute: int, value: int) -> None:
        assert attribute == 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        self.allowed[function] = value

    def cuLaunchKernel(self, function: int, *rest: Any) -> int:
        bx, by, bz, tx, ty, tz, shared, stream, places, extra = rest
        self.streams.add(stream)
        kernel = self.functions[function - 1]
        assert (by, bz, ty, tz, extra) == (1, 1, 1, 1, None)
        if shared > self.allowed.get(function, 48 * 1024):
            return INVALID_VALUE
        if not 1 <= bx < 2**31 or not 1 <= tx <= 1024:
            return INVALID_VALUE
        count = self.gpu.arguments_of(kernel)
        given = tuple(WORD.from_address(places[i]).value for i in range(count))
        self.gpu.run(kernel, bx, tx, given, shared)
        return 0
