"""Products by NVIDIA's cuBLASLt, where it is installed; it is loaded when first asked for.

Names, numbers and rules are those of "cuBLAS Library", NVIDIA, chapter "Using the cuBLASLt API":
matrices lie by columns, `ld` elements from one column to the next; alpha and beta are numbers of
the host, which a graph that is being captured takes as they are ("CUDA Graphs Support" there).
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from chainrule_runtime.errors import DeviceError
from chainrule_runtime.gpu.commands import ProductRun

_INT, _LONG, _WORD, _SIZE = ctypes.c_int32, ctypes.c_int64, ctypes.c_uint32, ctypes.c_size_t
_POINTER = ctypes.c_void_p
# cudaDataType, cublasComputeType_t, cublasOperation_t
_R_32F, _R_64F, _R_16BF = 0, 1, 14
_COMPUTE_32F, _COMPUTE_64F, _COMPUTE_32F_FAST_TF32 = 68, 70, 77
_OP_N, _OP_T = 0, 1
# cublasLtMatmulDescAttributes_t, cublasLtMatrixLayoutAttribute_t,
# cublasLtMatmulPreferenceAttributes_t
_TRANSA, _TRANSB = 3, 4
_BATCH_COUNT, _BATCH_STEP = 5, 6
_MAX_WORKSPACE, _MIN_ALIGNMENT_A = 1, 5
#: cublasStatus_t: what went wrong
_STATUS = {
    1: "NOT_INITIALIZED", 3: "ALLOC_FAILED", 7: "INVALID_VALUE", 8: "ARCH_MISMATCH",
    11: "MAPPING_ERROR", 13: "EXECUTION_FAILED", 14: "INTERNAL_ERROR", 15: "NOT_SUPPORTED",
    16: "LICENSE_ERROR",
}  # fmt: skip
#: what an address is a multiple of at most, for an algorithm that asks as much
_ALIGN = 256
_PLANS = 256
_MIB = 1 << 20


@dataclass(frozen=True)
class Kind:
    """Element types of factors and of result, sums and alpha, how sums are made, and C's type of
    alpha.
    """

    factors: int
    result: int
    compute: int
    scalar: Any


#: float32, its factors rounded to TF32, bfloat16 factors with float32 sums, float64
KINDS = {
    "float32": Kind(_R_32F, _R_32F, _COMPUTE_32F, ctypes.c_float),
    "tf32": Kind(_R_32F, _R_32F, _COMPUTE_32F_FAST_TF32, ctypes.c_float),
    "bfloat16": Kind(_R_16BF, _R_32F, _COMPUTE_32F, ctypes.c_float),
    "float64": Kind(_R_64F, _R_64F, _COMPUTE_64F, ctypes.c_double),
}


class _Algorithm(ctypes.Structure):
    """cublasLtMatmulAlgo_t."""

    _fields_ = (("data", ctypes.c_uint64 * 8),)


class _Found(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algorithm", _Algorithm),
        ("workspace", _SIZE),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cublasLtGetVersion": (),
    "cublasLtCreate": (_POINTER,),
    "cublasLtMatmulDescCreate": (_POINTER, ctypes.c_int, ctypes.c_int),
    "cublasLtMatmulDescSetAttribute": (_POINTER, ctypes.c_int, _POINTER, _SIZE),
    "cublasLtMatmulDescDestroy": (_POINTER,),
    "cublasLtMatrixLayoutCreate": (
        _POINTER, ctypes.c_int, ctypes.c_uint64, ctypes.c_uint64, _LONG,
    ),
    "cublasLtMatrixLayoutSetAttribute": (_POINTER, ctypes.c_int, _POINTER, _SIZE),
    "cublasLtMatrixLayoutDestroy": (_POINTER,),
    "cublasLtMatmulPreferenceCreate": (_POINTER,),
    "cublasLtMatmulPreferenceSetAttribute": (_POINTER, ctypes.c_int, _POINTER, _SIZE),
    "cublasLtMatmulPreferenceDestroy": (_POINTER,),
    "cublasLtMatmulAlgoGetHeuristic": (*[_POINTER] * 7, ctypes.c_int, _POINTER, _POINTER),
    "cublasLtMatmul": (*[_POINTER] * 14, _SIZE, _POINTER),
}  # fmt: skip


def room_for(capability: tuple[int, int]) -> int:
    """Bytes of workspace that cuBLAS asks for on a GPU ("cublasSetWorkspace" there): 32 MiB from
    compute capability 9.0 on, else 4.
    """
    return (32 if capability >= (9, 0) else 4) * _MIB


@lru_cache
def find(cuda: int) -> Blas:
    """The cuBLASLt for a driver of a CUDA version. Raises DeviceError where there is none."""
    majors = [n for n in (13, 12) if n * 1000 <= cuda]
    failed: DeviceError | None = None
    for path in (p for n in majors for p in _places(f"libcublasLt.so.{n}")):
        try:
            return Blas(ctypes.CDLL(path))
        except OSError:  # it is not there, or needs what is not
            continue
        except DeviceError as fault:  # another may do
            failed = failed or fault
    raise failed or DeviceError(
        "cuBLASLt is not installed",
        "where it should be tried: pip install nvidia-cublas-cu12, or nvidia-cublas for CUDA 13",
    )


def _places(name: str) -> Iterator[str]:
    """Where a library may be: in NVIDIA's packages, then wherever the system looks."""
    spec = find_spec("nvidia")
    for folder in (spec and spec.submodule_search_locations) or ():
        yield from (str(p) for p in sorted(Path(folder).glob(f"*/lib/{name}")))
    yield name


