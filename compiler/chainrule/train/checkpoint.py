"""Checkpoints: safetensors files, written whole or not at all, and verified when read.

What only a checkpoint needs of the standard library is imported where it is used: hashlib, json and
tempfile take a tenth of what importing chainrule takes.

The format is that of github.com/huggingface/safetensors: 8 bytes of length (little-endian), a JSON
header that says for each tensor its dtype, shape and bytes, and the bytes. `__metadata__` holds a
SHA-256 of tensors' descriptions and bytes, so that no damage goes unseen.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from chainrule.errors import ArtifactError
from chainrule.ir.types import dtype as dtype_of

Array = np.ndarray[Any, Any]
FORMAT, VERSION = "chainrule-checkpoint", "1"
_HEADER_LIMIT = 100_000_000
_CODES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F32": "float32", "F64": "float64",
    "BF16": "bfloat16",
}  # fmt: skip
_NAMES = {name: code for code, name in _CODES.items()}


def write(path: str | os.PathLike[str], tensors: Mapping[str, Array]) -> None:
    """Put tensors into a file, which is the old one or the whole new one at every moment.

    Raises ArtifactError where the file can't be written.
    """
    import tempfile

    target = os.path.realpath(_path(path))  # a link goes on pointing at the newest
    folder = os.path.dirname(target)
    data = encode(tensors)
    temporary = None
    try:
        if os.path.exists(target) and not os.path.isfile(target):
            raise ArtifactError(f"{target} is there already, and is no file")
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=".checkpoint.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _mode(target))
        os.replace(temporary, target)
        _sync_directory(folder)
    except OSError as error:
        raise ArtifactError(
            f"can't write {target}: {error.strerror or error}",
            f"it needs {len(data)} bytes; what was there before is untouched",
        ) from error
    finally:
        if temporary is not None:
            with suppress(FileNotFoundError):
                os.unlink(temporary)


def _path(path: str | os.PathLike[str]) -> str:
    """The path as text. Raises ArtifactError for what no file can be called."""
    try:
        text = os.fsdecode(path)
        os.fsencode(text)
    except (TypeError, UnicodeError):
        raise ArtifactError(f"a file is told by its path, not by {path!r}") from None
    if not text or "\0" in text:
        raise ArtifactError(f"no file can be called {text!r}")
    return text


def _mode(target: str) -> int:
    """The permissions of the file that is replaced, or those a new file gets."""
    with suppress(OSError):
        return stat.S_IMODE(os.stat(target).st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _sync_directory(folder: str) -> None:
    """Make a rename last through a power cut, where folders can be opened."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def encode(tensors: Mapping[str, Array]) -> bytes:
    """The bytes of a file of tensors."""
    import json

    entries: dict[str, Any] = {}
    parts: list[bytes] = []
    end = 0
    for name, array in tensors.items():
        little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
        part = little.tobytes()
        entries[name] = {
            "dtype": _NAMES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [end, end + len(part)],
        }
        end += len(part)
        parts.append(part)
    body = b"".join(parts)
    about = {"format": FORMAT, "version": VERSION, "sha256": _digest(entries, body)}
    header = json.dumps({"__metadata__": about, **entries}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + body


def _digest(entries: Mapping[str, Any], body: bytes | memoryview) -> str:
    import hashlib
    import json

    table = json.dumps(entries, sort_keys=True, separators=(",", ":")).encode()
    digest = hashlib.sha256(len(table).to_bytes(8, "little") + table)
    digest.update(body)
    return digest.hexdigest()


def read(path: str | os.PathLike[str]) -> dict[str, Array]:
    """The tensors of a file. Raises ArtifactError unless it is whole and was written by `write`."""
    source = _path(path)
    try:
        regular = stat.S_ISREG(os.stat(source).st_mode)
        data = memoryview(_bytes_of(source) if regular else b"")
    except OSError as error:
        raise ArtifactError(f"can't read {source}: {error.strerror or error}") from error
    if not regular:
        raise ArtifactError(f"{source} is no file")
    try:
        return _decode(data)
    except _Damaged as damage:
        raise ArtifactError(
            f"{source} is no checkpoint that can be trusted: {damage}", "it was not loaded"
        ) from None


def _bytes_of(source: str) -> bytes:
    with open(source, "rb") as file:
        return file.read()


class _Damaged(Exception):
    """Why bytes are not a checkpoint."""


def _decode(data: memoryview) -> dict[str, Array]:
    if len(data) < 8:
        raise _Damaged(f"it has {len(data)} bytes, a header's length alone takes 8")
    size = int.from_bytes(data[:8], "little")
    if size > min(_HEADER_LIMIT, len(data) - 8):
        raise _Damaged(f"its header would be {size} bytes, {len(data) - 8} follow")
    entries, body = _header(bytes(data[8 : 8 + size])), data[8 + size :]
    about = entries.pop("__metadata__", None)
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise _Damaged("chainrule has not written it")
    if about.get("version") != VERSION:
        raise _Damaged(f"it is of version {about.get('version')}, this reads version {VERSION}")
    if about.get("sha256") != _digest(entries, body):
        raise _Damaged("its content does not match its SHA-256 digest")
    tensors: dict[str, Array] = {}
    end = 0
    for name, entry in entries.items():
        tensors[name], end = _tensor(name, entry, body, end)
    if end != len(body):
        raise _Damaged(f"its tensors take {end} bytes of {len(body)}")
    return tensors


def _header(text: bytes) -> dict[str, Any]:
    import json

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise _Damaged(f"its header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise _Damaged("its header is no table")
    return header


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name stands twice")
    return table


def _tensor(name: str, entry: Any, body: memoryview, start: int) -> tuple[Array, int]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _Damaged(f"{name} is not described as a tensor")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    numbers = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) else [-1]
    if any(type(n) is not int or n < 0 for n in numbers) or len(offsets) != 2 or len(shape) > 32:
        raise _Damaged(f"{name} has no proper shape and place")
    if not isinstance(code, str) or code not in _CODES:
        raise _Damaged(f"{name} has elements of an unknown kind, {code!r}")
    native = dtype_of(_CODES[code]).numpy
    dtype = native.newbyteorder("<")
    if dtype.itemsize * math.prod(max(1, n) for n in shape) >= 2**63:
        raise _Damaged(f"{name} has a shape beyond every address")
    size = dtype.itemsize * math.prod(shape)
    if offsets[0] != start or offsets[1] - start != size or offsets[1] > len(body):
        raise _Damaged(f"{name} does not lie where its shape says")
    flat = np.frombuffer(body[start : start + size], dtype)
    return flat.reshape(shape).astype(native), start + size
