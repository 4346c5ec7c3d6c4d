"""Kernels for other machines, run there: under emulation, or in Node.

By default every target with fused multiply-add has the bits of the compiled step; with
determinism="strict" every target there is.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.codegen.formats import code_size, undefined_symbols
from chainrule.codegen.host import host_target
from chainrule.export import targets_of

pytestmark = pytest.mark.usefixtures("compiled_once")

SOURCE = Path(__file__).with_name("train.c")
ZIG = [sys.executable, "-m", "ziglang", "cc", "-static", "-target"] if find_spec("ziglang") else []
STEPS, BATCH, SEED = 1000, 4, 7


def compilers(target: str) -> list[list[str]]:
    """Commands that make a program for a target."""
    gcc = shutil.which("aarch64-linux-gnu-gcc")
    found = [[gcc, "-static"]] if gcc and target.startswith("aarch64") else []
    if target.startswith("x86"):
        found += [[cc] for cc in map(shutil.which, ("cc", "gcc", "clang")) if cc]
    elif ZIG:
        abi = "musleabihf" if target.startswith("arm") else "musl"
        arch = "arm" if target.startswith("arm") else target.split("-")[0]
        found.append([*ZIG, f"{arch}-linux-{abi}"])
    return found


def emulator(target: str) -> list[str]:
    if target.startswith("x86"):
        return []
    name = {"armv7": "arm"}.get(target.split("-")[0], target.split("-")[0])
    path = shutil.which(f"qemu-{name}") or shutil.which(f"qemu-{name}-static")
    if path is None:
        pytest.skip(f"no qemu-{name} (Debian: qemu-user)")
    return [path]


def small(seed: int = 0) -> cr.TrainingStep:
    """Dense layers, softmax, dropout and Adam, little enough to be emulated a thousand times."""
    x, y = cr.input("x", ("batch", 6)), cr.input("y", ("batch",), dtype="int32")
    h = cr.dropout(cr.tanh(x @ cr.parameter("W1", (6, 9)) + cr.parameter("b1", (9,))), 0.1)
    z = h @ cr.parameter("W2", (9, 3)) + cr.parameter("b2", (3,))
    return cr.training_step(
        cr.losses.cross_entropy(z, y), cr.optim.Adam(1e-2), outputs=z, seed=seed
    )


def data() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(SEED)
    x = random.standard_normal((STEPS, BATCH, 6)).astype(np.float32)
    return x, random.integers(0, 3, (STEPS, BATCH)).astype(np.int32)


def trained(target: str, determinism: str, folder: Path, processor: list[str] | None = None) -> str:
    """The digest of what a kernel keeps after all steps, from its first value on.

    It is run on the target's emulator, or on another `processor` of its kind.
    """
    tools, run = compilers(target), emulator(target)
    if not tools:
        pytest.skip(f"no compiler for {target} (pip install ziglang)")
    formats = ("o", "a", "h", "json")
    art = small().export(
        folder, name="net", target=target, formats=formats, determinism=determinism
    )
    assert undefined_symbols(art.files["net.o"].read_bytes()) == []
    assert art.certificate["largest_frame"] < 4096
    x, y = data()
    head = np.array([STEPS, BATCH, 6, SEED], np.int32)
    (folder / "data").write_bytes(head.tobytes() + x.tobytes() + y.tobytes())
    words = ["-O1", "-Wall", "-Werror", f"-I{folder}", '-DHEADER="net.h"', "-DP=net", "-DMORE="]
    subprocess.run(
        [*tools[0], *words, SOURCE, folder / "libnet.a", "-o", folder / "run"], check=True
    )
    command = run if processor is None else processor
    subprocess.run([*command, folder / "run", folder / "data", folder / "state"], check=True)
    return hashlib.sha256((folder / "state").read_bytes()).hexdigest()


_wanted: dict[str, str] = {}


def of_the_step(determinism: str, folder: Path) -> str:
    """The same of the step as it is compiled for this process; strict, of this machine's kernel."""
    if determinism not in _wanted:
        folder.mkdir()
        strict = determinism == "strict"
        (here,) = targets_of("host", None, None, strict)
        made = trained(here.level, "strict", folder) if strict else called(folder)
        _wanted[determinism] = made
    return _wanted[determinism]


def called(folder: Path) -> str:
    """The digest of a step that was called, with the seed that kernels begin with."""
    (x, y), seeded = data(), small(SEED)
    for i in range(STEPS):
        seeded(x=x[i], y=y[i])
    art = seeded.export(folder, name="net", formats=("state",))
    return hashlib.sha256(art.files["net.state"].read_bytes()).hexdigest()


#: a C compiler for these begins with its own libraries, which takes half a minute
LATER = [
    pytest.param(t, marks=pytest.mark.long) for t in ("riscv64-linux-gnu", "armv7-linux-gnueabihf")
]
FUSED = ["aarch64-linux-gnu", LATER[0], "x86_64-linux-gnu"]
EVERY = [*FUSED, LATER[1], "x86-64-v2"]