@dataclass(frozen=True, eq=False)
class _Plan:
    """How a product is made: its descriptor, layouts of both factors and the result, algorithm."""

    operation: Any
    layouts: tuple[Any, Any, Any]
    found: _Found


class Blas:
    """A cuBLASLt that is loaded. An algorithm is chosen once for each product, by its heuristics,
    among those that do with the workspace.
    """

    def __init__(self, library: Any) -> None:
        self._api = library
        for word, kinds in _FUNCTIONS.items():
            try:
                getattr(library, word).argtypes = kinds
            except AttributeError:
                raise DeviceError(f"this cuBLASLt has no {word}", "install a newer one") from None
        library.cublasLtGetVersion.restype = _SIZE
        self.version = int(library.cublasLtGetVersion())
        self._handle = _POINTER()
        self._ask("cublasLtCreate", ctypes.byref(self._handle))
        self._plans: dict[Any, _Plan] = {}

    @property
    def name(self) -> str:
        """What it is: 130100 is 13.1.0, as 120805 is 12.8.5."""
        major, rest = divmod(self.version, 10000)
        return f"cuBLASLt {major}.{rest // 100}.{rest % 100}"

    def ready(self, run: ProductRun, stream: int, room: tuple[int, int]) -> Callable[[], None]:
        """What asks a stream for products. Raises DeviceError, and so may what it returns.

        It can't be asked for while a stream is recorded: neither a handle can be made then, nor an
        algorithm found. A product of a new kind is made once here, which loads its kernel.
        """
        run = _by_columns(run)
        kind, (x, y, out) = KINDS[run.kind], run.places
        aligned = tuple(min(_ALIGN, at & -at) for at in run.places)
        key = run.kind, run.count, run.rows, run.columns, run.terms, run.steps, aligned, room[1]
        known = self._plans.get(key)
        plan = known or self._made(run, aligned, room[1])
        alpha, beta = kind.scalar(1), kind.scalar(0)
        a, b, c = plan.layouts

        def ask() -> None:
            self._ask(
                "cublasLtMatmul", self._handle, plan.operation, ctypes.byref(alpha), x, a, y, b,
                ctypes.byref(beta), out, c, out, c, ctypes.byref(plan.found.algorithm), *room,
                stream,
            )  # fmt: skip

        if known is None:
            ask()
            if len(self._plans) >= _PLANS:
                self._plans.clear()
            self._plans[key] = plan
        return ask

    def _made(self, run: ProductRun, aligned: Sequence[int], room: int) -> _Plan:
        kind = KINDS[run.kind]
        shapes = (run.rows, run.terms), (run.terms, run.columns), (run.rows, run.columns)
        turns = [_turned(s, steps) for s, steps in zip(shapes, run.steps, strict=True)]
        types = kind.factors, kind.factors, kind.result
        operation = self._new("MatmulDesc", kind.compute, kind.result)
        for word, (op, *_) in zip((_TRANSA, _TRANSB), turns, strict=False):
            self._set("MatmulDesc", operation, word, _INT(op))
        layouts = []
        for type_, (_, rows, columns, ld), (step, *_) in zip(types, turns, run.steps, strict=True):
            layout = self._new("MatrixLayout", type_, rows, columns, ld)
            self._set("MatrixLayout", layout, _BATCH_COUNT, _INT(run.count))
            self._set("MatrixLayout", layout, _BATCH_STEP, _LONG(step))
            layouts.append(layout)
        a, b, c = layouts
        return _Plan(operation, (a, b, c), self._chosen(run, operation, layouts, aligned, room))

    def _chosen(
        self,
        run: ProductRun,
        operation: Any,
        layouts: Sequence[Any],
        aligned: Sequence[int],
        room: int,
    ) -> _Found:
        """The algorithm that cuBLASLt thinks fastest."""
        wishes = self._new("MatmulPreference")
        self._set("MatmulPreference", wishes, _MAX_WORKSPACE, ctypes.c_uint64(room))
        for i, size in enumerate((*aligned, aligned[-1])):  # of A, B, C and D
            self._set("MatmulPreference", wishes, _MIN_ALIGNMENT_A + i, _WORD(size))
        found, count = _Found(), ctypes.c_int(0)
        asked = self._handle, operation, *layouts, layouts[-1], wishes, 1
        word = "cublasLtMatmulAlgoGetHeuristic"
        self._ask(word, *asked, ctypes.byref(found), ctypes.byref(count))
        if count.value < 1 or found.state:
            status = _STATUS.get(found.state, str(found.state)) if count.value else "none"
            raise DeviceError(
                f"{self.name} knows no way to multiply {run.kind}"
                f"[{run.count}, {run.rows}, {run.terms}] by [{run.terms}, {run.columns}]: {status}",
                "compile without tune, which takes kernels of our own",
            )
        return found

    def _new(self, what: str, *given: Any) -> Any:
        """Something of cuBLASLt's, which is given back when nobody has it any more."""
        made = _POINTER()
        self._ask(f"cublasLt{what}Create", ctypes.byref(made), *given)
        destroy = getattr(self._api, f"cublasLt{what}Destroy")
        weakref.finalize(made, destroy, made.value).atexit = False
        return made

    def _set(self, what: str, of: Any, attribute: int, value: Any) -> None:
        given = ctypes.byref(value), ctypes.sizeof(value)
        self._ask(f"cublasLt{what}SetAttribute", of, attribute, *given)

    def _ask(self, word: str, *given: Any) -> None:
        status = getattr(self._api, word)(*given)
        if status:
            code = _STATUS.get(status, str(status))
            raise DeviceError(
                f"cuBLASLt answered CUBLAS_STATUS_{code} to {word}",
                "compile without tune, which takes kernels of our own",
                code=code,
            )


def _by_columns(run: ProductRun) -> ProductRun:
    """Products whose results lie by columns, as cuBLASLt has them: of those by rows the transposed,
    (A B)' = B' A'.
    """
    _, row, column = run.steps[2]
    if row == 1 or run.rows == 1 or column != 1:
        return run
    x, y, out = run.places
    a, b, c = ((group, down, across) for group, across, down in run.steps)
    turned = run.columns, run.rows, run.terms
    return ProductRun(run.kind, run.count, *turned, (y, x, out), (b, a, c), run.part_of)


def _turned(shape: tuple[int, int], steps: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """A matrix as cuBLASLt has it: whether it is the transposed of what lies there by columns, then
    the rows of that, its columns, and elements from one to the next.
    """
    (rows, columns), (_, down, across) = shape, steps
    if down == 1 or rows == 1:
        return _OP_N, rows, columns, max(across, rows, 1)
    return _OP_T, columns, rows, max(down, columns, 1)
