"""What is asked of the CUDA driver, in which order, and what its refusals are in words.

No driver is here: a stand-in answers, so that these tests show our side of the conversation alone.
"""

from __future__ import annotations

import builtins
import ctypes
import threading
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule_runtime.errors import DeviceError
from chainrule_runtime.gpu import driver
from chainrule_runtime.gpu.driver import CudaGpu


def test_it_opens_the_first_gpu_in_its_primary_context(api: Any) -> None:
    gpu = CudaGpu()
    assert (gpu.name, gpu.capability, gpu.ptx_version) == ("GPU of a test", (8, 9), 87)
    assert api.words[0] == "cuInit"
    assert api.words.index("cuDevicePrimaryCtxRetain") < api.words.index("cuCtxPushCurrent")
    assert "cuCtxCreate" not in api.words


def test_a_launch_is_given_its_arguments_by_address(api: Any) -> None:
    gpu = CudaGpu()
    seen: list[int] = []

    def launch(*given: Any) -> tuple[Any]:
        kernel, bx, by, bz, tx, ty, tz, shared, _, places, extra = given
        assert (kernel, bx, by, bz, tx, ty, tz, shared, extra) == ("k", 7, 1, 1, 256, 1, 1, 0, 0)
        pointers = (ctypes.c_void_p * 3).from_address(places)
        seen.extend(ctypes.c_uint64.from_address(int(p or 0)).value for p in pointers)
        return (0,)

    api.cuLaunchKernel = launch
    gpu.launch("k", 7, 256, (1 << 40, 5, 4096))
    assert seen == [1 << 40, 5, 4096]


def test_what_is_recorded_is_one_graph(api: Any) -> None:
    gpu = CudaGpu()
    del api.asked[:]
    made = gpu.record(lambda: gpu.launch("k", 1, 32, ()))
    gpu.play(made)
    assert api.words == [
        "cuStreamBeginCapture", "cuLaunchKernel", "cuStreamEndCapture", "cuGraphInstantiate",
        "cuGraphDestroy", "cuGraphLaunch",
    ]  # fmt: skip


def test_a_recording_that_fails_ends_the_capture(api: Any) -> None:
    gpu = CudaGpu()
    api.fails["cuLaunchKernel"] = "CUDA_ERROR_INVALID_VALUE"
    with pytest.raises(DeviceError, match="INVALID_VALUE to cuLaunchKernel"):
        gpu.record(lambda: gpu.launch("k", 1, 32, ()))
    assert api.words[-2:] == ["cuStreamEndCapture", "cuGraphDestroy"]
    api.fails["cuStreamEndCapture"] = "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"
    with pytest.raises(DeviceError, match="INVALID_VALUE to cuLaunchKernel"):  # which is why
        gpu.record(lambda: gpu.launch("k", 1, 32, ()))


def test_a_graph_that_can_not_be_launched_is_given_back(api: Any) -> None:
    gpu = CudaGpu()
    api.fails["cuGraphInstantiate"] = "CUDA_ERROR_OUT_OF_MEMORY"
    with pytest.raises(DeviceError, match="no room"):
        gpu.record(lambda: None)
    assert api.words[-1] == "cuGraphDestroy"


def test_what_another_thread_asks_is_not_recorded(api: Any) -> None:
    """All programs have one stream: of what is asked of it while it is captured nothing is done."""
    gpu = CudaGpu()
    other = threading.Thread(target=lambda: gpu.upload(1, np.ones(3)))

    def record() -> None:
        other.start()
        other.join(0.2)
        gpu.launch("k", 1, 32, ())

    del api.asked[:]
    gpu.record(record)
    other.join()
    first, last = map(api.words.index, ("cuStreamBeginCapture", "cuStreamEndCapture"))
    assert api.words[first + 1 : last] == ["cuLaunchKernel"]
    assert "cuMemcpyHtoDAsync" in api.words


def test_nothing_is_copied_of_no_bytes(api: Any) -> None:
    gpu = CudaGpu()
    del api.asked[:]
    gpu.upload(1, np.zeros(0))
    gpu.download(np.zeros(0), 1)
    gpu.clear(1, 0)
    assert api.words == ["cuStreamSynchronize"]


