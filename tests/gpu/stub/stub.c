/* Calls of CUDA's driver, handed on to functions that a test puts here. */
#include "cuda.h"

#define HAND_ON(name, declared, given)     \
    CUresult(*on_##name) declared = 0; \
    CUresult name declared { return on_##name given; }

HAND_ON(cuInit, (unsigned int flags), (flags))
HAND_ON(cuDeviceGet, (CUdevice *device, int number), (device, number))
HAND_ON(cuDevicePrimaryCtxRetain, (CUcontext *context, CUdevice device), (context, device))
HAND_ON(cuCtxSetCurrent, (CUcontext context), (context))
HAND_ON(cuMemAlloc, (CUdeviceptr *at, size_t bytes), (at, bytes))
HAND_ON(cuModuleLoadData, (CUmodule *module, const void *image), (module, image))
HAND_ON(cuModuleUnload, (CUmodule module), (module))
HAND_ON(cuModuleGetFunction, (CUfunction *function, CUmodule module, const char *name),
    (function, module, name))
HAND_ON(cuFuncSetAttribute, (CUfunction function, CUfunction_attribute attribute, int value),
    (function, attribute, value))
HAND_ON(cuModuleGetGlobal, (CUdeviceptr *start, size_t *bytes, CUmodule module, const char *name),
    (start, bytes, module, name))
HAND_ON(cuMemcpyHtoDAsync, (CUdeviceptr to, const void *from, size_t bytes, CUstream stream),
    (to, from, bytes, stream))
HAND_ON(cuMemcpyDtoHAsync, (void *to, CUdeviceptr from, size_t bytes, CUstream stream),
    (to, from, bytes, stream))
HAND_ON(cuMemcpyDtoDAsync, (CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream),
    (to, from, bytes, stream))
HAND_ON(cuMemsetD8Async, (CUdeviceptr at, unsigned char value, size_t count, CUstream stream),
    (at, value, count, stream))
HAND_ON(cuMemsetD16Async, (CUdeviceptr at, unsigned short value, size_t count, CUstream stream),
    (at, value, count, stream))
HAND_ON(cuMemsetD32Async, (CUdeviceptr at, unsigned int value, size_t count, CUstream stream),
    (at, value, count, stream))
HAND_ON(cuMemsetD2D32Async, (CUdeviceptr at, size_t pitch, unsigned int value, size_t width,
    size_t height, CUstream stream), (at, pitch, value, width, height, stream))
HAND_ON(cuStreamSynchronize, (CUstream stream), (stream))
HAND_ON(cuLaunchKernel, (CUfunction function, unsigned int grid_x, unsigned int grid_y,
    unsigned int grid_z, unsigned int block_x, unsigned int block_y, unsigned int block_z,
    unsigned int shared_bytes, CUstream stream, void **parameters, void **extra),
    (function, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes, stream, parameters,
    extra))

CUresult cuGetErrorString(CUresult result, const char **text)
{
    *text = result == 2 ? "out of memory" : 0;
    return 0;
}
