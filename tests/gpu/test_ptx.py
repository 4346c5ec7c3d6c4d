"""The code itself: ptxas takes it for every GPU, and it asks for nothing from outside."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.driver.gpu import CompiledGpu, build_gpu
from chainrule.driver.gpu_report import show_gpu
from chainrule.errors import CompileError
from chainrule.ir.describe import Unwritten, written
from chainrule.ir.graph import Graph
from chainrule.ops.registry import ops
from chainrule.ops.source import leaf
from chainrule.target.gpu import GPUS, gpu

PTXAS = shutil.which("ptxas")
#: GPUs without tensor cores' instructions, with them, and the newest
OFTEN = ("sm_75", "sm_90", "sm_120")
needs_ptxas = pytest.mark.skipif(PTXAS is None, reason="no ptxas here: it comes with CUDA")


def nets() -> dict[str, cr.Tensor]:
    """Losses whose steps have kernels of every form."""
    tokens, image = cr.input("t", ("batch", 8), dtype="int32"), cr.input("i", ("batch", 1, 8, 8))
    label, x = cr.input("y", ("batch",), dtype="int32"), cr.input("x", (5, "batch", 6))
    block = cr.nn.Sequential([
        cr.nn.Embedding(11, 16), cr.nn.TransformerBlock(2, causal=True),
        cr.nn.Dense(11),
    ])  # fmt: skip
    cnn = cr.nn.Sequential([
        cr.nn.Conv2D(4, 3, activation="relu"), cr.nn.BatchNorm(), cr.nn.MaxPool(2), cr.nn.Flatten(),
        cr.nn.Dropout(0.2), cr.nn.Dense(3),
    ])  # fmt: skip
    hidden = cr.nn.LSTM(7)(cr.permute_dims(x, (1, 0, 2)))
    return {
        "gpt": cr.losses.cross_entropy(block(tokens), tokens),
        "cnn": cr.losses.cross_entropy(cnn(image), label),
        "lstm": cr.mean(hidden**2),
    }


def assembled(ptx: str, sm: str, folder: Path) -> str:
    """What ptxas says of a module, which it must take."""
    file = folder / "module.ptx"
    file.write_text(ptx)
    command = [str(PTXAS), "-arch", sm, "-v", "-o", str(folder / "module.cubin"), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


@needs_ptxas
@pytest.mark.parametrize(
    "sm", [sm if sm in OFTEN else pytest.param(sm, marks=pytest.mark.long) for sm in GPUS]
)
def test_ptxas_takes_a_step_for_every_gpu(
    sm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAINRULE_GPU", sm)
    name = "gpt" if sm in ("sm_75", "sm_120") else "cnn"
    step = cr.training_step(nets()[name], cr.optim.Adam(1e-3), backend="cuda")
    ptx = step.show("ptx")
    assert f".target {sm}" in ptx
    said = assembled(ptx, sm, tmp_path)
    assert not re.search(r"[1-9]\d* bytes spill", said)


@needs_ptxas
@pytest.mark.long
@pytest.mark.parametrize("sm", GPUS)
@pytest.mark.parametrize("name", ["gpt", "cnn", "lstm"])
def test_ptxas_takes_every_net(
    name: str, sm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAINRULE_GPU", sm)
    for optimizer in (cr.optim.Adam(1e-3), cr.optim.SGD(1e-2, momentum=0.9)):
        step = cr.training_step(nets()[name], optimizer, backend="cuda")
        assembled(step.show("ptx"), sm, tmp_path)


@needs_ptxas
@pytest.mark.parametrize("precision", [None, "tf32"])
@pytest.mark.parametrize(("sm", "width"), [("sm_75", 64), ("sm_90", 128)])
def test_ptxas_keeps_tiles_of_attention_in_registers(
    sm: str, width: int, precision: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAINRULE_GPU", sm)
    q, k, v = (cr.input(x, ("batch", 8, "n", width)) for x in "qkv")
    out = cr.attention(q, k, v, causal=True)
    gradients = cr.grad(cr.mean(out**2), [q, k, v])
    ptx = cr.compile([out, *gradients], "cuda", precision=precision).show("ptx")
    assert ("mma.sync" in ptx) == (precision is not None and sm != "sm_75")
    said = assembled(ptx, sm, tmp_path)
    assert not re.search(r"[1-9]\d* bytes (stack|spill)", said)


#: what makes an example short: it is asked for its programs alone
SHORT: dict[str, dict[str, Any]] = {
    "gpt": {"steps": 2}, "lstm_text": {"steps": 2}, "cnn": {"epochs": 1, "seeds": 1},
    "descent": {"steps": 2}, "perceptron": {"steps": 1, "epochs": 1}, "reinforce": {"rounds": 1},
    "uncertainty": {"epochs": 1, "splits": 1, "members": 2},
}  # fmt: skip
EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


@needs_ptxas
@pytest.mark.long
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_ptxas_takes_every_kernel_of_an_example(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it compiles for the CPU is compiled for every GPU too, and in bfloat16 for those that
    multiply it in different ways.
    """
    asked: list[tuple[Graph, dict[str, Any]]] = []
    original = cr.driver.build

    def build(graph: Graph | Unwritten, **options: Any) -> Any:
        asked.append((written(graph), dict(options)))
        return original(graph, **options)

    for module in (cr.driver, sys.modules["chainrule.driver.program"]):
        monkeypatch.setattr(module, "build", build)
    runpy.run_path(str(path))["main"](**SHORT.get(path.stem, {"epochs": 1}))
    assert asked
    for graph, options in asked:
        for unused in ("threads", "tune"):
            options.pop(unused, None)
        wanted = [(sm, options) for sm in GPUS]
        wanted += [(sm, options | {"precision": "bfloat16"}) for sm in ("sm_80", "sm_90a")]
        for sm, how in wanted:
            made = build_gpu(graph, **how, target=GPUS[sm])
            said = assembled(made.code.ptx, sm, tmp_path)
            assert not re.search(r"[1-9]\d* bytes spill", said), (sm, said)


