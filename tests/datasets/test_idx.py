"""IDX files, written here by the format's own description."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

import chainrule as cr
from chainrule.errors import ArtifactError

# the type codes, as the page of the MNIST database lists them
KINDS = {8: "u1", 9: "i1", 11: "i2", 12: "i4", 13: "f4", 14: "f8"}


def written(code: int, values: np.ndarray) -> bytes:
    sizes = b"".join(struct.pack(">I", size) for size in values.shape)
    return bytes([0, 0, code, values.ndim]) + sizes + values.astype(f">{KINDS[code]}").tobytes()


@pytest.mark.parametrize("code", KINDS)
@pytest.mark.parametrize("shape", [(5,), (3, 4, 2), (0, 28, 28), ()], ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_what_was_written_is_read(
    code: int, shape: tuple[int, ...], packed: bool, tmp_path: Path
) -> None:
    values = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(KINDS[code])
    path, data = tmp_path / "values-idx", written(code, values)
    path.write_bytes(gzip.compress(data, mtime=0) if packed else data)
    found = cr.datasets.idx(path)
    np.testing.assert_array_equal(found, values)
    assert found.dtype == values.dtype and found.flags.writeable


def test_images_as_mnist_has_them(tmp_path: Path) -> None:
    images = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28)
    path = tmp_path / "train-images-idx3-ubyte"
    # 0x00000803 (2051), the count, rows, columns: the header as MNIST's page prints it
    path.write_bytes(struct.pack(">IIII", 2051, 2, 28, 28) + images.tobytes())
    np.testing.assert_array_equal(cr.datasets.idx(str(path)), images)


WHOLE = written(8, np.zeros((2, 3), np.uint8))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not an IDX file"),
        (b"\x89PNG\r\n", "not an IDX file"),
        (b"\0\0\x0a\x01\0\0\0\0", "not an IDX file"),
        (WHOLE[:7], "ends before its 2 sizes"),
        (WHOLE[:-1], "uint8[2, 3], which are 6 bytes, and holds 5"),
        (WHOLE + b"\0", "and holds 7"),
        (gzip.compress(WHOLE, mtime=0)[:-9], "can't be read"),
        (gzip.compress(WHOLE, mtime=0)[:-6] + b"spoilt", "can't be read"),
    ],
)
def test_what_is_damaged_is_refused(data: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(data)
    with pytest.raises(ArtifactError) as caught:
        cr.datasets.idx(path)
    assert said in str(caught.value) and str(path) in str(caught.value)


def test_no_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="No such file"):
        cr.datasets.idx(tmp_path / "none")


@pytest.mark.parametrize("path", [None, 3, b"bytes", "a\0b"])
def test_what_is_no_path_is_said(path: object) -> None:
    with pytest.raises(ArtifactError, match=r"by its path|can't be read"):
        cr.datasets.idx(path)  # type: ignore[arg-type]
