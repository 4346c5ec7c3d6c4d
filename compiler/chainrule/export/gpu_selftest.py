"""The self-test of a kernel for a GPU: a few steps from a fixed seed on made-up data, whose losses
are those of the compiler's own processor.

They are near, not equal: long folds and tensor cores add up in an order of their own.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from chainrule.codegen.native import data_layout, load
from chainrule.export.golden import Golden
from chainrule.export.gpu import ROOM_ALIGN, GpuGolden, Placed, tensor_bytes
from chainrule.export.kernel import base_target, kept_object
from chainrule.export.model import ALIGN, Array, Model
from chainrule.export.module import ModuleText
from chainrule.export.rehearsal import SEED, STEPS, Plan
from chainrule.export.selftest import bounds_of
from chainrule.export.units import Placed as PlacedHere
from chainrule.ir.types import dtype as dtype_of
from chainrule.records import dataclass
from chainrule_runtime.manifest import Tensor, element_type, evaluate

#: how far a loss may be from the processor's, as a share of it and of 1; where factors may be in
#: TF32, which a processor does not have
NEAR, NEAR_TF32 = 2.0**-10, 2.0**-6


@dataclass(frozen=True)
class Room:
    """Where the self-test's blocks lie in the memory that it is given, behind a state."""

    feeds: tuple[int, ...]
    loss: int
    workspace: int
    bytes: int


