"""How many changed instructions a kernel's self-test finds.

    python benchmarks/mutants.py [--count N] [--seed S] [--net NAME] [--optimize speed|size]

A mutant is the kernel's code with one arithmetic instruction turned into another: an addition into
a subtraction, a product into a quotient, a comparison into its opposite, and so on. It is caught
where NAME_selftest gives a code, the program crashes, or does not end. A mutant that is not caught
is run beside the kernel as it is, on batches of every size and numbers of every magnitude, large,
tiny and infinite ones too: where all results have the same bits it computes the same function, and
does not count.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import re
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import chainrule as cr
from chainrule.codegen.native import compile_object, load
from chainrule.export import Artifact, targets_of
from chainrule.export.kernel import base_of

#: what an instruction becomes, by what it is
SWAPS = {
    "fadd": "fsub", "fsub": "fadd", "fmul": "fadd", "fdiv": "fmul", "add": "sub", "sub": "add",
    "mul": "add", "udiv": "urem", "sdiv": "srem", "urem": "udiv", "srem": "sdiv", "shl": "lshr",
    "lshr": "shl", "ashr": "shl", "and": "or", "or": "and", "xor": "and",
}  # fmt: skip
COMPARED = {
    "olt": "oge", "ole": "ogt", "ogt": "ole", "oge": "olt", "oeq": "une", "une": "oeq",
    "eq": "ne", "ne": "eq", "slt": "sge", "sge": "slt", "sgt": "sle", "sle": "sgt",
    "ult": "uge", "uge": "ult", "ugt": "ule", "ule": "ugt",
}  # fmt: skip
CAUGHT, MISSED, SAME = "caught", "missed", "same function"
PATIENCE = 20


@dataclass(frozen=True)
class Mutant:
    """A line of the kernel's LLVM text, and what stands there instead."""

    line: int
    before: str
    after: str
    function: str


def lecture() -> cr.TrainingStep:
    """The lecture's net: 4-8-3, tanh, cross-entropy, Adam."""
    x, y = cr.input("x", ("batch", 4)), cr.input("y", ("batch",), dtype="int32")
    h = cr.tanh(x @ cr.parameter("W1", (4, 8)) + cr.parameter("b1", (8,)))
    z = h @ cr.parameter("W2", (8, 3)) + cr.parameter("b2", (3,))
    return cr.training_step(cr.losses.cross_entropy(z, y), cr.optim.Adam(1e-2), outputs=z)


def conv() -> cr.TrainingStep:
    """A small convolution with pooling and momentum."""
    x, y = cr.input("x", ("batch", 2, 8, 8)), cr.input("y", ("batch",), dtype="int32")
    h = cr.max_pool(cr.relu(cr.conv(x, cr.parameter("K", (4, 2, 3, 3)), padding=1)), 2)
    z = cr.reshape(h, ("batch", 64)) @ cr.parameter("W", (64, 5))
    rule = cr.optim.SGD(0.05, momentum=0.9)
    return cr.training_step(cr.losses.cross_entropy(z, y), rule, outputs=z)


def lstm() -> cr.TrainingStep:
    """An LSTM over six steps."""
    x, y = cr.input("x", ("batch", 6, 5)), cr.input("y", ("batch",), dtype="int32")
    z = cr.nn.LSTM(7)(x) @ cr.parameter("W", (7, 3))
    return cr.training_step(cr.losses.cross_entropy(z, y), cr.optim.AdamW(1e-2), outputs=z)


def attention() -> cr.TrainingStep:
    """A transformer's block over ten places."""
    x, y = cr.input("x", ("batch", 10, 6)), cr.input("y", ("batch",), dtype="int32")
    h = cr.nn.TransformerBlock(2, hidden=8, causal=True)(x)
    z = cr.mean(h, axis=1) @ cr.parameter("W", (6, 3))
    return cr.training_step(cr.losses.cross_entropy(z, y), cr.optim.Adam(1e-2), outputs=z)


NETS = {"lecture": lecture, "conv": conv, "lstm": lstm, "attention": attention}


