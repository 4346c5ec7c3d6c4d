"""A program in C that trains on a GPU, to begin one's own with."""

from __future__ import annotations

from chainrule.export.gpu_interface import interface_of, pointers
from chainrule.export.interface import c_type
from chainrule.export.model import Model
from chainrule.export.packages import MADE, block, declared_array, elements, filled, smallest

_TEXT = """/* Trains @N on an NVIDIA GPU, on made-up data: put your own in its place.
   cc @N_example.c @N.c -lcuda -o example && ./example @N.ptx */
#include "@N.h"

#include <stdio.h>
#include <stdlib.h>

enum { STEPS = 100 };

@ARRAYS
@MADE
/* the bytes of a file, with a 0 behind them */
static char *read_(const char *path) {
    FILE *file = fopen(path, "rb");
    char *bytes = NULL;
    long size;
    if (!file) return NULL;
    if (!fseek(file, 0, SEEK_END) && (size = ftell(file)) >= 0 && !fseek(file, 0, SEEK_SET))
        bytes = calloc((size_t)size + 1, 1);
    if (bytes && fread(bytes, 1, (size_t)size, file) != (size_t)size) {
        free(bytes);
        bytes = NULL;
    }
    fclose(file);
    return bytes;
}

/* so many bytes on the GPU; 0 where it has none left */
static CUdeviceptr room_(size_t bytes) {
    CUdeviceptr at = 0;
    return cuMemAlloc(&at, bytes) ? 0 : at;
}

static int failed_(const char *what, int32_t code) {
    printf("%s: %s\\n", what, @N_strerror(code));
    return 1;
}

int main(int argc, char **argv) {
    const size_t bytes_ = @N_workspace_bytes(@ROOM);
    char *image_ = argc > 1 ? read_(argv[1]) : NULL;
    CUdevice device_;
    CUcontext context_;
    CUstream stream_ = NULL;
    CUdeviceptr memory_, state_, workspace_, loss_, given_[@COUNT];
    @REAL first_ = 0, last_ = 0;
    @N_net net_;
    int32_t code_;
    int step_;
    if (!image_) {
        puts("give the path of @N.ptx or of @N.cubin");
        return 1;
    }
    if (cuInit(0) || cuDeviceGet(&device_, 0) || cuDevicePrimaryCtxRetain(&context_, device_)
        || cuCtxSetCurrent(context_)) {
        puts("no GPU is to be seen here");
        return 1;
    }
    if ((code_ = @N_open(&net_, image_))) return failed_("open", code_);
    memory_ = room_(@U_SELFTEST_BYTES);
    code_ = @N_selftest(&net_, stream_, memory_, @U_SELFTEST_BYTES);
    if (code_) return failed_("self-test", code_);
    state_ = room_(@U_STATE_BYTES);
    workspace_ = room_(bytes_);
    loss_ = room_(sizeof first_);
@FILL
@PUT
    code_ = @N_init(&net_, stream_, state_, @U_STATE_BYTES, 0);
    for (step_ = 0; step_ < STEPS && !code_; step_++) {
        code_ = @N_step(&net_, stream_, state_, @U_STATE_BYTES, workspace_, bytes_,
            @GIVEN);
        if (step_ == 0) cuMemcpyDtoHAsync(&first_, loss_, sizeof first_, stream_);
    }
    if (!code_) code_ = @N_status(stream_, state_, @U_STATE_BYTES, NULL);
    if (code_) return failed_("step", code_);
    cuMemcpyDtoHAsync(&last_, loss_, sizeof last_, stream_);
    cuStreamSynchronize(stream_);
    printf("loss %g at first, %g after %d steps\\n", (double)first_, (double)last_, STEPS);
    @N_close(&net_);
    free(image_);
    return 0;
}
"""


def c_example(model: Model) -> str:
    """Its text."""
    interface, unit = interface_of(model), model.units["step"]
    sizes = smallest(model)
    feeds = pointers(interface, unit, True)[: len(unit.manifest.feeds)]
    counts = [elements(t, sizes) for t in unit.manifest.feeds]
    fill = [filled(model, p, sizes) for p in feeds]
    put = [
        f"given_[{i}] = room_(sizeof {p.name}), "
        f"cuMemcpyHtoDAsync(given_[{i}], {p.name}, sizeof {p.name}, stream_);"
        for i, p in enumerate(feeds)
    ]
    given = [str(sizes[s.name]) for s in interface.sizes_of(unit)]
    given += [f"given_[{i}]" for i in range(len(feeds))]
    given += ["loss_", *("0" for _ in unit.manifest.outputs[1:])]
    arrays = [f"static {declared_array(p, n)};" for p, n in zip(feeds, counts, strict=True)]
    words = {
        "ARRAYS": block(arrays),
        "MADE": MADE if any("made()" in line for line in fill) else "",
        "ROOM": ", ".join(str(sizes[s.name]) for s in model.sizes),
        "COUNT": str(max(1, len(feeds))),
        "REAL": c_type(unit.manifest.outputs[0].dtype),
        "FILL": block(fill, "    "),
        "PUT": block(put, "    "),
        "GIVEN": ", ".join(given),
    }
    text = _TEXT
    for word, value in words.items():
        text = text.replace(f"@{word}", value)
    return text.replace("@N", model.name).replace("@U", model.name.upper())