@pytest.mark.parametrize(
    ("word", "code", "said"),
    [
        ("cuInit", "CUDA_ERROR_NO_DEVICE", "no GPU is to be seen here"),
        ("cuInit", "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "are of different versions"),
        ("cuInit", "CUDA_ERROR_UNKNOWN", "the NVIDIA driver does not start"),
        ("cuModuleLoadData", "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "the driver refuses the code"),
        ("cuModuleLoadData", "CUDA_ERROR_OUT_OF_MEMORY", "the GPU has no room"),
        ("cuStreamSynchronize", "CUDA_ERROR_ILLEGAL_ADDRESS", "a kernel has failed"),
        ("cuStreamSynchronize", "CUDA_ERROR_LAUNCH_TIMEOUT", "with a display"),
        ("cuStreamSynchronize", "CUDA_ERROR_ECC_UNCORRECTABLE", "the GPU is lost"),
        ("cuStreamSynchronize", "CUDA_ERROR_UNKNOWN", "the GPU is lost"),
        ("cuMemAlloc", "CUDA_ERROR_OUT_OF_MEMORY", "has no room for 100 bytes: 1,000 of 2,000"),
    ],
)
def test_a_refusal_says_what_and_what_to_do(api: Any, word: str, code: str, said: str) -> None:
    api.fails[word] = code

    def use() -> None:
        gpu = CudaGpu()
        gpu.load("")
        gpu.allocate(100)
        gpu.wait()

    with pytest.raises(DeviceError) as caught:
        use()
    assert said in str(caught.value)
    assert caught.value.details, "it says what to do"
    assert caught.value.lost == (word == "cuStreamSynchronize")
    assert caught.value.code == code.removeprefix("CUDA_ERROR_")


def test_a_driver_that_reads_no_ptx_of_ours_is_too_old(api: Any) -> None:
    api.cuda = 9020
    with pytest.raises(DeviceError, match=r"CUDA 9\.2"):
        _ = CudaGpu().ptx_version


@pytest.mark.parametrize(
    ("word", "error", "said"),
    [
        ("cuGraphInstantiate", RuntimeError("any text"), "too old: it has no cuGraph"),
        ("cuInit", RuntimeError('"cuda" can only be found via system search.'), "no NVIDIA driver"),
        ("cuInit", OSError("libcuda.so.1: cannot open shared object file"), "no NVIDIA driver is"),
    ],
)
def test_a_driver_that_lacks_something_is_told(
    api: Any, word: str, error: Exception, said: str
) -> None:
    def fail(*given: Any) -> None:
        raise error

    setattr(api, word, fail)
    with pytest.raises(DeviceError, match=said) as told:
        CudaGpu().record(lambda: None)
    assert str(error) in told.value.details, "what was said is told too"


def test_an_error_has_the_code_of_the_driver(api: Any) -> None:
    """As others contain the same words: what is done must not depend on those."""
    gpu = CudaGpu()
    api.fails["cuMemAlloc"] = "CUDA_ERROR_NOT_OUT_OF_MEMORY"
    with pytest.raises(DeviceError, match="answered NOT_OUT_OF_MEMORY") as told:
        gpu.allocate(8)
    assert told.value.code == "NOT_OUT_OF_MEMORY" and not told.value.lost


def test_a_forked_process_is_told(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = CudaGpu()
    monkeypatch.setattr(driver.os, "getpid", lambda: -1)
    with pytest.raises(DeviceError, match="forked"), gpu.entered():
        raise AssertionError


def test_the_thread_has_its_own_gpu_again(api: Any) -> None:
    """Who works on another one, such as PyTorch's second, goes on there."""
    stack = ["theirs"]
    api.cuCtxPushCurrent = lambda context: (stack.append(context), (0,))[1]
    api.cuCtxPopCurrent = lambda: (0, stack.pop())
    gpu = CudaGpu()
    ours = "<cuDevicePrimaryCtxRetain>"
    assert stack == ["theirs"] and "cuStreamCreate" in api.words
    with gpu.entered():
        assert stack == ["theirs", ours]
        with gpu.entered():  # a program that another one's callback calls
            assert stack == ["theirs", ours, ours]
    assert stack == ["theirs"]
    for problem in (DeviceError("lost", lost=True), KeyboardInterrupt()):
        with pytest.raises(type(problem)), gpu.entered():
            raise problem
        assert stack == ["theirs"]


def test_what_went_wrong_is_told_before_what_follows_from_it(api: Any) -> None:
    gpu = CudaGpu()
    api.fails["cuCtxPopCurrent"] = "CUDA_ERROR_CONTEXT_IS_DESTROYED"
    with pytest.raises(DeviceError, match="room"), gpu.entered():
        raise DeviceError("no room")
    with pytest.raises(DeviceError, match="cuCtxPopCurrent"), gpu.entered():
        pass


def test_without_bindings_it_compiles_and_a_call_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("cuda"):
            raise ImportError(name)
        return original(name, *rest, **more)

    driver.find.cache_clear()
    monkeypatch.setattr(builtins, "__import__", refuse)
    fn = cr.compile(cr.exp(cr.input("x", ("n",))), backend="cuda")
    assert ".target sm_75" in fn.show("ptx")
    with pytest.raises(cr.errors.DeviceError, match=r"pip install 'chainrule\[cuda\]'"):
        fn(x=np.ones(3))
    assert "cuda-bindings" in driver.describe()
