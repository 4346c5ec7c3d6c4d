"""Files of an export: archives, linking, and writing them whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from chainrule.errors import ArtifactError, CompileError
from chainrule.target import Target


def archive(member: str, data: bytes, symbols: Sequence[str]) -> bytes:
    """A static library of one object: the ar format, with the index of symbols that linkers read.

    System V's variant, as GNU ar and LLVM write it; dates and owners are 0, so that equal input
    gives equal bytes.
    """
    names = b"".join(s.encode() + b"\0" for s in symbols)
    index_size = 4 + 4 * len(symbols) + len(names)
    index_size += index_size % 2
    long = f"{member}/"
    table = b""
    if len(long) > 16:
        table = f"{member}/\n".encode()
        table += b"\n" * (len(table) % 2)
        long = "/0"
    start = 8 + 60 + index_size + (60 + len(table) if table else 0)
    offsets = start.to_bytes(4, "big") * len(symbols)
    index = len(symbols).to_bytes(4, "big") + offsets + names
    parts = [b"!<arch>\n", _member("/", index + b"\0" * (index_size - len(index)))]
    if table:
        parts.append(_member("//", table))
    parts.append(_member(long, data))
    return b"".join(parts)


def _member(name: str, data: bytes) -> bytes:
    head = f"{name:<16}{0:<12}{0:<6}{0:<6}{644:<8}{len(data):<10}`\n".encode()
    return head + data + (b"\n" if len(data) % 2 else b"")


#: what a linker is told besides: nothing of the system's goes in
_ELF = ("-shared", "-nostdlib", "-Wl,--build-id=none", "-Wl,-z,noexecstack")


def link(obj: bytes, name: str, target: Target, symbols: Sequence[str], native: bool) -> bytes:
    """A shared library, or a WebAssembly module. Raises CompileError where no linker is found."""
    import subprocess
    import tempfile

    commands = _linkers(target, name, symbols, native)
    if not commands:
        raise CompileError(*without_linker(target), 'or leave it out: formats=("o", "a", "h")')
    with tempfile.TemporaryDirectory(prefix="chainrule-") as folder:
        source, result = Path(folder, f"{name}.o"), Path(folder, "linked")
        source.write_bytes(obj)
        said = ""
        for command in commands:
            run = subprocess.run(
                [*command, str(source), *_into(target, result)],
                capture_output=True, text=True, cwd=folder,
            )  # fmt: skip
            if run.returncode == 0:
                return result.read_bytes()
            said = run.stderr.strip() or f"{command[0]} ended with {run.returncode}"
    raise CompileError(f"the linker refuses the code for {target.triple}", *said.splitlines()[:5])


def _into(target: Target, result: Path) -> list[str]:
    if target.format == "COFF":
        return [f"/out:{result}"]
    if target.format == "Mach-O":
        return [f"-femit-bin={result}", "--cache-dir", "cache", "--global-cache-dir", "cache"]
    return ["-o", str(result)]


def has_linker(target: Target, native: bool) -> bool:
    """Whether something here links for a target."""
    return bool(_linkers(target, "net", ["net_step"], native))


def without_linker(target: Target) -> tuple[str, str]:
    """That nothing does, and what would."""
    tools = {"Mach-O": "", "COFF": "lld-link or ", "Wasm": "wasm-ld or "}
    found = tools.get(target.format, "cc, ld.lld or ")
    return f"no linker for {target.triple} is found here: {found}ziglang", "pip install ziglang"


def _linkers(target: Target, name: str, symbols: Sequence[str], native: bool) -> list[list[str]]:
    """Commands that link for a target, the most usual first; the object and -o follow."""
    import shutil
    import sys
    from importlib.util import find_spec

    zig = [sys.executable, "-m", "ziglang"] if find_spec("ziglang") else []
    if target.arch == "wasm32":
        exports = [f"--export={s}" for s in (*symbols, "__heap_base")]
        words = ["--no-entry", "--strip-all", "--export-memory", "-z", "stack-size=65536"]
        tools = [[t] for t in (shutil.which("wasm-ld"),) if t] + (
            [[*zig, "wasm-ld"]] if zig else []
        )
        return [[*tool, *words, *exports] for tool in tools]
    if target.format == "COFF":
        # a mark that C libraries define for code with floats; nothing reads it
        mark = f"/alternatename:_fltused={symbols[0]}"
        words = ["/dll", "/noentry", "/nologo", "/Brepro", mark, *(f"/export:{s}" for s in symbols)]
        tools = [[t] for t in (shutil.which("lld-link"),) if t] + [[*zig, "lld-link"]] * bool(zig)
        return [[*tool, *words] for tool in tools]
    if target.format == "Mach-O":
        # the oldest systems that are; no C library, which would be built first
        system = {"arm64": "aarch64-macos.11.0"}.get(target.arch, f"{target.arch}-macos.10.15")
        words = ["build-lib", "-dynamic", "-target", system, "-fno-compiler-rt", "-fno-ubsan-rt",
                 "-O", "ReleaseSmall", "-install_name", f"@rpath/{name}.dylib"]  # fmt: skip
        return [[*zig, *words]] * bool(zig)
    found = []
    compilers = [shutil.which(f"{target.arch}-linux-gnu-gcc")]
    if native:
        compilers = [shutil.which("cc"), shutil.which("gcc"), shutil.which("clang")]
    found += [[c, *_ELF, f"-Wl,-soname,{name}.so"] for c in compilers if c]
    plain = ["-shared", "--build-id=none", "-z", "noexecstack", "-soname", f"{name}.so"]
    lld = shutil.which("ld.lld")
    found += [[lld, *plain]] if lld else []
    found += [[*zig, "ld.lld", *plain]] if zig else []
    return found


def write(folder: str | os.PathLike[str], files: Mapping[str, bytes]) -> dict[str, Path]:
    """Put files into a folder, which is made; each is the old one or the new one at every moment.

    Raises ArtifactError where that can't be.
    """
    try:
        where = Path(os.fsdecode(folder))
        where.mkdir(parents=True, exist_ok=True)
    except (OSError, TypeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ArtifactError(f"can't make the folder {folder!r}: {reason}") from None
    return {name: _write(where, name, data) for name, data in files.items()}


def _write(folder: Path, name: str, data: bytes) -> Path:
    import tempfile

    path, temporary = folder / name, None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            raise ArtifactError(f"{path} is there already, and is no file")
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".export.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except OSError as error:
        raise ArtifactError(
            f"can't write {path}: {error.strerror or error}", f"it needs {len(data)} bytes"
        ) from None
    finally:
        if temporary is not None:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
    return path
