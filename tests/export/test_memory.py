"""The certificate against what runs: bytes of every buffer, and of the stack."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import chainrule as cr
from chainrule.export import Artifact

SOURCE = Path(__file__).with_name("guarded.c")
#: what a function that calls takes itself: a frame, arguments on the stack, makecontext's own
CALLER = 256


def words_of(told: Mapping[str, Any], folder: Path) -> list[str]:
    """What guarded.c is compiled with."""
    step, name = told["functions"]["step"], told["name"]
    width = math.prod(step["inputs"][0]["shape"][1:])
    classes = told["functions"]["predict"]["outputs"][0]["shape"][1]
    metrics = ", metric" * (len(step["outputs"]) - 1)
    words = [f'-DHEADER="{name}.h"', f"-DP={name}", f"-DWIDTH={width}", f"-DCLASSES={classes}"]
    return [*words, f"-DMETRICS={metrics}", "-std=gnu11", "-O1", "-Wall", "-Werror", f"-I{folder}"]


@pytest.mark.parametrize("level", ["x86-64-v2", "x86-64-v3", "x86-64-v4"])
def test_nothing_lies_below_the_stack(level: str, tmp_path: Path) -> None:
    """What x86-64 lets a function use below the stack's end would be in no frame."""
    x = cr.input("x", ("n", 1, 12, 12))
    h = cr.max_pool(cr.relu(cr.conv(x, cr.parameter("K", (8, 1, 3, 3)), padding=1)), 2)
    step = cr.training_step(cr.mean(h**2), cr.optim.Adam(1e-3))
    art = step.export(tmp_path, target=level, formats=("s",))
    assert not re.findall(r"[^0-9]-\d+\(%rsp", art.files["net.s"].read_text())


def wide(layers: int = 2) -> cr.TrainingStep:
    """A net whose code for AVX puts vectors on the stack for a while."""
    x, y = cr.input("x", ("batch", 32)), cr.input("y", ("batch",), dtype="int32")
    h = x
    for i in range(layers):
        h = cr.tanh(h @ cr.parameter(f"W{i}", (32, 32)) + cr.parameter(f"b{i}", (32,)))
    z = h @ cr.parameter("V", (32, 10))
    return cr.training_step(cr.losses.cross_entropy(z, y), cr.optim.Adam(1e-3), outputs=z)


@pytest.mark.parametrize(("level", "bytes_"), [("x86-64-v3", 32), ("x86-64-v4", 64)])
def test_vectors_on_the_stack_lie_in_one_line(level: str, bytes_: int, tmp_path: Path) -> None:
    """Whatever the stack begins at: functions that put some there round it down first."""
    step, found = wide(), []
    for optimize in ("speed", "size"):
        art = step.export(tmp_path, target=level, formats=("s",), optimize=optimize)
        functions = re.split(r"\n(?=[a-z_][\w.]*:)", art.files["net.s"].read_text())
        put = [f for f in functions if re.search(r"%[yz]mm\d+, \d*\(%rsp\)", f)]
        found.append([f"andq\t$-{bytes_}, %rsp" in f for f in put])
    assert found[0] and all(found[0])
    assert not any(found[1]), "little code takes the stack as it comes"


@pytest.mark.sampled(2)
@pytest.mark.skipif(sys.platform != "linux", reason="pages are guarded as under Linux")
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler is here")
def test_no_byte_is_touched_beside_what_is_given(any_net, tmp_path: Path) -> None:
    """Every buffer between pages that can't be touched; and the stack's bound holds."""
    check_memory(any_net.artifact, tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="pages are guarded as under Linux")
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler is here")
def test_the_stack_holds_where_it_is_rounded_down(tmp_path: Path) -> None:
    check_memory(wide().export(tmp_path, formats=("a", "h", "json")), tmp_path)


def check_memory(art: Artifact, tmp_path: Path) -> None:
    told, library = art.certificate, art.files[f"lib{art.name}.a"]
    program = tmp_path / "guarded"
    words = words_of(told, library.parent)
    subprocess.run(["cc", *words, SOURCE, library, "-o", program], check=True)
    run = subprocess.run([program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"{run.returncode} {run.stderr}"
    assert 0 < int(run.stdout) <= told["stack_bytes"] + CALLER, told["stack_bytes"]


Ran = subprocess.CompletedProcess[str]
CLANG = next(filter(None, map(shutil.which, ("clang-19", "clang"))), None)
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DSANITIZED"]


def sanitized(source: Path, words: Sequence[str], code: Path, folder: Path) -> Ran:
    """A run of a program in C, which is compiled together with a kernel's own code so that every
    load and store in both is looked at.
    """
    if CLANG is None:
        pytest.skip("no clang is here, which reads LLVM's text")
    text = re.sub(r"(?m)^(attributes #\d+ = \{)", r"\1 sanitize_address", code.read_text())
    # what older readers of the text do not know, and need not
    text = re.sub(r"(captures|memory)\([^()]*\)|\b(samesign|nocreateundeforpoison)\b", "", text)
    text = re.sub(r"(?m)^.*@llvm\.lifetime\..*\n", "", text)
    own, program = folder / "sanitized.ll", folder / "sanitized"
    own.write_text(text)
    command = [CLANG, *words, *SANITIZERS, "-Wno-override-module", source, own, "-o", program]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if "cannot find" in made.stderr:
        pytest.skip(f"{CLANG} has no sanitizers here")
    assert made.returncode == 0, made.stderr[:2000]
    # these programs end without giving anything back
    more = os.environ | {"ASAN_OPTIONS": "detect_leaks=0"}
    return subprocess.run([program], capture_output=True, text=True, check=False, env=more)


@pytest.mark.long
def test_sanitizers_find_nothing(any_net, tmp_path: Path) -> None:
    """Blocks of exactly the bytes that are told, from the allocator; instructions of the kernel and
    of its caller are watched.
    """
    art = any_net.artifact
    code = art.files[f"{art.name}.ll"]
    done = sanitized(SOURCE, words_of(art.certificate, code.parent), code, tmp_path)
    assert done.returncode == 0, done.stderr[:4000]


SHORT = """
#include "digits.h"
#include <stdlib.h>
int main(void) {
    void *state, *work;
    size_t n = digits_state_bytes(), room = digits_workspace_bytes(8);
    if (posix_memalign(&state, 64, n) || posix_memalign(&work, 64, room - LESS)) return 2;
    float *x = calloc(8 * 64 - FEWER, sizeof *x), loss, accuracy;
    int32_t y[8] = {0};
    return digits_init(state, n, 1) ||
           digits_step(state, n, work, room, 8, x, y, &loss, &accuracy);
}
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "seen"),
    [(["-DFEWER=1", "-DLESS=0"], "READ of size"), (["-DFEWER=0", "-DLESS=64"], "WRITE of size")],
)
def test_sanitizers_would_find_it(words: list[str], seen: str, digits_net, tmp_path: Path) -> None:
    """What the kernel itself reads and writes, where a caller tells it of more than there is."""
    code, source = digits_net.artifact.files["digits.ll"], tmp_path / "short.c"
    source.write_text(SHORT)
    done = sanitized(source, [*words, f"-I{code.parent}"], code, tmp_path)
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr
    assert seen in done.stderr and "v0.step" in done.stderr, done.stderr[:2000]
