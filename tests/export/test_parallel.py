"""Steps that a caller divides: the same bytes for any parts, in any order, on threads."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import chainrule as cr
from chainrule.codegen.fork import forked
from chainrule.codegen.module import CALL_WORK, shared_calls
from chainrule.errors import CompileError
from chainrule.loops.parts import work_of
from chainrule.loops.regions import Around, every_region, regions_of
from chainrule.train import export as exporting

SOURCE = Path(__file__).with_name("parallel.c")
MOST = 5


def labels() -> cr.Tensor:
    return cr.input("y", ("batch",), dtype="int32")


def trained(z: cr.Tensor, rule: cr.optim.Optimizer | None = None) -> cr.TrainingStep:
    loss = cr.losses.cross_entropy(z, labels())
    return cr.training_step(loss, rule or cr.optim.Adam(1e-2), outputs=z)


def wide() -> cr.TrainingStep:
    """Products in blocks of rows, whose parts meet in loops."""
    x = cr.input("x", ("batch", 300))
    h = cr.tanh(x @ cr.parameter("W", (300, 512)) + cr.parameter("b", (512,)))
    return trained(h @ cr.parameter("V", (512, 10)))


def conv() -> cr.TrainingStep:
    x = cr.input("x", ("batch", 3, 12, 12))
    h = cr.max_pool(cr.relu(cr.conv(x, cr.parameter("K", (16, 3, 3, 3)), padding=1)), 2)
    h = cr.relu(cr.conv(h, cr.parameter("L", (16, 16, 3, 3)), padding=1))
    z = cr.reshape(h, ("batch", 576)) @ cr.parameter("W", (576, 5))
    return trained(z, cr.optim.SGD(0.05, momentum=0.9))


def lstm() -> cr.TrainingStep:
    """Products that are divided in every turn of a loop."""
    x = cr.input("x", ("batch", 6, 24))
    return trained(cr.nn.LSTM(48)(x) @ cr.parameter("W", (48, 5)))


def attention() -> cr.TrainingStep:
    x = cr.input("x", ("batch", 50, 16))
    h = cr.nn.TransformerBlock(2, hidden=32, causal=True)(x)
    return trained(cr.mean(h, axis=1) @ cr.parameter("W", (16, 5)))


LATER = [(conv, 40), (lstm, 64), (attention, 24)]
NETS = [(wide, 160), *(pytest.param(*net, marks=pytest.mark.long) for net in LATER)]


def divided(
    step: cr.TrainingStep, batch: int, folder: Path, target: str, compiler: str, *run: str
) -> int:
    """How many regions were divided, of runs that left the same bytes."""
    missing = [tool for tool in (compiler, *run) if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"there is no {missing[0]} here")
    options = {"formats": ("a", "h", "json"), "max_batch": batch, "max_parts": MOST}
    art = step.export(folder, name="net", target=target, **options)
    functions = art.certificate["functions"]
    width = math.prod(functions["step"]["inputs"][0]["shape"][1:])
    classes = functions["predict"]["outputs"][0]["shape"][1]
    numbers = {"WIDTH": width, "CLASSES": classes, "BATCH": batch, "MOST": MOST}
    words = [*(f"-D{key}={value}" for key, value in numbers.items()), '-DHEADER="net.h"', "-DP=net"]
    words += ["-std=gnu11", "-O1", "-Wall", "-Werror", "-pthread", f"-I{folder}"]
    words += ["-static"] if run else []
    program = folder / "program"
    subprocess.run([compiler, *words, SOURCE, folder / "libnet.a", "-o", program], check=True)
    done = subprocess.run([*run, program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.returncode} {done.stderr}"
    return int(done.stdout)


@pytest.mark.parametrize(("net", "batch"), NETS)
def test_the_same_bytes_however_it_is_divided(
    net: Callable[[], cr.TrainingStep], batch: int, tmp_path: Path
) -> None:
    assert divided(net(), batch, tmp_path, "host", "cc") > 50


@pytest.mark.long
def test_another_machine_divides_it_too(tmp_path: Path) -> None:
    target = "aarch64-linux-gnu"
    assert divided(wide(), 160, tmp_path, target, f"{target}-gcc", "qemu-aarch64") > 50


def test_without_a_word_nothing_is_divided(lecture_step: cr.TrainingStep, tmp_path: Path) -> None:
    art = lecture_step.export(tmp_path, name="net", formats=("h",))
    assert "parallel" not in art.files["net.h"].read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_parts": 0}, "from 1 to 256"),
        ({"max_parts": True}, "from 1 to 256"),
        ({"max_parts": 2, "optimize": "size"}, "little code"),
        ({"max_parts": 2, "target": "wasm32"}, "one thread"),
    ],
)
def test_what_can_not_be_divided(
    options: dict, said: str, lecture_step: cr.TrainingStep, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(exporting, "compile_kernel", None)  # it is known before
    with pytest.raises(CompileError, match=said):
        lecture_step.export(tmp_path, name="net", **options)


def test_a_loop_of_little_turns_is_not_divided() -> None:
    """A kernel's derivative goes image by image: a meeting for each would take longer than that."""
    calls = conv()._engine.compiled.levels.calls
    shared = {id(s.call.program): regions_of(s.call.program) for s in shared_calls(calls)}
    divided, small = forked(calls), 0
    for key, regions in shared.items():
        for loop in (part for part in regions or () if isinstance(part, Around)):
            works = [work_of(region.program) for region in every_region(loop.body)]
            if all(isinstance(w, int) and w < CALL_WORK for w in works):
                small += 1
                assert key not in divided
    assert small
