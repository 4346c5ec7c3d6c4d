"""NVIDIA's own cuBLASLt, where its package is installed: our numbers are those of its headers, and
all that it is told before it asks for a GPU it takes.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import Any

import pytest

from chainrule_runtime.errors import DeviceError
from chainrule_runtime.gpu import blas
from chainrule_runtime.gpu.commands import ProductRun


@pytest.fixture(scope="module")
def library() -> Path:
    for name in ("libcublasLt.so.13", "libcublasLt.so.12"):
        for path in map(Path, blas._places(name)):
            if path.is_absolute():
                return path
    pytest.skip("nvidia-cublas is not installed")


def test_numbers_are_those_of_its_headers(library: Path) -> None:
    text = "".join(
        (library.parents[1] / "include" / name).read_text()
        for name in ("cublasLt.h", "cublas_api.h")
    )
    known = {name: int(n) for name, n in re.findall(r"\b(CUBLAS\w+)\s*=\s*(\d+)\b", text)}
    pref, layout = "CUBLASLT_MATMUL_PREF_", "CUBLASLT_MATRIX_LAYOUT_"
    ours: dict[str, Any] = {
        "CUBLAS_COMPUTE_32F": blas._COMPUTE_32F,
        "CUBLAS_COMPUTE_64F": blas._COMPUTE_64F,
        "CUBLAS_COMPUTE_32F_FAST_TF32": blas._COMPUTE_32F_FAST_TF32,
        "CUBLAS_OP_N": blas._OP_N,
        "CUBLAS_OP_T": blas._OP_T,
        "CUBLASLT_MATMUL_DESC_TRANSA": blas._TRANSA,
        "CUBLASLT_MATMUL_DESC_TRANSB": blas._TRANSB,
        f"{layout}BATCH_COUNT": blas._BATCH_COUNT,
        f"{layout}STRIDED_BATCH_OFFSET": blas._BATCH_STEP,
        f"{pref}MAX_WORKSPACE_BYTES": blas._MAX_WORKSPACE,
        **{f"CUBLAS_STATUS_{name}": code for code, name in blas._STATUS.items()},
    }
    for i, matrix in enumerate("ABCD"):
        ours[f"{pref}MIN_ALIGNMENT_{matrix}_BYTES"] = blas._MIN_ALIGNMENT_A + i
    assert ours.items() <= known.items()


@pytest.mark.parametrize("kind", blas.KINDS)
def test_it_takes_what_it_is_told(library: Path, kind: str) -> None:
    """Descriptors, layouts and preferences have been made when a heuristic is asked for, which
    takes a GPU.
    """
    made: Any = blas.Blas.__new__(blas.Blas)
    made._api, made._handle, made._plans = ctypes.CDLL(str(library)), ctypes.c_void_p(), {}
    for word, kinds in blas._FUNCTIONS.items():
        getattr(made._api, word).argtypes = kinds
    steps = ((15, 3, 1), (21, 7, 1), (35, 7, 1))
    run = ProductRun(kind, 2, 5, 7, 3, (4096, 8192, 16384), steps)
    with pytest.raises(DeviceError, match="NOT_INITIALIZED to cublasLtMatmulAlgoGetHeuristic"):
        made.ready(run, 0, (4096, 1 << 20))
