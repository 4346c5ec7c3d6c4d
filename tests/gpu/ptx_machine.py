"""Run PTX as a GPU does: every instruction that our kernels have, over all threads of a launch.

Threads whose turn it is are those furthest behind, so that they come together again where their
ways meet; barriers hold a thread until those it waits for are there. What is not known is refused.
The meaning of instructions is that of "PTX ISA 9.0", NVIDIA, 2025.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ptx_engine import Engine

from chainrule.ir.machine import MACHINE

Array = np.ndarray[Any, Any]
_KINDS = {
    **{f"{k}{n}": np.dtype(f"{'i' if k == 's' else 'u'}{n // 8}")
       for k in "sub" for n in (8, 16, 32, 64)},
    "f32": np.dtype("f4"), "f64": np.dtype("f8"), "pred": np.dtype(bool),
}  # fmt: skip
_LINE = re.compile(r"(?:@(!?)(%p\d+|\w+)\s+)?([a-z][\w.:]*)\s*(.*);$")
_TWO: dict[str, Callable[[Array, Array], Array]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "and": np.bitwise_and,
    "or": np.bitwise_or, "xor": np.bitwise_xor,
}  # fmt: skip
_TF32 = "m16n8k8.row.col.f32.tf32.tf32.f32"
_TESTS: dict[str, Callable[[Array, Array], Array]] = {
    "eq": np.equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "nan": lambda a, b: np.isnan(a) | np.isnan(b), "num": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
    "ne": lambda a, b: (a != b) & ~(np.isnan(a) | np.isnan(b)) if a.dtype.kind == "f" else a != b,
    "neu": np.not_equal, "equ": lambda a, b: (a == b) | np.isnan(a) | np.isnan(b),
    "ltu": lambda a, b: ~(a >= b), "leu": lambda a, b: ~(a > b),
    "gtu": lambda a, b: ~(a <= b), "geu": lambda a, b: ~(a < b),
}  # fmt: skip


@dataclass
class Kernel:
    """The instructions of a kernel, where its labels stand, its parameters, its shared memory."""

    name: str
    parameters: list[str]
    code: list[tuple[str, str, list[str], list[str]]] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    shared: dict[str, int] = field(default_factory=dict)
    shared_bytes: int = 0


def parse(ptx: str) -> dict[str, Kernel]:
    """The kernels of a module by name."""
    found: dict[str, Kernel] = {}
    asked = re.findall(r"\.extern \.shared \.align 1024 \.b8 ([\w.$]+)\[\];", ptx)
    heads = re.finditer(r"\.visible \.entry ([\w.$]+)\(([^)]*)\)\s*\{(.*?)\n\}", ptx, re.S)
    for name, parameters, body in (m.groups() for m in heads):
        kernel = Kernel(name, re.findall(r"(\w+_param_\d+)", parameters))
        body = re.sub(r"\{ \.reg \.b32 tmp; (.*?;) \}", r"\1", body)  # a half that nobody reads
        body = re.sub(r"mma\.sync[^;]*;", lambda m: " ".join(m[0].split()), body)
        for line in (one.split("//")[0].strip() for one in body.splitlines()):
            if m := re.match(r"\.shared \.align \d+ \.b8 ([\w.$]+)\[(\d+)\];", line):
                kernel.shared[m[1]] = kernel.shared_bytes
                kernel.shared_bytes += -(-int(m[2]) // 16) * 16
            elif m := re.match(r"([$\w]+):$", line):
                kernel.labels[m[1]] = len(kernel.code)
            elif m := _LINE.match(line):
                operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", m[4])
                kernel.code.append(((m[1] or "") + (m[2] or ""), m[3], m[3].split("."), operands))
            elif line and not line.startswith(".reg") and line not in "{}":
                raise NotImplementedError(line)
        # what is asked for at launch begins behind a kernel's own, and what the system takes
        kernel.shared |= {n: 1024 + -(-kernel.shared_bytes // 1024) * 1024 for n in asked}
        found[name] = kernel
    return found


class Machine(Engine):
    """A launch of a kernel; `memory(address, size)` gives the bytes at an address of the GPU, and
    `asked` are bytes of shared memory beside the kernel's own.
    """

    def __init__(
        self,
        kernel: Kernel,
        blocks: int,
        threads: int,
        arguments: Sequence[int],
        memory: Mapping[int, Array],
        asked: int = 0,
    ) -> None:
        self.kernel, self.memory = kernel, memory
        self.count = blocks * threads
        number = np.arange(self.count)
        self.block, self.thread = number // threads, number % threads
        self.registers: dict[str, Array] = {}
        self.given = dict(zip(kernel.parameters, arguments, strict=True))
        size = max(
            [16, kernel.shared_bytes, *(at + asked for at in kernel.shared.values() if asked)]
        )
        self.shared = np.full((blocks, size), 0xFF, np.uint8)
        self.at = np.zeros(self.count, np.int64)
        self.waits = np.zeros(self.count, bool)  # for all threads of the block
        self.held = np.zeros(self.count, bool)  # for a few of the warp
        self.warp = self.block * 1000 + self.thread // 32
        self.mask = np.ones(self.count, bool)
        self.groups = np.zeros(self.count, np.int64)  # of copies, that each thread has closed
        self.coming: list[tuple[Array, Array, Array, Array]] = []
        self.start()

    def run(self) -> None:
        """To the end of every thread."""
        end = len(self.kernel.code)
        with np.errstate(all="ignore"):
            while True:
                able = (self.at < end) & ~self.waits & ~self.held
                ready = able & ~self.asking  # who was told to ask again lets others go first
                if not ready.any() and able.any():
                    self.idle += 1
                    assert self.idle < 4, f"{self.kernel.name}: threads ask for ever"
                    self.asking[:] = False
                    continue
                if not ready.any():
                    assert not (self.waits | self.held).any(), (
                        f"{self.kernel.name}: threads wait for ever"
                    )
                    done = not self.coming and self.finished()
                    assert done, f"{self.kernel.name}: nobody waits for copies"
                    return
                here = int(self.at[ready].min())
                self.mask = ready & (self.at == here)
                self.step(*self.kernel.code[here], end)

    def step(self, guard: str, text: str, word: list[str], operands: list[str], end: int) -> None:
        """One instruction, for the threads whose turn it is."""
        if text == "bar.warp.sync" or word[0] == "shfl":
            members = self.read(operands[-1], "u32")
            self.mask = self.assembled(members)
        elif word[0] == "wgmma":
            self.mask = self.gathered()
        ready = self.mask.copy()
        if not ready.any():
            return
        self.at[ready] += 1
        if guard:
            held = self.registers[guard.lstrip("!")]
            self.mask = self.mask & (~held if guard[0] == "!" else held)
        if word[0] == "bra":
            self.at[self.mask] = self.kernel.labels[operands[0]]
        elif word[0] == "ret":
            self.at[self.mask] = end
            self.release()
        elif text == "bar.sync":
            self.waits[self.mask] = True
            self.release()
        elif text != "bar.warp.sync":
            self.compute(text, word, operands)
        self.mask = ready

    def release(self) -> None:
        """Let those go on of whose blocks all threads that live wait."""
        living = self.at < len(self.kernel.code)
        for block in np.unique(self.block[self.waits]):
            mine = (self.block == block) & living
            if self.waits[mine].all():
                self.waits[mine] = False

    def assembled(self, members: Array) -> Array:
        """Those whose fellow members have all come to the instruction; the others wait there."""
        here = self.at == self.at[self.mask][0]
        come = here & (self.mask | self.held)
        bits = np.where(come, np.uint32(1) << (self.thread % 32).astype("u4"), np.uint32(0))
        all_of = np.bitwise_or.reduceat(bits, np.flatnonzero(self.thread % 32 == 0))
        whole = come & (members & ~np.repeat(all_of, 32) == 0)
        self.held[come] = ~whole[come]
        return whole

    def gathered(self) -> Array:
        """Those of whose group of four warps all have come; a warp comes as one."""
        warps = self.mask.reshape(-1, 32)
        assert warps[warps.any(axis=1)].all(), "not all of a warp"
        come = (self.at == self.at[self.mask][0]) & (self.mask | self.held)
        whole = come & np.repeat(come.reshape(-1, 128).all(axis=1), 128)
        self.held[come] = ~whole[come]
        return whole

    # instructions

    def compute(self, text: str, word: list[str], operands: list[str]) -> None:
        op, kind = word[0], word[-1]
        if op in ("tensormap", "fence", "mbarrier", "wgmma") or text.startswith("cp.async.bulk"):
            self.engine(text, word, operands)
        elif text.startswith("cp.async"):
            self.copy_later(word, operands)
        elif op in ("ld", "st"):
            self.access(op, word, operands)
        elif op == "ldmatrix":
            self.load_matrices(word, operands)
        elif op == "shfl":
            self.write(operands[0], self.shuffled(word[2], operands), "b32")
        elif op == "mma":
            kind = text.removeprefix("mma.sync.aligned.")
            assert kind in ("m16n8k16.row.col.f32.bf16.bf16.f32", _TF32), text
            self.multiply(operands, kind == _TF32)
        elif op == "setp":
            a, b = (self.read(o, kind) for o in operands[1:])
            self.write(operands[0], _TESTS[word[1]](a, b), "pred")
        elif text == "cvt.rna.tf32.f32":
            self.write(operands[0], _to_tf32(self.read(operands[1], "f32")).view("u4"), "b32")
        elif op == "cvt":
            self.write(operands[0], self.converted(word, operands[1]), word[-2])
        elif op == "mov" and operands[1].startswith("{"):
            low, high = (self.read(o, "b32").astype("u8") for o in _parts(operands[1]))
            self.write(operands[0], low | high << np.uint64(32), "b64")
        elif op == "mov" and operands[0].startswith("{"):
            whole = self.read(operands[1], "b64")
            for o, shift in zip(_parts(operands[0]), (0, 32), strict=True):
                if o != "tmp":
                    self.write(o, (whole >> np.uint64(shift)).astype("u4"), "b32")
        elif op in ("mov", "cvta"):
            self.write(operands[0], self.read(operands[1], kind), kind)
        elif op == "selp":
            a, b = (self.read(o, kind) for o in operands[1:3])
            self.write(operands[0], np.where(self.read(operands[3], "pred"), a, b), kind)
        else:
            values = [self.read(o, "u32" if op in ("shl", "shr", "bfe") and i else kind)
                      for i, o in enumerate(operands[1:])]  # fmt: skip
            wide = {"s32": "s64", "u32": "u64", "u16": "u32", "s16": "s32"}
            to = wide[kind] if "wide" in word else kind
            self.write(operands[0], self.arithmetic(text, word, to, values), to)

    def arithmetic(self, text: str, word: list[str], to: str, x: list[Array]) -> Array:
        op, kind = word[0], _KINDS[to]
        assert "ftz" not in word and "approx" not in word, text
        if "wide" in word:
            return x[0].astype(kind) * x[1].astype(kind)
        if "hi" in word:
            bits = kind.itemsize * 8
            exact = x[0].astype(object) * x[1].astype(object)
            return np.array([int(v) >> bits for v in exact], object).astype(kind)
        if op in _TWO:
            return _TWO[op](*x)
        if op == "fma":
            exact = np.zeros(self.count, kind)
            exact[self.mask] = MACHINE["fma"].ref(*(v[self.mask] for v in x))
            return exact
        if op == "mad":
            return x[0] * x[1] + x[2]
        if op == "div" and kind.kind != "f":
            return _quotient(*x)
        if op == "rem":
            return x[0] - _quotient(*x) * x[1]
        if op in ("min", "max") and kind.kind == "f":
            return np.fmin(*x) if op == "min" else np.fmax(*x)
        if op in ("shl", "shr"):
            return _shifted(op, *x)
        if op == "shf":
            assert "wrap" in word, text
            both, by = x[0].astype("u8") | x[1].astype("u8") << np.uint64(32), x[2] & np.uint64(31)
            moved = (both << by) >> np.uint64(32) if "l" in word else both >> by
            return moved.astype(kind)
        if op == "prmt":
            eight = np.stack(
                [v >> np.uint32(8 * i) & np.uint32(255) for v in x[:2] for i in range(4)]
            )
            picks = [x[2] >> np.uint32(4 * i) & np.uint32(15) for i in range(4)]
            assert all((p < 8).all() for p in picks), text
            bytes_ = [np.take_along_axis(eight, p[None].astype(int), 0)[0] for p in picks]
            return sum((b << np.uint32(8 * i) for i, b in enumerate(bytes_)), np.zeros_like(x[0]))
        if op == "bfe":
            return x[0] >> x[1].astype(kind) & ((kind.type(1) << x[2].astype(kind)) - kind.type(1))
        simple: dict[str, Callable[..., Array]] = {
            "div": np.divide, "sqrt": np.sqrt, "neg": np.negative, "abs": np.abs, "min": np.minimum,
            "max": np.maximum, "copysign": lambda a, b: np.copysign(b, a), "not": np.invert,
            "rcp": lambda a: np.divide(kind.type(1), a),
        }  # fmt: skip
        return simple[op](*x)

    def converted(self, word: list[str], operand: str) -> Array:
        value, to = self.read(operand, word[-1]), _KINDS[word[-2]]
        if value.dtype.kind == "f" and to.kind != "f":
            assert "rzi" in word
            limits = np.iinfo(to)
            whole = np.trunc(np.nan_to_num(value, nan=0.0))
            clipped = [min(max(int(v), limits.min), limits.max) if np.isfinite(v)
                       else (limits.max if v > 0 else limits.min) for v in whole]  # fmt: skip
            return np.array(clipped, object).astype(to)
        return value.astype(to)

    def shuffled(self, how: str, operands: list[str]) -> Array:
        value, b, c, _ = (self.read(o, "u32").astype(np.int64) for o in operands[1:])
        lane = self.thread % 32
        segment = c >> 8 & 31
        last = (lane & segment) | (c & 31 & ~segment)
        source = lane + b if how == "down" else (lane & segment) | (b & ~segment & 31)
        source = np.where(source <= last, source, lane)
        index = np.arange(self.count) - lane + source
        assert self.mask[index[self.mask]].all(), "a lane reads what no lane gives"
        return value[np.clip(index, 0, self.count - 1)].astype("u4")

    def load_matrices(self, word: list[str], operands: list[str]) -> None:
        """ldmatrix: lane 8i + r gives the address of row r of matrix i, 16 bytes; lane 4r + c of
        the warp gets of each matrix the four bytes c of row r.
        """
        assert word[1:4] == ["sync", "aligned", "m8n8"] and word[5:] == ["shared", "b16"], word
        names, lane = _parts(operands[0]), np.arange(self.count) % 32
        assert word[4] == f"x{len(names)}"
        at, warp = self.address(operands[1]).astype(np.int64), np.arange(self.count) - lane
        assert self.mask.reshape(-1, 32).all(axis=1)[self.mask.reshape(-1, 32).any(axis=1)].all()
        for i, name in enumerate(names):
            row = at[warp + 8 * i + lane // 4]
            assert (row[self.mask] % 16 == 0).all(), "misaligned"
            assert (row[self.mask] + 16 <= self.shared.shape[1]).all(), "outside shared memory"
            place = np.where(self.mask, row + lane % 4 * 4, 0)
            found = self.shared[self.block[:, None], place[:, None] + np.arange(4)]
            self.write(name, np.ascontiguousarray(found).view("u4")[:, 0], "b32")

    def multiply(self, operands: list[str], tf32: bool) -> None:
        """Fragments as "PTX ISA 9.0" draws them, element by element; sums in float64."""
        d, a, b, c = map(_parts, operands)
        assert self.mask.reshape(-1, 32).all(axis=1)[self.mask.reshape(-1, 32).any(axis=1)].all()
        group, inside = np.arange(32) // 4, np.arange(32) % 4
        warps = self.count // 32
        left, right, sums = (np.zeros((warps, *s)) for s in ((16, 16), (16, 8), (16, 8)))

        def halves(names: list[str]) -> list[Array]:
            words = [self.read(o, "u32").reshape(warps, 32) for o in names]
            bits = [h for w in words for h in (w << np.uint32(16), w & np.uint32(0xFFFF0000))]
            return [h.astype("u4").view("f4") for h in bits]

        if tf32:
            numbers = [self.read(o, "u32").reshape(warps, 32).view("f4") for o in (*a, *b)]
            for i, value in enumerate(numbers[:4]):
                whole = np.isnan(value) | (value.view("u4") & 0x1FFF == 0)
                assert whole.all(), "a factor that is not rounded"
                left[:, group + 8 * (i % 2), inside + 4 * (i // 2)] = value
            for i, value in enumerate(numbers[4:]):
                right[:, inside + 4 * i, group] = value
        for i, value in enumerate([] if tf32 else halves(a)):
            row = group if i in (0, 1, 4, 5) else group + 8
            left[:, row, inside * 2 + (i & 1) + (8 if i >= 4 else 0)] = value
        for i, value in enumerate([] if tf32 else halves(b)):
            right[:, inside * 2 + (i & 1) + (8 if i >= 2 else 0), group] = value
        place = [(group if i < 2 else group + 8, inside * 2 + (i & 1)) for i in range(4)]
        for (row, column), o in zip(place, c, strict=True):
            sums[:, row, column] = self.read(o, "f32").reshape(warps, 32)
        sums += left @ right
        for (row, column), o in zip(place, d, strict=True):
            self.write(o, sums[:, row, column].reshape(-1).astype("f4"), "f32")

    def copy_later(self, word: list[str], operands: list[str]) -> None:
        """cp.async: what is asked for is closed as a group, and there once it was waited for."""
        if word[2] == "commit_group":
            self.groups[self.mask] += 1
        elif word[2] == "wait_group":
            left = []
            for thread, at, data, group in self.coming:
                here = self.mask[thread] & (group < self.groups[thread] - int(operands[0]))
                blocks = self.block[thread[here]][:, None]
                self.shared[blocks, at[here][:, None] + np.arange(data.shape[1])] = data[here]
                if not here.all():
                    left.append((thread[~here], at[~here], data[~here], group[~here]))
            self.coming = left
        else:
            size = int(operands[2])
            to, source = (self.address(o) for o in operands[:2])
            assert word[2:] in (["cg", "shared", "global"], ["ca", "shared", "global"]), word
            assert size == 16 or word[2] == "ca"
            rows = np.flatnonzero(self.mask)
            assert (to[rows] % size == 0).all() and (source[rows] % size == 0).all(), "misaligned"
            assert (to[rows] + size <= self.shared.shape[1]).all(), "outside shared memory"
            data = np.zeros((self.count, size), np.uint8)
            for i in range(size):
                at = source + np.uint64(i)
                for mine, bytes_, first in self.places("global", at, 1):
                    data[mine, i] = bytes_[(at[mine] - np.uint64(first)).astype(np.int64)]
            where = to[rows].astype(np.int64)
            self.shared[self.block[rows][:, None], where[:, None] + np.arange(size)] = 0xFF
            self.coming.append((rows, where, data[rows], self.groups[rows]))

    def address(self, operand: str) -> Array:
        base, _, offset = operand.strip("[]").partition("+")
        return self.read(base, "u64") + np.uint64(int(offset or 0) & (1 << 64) - 1)

    def access(self, op: str, word: list[str], operands: list[str]) -> None:
        where, values = (operands[1], operands[0]) if op == "ld" else (operands[0], operands[1])
        base = where.strip("[]").partition("+")[0]
        if word[1] == "param":
            full = np.full(self.count, self.given[base], np.uint64)
            self.write(values, full.view(_KINDS["b64"]), "b64")
            return
        kind = _KINDS[word[-1]]
        start = self.address(where)
        parts = _parts(values) if values.startswith("{") else [values]
        assert (start[self.mask] % np.uint64(kind.itemsize * len(parts)) == 0).all(), "misaligned"
        for i, part in enumerate(parts):
            at = start + np.uint64(i * kind.itemsize)
            lane = np.zeros(self.count, kind)
            if op == "st":
                lane = self.read(part, word[-1])
            for rows, bytes_, first in self.places(word[1], at, kind.itemsize):
                view = bytes_.view(kind)
                index = ((at[rows] - np.uint64(first)) // np.uint64(kind.itemsize)).astype(np.int64)
                if op == "ld":
                    lane[rows] = view[index]
                else:
                    view[index] = lane[rows]
                    if word[1] == "shared":
                        self.mark(rows, at, kind.itemsize)
            if op == "ld":
                self.write(part, lane, word[-1])

    def mark(self, rows: Array, at: Array, size: int) -> None:
        """Bytes of shared memory that threads have written, which no fence has shown to engines."""
        threads = np.flatnonzero(rows)
        where = at[threads].astype(np.int64)[:, None] + np.arange(size)
        self.unfenced[self.block[threads][:, None], where] = threads[:, None] + 1

    def places(self, space: str, at: Array, size: int) -> list[tuple[Array, Array, int]]:
        """Which threads, the memory they mean, and the address of its first byte."""
        if space == "shared":
            size_of = self.shared.shape[1]
            assert (at[self.mask] + np.uint64(size) <= size_of).all(), "outside shared memory"
            blocks = np.unique(self.block[self.mask])
            return [(self.mask & (self.block == b), self.shared[b], 0) for b in blocks]
        assert space == "global", space
        found, left = [], self.mask.copy()
        for first, block in self.memory.items():
            rows = left & (at >= first) & (at + np.uint64(size) <= first + len(block))
            if rows.any():
                used = len(block) // size * size
                found.append((rows, block[:used], first))
                left &= ~rows
        assert not left.any(), f"{self.kernel.name}: outside memory"
        return found

    # operands

    def read(self, operand: str, kind: str) -> Array:
        to = _KINDS[kind]
        if operand.startswith("%") and operand not in ("%tid.x", "%ctaid.x"):
            held = self.registers.get(operand)
            if held is None:
                return np.zeros(self.count, to)
            self.is_free(operand)
            if "b" in (to.kind, held.dtype.kind):
                return held
            if held.dtype.itemsize == to.itemsize:
                return held.view(to)
            return held.view(f"u{held.dtype.itemsize}").astype(f"u{to.itemsize}").view(to)
        return np.full(self.count, 0, to) + self.constant(operand, to)

    def constant(self, operand: str, to: np.dtype[Any]) -> Any:
        if operand == "%tid.x":
            return self.thread.astype(to)
        if operand == "%ctaid.x":
            return self.block.astype(to)
        if operand in self.kernel.shared:
            return to.type(self.kernel.shared[operand])
        if operand[:2] in ("0d", "0f"):
            bits = int(operand[2:], 16)
            return np.array(bits, f"u{to.itemsize}").view(to)[()]
        number = int(operand.rstrip("U"), 0)
        return np.array(number & (1 << 8 * to.itemsize) - 1, f"u{to.itemsize}").view(to)[()]

    def write(self, operand: str, value: Array, kind: str) -> None:
        to = _KINDS[kind]
        value = np.broadcast_to(np.asarray(value).astype(to, copy=False), (self.count,))
        if to.kind != "b" and to.itemsize == 1:  # registers have 16 bits at least
            value = value.astype("i2" if to.kind == "i" else "u2")
        if operand.startswith("%rd"):
            value = value.astype("i8" if value.dtype.kind == "i" else value.dtype)
        elif (
            operand.startswith("%r") and not operand.startswith("%rs") and value.dtype.itemsize < 4
        ):
            value = value.astype("i4" if value.dtype.kind == "i" else "u4")
        held = self.registers.get(operand)
        raw = value if to.kind == "b" else value.view(f"u{value.dtype.itemsize}")
        if held is None or held.dtype != raw.dtype:
            held = self.registers[operand] = np.zeros(self.count, raw.dtype)
        held[self.mask] = raw[self.mask]
        self.is_free(operand)
        self.changed.setdefault(operand, np.zeros(self.count, bool))[self.mask] = True

    def is_free(self, operand: str) -> None:
        """Refuse a register into which sums are still being added."""
        busy = self.busy.get(operand)
        assert busy is None or not (busy & self.mask).any(), f"{operand} is waited for by nobody"


def _parts(braces: str) -> list[str]:
    return [part.strip() for part in braces.strip("{}").split(",")]


def _to_tf32(x: Array) -> Array:
    """To 11 significant bits, to nearest, ties away from 0, by arithmetic alone."""
    fraction, exponent = np.frexp(x.astype("f8"))
    scaled = np.ldexp(fraction, 11)
    nearest = np.copysign(np.floor(np.abs(scaled) + 0.5), scaled)
    return np.where(np.isfinite(x), np.ldexp(nearest, exponent - 11), x).astype("f4")


def _quotient(a: Array, b: Array) -> Array:
    """Integers divided towards 0; by 0 gives any number."""
    safe = np.where(b == 0, 1, b)
    exact = np.array([abs(int(x)) // abs(int(y)) for x, y in zip(a, safe, strict=True)], object)
    sign = np.where((a < 0) != (safe < 0), -1, 1)
    return (exact * sign).astype(a.dtype)


def _shifted(op: str, x: Array, by: Array) -> Array:
    """A shift; by the width or more all bits are gone, but for the sign."""
    width = x.dtype.itemsize * 8
    clipped = np.minimum(by, width - 1).astype(x.dtype)
    if op == "shl":
        return np.where(by >= width, 0, x << clipped).astype(x.dtype)
    gone = by >= width
    return np.where(gone & (x.dtype.kind == "u"), 0, x >> clipped).astype(x.dtype)
