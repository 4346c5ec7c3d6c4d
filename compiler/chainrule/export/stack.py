"""How much stack a kernel takes: each function's frame from its assembly, summed along calls."""

from __future__ import annotations

import re

_BODY = re.compile(r"(?m)^(?=define )")
_DEFINE = re.compile(r'define [^@]*@"?([\w.$]+)"?\(')
_CALL = re.compile(r'call [^@\n]*@"?([\w.$]+)"?\(')
_TAKEN = re.compile(r'ptr @"?([\w.$]+)"?(?=[,)])')
_BY_ADDRESS = re.compile(r"call [^@%\n]*%")
_LABEL = re.compile(r'^"?_?([\w.$]+)"?:')
#: what makes room on the stack, and how many bytes a match says: by one pattern each
_X86 = (
    (re.compile(r"\tpush[ql]\t"), 8),
    (re.compile(r"\tsub[ql]\t\$(\d+), %[er]sp"), None),
    (re.compile(r"\tand[ql]\t\$-(\d+), %[er]sp"), None),
)
_ARM64 = (
    (re.compile(r"\tsub\tsp, sp, #(\d+)(?:, lsl #(\d+))?"), None),
    (re.compile(r"\tst[rp]\t.*\[sp, #-(\d+)\]!"), None),
)
_RISCV = ((re.compile(r"\taddi\tsp, sp, -(\d+)"), None),)
_ARM = (
    (re.compile(r"\tsub(?:\.w|w)?\tsp, (?:sp, )?#(\d+)"), None),
    (re.compile(r"\tpush(?:\.w)?\t\{([^}]*)\}"), 4),
    (re.compile(r"\tvpush\t\{([^}]*)\}"), 8),
)


def frames(assembly: str, arch: str) -> dict[str, int]:
    """The bytes that each function takes for itself, at most: paths are not told apart."""
    patterns = _RISCV if arch.startswith("riscv") else _X86
    if arch in ("aarch64", "arm64"):
        patterns = _ARM64  # type: ignore[assignment]
    elif arch.startswith(("arm", "thumb")):
        patterns = _ARM  # type: ignore[assignment]
    found: dict[str, int] = {}
    name = ""
    wasm = arch.startswith("wasm")
    lines = assembly.splitlines()
    for number, line in enumerate(lines):
        label = _LABEL.match(line)
        if label and not label[1].startswith((".L", "L", "Ltmp")):
            name = label[1]
            found[name] = 8 if arch.startswith("x86") else 0
        elif name and wasm:
            if line.startswith("\tglobal.get\t__stack_pointer"):
                room = re.match(r"\ti32\.const\t(\d+)", lines[number + 1])
                found[name] += int(room[1]) if room else 0
        elif name:
            found[name] += sum(_room(p, each, line) for p, each in patterns)
    return found


def _room(pattern: re.Pattern[str], each: int | None, line: str) -> int:
    match = pattern.match(line)
    if match is None:
        return 0
    if each is None:
        shift = int(match[2]) if match.lastindex == 2 else 0
        return int(match[1]) << shift
    if not match.lastindex:
        return each
    return sum(each * _registers(part.strip()) for part in match[1].split(","))


def _registers(part: str) -> int:
    ends = re.match(r"[a-z]+(\d+)\s*-\s*[a-z]+(\d+)", part)
    return int(ends[2]) - int(ends[1]) + 1 if ends else 1


def bounds(llvm: str, own: dict[str, int]) -> dict[str, int]:
    """The most stack that each function takes with all that it calls. No function calls itself.

    What is called by an address may be any function of the module whose address is taken.
    """
    bodies = {m[1]: body for body in _BODY.split(llvm)[1:] if (m := _DEFINE.match(body))}
    taken = {name for body in bodies.values() for name in _TAKEN.findall(body)} & bodies.keys()
    calls: dict[str, set[str]] = {}
    for name, body in bodies.items():
        calls[name] = set(_CALL.findall(body)) | (taken if _BY_ADDRESS.search(body) else set())
        calls[name] &= bodies.keys() - {name}
    total: dict[str, int] = {}
    stack = list(calls)
    while stack:
        name = stack[-1]
        waiting = [c for c in calls[name] if c not in total]
        if name in total or not waiting:
            inner = [total[c] for c in calls[name] if c in total]
            total[name] = own.get(name, 0) + max([0, *inner])
            stack.pop()
        else:
            stack += waiting
    return total
