"""What every C source of a kernel for a GPU has, where @N is its name and @U that in capitals."""

HEAD = """/* @N: a training step on an NVIDIA GPU, over CUDA's driver interface: link with libcuda.
   @N.h tells what is here. */
#include "@N.h"

#include <string.h>

#define DO_(call) do { int32_t it_ = (call); if (it_) return it_; } while (0)"""

#: what every function asks first; launches; and sizes, which are not below 0
COMMON = """static int32_t told_(CUresult result)
{
    return result ? @U_ERROR_CUDA + (int32_t)result : @U_OK;
}

static int32_t block_(CUdeviceptr start, size_t bytes, size_t needed)
{
    if (!start) return @U_ERROR_NULL;
    if (start % @U_ALIGN) return @U_ERROR_ALIGN;
    return bytes < needed ? @U_ERROR_ROOM : @U_OK;
}

static int32_t address_(CUdeviceptr start, int optional)
{
    if (!start) return optional ? @U_OK : @U_ERROR_NULL;
    return start % @U_DATA_ALIGN ? @U_ERROR_ALIGN : @U_OK;
}

static int32_t copy_(CUstream stream, CUdeviceptr to, CUdeviceptr from, int64_t bytes)
{
    return bytes > 0 ? told_(cuMemcpyDtoDAsync(to, from, (size_t)bytes, stream)) : @U_OK;
}

static int32_t word_(CUstream stream, CUdeviceptr at, uint32_t word)
{
    return told_(cuMemsetD32Async(at, word, 1, stream));
}

static int32_t launch_(const @N_net *net, CUstream stream, int kernel, int64_t blocks,
    unsigned int threads, int count, uint64_t *values)
{
    void *places[MOST_];
    int i;
    for (i = 0; i < count; i++) places[i] = values + i;
    if (blocks < 1) return @U_OK;
    if (blocks > 2147483647) return @U_ERROR_SIZE;
    return told_(cuLaunchKernel(net->kernel[kernel], (unsigned int)blocks, 1, 1, threads, 1, 1,
        shared_[kernel], stream, places, NULL));
}"""
#: sizes, of which divisors are not below 1; each of these may call those behind it
SIZES = (
    """static int64_t larger_(int64_t a, int64_t b)
{
    return a > b ? a : b;
}""",
    """static int64_t rest_(int64_t a, int64_t b)
{
    return a - quotient_(a, b) * b;
}""",
    """static int64_t quotient_(int64_t a, int64_t b)
{
    return a / b - (a % b < 0);
}""",
)

CHECK_HEAD = """static int32_t head_(const void *bytes)
{{
    const unsigned char *at = bytes;
    uint64_t magic, model, size;
    uint32_t abi;
    memcpy(&magic, at, 8);
    memcpy(&abi, at + {at_abi}, 4);
    memcpy(&model, at + {at_model}, 8);
    memcpy(&size, at + {at_size}, 8);
    if (magic != UINT64_C({magic})) return @U_ERROR_STATE;
    if (abi != {abi}) return @U_ERROR_VERSION;
    if (model != UINT64_C({model}) || size != @U_STATE_BYTES) return @U_ERROR_MODEL;
    return @U_OK;
}}"""

#: export.checks.digest
DIGEST = """static uint64_t digest_(const void *bytes)
{{
    uint64_t sum = UINT64_C({first}), word;
    size_t i;
    for (i = 0; i < @U_STATE_BYTES / 8; i++) {{
        memcpy(&word, (const unsigned char *)bytes + 8 * i, 8);
        if (i == {abi}) word &= 0xffffffff;
        if (i == {sum}) word = 0;
        sum = (sum ^ word) * UINT64_C({factor});
        sum ^= sum >> {shift};
    }}
    return sum;
}}"""

#: the head of a state, brought to the host
BEGIN_OF = """static int32_t begin_of_(CUstream stream, CUdeviceptr state, size_t state_bytes,
    unsigned char *begin)
{{
    DO_(block_(state, state_bytes, @U_STATE_BYTES));
    DO_(told_(cuMemcpyDtoHAsync(begin, state, {head}, stream)));
    DO_(told_(cuStreamSynchronize(stream)));
    return head_(begin);
}}"""

TENSORS = """static const struct {{ const char *name; size_t at, bytes; }} tensors_[] = {{
{rows}
}};

static const char about_[] = {{
{about}
}};"""