@needs_ptxas
@pytest.mark.long
def test_ptxas_takes_every_op(tmp_path: Path) -> None:
    for entry in ops():
        for op, types in entry.samples:
            leaves = [leaf("input", f"x{i}", t) for i, t in enumerate(types)]
            try:
                made = built(Graph((cr.ir.node.apply(op, *leaves),)), leaves)
            except CompileError:  # a leaf that nothing gives a value
                continue
            assembled(made.code.ptx, "sm_75", tmp_path)


def built(graph: Graph, leaves: list[Any], sm: str = "sm_75") -> CompiledGpu:
    return build_gpu(graph, feeds=leaves, outputs=["out"], target=GPUS[sm])


@pytest.fixture(scope="module")
def layer() -> CompiledGpu:
    x, w, b = cr.input("x", (300, 64)), cr.input("w", (64, 300)), cr.input("b", (300,))
    return built(Graph((cr.softmax(cr.exp(x @ w + b)).node,)), [t.node for t in (x, w, b)])


def test_code_calls_nothing_and_rounds_as_it_says(layer: CompiledGpu) -> None:
    ptx = layer.code.ptx
    for word in ("call", ".local", ".ftz", ".approx", ".func", ".extern"):
        assert word not in ptx, word
    sums = set(re.findall(r"\b(?:add|mul|sub)\.(?:rn\.)?f32", ptx))
    assert sums <= {"add.rn.f32", "mul.rn.f32", "sub.rn.f32"}  # .rn: never fused by the assembler


def test_a_product_goes_through_shared_memory(layer: CompiledGpu) -> None:
    text = layer.code.ptx
    product = text[text.index(".entry kernel0") : text.index(".entry kernel1")]
    assert product.count(".shared .align 16") == 2
    assert "bar.sync" in product and "ld.shared" in product
    assert product.count("fma.rn.f32") >= 16  # a term each, of a thread's one element


def test_rows_are_folded_within_warps(layer: CompiledGpu) -> None:
    text = layer.code.ptx
    rows = text[text.index(".entry kernel1") :]
    assert "shfl.sync.down" in rows and "bar.sync" not in rows


def test_neighbours_are_read_and_written_together(emulator: Any) -> None:
    x, y = (cr.input(name, ("n", 5)) for name in "xy")
    outputs = [cr.exp(x) * y, x > y]
    ours, native = (cr.compile(outputs, backend=b) for b in ("cuda", "cpu"))
    ptx = ours.show("ptx")
    assert ptx.count("ld.global.v4.b32") >= 2 and "st.global.v4.b32" in ptx
    rng = np.random.default_rng(0)
    for n in (0, 1, 3, 4, 130):  # few, and what is left over of fours
        feeds = {name: rng.standard_normal((n, 5), np.float32) for name in "xy"}
        for a, b in zip(ours(**feeds), native(**feeds), strict=True):
            np.testing.assert_array_equal(a, b)


def test_levels_show_launches(layer: CompiledGpu) -> None:
    loops = show_gpu(layer, "loops")
    assert "361 parts of 256 lanes" in loops and "300 parts of 16 lanes" in loops
    assert "shared memory of a part: s0: f32[" in loops
    with pytest.raises(CompileError, match="there is no level 'asm'"):
        show_gpu(layer, "asm")


@pytest.mark.parametrize(
    ("capability", "ptx", "level"),
    [
        ((7, 5), None, "sm_75"),
        ((8, 7), 90, "sm_86"),
        ((9, 0), 77, "sm_86"),
        ((12, 1), 90, "sm_120"),
        ((10, 3), 85, "sm_90"),
    ],
)
def test_the_newest_code_that_a_gpu_and_its_driver_take(
    capability: tuple[int, int], ptx: int | None, level: str
) -> None:
    assert gpu(capability, ptx).level == level


@pytest.mark.parametrize(("capability", "ptx"), [((6, 1), None), ((8, 0), 62)])
def test_a_gpu_that_is_too_old_is_refused(capability: tuple[int, int], ptx: int | None) -> None:
    with pytest.raises(CompileError, match="compute capability"):
        gpu(capability, ptx)


def test_a_gpu_by_an_unknown_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAINRULE_GPU", "sm_1")
    with pytest.raises(CompileError, match="names no GPU"):
        cr.compile(cr.exp(cr.input("x", ("n",))), backend="cuda")


def test_constants_are_the_same_for_a_gpu(gpu: Any) -> None:
    table = cr.constant(np.arange(12.0, dtype="f4").reshape(4, 3))
    at = cr.input("at", ("n",), dtype="int32")
    fn = cr.compile(cr.take(table, at, axis=0), backend="cuda")
    np.testing.assert_array_equal(fn(at=np.array([2, 0])), [[6, 7, 8], [0, 1, 2]])
    with pytest.raises(cr.errors.FeedError, match="at holds 4"):
        fn(at=np.array([0, 4]))
