"""A training step for an NVIDIA GPU as data: a module of kernels, and what is launched of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from itertools import accumulate

import numpy as np

from chainrule.codegen.ptx import DATA_ALIGN, GpuModule, emit_gpu_module
from chainrule.errors import CompileError
from chainrule.export.checks import signed
from chainrule.export.codes import CODE, checks_of, own_code
from chainrule.export.model import (
    ABI,
    AT_ABI,
    AT_MODEL,
    AT_SIZE,
    HEAD,
    MAGIC,
    Drawn,
    Given,
    Model,
    Unit,
)
from chainrule.export.starting import Draws, programs
from chainrule.ir.loop import Check, Loop, Stmt, When
from chainrule.ir.node import Stmts
from chainrule.ir.types import DTYPES, DType
from chainrule.loops import minibatch
from chainrule.loops.begin import drawing
from chainrule.loops.independent import shared_among_threads
from chainrule.loops.launch import Launch, launches_of
from chainrule.records import dataclass
from chainrule.target import Target
from chainrule_runtime.gpu.commands import Command
from chainrule_runtime.manifest import Manifest, Tensor, element_type, evaluate

#: every stretch of workspace begins at a multiple of so many bytes, and the workspace with them
ROOM_ALIGN = 256
#: what addresses of data must be multiples of: the widest access
DATA_WIDTH = 16
#: codes from here on are CUDA's, which the driver has answered
CUDA_CODES = 1024
CHECK_STATE, CHECK_ORDER, ADVANCE = "check_state", "check_order", "advance"
SHUFFLE_KEYS, SORT_FIRST, SORT_REST = "shuffle_keys", "sort_first", "sort_rest"
#: what is launched for each call of a unit, by its launches: as the driver of the compiler tells
Commands = Callable[[Unit, Mapping[int, Sequence[Launch]], Mapping[int, str]], tuple[Command, ...]]


@dataclass(frozen=True)
class GpuGolden:
    """What the self-test should find: of each step the code, and the loss where that is 0, to
    within `near` of it and of 1.

    `sizes` are those it runs with, `bounds` the ranges of inputs of positions.
    """

    sizes: Mapping[str, int]
    bounds: Mapping[str, tuple[int, int]]
    found: tuple[tuple[int, float], ...]
    near: float


@dataclass(frozen=True)
class GpuKernel:
    """A model as kernels for a GPU: `commands` by unit, where each of `data` lies in the module's
    constants, and the PTX.

    `begins` are the kernels that draw a distribution in a type, `golden` what the self-test finds.
    """

    model: Model
    module: GpuModule
    commands: Mapping[str, tuple[Command, ...]]
    begins: Mapping[Draws, str]
    data: Mapping[bytes, int]
    golden: GpuGolden
    ptx: str = field(repr=False)

    @property
    def target(self) -> Target:
        """What it is for."""
        return self.module.target

    @property
    def names(self) -> list[str]:
        """The kernels of the module, in the order in which the interface numbers them."""
        return list(self.module.kernels)


class Placed:
    """What a unit's call needs of the workspace: room for each result, then the slots."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        taken = {t.place for t in (*manifest.feeds, *manifest.kept)}
        taken |= {t.place for t, _ in manifest.constants}
        self.held: list[Tensor] = []
        for tensor in manifest.outputs:
            if tensor.place not in taken:
                taken.add(tensor.place)
                self.held.append(tensor)

    def bytes(self, sizes: Mapping[str, int]) -> int:
        """Bytes of workspace at given sizes."""
        held = (tensor_bytes(t, sizes) for t in self.held)
        slots = (max([0, *(evaluate(d, sizes) for d in s)]) for s in self.manifest.arena)
        return sum(-(-n // ROOM_ALIGN) * ROOM_ALIGN for n in (*held, *slots))


def tensor_bytes(tensor: Tensor, sizes: Mapping[str, int]) -> int:
    """The bytes of a tensor at given sizes."""
    shape = [evaluate(d, sizes) for d in tensor.shape]
    return int(np.prod(shape, dtype=object)) * element_type(tensor.dtype).itemsize


def compile_gpu_kernel(
    model: Model,
    launches: Mapping[str, Mapping[int, tuple[Launch, ...]]],
    copies: Mapping[str, Launch],
    commands: Commands,
    golden: GpuGolden,
) -> GpuKernel:
    """The kernels of a model whose units have `launches`, by the identity of programs, and copy by
    `copies`. Raises CompileError.
    """
    units = model.units
    _check_beginnings(model)
    codes = checks_of([u.manifest for u in units.values()])
    own: dict[str, dict[int, tuple[Launch, ...]]] = {}
    for name, unit in units.items():
        told = {check.code: own_code(check, codes) for check in unit.manifest.checks}
        own[name] = {
            key: tuple(_recoded(x, told) for x in group) for key, group in launches[name].items()
        }
    begins = {key: _begin(key, program.name) for key, program in programs(model).items()}
    helpers = {**copies, **dict(begins.values()), CHECK_STATE: _check_state(model)}
    if model.sliced:
        step = units["step"].manifest
        helpers |= {f"gather_{t}": minibatch.gather(DTYPES[t]) for t in _types(step.feeds)}
        helpers |= {f"log_{t}": minibatch.log(DTYPES[t]) for t in _types(step.outputs[:1])}
        helpers[CHECK_ORDER] = minibatch.check_order(CODE["ERROR_VALUE"])
        helpers[ADVANCE] = minibatch.advance()
        helpers[SHUFFLE_KEYS] = minibatch.shuffle_keys(CODE["ERROR_VALUE"])
        helpers |= {SORT_FIRST: minibatch.sort_pairs(True), SORT_REST: minibatch.sort_pairs(False)}
    data = _constants(model)
    blob = b"".join(d.ljust(-(-len(d) // DATA_ALIGN) * DATA_ALIGN, b"\0") for d in data)
    groups = [group for of_unit in own.values() for group in of_unit.values()]
    module = emit_gpu_module(groups, helpers, model.variants[0].target, blob)
    found = {n: commands(unit, own[n], module.names) for n, unit in units.items()}
    names = {key: name for key, (name, _) in begins.items()}
    return GpuKernel(model, module, found, names, data, golden, module.ptx())


def _check_beginnings(model: Model) -> None:
    for tensor in model.kept:
        if isinstance(tensor.begin, Drawn) and tensor.begin.distribution == "orthogonal":
            raise CompileError(
                f"{tensor.name} begins orthogonal, which is not made on a GPU yet",
                "give it another init, or export the step for a CPU",
            )


def _recoded(launch: Launch, codes: Mapping[int, int]) -> Launch:
    """A launch whose checks leave with the interface's codes."""

    def statement(s: Stmt) -> Stmt:
        if isinstance(s, Check):
            return replace(s, code=codes[s.code])
        return replace(s, body=block(s.body)) if isinstance(s, Loop | When) else s

    def block(body: Stmts) -> Stmts:
        return tuple(map(statement, body))

    return replace(launch, program=replace(launch.program, body=block(launch.program.body)))


def _begin(key: Draws, name: str) -> tuple[str, Launch]:
    """What draws numbers: a thread an element."""
    program = drawing(*key)
    program = replace(program, body=shared_among_threads(program.body))
    (launch,), _ = launches_of(program, 1)
    return name, launch


def _check_state(model: Model) -> Launch:
    """Leave where memory is no state of this model."""
    wanted = {
        0: (MAGIC, CODE["ERROR_STATE"]),
        AT_ABI // 8: (ABI, CODE["ERROR_VERSION"]),  # with the variant, which is 0
        AT_MODEL // 8: (signed(model.digest), CODE["ERROR_MODEL"]),
        AT_SIZE // 8: (model.state_bytes, CODE["ERROR_MODEL"]),
    }
    return minibatch.check_words(wanted)


def _types(tensors: Sequence[Tensor]) -> dict[str, None]:
    return dict.fromkeys(t.dtype for t in tensors)


def head_of(model: Model) -> bytes:
    """What a state of this model begins with."""
    words = np.zeros(HEAD // 8, np.uint64)
    words[0], words[AT_ABI // 8] = MAGIC, ABI
    words[AT_MODEL // 8], words[AT_SIZE // 8] = model.digest, model.state_bytes
    return words.astype("<u8").tobytes()


def line_of(begin: Drawn, dtype: DType) -> bytes:
    """Scale and shift of what is drawn, as its kernel takes them."""
    return np.array([begin.scale, begin.shift], dtype.wide.numpy).tobytes()


def number_of(begin: Drawn) -> bytes:
    """The number of a draw, as its kernel takes it."""
    return np.uint32(begin.number).tobytes()


def bytes_of(begin: Given, dtype: DType, elements: int) -> tuple[bytes, bool]:
    """What a tensor begins as, and whether that is one element everywhere, which alone is given."""
    data = np.ascontiguousarray(begin.array, dtype.numpy).tobytes()
    first = data[: dtype.itemsize]
    same = data == first * (len(data) // dtype.itemsize)
    return (first, True) if same or elements == 1 else (data, False)


def _constants(model: Model) -> dict[bytes, int]:
    """The bytes that lie with the module, and where."""
    found: dict[bytes, None] = {head_of(model): None}
    for unit in model.units.values():
        found |= {a.tobytes(): None for _, a in unit.manifest.constants if a.size}
    for tensor in model.kept:
        if isinstance(tensor.begin, Drawn):
            found |= {line_of(tensor.begin, tensor.dtype): None, number_of(tensor.begin): None}
        elif isinstance(tensor.begin, Given) and tensor.elements:
            data, same = bytes_of(tensor.begin, tensor.dtype, tensor.elements)
            found |= {} if same else {data: None}
    sizes = [-(-len(d) // DATA_ALIGN) * DATA_ALIGN for d in found]
    return dict(zip(found, accumulate(sizes, initial=0), strict=False))