def room_of(model: Model, golden: GpuGolden) -> Room:
    """The room for a self-test."""
    unit = model.units["step"].manifest
    loss = unit.outputs[0]
    needs = [model.state_bytes, *(tensor_bytes(t, golden.sizes) for t in unit.feeds)]
    needs += [tensor_bytes(loss, golden.sizes), Placed(unit).bytes(golden.sizes)]
    at = [0]
    for need in needs:
        at.append(at[-1] + -(-need // ROOM_ALIGN) * ROOM_ALIGN)
    return Room(tuple(at[1:-3]), at[-3], at[-2], at[-1])


def golden_of(model: Model, tf32: bool) -> GpuGolden:
    """What a model, lowered for this processor, finds."""
    model = replace(model, name="here", about={}, small=False, parts=1)
    plan, base = Plan(model), base_target(model)
    text = ModuleText(model, 64, [Golden(0)]).text(data_layout(base))
    loaded = load(kept_object(text, base))
    unit = model.units["step"].manifest
    bounds = bounds_of(model, plan)
    state, work = _block(model.state_bytes), _block(PlacedHere(unit, model.fixed).bytes(plan.sizes))
    feeds = [made_up(t, plan.sizes, bounds.get(t.name, (0, 2))) for t in unit.feeds]
    loss = np.zeros(1, element_type(unit.outputs[0].dtype))

    def call(name: str, *given: int | None) -> int:
        kinds = [ctypes.c_void_p if g is None else ctypes.c_uint64 for g in given]
        function = ctypes.CFUNCTYPE(ctypes.c_int32, *kinds)(loaded.address(f"here_{name}"))
        return int(function(*given))

    kept = state.ctypes.data, model.state_bytes
    call("init", *kept, SEED)
    sizes = [plan.sizes[s.name] for s in model.sizes if s.name in unit.sizes]
    places = [*(f.ctypes.data for f in feeds), loss.ctypes.data]
    rest = [None] * (len(unit.outputs) - 1)
    found = []
    for _ in range(STEPS):
        code = call("step", *kept, work.ctypes.data, work.nbytes, *sizes, *places, *rest)
        found.append((code, float(loss[0]) if code == 0 else 0.0))
    near = NEAR_TF32 if tf32 else NEAR
    return GpuGolden(plan.sizes, bounds, tuple(found), near)


def made_up(tensor: Tensor, sizes: Mapping[str, int], bounds: tuple[int, int]) -> Array:
    """Data that is the same everywhere: the high bits of a congruential sequence, as positions
    within bounds, or as floats in [-1, 1), of which bfloat16 has the upper half.

    Numerical Recipes' 1664525 and 1013904223 (Press et al., section 7.1).
    """
    shape = tuple(evaluate(d, sizes) for d in tensor.shape)
    kind, i = dtype_of(tensor.dtype), np.arange(int(np.prod(shape)), dtype=np.uint64)
    word = ((i * 1664525 + 1013904223) * 1664525 & 0xFFFFFFFF) >> 8
    if not kind.is_float:
        least, above = bounds
        return (least + (word.astype(np.int64) % (above - least))).astype(kind.numpy).reshape(shape)
    real = (word.astype(np.float64) - 2**23) * 2.0**-23
    if kind.bits >= 32:
        return real.astype(kind.numpy).reshape(shape)
    upper = real.astype(np.float32).view(np.uint32) >> 16
    return upper.astype(np.uint16).view(kind.numpy).reshape(shape)


def _block(size: int) -> Array:
    """Memory that begins where a kernel's blocks do."""
    memory = np.zeros(size + ALIGN, np.uint8)
    start = -memory.ctypes.data % ALIGN
    return memory[start : start + size]


#: what C makes up
MADE_UP = """static uint32_t word_of_(int64_t i)
{
    return (((uint32_t)i * 1664525u + 1013904223u) * 1664525u) >> 8;
}

static int32_t make_up_(CUstream stream, CUdeviceptr to, int64_t count, char kind, int item,
    int64_t least, int64_t above)
{
    unsigned char part[1024];
    int64_t i = 0;
    while (i < count) {
        size_t n = 0;
        for (; n < sizeof part && i < count; i++, n += item) {
            double real = ((double)word_of_(i) - 8388608.0) / 8388608.0;
            float single = (float)real;
            int64_t whole = least + (int64_t)word_of_(i) % (above - least);
            unsigned char *at = part + n;
            if (kind == 'i') memcpy(at, &whole, item);
            else if (item == 8) memcpy(at, &real, 8);
            else if (item == 4) memcpy(at, &single, 4);
            else memcpy(at, (unsigned char *)&single + 2, 2);
        }
        DO_(told_(cuMemcpyHtoDAsync(to, part, n, stream)));
        DO_(told_(cuStreamSynchronize(stream)));
        to += n;
    }
    return @U_OK;
}"""


def body(model: Model, golden: GpuGolden, sizes: Sequence[str]) -> list[str]:
    """The body of `NAME_selftest`."""
    room, unit = room_of(model, golden), model.units["step"].manifest
    loss, feeds = unit.outputs[0], [f"memory + {at}" for at in room.feeds]
    made = []
    for tensor, at in zip(unit.feeds, feeds, strict=True):
        kind, (least, above) = dtype_of(tensor.dtype), golden.bounds.get(tensor.name, (0, 2))
        item = kind.itemsize
        letter, count = "f" if kind.is_float else "i", tensor_bytes(tensor, golden.sizes) // item
        made.append(f"DO_(make_up_(stream, {at}, {count}, '{letter}', {item}, {least}, {above}));")
    state, home = "memory, @U_STATE_BYTES", f"memory + {room.loss}"
    given = [*sizes, *feeds, home, *["0"] * (len(unit.outputs) - 1)]
    work = f"memory + {room.workspace}, {room.bytes - room.workspace}"
    codes = ", ".join(str(code) for code, _ in golden.found)
    losses = ", ".join(repr(value) for _, value in golden.found)
    real = "double" if dtype_of(loss.dtype).bits == 64 else "float"
    return [
        f"static const int32_t codes_[] = {{{codes}}};",
        f"static const double losses_[] = {{{losses}}};",
        "int32_t i_, code_;",
        f"{real} loss_;",
        "if (!net) return @U_ERROR_NULL;",
        "DO_(block_(memory, bytes, @U_SELFTEST_BYTES));",
        f"DO_(@N_init(net, stream, {state}, UINT64_C({SEED})));",
        *made,
        f"for (i_ = 0; i_ < {len(golden.found)}; i_++) {{",
        "    double off_, size_ = losses_[i_] < 0 ? -losses_[i_] : losses_[i_];",
        f"    DO_(@N_step(net, stream, {state}, {work}, {', '.join(given)}));",
        f"    code_ = @N_status(stream, {state}, NULL);",
        "    if (code_ >= @U_ERROR_CUDA) return code_;",
        "    if (code_ != codes_[i_]) return @U_ERROR_SELFTEST;",
        "    if (code_) continue;",
        f"    DO_(told_(cuMemcpyDtoHAsync(&loss_, {home}, sizeof loss_, stream)));",
        "    DO_(told_(cuStreamSynchronize(stream)));",
        "    off_ = (double)loss_ - losses_[i_];",
        f"    if (!((off_ < 0 ? -off_ : off_) <= {golden.near!r} * (1 + size_)))",
        "        return @U_ERROR_SELFTEST;",
        "}",
        "return @U_OK;",
    ]
