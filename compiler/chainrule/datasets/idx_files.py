"""Arrays in IDX files, the format of MNIST: a type, the sizes, then the numbers, big-endian.

Source: Y. LeCun, C. Cortes and C. J. C. Burges, "The MNIST database of handwritten digits".
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from chainrule.errors import ArtifactError

#: the third byte of a file -> the element type of its numbers
TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_GZIP = b"\x1f\x8b"
_MNIST = (
    "files of this form are train-images-idx3-ubyte and train-labels-idx1-ubyte, or .gz of them"
)


def idx(path: str | os.PathLike[str]) -> np.ndarray[Any, Any]:
    """The array in an IDX file such as MNIST's, packed by gzip or not.

    Images are uint8 (count, height, width) there, labels uint8 (count,); the array is the file's,
    in the byte order of this machine. Raises ArtifactError where there is no such file, or where
    it is none of this form, damaged or cut short.

        x = cr.datasets.idx("train-images-idx3-ubyte.gz").reshape(-1, 784) / np.float32(255)
    """
    if not isinstance(path, str | os.PathLike):
        raise ArtifactError(f"a file is told by its path, not by {path!r}", _MNIST)
    try:
        data = Path(path).read_bytes()
        if data.startswith(_GZIP):
            data = gzip.decompress(data)
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise ArtifactError(f"{os.fspath(path)} can't be read: {error}", _MNIST) from error
    kind = np.dtype(TYPES[data[2]]) if len(data) > 3 and data[2] in TYPES else None
    if kind is None or data[:2] != b"\0\0":
        raise ArtifactError(
            f"{os.fspath(path)} is not an IDX file: it begins with {data[:4]!r}", _MNIST
        )
    begin = 4 + 4 * data[3]
    if len(data) < begin:
        raise ArtifactError(f"{os.fspath(path)} ends before its {data[3]} sizes do", _MNIST)
    shape = struct.unpack(f">{data[3]}I", data[4:begin])
    wanted = math.prod(shape) * kind.itemsize
    if len(data) - begin != wanted:
        raise ArtifactError(
            f"{os.fspath(path)} says {kind.name}{list(shape)}, which are {wanted} bytes, "
            f"and holds {len(data) - begin}",
            "it was cut short, or something was added to it",
        )
    return np.frombuffer(data, kind, offset=begin).reshape(shape).astype(kind.newbyteorder("="))