def mutants(text: str) -> Iterator[Mutant]:
    """Every mutant of the functions that compute."""
    function = ""
    for number, line in enumerate(text.splitlines()):
        if line.startswith("define "):
            function = line[line.index("@") + 1 : line.index("(")]
        if not re.match(r"v\d+\.", function):
            continue
        if after := mutated(line):
            yield Mutant(number, line.strip(), after.strip(), function)


def mutated(line: str) -> str | None:
    """The line with another instruction; None where it has no arithmetic."""
    match = re.match(r"(\s+%\S+ = )(?:tail )?(\w+)(.*)", line)
    if not match:
        return None
    head, word, rest = match[1], match[2], match[3]
    if word in SWAPS:
        flags = re.compile(r"^( nuw| nsw| exact| disjoint| samesign| nneg)*")
        return f"{head}{SWAPS[word]}{flags.sub('', rest)}"
    if word in ("icmp", "fcmp"):
        plain = re.sub(r"^ samesign", "", rest)
        how = plain.split()[0]
        return f"{head}{word} {COMPARED[how]}{plain[1 + len(how) :]}" if how in COMPARED else None
    if word == "fneg":
        kind, value = rest.split()[-2:] if "<" not in rest else rest.rsplit(" ", 1)
        zero = "zeroinitializer" if "<" in kind else "0.0"
        return f"{head}fadd {kind.strip()} {value}, {zero}"
    if word == "call" and "@llvm.fma." in rest:
        kind = re.match(r" (<[^>]*>|\w+) ", rest)
        last = re.search(r", (<[^>]*>|\w+) (\S+)\)", rest[rest.rindex("@") :])
        return f"{head}fadd {kind[1]} {last[2]}, {last[2]}" if kind and last else None
    if word == "call" and "@llvm.sqrt." in rest:
        inner = rest[rest.index("(") + 1 : rest.rindex(")")]
        return f"{head}fadd {inner}, {inner.rsplit(' ', 1)[1]}"
    if word == "call" and "@llvm.fabs." in rest:
        return f"{head}fneg {rest[rest.index('(') + 1 : rest.rindex(')')]}"
    return None