@pytest.mark.skipif(not host_target().fma, reason="this machine has no fused multiply-add")
@pytest.mark.parametrize("target", FUSED)
def test_targets_with_fused_multiply_add_have_the_bits_of_the_step(
    target: str, tmp_path: Path
) -> None:
    (tmp_path / "found").mkdir()
    wanted = of_the_step("default", tmp_path / "wanted")
    assert trained(target, "default", tmp_path / "found") == wanted


@pytest.mark.parametrize("target", EVERY)
def test_strict_is_the_same_everywhere(target: str, tmp_path: Path) -> None:
    (tmp_path / "found").mkdir()
    wanted = of_the_step("strict", tmp_path / "wanted")
    assert trained(target, "strict", tmp_path / "found") == wanted


SCRIPT = """
import fs from "node:fs";
import {{ Net }} from "./net.js";
const net = await Net.load(fs.readFileSync(new URL("net.wasm", import.meta.url)));
net.selftest();
net.init({seed});
const bytes = fs.readFileSync(new URL("data", import.meta.url)).buffer;
const x = new Float32Array(bytes, 0, {steps} * {batch} * 6);
const y = new Int32Array(bytes, x.byteLength, {steps} * {batch});
for (let i = 0; i < {steps}; i++) {{
  const rows = [i * {batch}, (i + 1) * {batch}];
  const loss = net.step({{ x: x.slice(rows[0] * 6, rows[1] * 6), y: y.slice(...rows) }});
  if (!Number.isFinite(loss)) throw new Error(`step ${{i}}`);
}}
if (net.predict({{ x: x.slice(0, 12) }}).length !== 6) throw new Error("predict");
const one = x.slice(0, 6);
const wrongs = [{{ x: x.slice(0, 7), y: [0] }}, {{ x }}, {{ x, y }}];
for (const label of [3, 1.5, NaN, undefined, 2 ** 32 + 1]) wrongs.push({{ x: one, y: [label] }});
for (const wrong of wrongs) {{
  let refused = false;
  try {{ net.step(wrong); }} catch {{ refused = true; }}
  if (!refused) throw new Error("took what does not fit");
}}
for (const seed of [-1, 2n ** 64n]) {{
  let refused = false;
  try {{ net.init(seed); }} catch {{ refused = true; }}
  if (!refused) throw new Error("took what is no seed");
}}
const saved = net.save();
net.load(saved);
fs.writeFileSync(new URL("state", import.meta.url), net.save());
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="no node")
@pytest.mark.skipif(not ZIG and not shutil.which("wasm-ld"), reason="no linker for WebAssembly")
def test_strict_is_the_same_in_webassembly(tmp_path: Path) -> None:
    wanted = of_the_step("strict", tmp_path / "wanted")
    art = small().export(tmp_path, name="net", target="wasm32", determinism="strict")
    assert {"net.wasm", "net.js", "net.d.ts", "net.json"} <= art.files.keys()
    x, y = data()
    (tmp_path / "data").write_bytes(x.tobytes() + y.tobytes())
    script = SCRIPT.format(steps=STEPS, batch=BATCH, seed=SEED)
    (tmp_path / "run.mjs").write_text(script)
    subprocess.run(["node", tmp_path / "run.mjs"], check=True)
    assert hashlib.sha256((tmp_path / "state").read_bytes()).hexdigest() == wanted


@pytest.mark.parametrize(
    ("target", "magic"),
    [
        ("thumbv7em-none-eabihf", b"\x7fELF\x01"),
        ("armv7-linux-gnueabihf", b"\x7fELF\x01"),
        ("x86_64-pc-windows-msvc", b"\x64\x86"),
        ("arm64-apple-macos", b"\xcf\xfa\xed\xfe"),
        ("wasm32", b"\0asm"),
    ],
)
def test_objects_of_every_format_need_nothing(target: str, magic: bytes, tmp_path: Path) -> None:
    art = small().export(tmp_path, name="net", target=target, formats=("o", "a", "h"))
    data = art.files["net.o"].read_bytes()
    assert data.startswith(magic)
    assert undefined_symbols(data) == []
    assert code_size(data) == art.certificate["code_bytes"] > 1000
    assert art.certificate["largest_frame"] < 4096


@pytest.mark.parametrize(
    "wrong",
    [
        {"target": "z80"},
        {"target": ()},
        {"target": ("x86-64-v3", "aarch64")},
        {"target": "host", "cpu": "znver5"},
        {"formats": ("exe",)},
        {"formats": "so"},
        {"formats": ()},
        {"formats": ("js",)},
        {"determinism": "loose"},
        {"name": "int"},
        {"name": "a b"},
        {"name": "../up"},
        {"name": ""},
        {"max_batch": 0},
        {"max_batch": 2**40},
        {"max_sizes": {"rows": 3}},
        {"max_sizes": {"batch": 8}, "max_batch": 8},
        {"target": "wasm32", "max_batch": 2**30, "formats": ("o",)},
    ],
    ids=str,
)
def test_what_can_not_be_exported(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(cr.errors.CompileError):
        small().export(tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()


def test_a_size_is_bounded_once(tmp_path: Path) -> None:
    """By whichever of the two is given; nothing that is said is left aside."""
    for options, most in (({}, 64), ({"max_batch": 8}, 8), ({"max_sizes": {"batch": 9}}, 9)):
        art = small().export(tmp_path, formats=("json",), **options)
        assert art.certificate["sizes"] == {"batch": most}
    with pytest.raises(cr.errors.CompileError, match=r"max_batch=8 and max_sizes=.*both bound"):
        small().export(tmp_path, max_batch=8, max_sizes={"batch": 8})


def test_several_levels_in_one_kernel(linker: None, tmp_path: Path) -> None:
    """The self-test runs each that this machine has, and compares it with golden digests."""
    import chainrule_runtime

    step = small()
    art = step.export(tmp_path, name="net", target=("generic", "x86-64-v3", "x86-64-v4"))
    assert [v["level"] for v in art.certificate["variants"]] == [
        "x86-64-v4",
        "x86-64-v3",
        "generic",
    ]
    if host_target().arch != "x86_64":
        pytest.skip("this is no x86-64")
    kernel = chainrule_runtime.load(art.files["net.so"])
    kernel.selftest()
    kernel.init(0)
    x, y = data()
    assert [kernel.step(x=x[i], y=y[i]) for i in range(9)] == [
        step(x=x[i], y=y[i]) for i in range(9)
    ]


OLD = ["qemu-x86_64", "-cpu", "Nehalem"]
needs_old = pytest.mark.skipif(shutil.which(OLD[0]) is None, reason="no qemu-x86_64 (qemu-user)")


@needs_old
def test_an_old_processor_takes_the_variant_that_it_can_run(tmp_path: Path) -> None:
    """SSE4.2 without AVX: of three levels the lowest is chosen, and its self-test passes."""
    (tmp_path / "found").mkdir()
    wanted = of_the_step("strict", tmp_path / "wanted")
    assert trained("x86_64-linux-gnu", "strict", tmp_path / "found", OLD) == wanted


@needs_old
@pytest.mark.parametrize("level", ["x86-64-v3", "x86-64-v4"])
def test_an_old_processor_is_told_what_it_lacks(level: str, tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as failed:
        trained(level, "default", tmp_path, OLD)
    assert failed.value.returncode == 4, "train.c leaves with 4 where init gives a code"


BARE = ["-target", "thumb-freestanding-eabihf", "-mcpu=cortex_m4+vfp4d16sp", "-DBARE"]
BARE += ["-ffreestanding", "-nostdlib", "-fno-unwind-tables", "-Wl,-e,start"]
ANYWHERE = Path(__file__).with_name("anywhere.c")
SCRIPT_OF_BOARD = Path(__file__).parents[2] / "examples/export/sensor.ld"


@pytest.mark.skipif(shutil.which("qemu-system-arm") is None, reason="no qemu-system-arm")
@pytest.mark.skipif(not ZIG or not shutil.which("cc"), reason="no compiler for Cortex-M and here")
@pytest.mark.parametrize("optimize", ["speed", "size"])
def test_strict_is_the_same_on_a_cortex_m4(optimize: str, tmp_path: Path) -> None:
    """A thousand steps and the self-test on a bare processor; here in the other kind of code."""
    said = {}
    other = {"speed": "size", "size": "speed"}[optimize]
    for target, how in (("thumbv7em-none-eabihf", optimize), ("host", other)):
        folder = tmp_path / target
        small().export(
            folder,
            "net",
            target=target,
            formats=("o", "a", "h"),
            determinism="strict",
            optimize=how,
        )
        bare = target != "host"
        tool = [*ZIG[:3], "cc", *BARE, f"-Wl,-T,{SCRIPT_OF_BOARD}"] if bare else ["cc"]
        words = ["-Os", "-Wall", "-Wextra", "-Werror", f"-I{folder}"]
        subprocess.run(
            [*tool, *words, ANYWHERE, folder / "libnet.a", "-o", folder / "run"], check=True
        )
        machine = ["qemu-system-arm", "-M", "mps2-an386", "-nographic", "-semihosting", "-kernel"]
        command = [*(machine if bare else []), folder / "run"]
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        said[target] = (run.stdout + run.stderr).strip()
        assert run.returncode == 0, said
    assert len(set(said.values())) == 1 and len(said["host"]) == 16, said


def test_no_kernel_is_exported_for_tiles(tmp_path: Path) -> None:
    """A process has to ask the system for them; for this machine the next level is taken."""
    with pytest.raises(cr.errors.CompileError, match="ask the system for its tiles"):
        trained("x86-64-v4+amx", "default", tmp_path)
    assert not any(t.blocks for t in targets_of("host", None, None, False))
