"""Compiled programs kept on disk, so that a program is compiled once on a machine.

A file is named by a digest of all that decides its bytes and holds that digest, one of its content
and the content; a file that does not agree with them is as good as none, and is written again. What
is loaded is run, so only files and folders that this user owns and nobody else may write are read.
Writers never share a file: each writes one of its own and renames it, which is atomic.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np

from chainrule import config
from chainrule.version import __version__

MAGIC = b"chainrule object 2\n"
_DIGEST = 32
#: bytes that the folder may hold before what was not used for longest is removed, down to 3/4
LIMIT = 512 * 2**20
#: folders whose source decides what a graph, or a loss with its optimizer, becomes
_ROOMS = (
    "target", "ir", "ops", "autodiff", "rewrite", "schedule", "loops", "codegen", "driver", "lang",
    "nn", "nn/optim", "train",
)  # fmt: skip
_SUFFIX, _PART = ".object", ".part"
_ABANDONED = 3600.0  # seconds after which a writer that has not finished never will


def key_of(parts: Iterable[str]) -> bytes:
    """The name of what is made from some texts by this very compiler: 32 bytes."""
    digest = hashlib.sha256(_compiler())
    for part in parts:
        data = part.encode()
        digest.update(b"%d:" % len(data))
        digest.update(data)
    return digest.digest()


@lru_cache(maxsize=1)
def _compiler() -> bytes:
    """A digest of this compiler: its version, LLVM's and NumPy's, and its source."""
    from llvmlite import __version__ as llvmlite
    from llvmlite import binding

    others = f"{llvmlite} {binding.llvm_version_info} {np.__version__}"
    digest = hashlib.sha256(f"{__version__} {others}".encode())
    package = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    for room in _ROOMS:
        folder = os.path.join(package, room)
        for name in sorted(n for n in os.listdir(folder) if n.endswith(".py")):
            data = _content(os.path.join(folder, name))
            digest.update(f"{room}/{name} {len(data)}:".encode())
            digest.update(data)
    return digest.digest()


def _content(path: str) -> bytes:
    """A small file's bytes, at a third of what `open` takes: there are hundreds."""
    file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        return b"".join(iter(lambda: os.read(file, 2**20), b""))
    finally:
        os.close(file)


class ObjectCache:
    """A folder of object files by key."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: bytes) -> bytes | None:
        """What was kept under the key; None where nothing, or nothing that can be trusted, is."""
        path = self._path(key)
        try:
            if not is_ours(os.stat(self.folder)):
                return None
            with open(os.open(path, os.O_RDONLY | _NO_LINKS), "rb") as file:
                status = os.fstat(file.fileno())
                if not (is_ours(status) and stat.S_ISREG(status.st_mode)):
                    return None
                data = file.read()
        except OSError:
            return None
        head = MAGIC + key
        content = data[len(head) + _DIGEST :]
        if data[: len(head) + _DIGEST] != head + hashlib.sha256(content).digest():
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # it was used: the oldest are removed first
        return content

    def put(self, key: bytes, content: bytes) -> bool:
        """Keep something; whether that went well. What can't be kept is compiled again.

        One thing may fill a quarter of the folder, such as a program with a large constant.
        """
        if len(content) > LIMIT // 4:
            return False
        import tempfile  # it imports much, and a process that finds all compiled writes nothing

        data = MAGIC + key + hashlib.sha256(content).digest() + content
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not is_ours(os.stat(self.folder)):
                return False
            handle, name = tempfile.mkstemp(dir=self.folder, suffix=_PART)
            try:
                with open(handle, "wb") as file:
                    file.write(data)
                os.replace(name, self._path(key))
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(name)
                raise
            self._prune()
        except OSError:
            return False
        return True

    def _path(self, key: bytes) -> Path:
        return self.folder / (key.hex() + _SUFFIX)

    def _prune(self) -> None:
        """Remove what dead writers left and, of too much, what was not used for longest."""
        now, found = time.time(), []
        for entry in os.scandir(self.folder):
            with contextlib.suppress(OSError):  # another process may have removed it
                status = entry.stat(follow_symlinks=False)
                if entry.name.endswith(_SUFFIX):
                    found.append((status.st_mtime, status.st_size, entry.path))
                elif entry.name.endswith(_PART) and now - status.st_mtime > _ABANDONED:
                    os.unlink(entry.path)
        total = sum(size for _, size, _ in found)
        aim = total if total <= LIMIT else LIMIT * 3 // 4
        for _, size, path in sorted(found):
            if total <= aim:
                return
            with contextlib.suppress(OSError):
                os.unlink(path)
            total -= size


#: neither follow a link nor wait for who writes a pipe
_NO_LINKS = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))


def is_ours(status: os.stat_result) -> bool:
    """Whether this user owns a file or folder and nobody else may write it."""
    if not hasattr(os, "geteuid"):
        return True  # a system without such owners keeps a user's folders apart by itself
    others = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return status.st_uid == os.geteuid() and not others


def object_cache() -> ObjectCache | None:
    """The cache that CHAINRULE_CACHE names; None where it is "off" or the user has no home."""
    folder = config.cache_folder()
    return None if folder is None else ObjectCache(folder)
