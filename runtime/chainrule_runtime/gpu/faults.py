"""What is wrong with a GPU, its driver or a kernel, by the driver's codes, in words."""

from __future__ import annotations

from chainrule_runtime.errors import DeviceError

#: the driver's codes for a kernel that went wrong, and for a GPU that can't be reached any more
#: ("CUDA Driver API", NVIDIA, enum CUresult): a context is of no use after any of them
_FAULTS = ("ILLEGAL_ADDRESS", "LAUNCH_FAILED", "LAUNCH_TIMEOUT", "HARDWARE_STACK_ERROR",
           "ILLEGAL_INSTRUCTION", "MISALIGNED_ADDRESS", "INVALID_ADDRESS_SPACE", "INVALID_PC",
           "ASSERT", "ILLEGAL_STATE")  # fmt: skip
_GONE = ("ECC_UNCORRECTABLE", "NVLINK_UNCORRECTABLE", "CONTEXT_IS_DESTROYED", "DEVICE_UNAVAILABLE",
         "CONTAINED", "NO_DEVICE", "INVALID_DEVICE", "INVALID_CONTEXT", "UNKNOWN")  # fmt: skip
NO_ROOM = "OUT_OF_MEMORY"
#: what is asked before there is a context
_FIRST = ("cuInit", "cuDriverGetVersion", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute",
          "cuDevicePrimaryCtxRetain")  # fmt: skip


def missing(error: BaseException, word: str) -> tuple[str, ...]:
    """Why there is no such function, and what to do: the first of all every driver has."""
    if word != "cuInit":
        return (
            f"the NVIDIA driver is too old: it has no {word}",
            *_lines(error),
            "install a driver of CUDA 10.0 or newer",
        )
    return "no NVIDIA driver is installed here", *_lines(error), "install one, then nvidia-smi"


def told(code: str, word: str) -> DeviceError:
    """The error that a code of the driver is."""
    error = _meaning(code, word)
    error.code = code
    return error


def _meaning(code: str, word: str) -> DeviceError:
    """What a code means, and what to do."""
    what, first = f"the CUDA driver answered {code} to {word}", word in _FIRST
    if first and code in ("NO_DEVICE", "INVALID_DEVICE"):
        return DeviceError(
            f"no GPU is to be seen here: {what}",
            "nvidia-smi lists those that the driver sees; CUDA_VISIBLE_DEVICES may hide them",
        )
    if code in ("SYSTEM_DRIVER_MISMATCH", "COMPAT_NOT_SUPPORTED_ON_DEVICE"):
        return DeviceError(
            f"parts of the NVIDIA driver are of different versions: {what}",
            "restart the machine after an update of the driver, or install it again",
        )
    if code in ("INSUFFICIENT_DRIVER", "NOT_SUPPORTED", "CALL_REQUIRES_NEWER_DRIVER"):
        return DeviceError(f"the NVIDIA driver is too old: {what}", "install a newer driver")
    if code in ("INVALID_PTX", "UNSUPPORTED_PTX_VERSION", "NO_BINARY_FOR_GPU", "INVALID_IMAGE"):
        return DeviceError(
            f"the driver refuses the code: {what}",
            "an older driver may not read it: chainrule doctor tells what it reads, and "
            "CHAINRULE_GPU=sm_75 compiles for all",
        )
    if code == NO_ROOM:
        return DeviceError(
            f"the GPU has no room: {what}",
            "take smaller minibatches or a memory_budget, or end what else uses the GPU",
        )
    if first:
        return DeviceError(
            f"the NVIDIA driver does not start: {what}", "nvidia-smi tells more of it"
        )
    if code in _FAULTS:
        long = "a GPU with a display ends kernels after some seconds: take smaller minibatches"
        bug = "it is a bug, of chainrule if not of another in this process: compute-sanitizer tells"
        return DeviceError(
            f"a kernel has failed, and what this process has on the GPU is lost: {what}",
            long if code == "LAUNCH_TIMEOUT" else bug,
            lost=True,
        )
    if code in _GONE:
        return DeviceError(
            f"the GPU is lost: {what}",
            "nvidia-smi tells its state; resetting it or restarting the machine brings it back",
            lost=True,
        )
    return DeviceError(what)


def _lines(error: BaseException) -> tuple[str, ...]:
    return tuple(str(error).strip().splitlines()[:1])