class Kernel:
    """A kernel's code in this process."""

    def __init__(self, text: str, art: Artifact, target: Any) -> None:
        self.told, self.name = art.certificate, art.name
        self.loaded = load(compile_object(text, target))

    def call(self, function: str, *arguments: Any) -> int:
        kind = ctypes.CFUNCTYPE(ctypes.c_int32, *map(type, arguments))
        return int(kind(self.loaded.address(f"{self.name}_{function}"))(*arguments))

    def selftest(self) -> int:
        """The code that the self-test gives."""
        size = self.told["selftest_bytes"]
        return self.call("selftest", *block(size))

    def results(self) -> bytes:
        """What comes out of steps, predictions and losses on data of many kinds."""
        out = b""
        size, room = self.told["state_bytes"], self.told["workspace_bytes"]
        state, work = block(size), block(room)
        for scale, seed, batch in trials(self.told["sizes"]["batch"]):
            draw = np.random.default_rng(seed)
            self.call("init", *state, ctypes.c_uint64(seed))
            x = draw.standard_normal((batch, *self.shape("x")), np.float32) * np.float32(scale)
            if scale == 0:  # numbers that end at the limits of a float
                x.flat[:: max(1, x.size // 7)] = [3e38, -3e38, 1e-45, -1e-38, 0.0, 1e30, -1e30, 1][
                    seed % 8
                ]
            y = draw.integers(0, 3, batch).astype(np.int32)
            if seed % 5 == 4:
                y[0] = -1 if seed % 2 else 77
            for _ in range(3):
                for function, feeds, count in (
                    ("step", (x, y), 1), ("loss", (x, y), 1), ("predict", (x,), 8 * batch),
                ):  # fmt: skip
                    result = np.zeros(count, np.float32)
                    places = [ctypes.c_void_p(a.ctypes.data) for a in (*feeds, result)]
                    sizes = ctypes.c_size_t(batch)
                    code = self.call(function, *state, *work, sizes, *places)
                    out += bytes([code]) + result.tobytes()
            out += ctypes.string_at(state[0].value, size)
        return out

    def shape(self, name: str) -> list[int]:
        inputs = self.told["functions"]["step"]["inputs"]
        return next(t["shape"][1:] for t in inputs if t["name"] == name)


def trials(most: int) -> Iterator[tuple[float, int, int]]:
    """Magnitudes of data, seeds, and batch sizes."""
    for seed, batch in enumerate([*range(1, 20), 23, 31, 32, 33, 47, 64]):
        yield 1.0, seed, min(batch, most)
    for seed, scale in enumerate((1e-30, 1e-20, 1e-5, 30.0, 1e3, 1e10, 1e25, 0, 0, 0, 0, 0, 0, 0)):
        yield scale, seed, 13


_blocks: list[Any] = []


def block(size: int) -> tuple[ctypes.c_void_p, ctypes.c_size_t]:
    """Aligned memory that lives as long as the process."""
    raw = ctypes.create_string_buffer(size + 64)
    _blocks.append(raw)
    at = -(-ctypes.addressof(raw) // 64) * 64
    return ctypes.c_void_p(at), ctypes.c_size_t(size)


def in_child(work: Callable[[], bytes]) -> bytes | None:
    """What a function gives in a process of its own; None where that crashes or does not end."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # of a crash nothing needs to be told
        signal.alarm(PATIENCE)
        try:
            with os.fdopen(write, "wb") as pipe:
                pipe.write(work())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        found = pipe.read()
    _, status = os.waitpid(child, 0)
    return found if os.WIFEXITED(status) and found else None


def judged(mutant: Mutant, text: str, art: Artifact, target: Any, wanted: bytes) -> str:
    """Whether a mutant is caught, missed, or no mutant at all."""
    lines = text.splitlines()
    lines[mutant.line] = "  " + mutant.after
    changed = "\n".join(lines)

    def test() -> bytes:
        return b"x" if Kernel(changed, art, target).selftest() else b"ok"

    if in_child(test) != b"ok":
        return CAUGHT
    import hashlib

    def digest() -> bytes:
        return hashlib.sha256(Kernel(changed, art, target).results()).digest()

    return SAME if in_child(digest) == wanted else MISSED


def measured(
    step: cr.TrainingStep, count: int, seed: int, **options: Any
) -> tuple[dict[str, int], list[Mutant]]:
    """How many mutants came out how, and those that were missed."""
    import hashlib

    with tempfile.TemporaryDirectory() as folder:
        art = step.export(folder, "net", formats=("ll",), max_batch=64, **options)
        text = Path(art.files["net.ll"]).read_text()
    base = base_of(targets_of("host", None, None, False)[0])
    every = list(mutants(text))
    chosen = random.Random(seed).sample(every, min(count, len(every)))

    def original() -> bytes:
        kernel = Kernel(text, art, base)
        return b"" if kernel.selftest() else hashlib.sha256(kernel.results()).digest()

    wanted = in_child(original)
    assert wanted, "the kernel as it is fails its own self-test"
    found = dict.fromkeys((CAUGHT, MISSED, SAME), 0)
    missed = []
    for mutant in chosen:
        how = judged(mutant, text, art, base, wanted)
        found[how] += 1
        if how == MISSED:
            missed.append(mutant)
    return found, missed


def main() -> None:
    """Print how many were caught."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--net", choices=sorted(NETS), default="lecture")
    parser.add_argument("--optimize", choices=("speed", "size"), default="speed")
    asked = parser.parse_args()
    begun = time.perf_counter()
    found, missed = measured(NETS[asked.net](), asked.count, asked.seed, optimize=asked.optimize)
    for mutant in missed:
        print(f"missed in {mutant.function}: {mutant.before} -> {mutant.after}")
    real = found[CAUGHT] + found[MISSED]
    print(f"{asked.net}, {asked.optimize}, seed {asked.seed}: {found}")
    print(f"caught {found[CAUGHT]} of {real}, in {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
