"""Files of exported kernels: read, verified, and only then mapped into this process.

A shared library runs code when it is mapped, so everything that can be known is asked before: that
its manifest tells of it, that its bytes have the digest which stands there, and that it is for this
machine. What is mapped are the bytes that were looked at, not the file, which may change.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from contextlib import suppress
from typing import Any

from chainrule_runtime.errors import ArtifactError

FORMAT, ABI = "chainrule-kernel", 1
_LARGEST_MANIFEST = 64 << 20
#: what ELF calls a machine (e_machine), by the names that systems call it
_MACHINES = {
    "x86_64": 62, "amd64": 62, "aarch64": 183, "arm64": 183, "riscv64": 243, "armv7l": 40,
}  # fmt: skip


def read(path: str | os.PathLike[str]) -> tuple[bytes, dict[str, Any]]:
    """A library's bytes and what it tells of itself in them, which NAME_describe gives.

    Raises ArtifactError unless the manifest beside tells of those bytes, and the same as they do.
    """
    source = path_of(path)
    import hashlib

    library = bytes_of(source)
    base, _ = os.path.splitext(source)
    beside = base + ".json"
    manifest = _manifest(beside, bytes_of(beside, _LARGEST_MANIFEST))
    name = os.path.basename(source)
    digests = manifest.get("sha256")
    wanted = digests.get(name) if isinstance(digests, dict) else None
    if wanted is None:
        raise ArtifactError(f"{beside} does not tell of {name}", 'export it with format "so"')
    if wanted != hashlib.sha256(library).hexdigest():
        raise ArtifactError(
            f"{source} is not the file that {beside} tells of: its SHA-256 is another",
            "it is damaged, or was exported at another time: export both again",
        )
    _check_machine(source, library)
    own = _inside(source, library)
    if any(key not in manifest or manifest[key] != value for key, value in own.items()):
        raise ArtifactError(f"the manifest beside {source} tells of another kernel")
    return library, own


def _inside(source: str, library: bytes) -> dict[str, Any]:
    """The manifest that lies in a library, as far as it was known before that was compiled."""
    begin = library.find(b'{"format": "%b"' % FORMAT.encode())
    end = library.find(b"\0", begin)
    if begin < 0 or end < 0:
        raise ArtifactError(f"{source} is a shared library, but no kernel of chainrule")
    return _manifest(source, library[begin:end])


def path_of(path: str | os.PathLike[str]) -> str:
    """A path as text. Raises ArtifactError for what is none."""
    try:
        text = os.fsdecode(path)
        os.fsencode(text)
    except (TypeError, UnicodeError):
        raise ArtifactError(f"a file is told by its path, not by {path!r}") from None
    if not text or "\0" in text:
        raise ArtifactError(f"no file can be called {text!r}")
    return text


def bytes_of(source: str, most: int | None = None, kind: str = "a manifest") -> bytes:
    """What a file holds, `most` bytes for its kind. Raises ArtifactError for what is no file."""
    try:
        about = os.stat(source)
        if not stat.S_ISREG(about.st_mode):
            raise ArtifactError(f"{source} is no file")
        if most is not None and about.st_size > most:
            raise ArtifactError(f"{source} has {about.st_size} bytes, too many for {kind}")
        with open(source, "rb") as file:
            return file.read()
    except ArtifactError:
        raise
    except OSError as error:
        raise ArtifactError(f"can't read {source}: {error.strerror or error}") from None


def _manifest(source: str, text: bytes) -> dict[str, Any]:
    import json

    try:
        found = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):
        raise ArtifactError(f"{source} is no manifest: it is not JSON") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ArtifactError(f"{source} is no manifest of a kernel of chainrule")
    if found.get("abi") != ABI:
        raise ArtifactError(
            f"{source} is of version {found.get('abi')} of the interface, this reads {ABI}"
        )
    return found


def _check_machine(source: str, library: bytes) -> None:
    import platform

    here = platform.machine().lower()
    if library[:4] != b"\x7fELF":
        raise ArtifactError(f"{source} is no shared library of this system: it is not ELF")
    if len(library) < 64 or library[5] != 1:
        raise ArtifactError(f"{source} is no whole ELF file of little-endian words")
    kind, machine = struct.unpack_from("<HH", library, 16)
    if kind != 3:
        raise ArtifactError(f"{source} is ELF, but no shared library", 'load the file "NAME.so"')
    if _MACHINES.get(here) != machine:
        made = [name for name, number in _MACHINES.items() if number == machine]
        raise ArtifactError(
            f"{source} is for {made[0] if made else f'machine {machine}'}, this is {here}",
            f'export it with target="{here}-linux-gnu"',
        )


def mapped(source: str, library: bytes) -> ctypes.CDLL:
    """The library in this process, from just these bytes. Raises ArtifactError."""
    import tempfile

    name = None
    try:
        handle, name = tempfile.mkstemp(prefix="chainrule-", suffix=".so")  # ours alone: mode 0600
        with os.fdopen(handle, "wb") as file:
            file.write(library)
        return ctypes.CDLL(name)
    except OSError as error:
        raise ArtifactError(f"the system does not load {source}: {error}") from None
    finally:
        if name is not None:
            with suppress(OSError):
                os.unlink(name)
