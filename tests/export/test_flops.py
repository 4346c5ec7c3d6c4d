"""The certificate's floating-point operations against a run of the kernel that counts its own."""

from __future__ import annotations

import ctypes
import re
import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import chainrule as cr
from chainrule.export import targets_of
from chainrule.export.kernel import base_of
from chainrule.ir.loop import LANES

MUTANTS = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks/mutants.py"))
MOST = 64
#: what is counted: one each, a fused multiply-add twice
ARITHMETIC = re.compile(
    r"\s+%\S+ = (?:tail )?(?:(f(?:add|sub|mul|div))|call [^@]*@llvm\.(fma|sqrt)\.)"
)


def counting(text: str) -> str:
    """Code that adds to @flops, at each block's end, how many operations the block has done.

    Of an operation on vectors all lanes count.
    """
    lines: list[str] = []
    done = 0
    for number, line in enumerate(text.splitlines()):
        found = ARITHMETIC.match(line)
        if found:
            lanes = re.search(r"<(\d+) x (?:float|double)>", line)
            done += (2 if found[2] == "fma" else 1) * (int(lanes[1]) if lanes else 1)
        if done and re.match(r"\s+(br|ret|switch) ", line):
            before, after = f"%before.{number}", f"%after.{number}"
            lines += [
                f"  {before} = load i64, ptr @flops",
                f"  {after} = add i64 {before}, {done}",
                f"  store i64 {after}, ptr @flops",
            ]
            done = 0
        lines.append(line)
    return "\n".join([*lines, "@flops = global i64 0"])


def counted(step: cr.TrainingStep, folder: Path, batches: list[int], **options: str) -> list:
    """For each batch what the certificate says of a step, and what one did."""
    art = step.export(folder, "net", formats=("ll",), max_batch=MOST, **options)
    told, text = art.certificate, art.files["net.ll"].read_text()
    kernel = MUTANTS["Kernel"](
        counting(text), art, base_of(targets_of("host", None, None, False)[0])
    )
    flops = ctypes.c_int64.from_address(kernel.loaded.address("flops"))
    state, work = (MUTANTS["block"](told[f"{kind}_bytes"]) for kind in ("state", "workspace"))
    kernel.call("init", *state, ctypes.c_uint64(1))
    found = []
    for batch in batches:
        random = np.random.default_rng(batch)
        x = random.standard_normal((batch, *kernel.shape("x")), np.float32)
        y, loss = random.integers(0, 3, batch).astype(np.int32), np.zeros(1, np.float32)
        places = [ctypes.c_void_p(a.ctypes.data) for a in (x, y, loss)]
        flops.value = 0
        assert kernel.call("step", *state, *work, ctypes.c_size_t(batch), *places) == 0
        found.append((eval(told["flops"], {"batch": batch}), flops.value))
    assert eval(told["flops"], {"batch": MOST}) == told["most_flops"]["step"]
    return found


def trained(z: cr.Tensor, rule: cr.optim.Optimizer) -> cr.TrainingStep:
    loss = cr.losses.cross_entropy(z, cr.input("y", ("batch",), dtype="int32"))
    return cr.training_step(loss, rule, outputs=z)


def whole() -> cr.TrainingStep:
    """A net whose vectors are whole: every size is a multiple of LANES."""
    x, n = cr.input("x", ("batch", LANES)), 2 * LANES
    h = cr.relu(x @ cr.parameter("W", (LANES, n)) + cr.parameter("b", (n,)))
    return trained(h @ cr.parameter("V", (n, LANES)), cr.optim.SGD(0.1))


def conv() -> cr.TrainingStep:
    x = cr.input("x", ("batch", 2, 8, 8))
    h = cr.max_pool(cr.relu(cr.conv(x, cr.parameter("K", (4, 2, 3, 3)), padding=1)), 2)
    z = cr.reshape(h, ("batch", 64)) @ cr.parameter("W", (64, 5))
    return trained(z, cr.optim.SGD(0.05, momentum=0.9))


def lstm() -> cr.TrainingStep:
    z = cr.nn.LSTM(7)(cr.input("x", ("batch", 6, 5))) @ cr.parameter("W", (7, 3))
    return trained(z, cr.optim.Adam(1e-2))


def attention() -> cr.TrainingStep:
    h = cr.nn.TransformerBlock(2, hidden=8, causal=True)(cr.input("x", ("batch", 10, 6)))
    return trained(cr.mean(h, axis=1) @ cr.parameter("W", (6, 3)), cr.optim.Adam(1e-2))


def test_little_code_does_what_is_told(lecture_step: cr.TrainingStep, tmp_path: Path) -> None:
    """It works element by element, so no lane is idle, whatever the batch."""
    for told, done in counted(lecture_step, tmp_path, [1, 13, 16, MOST], optimize="size"):
        assert told == done


def test_fast_code_does_what_is_told_where_vectors_are_whole(tmp_path: Path) -> None:
    for told, done in counted(whole(), tmp_path, [LANES, MOST]):
        assert told == done


@pytest.mark.long
@pytest.mark.parametrize("net", [conv, lstm])
def test_other_nets_do_what_is_told(net: Callable[[], cr.TrainingStep], tmp_path: Path) -> None:
    for told, done in counted(net(), tmp_path, [1, 13, MOST], optimize="size"):
        assert told == done
    for told, done in counted(net(), tmp_path, [1, 13, MOST]):
        assert told <= done, "idle lanes do their work too"


@pytest.mark.long
def test_attention_does_at_most_what_is_told(tmp_path: Path) -> None:
    """LLVM makes one of what two loops compute alike there: less than 1 in 200."""
    for told, done in counted(attention(), tmp_path, [1, 13, MOST], optimize="size"):
        assert 0.995 * told < done <= told
