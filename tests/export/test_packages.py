"""What an export writes for other builds, by building with it: C, CMake, cargo, Node."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

import chainrule as cr
from chainrule.codegen.host import host_target
from chainrule.export import files

pytestmark = pytest.mark.usefixtures("compiled_once")

HERE = Path(__file__).parent
CC = shutil.which("cc")
ZIG = [sys.executable, "-m", "ziglang"] if find_spec("ziglang") else []
needs_cc = pytest.mark.skipif(CC is None, reason="no C compiler is here")
SAID = "net: all is well"


def needs(tool: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not here")


def run(*command: object, cwd: Path | None = None) -> str:
    """What a command prints. Fails with all of it where it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An attention net in all that there is for this machine, where nothing is as usual."""
    where = tmp_path_factory.mktemp("a folder")
    t = cr.input("t", ("batch", "time"), dtype="int32")
    y = cr.input("type", ("batch",), dtype="int32")
    h = cr.nn.Embedding(5, 4)(t)
    z = cr.nn.Dense(3)(cr.mean(cr.attention(h, h, h), axis=1))
    step = cr.training_step(cr.losses.cross_entropy(z, y), cr.optim.Adam(1e-2), outputs=z)
    formats = ("o", "a", "h", "json", "cmake", "pc", "rs")
    sizes = {"time": 6}
    step.export(where, "net", formats=formats, max_sizes=sizes, examples=("c", "rust"))
    return where


def learned(said: str) -> None:
    first, last = (float(w.strip(",")) for w in said.split() if w[0].isdigit() and "." in w)
    assert last < first, said


@needs_cc
def test_the_programs_in_c(folder: Path, tmp_path: Path) -> None:
    strict = ["-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Werror", f"-I{folder}"]
    for name in ("example", "selftest"):
        run(CC, *strict, folder / f"net_{name}.c", folder / "libnet.a", "-o", tmp_path / name)
    learned(run(tmp_path / "example"))
    assert run(tmp_path / "selftest").strip() == SAID


@needs_cc
@needs("cmake")
def test_cmake_finds_the_kernel(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.10)\nproject(user C)\nset(CMAKE_C_STANDARD 11)\n"
        "find_package(net CONFIG REQUIRED)\nfind_package(net CONFIG REQUIRED)\n"
        f'add_executable(user "{folder}/net_selftest.c")\n'
        "target_link_libraries(user net::net)\n"
    )
    run("cmake", "-S", tmp_path, "-B", tmp_path / "out", f"-Dnet_DIR={folder}")
    run("cmake", "--build", tmp_path / "out")
    assert run(tmp_path / "out/user").strip() == SAID


@needs_cc
@needs("pkg-config")
def test_pkg_config_tells_of_the_kernel(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved, ignore=shutil.ignore_patterns("net-rs"))
    told = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "net"], capture_output=True, text=True, check=True,
        env={**os.environ, "PKG_CONFIG_PATH": str(moved)},
    )  # fmt: skip
    run(CC, moved / "net_selftest.c", *told.stdout.split(), "-o", tmp_path / "user")
    assert run(tmp_path / "user").strip() == SAID


needs_cargo = pytest.mark.skipif(
    subprocess.run(["cargo", "--version"], capture_output=True, check=False).returncode != 0
    if shutil.which("cargo")
    else True,
    reason="cargo is not here, or has no toolchain",
)


@needs_cc
@needs_cargo
def test_cargo_builds_the_crate_offline(folder: Path, tmp_path: Path) -> None:
    crate = tmp_path / "net-rs"
    shutil.copytree(folder / "net-rs", crate)
    (crate / "examples/wrong.rs").write_text(
        "use net::{Error, Net};\n"
        "fn main() {\n"
        "    let mut net = Net::new(0).unwrap();\n"
        '    assert_eq!(net.step(2, 3, &[0; 5], &[0; 2]), Err(Error::Length("t", 5, 6)));\n'
        "    assert_eq!(net.step(99, 3, &[0; 297], &[0; 99]), Err(Error::Sizes));\n"
        "    let bad = net.step(2, 3, &[9; 6], &[0; 2]).unwrap_err();\n"
        '    assert!(bad.to_string().contains("t holds"));\n'
        "    let saved = net.save().unwrap();\n"
        "    assert_eq!(Net::load(&saved).unwrap().save().unwrap(), saved);\n"
        "    assert!(Net::load(&saved[1..]).is_err());\n"
        '    let name = "dense1.weight";\n'
        "    let weight = net.get(name).unwrap();\n"
        "    net.set(name, &weight).unwrap();\n"
        '    assert!(net.get("none").is_err());\n'
        "    assert_eq!(net.predict(2, 3, &[0; 6]).unwrap().len(), 6);\n"
        "}\n"
    )
    words = ["--offline", "--quiet"]
    learned(run("cargo", "run", *words, "--example", "train", cwd=crate))
    run("cargo", "run", *words, "--example", "wrong", cwd=crate)
    assert "test result: ok" in run("cargo", "test", "--offline", "--test", "selftest", cwd=crate)


@needs_cc
@needs_cargo
def test_epochs_and_divided_steps_in_rust(tmp_path: Path) -> None:
    """An input is called as a local of the methods might be."""
    x, y = cr.input("x", ("batch", 300)), cr.input("count", ("batch",), dtype="int32")
    z = cr.nn.Dense(10)(cr.relu(cr.nn.Dense(256)(x)))
    step = cr.training_step(cr.losses.cross_entropy(z, y), cr.optim.Adam(1e-3), outputs=z)
    step.export(tmp_path, "net", formats=("rs",), max_parts=4)
    (tmp_path / "net-rs/examples").mkdir()
    shutil.copy(HERE / "epochs.rs", tmp_path / "net-rs/examples")
    words = ["--offline", "--quiet", "--example", "epochs"]
    run("cargo", "run", *words, cwd=tmp_path / "net-rs")


@needs_cc
@needs_cargo
def test_names_that_rust_and_javascript_use_themselves(tmp_path: Path) -> None:
    """Sizes and inputs that are words or locals there, and a kernel called as a type is."""
    names = {"check": "let", "blocks": "room", "out0": "place", "each": "yield"}
    w = cr.parameter("w", (2,), init="ones")
    inputs = [cr.input(name, (size, 2)) for name, size in names.items()]
    loss = sum((cr.mean(cr.square(x @ w)) for x in inputs), 0.0)
    step = cr.training_step(loss, cr.optim.SGD(0.1))
    sizes = dict.fromkeys(names.values(), 4)
    options = {"max_sizes": sizes, "max_parts": 2}
    step.export(tmp_path, "error", formats=("rs",), examples=("rust",), **options)
    learned(run("cargo", "run", "--offline", "--quiet", "--example", "train",
                cwd=tmp_path / "error-rs"))  # fmt: skip
    if ZIG and shutil.which("node"):
        step.export(tmp_path, "map", target="wasm32", examples=("js",), max_sizes=sizes)
        learned(run("node", tmp_path / "map_example.mjs"))


NAMES = [
    ("linux", "t", "unix", "T"),  # what GNU C defines; sizes that are one in capitals
    ("arguments", "let", "eval", "function"),
    ("net", "PARTS", "word", "WORKSPACE_BYTES"),
    ("made", "code", "first", "step"),
    ("Ok", "None", "Block", "divide"),
    ("puts", "KERNEL_ALIGN", "remove", "kernel_step"),
]


@needs_cc
@pytest.mark.parametrize("names", NAMES, ids=lambda names: names[0])
def test_names_that_the_programs_use_themselves(names: tuple[str, ...], tmp_path: Path) -> None:
    """Two inputs with two sizes, in a kernel whose name no crate may have where one does not."""
    w = cr.parameter("w", (2,), init="ones")
    inputs = [cr.input(name, (size, 2)) for name, size in zip(names[::2], names[1::2], strict=True)]
    step = cr.training_step(sum(cr.mean((x @ w) ** 2) for x in inputs), cr.optim.SGD(0.1))
    name = "kernel" if "kernel_step" in names else "std"
    options = {"max_sizes": dict.fromkeys(names[1::2], 4), "max_parts": 2}
    formats = ("o", "h", "rs")
    step.export(tmp_path, name, formats=formats, examples=("c", "rust"), **options)
    for standard in ("c11", "gnu17"):
        strict = [f"-std={standard}", "-Wall", "-Wextra", "-Wconversion", "-Werror"]
        program = tmp_path / standard
        run(CC, *strict, tmp_path / f"{name}_example.c", tmp_path / f"{name}.o", "-o", program)
        learned(run(program))
    if shutil.which("cargo"):
        learned(run("cargo", "run", "--offline", "--quiet", "--example", "train",
                    cwd=tmp_path / f"{name}-rs"))  # fmt: skip
    if ZIG and shutil.which("node"):
        del options["max_parts"]
        step.export(tmp_path, name, target="wasm32", examples=("js",), **options)
        learned(run("node", tmp_path / f"{name}_example.mjs"))


@needs("node")
@pytest.mark.skipif(not ZIG, reason="no linker for WebAssembly (pip install ziglang)")
def test_the_programs_in_javascript(lecture_step, tmp_path: Path) -> None:
    lecture_step.export(tmp_path, "net", target="wasm32", examples=("js",))
    learned(run("node", tmp_path / "net_example.mjs"))
    assert run("node", tmp_path / "net_selftest.mjs").strip() == SAID
    shutil.copy(HERE / "epochs.mjs", tmp_path)
    run("node", tmp_path / "epochs.mjs")


TRUTHS = """import { Net } from "./net.js";
const net = await Net.load();
const x = new Float32Array(6).fill(2), k = [3n, 4n];
const seen = [[true, false], [1, 0], new Uint8Array([1, 0])].map((m) => net.loss({ x, m, k }));
if (new Set(seen).size !== 1) throw new Error(seen);
for (const wrong of [{ x, m: [1.5, 0], k }, { x, m: [1, 0], k: [true, 4n] }]) {
  let refused = false;
  try { net.loss(wrong); } catch { refused = true; }
  if (!refused) throw new Error("took what does not fit");
}
let said = "";
try { net.set("w", [1, 2, 3]); } catch (error) { said = error.message; }
if (!said.includes("typed array")) throw new Error(said);
net.set("w", new Float32Array(3));
"""


@needs("node")
@pytest.mark.skipif(not ZIG, reason="no linker for WebAssembly (pip install ziglang)")
def test_arrays_of_truths_and_of_long_numbers_in_javascript(tmp_path: Path) -> None:
    x, w = cr.input("x", ("batch", 3)), cr.parameter("w", (3,), init="ones")
    m, k = cr.input("m", ("batch",), dtype="bool"), cr.input("k", ("batch",), dtype="int64")
    loss = cr.mean(cr.where(m, (x @ w) ** 2, cr.astype(k, "float32")))
    cr.training_step(loss, cr.optim.SGD(0.1)).export(tmp_path, "net", target="wasm32", max_batch=4)
    (tmp_path / "truths.mjs").write_text(TRUTHS)
    run("node", tmp_path / "truths.mjs")
    types = (tmp_path / "net.d.ts").read_text()
    assert "m: Uint8Array | boolean[] | number[]" in types
    assert "k: BigInt64Array | bigint[]" in types


def test_an_arduino_library(lecture_step, tmp_path: Path) -> None:
    """As the Library specification has it: properties, a header, the archive by processor."""
    art = lecture_step.export(tmp_path, "net", target="thumbv7em-none-eabihf")
    root = tmp_path / "net-arduino"
    lines = (root / "library.properties").read_text().split("\n")
    told = dict(line.split("=", 1) for line in lines if line)
    wanted = ["name", "version", "author", "maintainer", "sentence", "paragraph", "category", "url"]
    assert all(told.get(key) for key in (*wanted, "architectures"))
    assert (told["precompiled"], told["ldflags"], told["includes"]) == ("full", "-lnet", "net.h")
    assert (root / "src/net.h").read_bytes() == art.files["net.h"].read_bytes()
    archive = (root / "src/cortex-m4/libnet.a").read_bytes()
    assert archive == art.files["libnet.a"].read_bytes()


@pytest.mark.skipif(not ZIG, reason="no linker for Windows and macOS (pip install ziglang)")
@pytest.mark.parametrize(
    ("target", "name", "magic"),
    [
        ("x86_64-pc-windows-msvc", "net.dll", b"MZ"),
        ("arm64-apple-macos", "net.dylib", b"\xcf\xfa\xed\xfe"),
        ("x86_64-apple-macos", "net.dylib", b"\xcf\xfa\xed\xfe"),
        ("aarch64-linux-gnu", "net.so", b"\x7fELF"),
        ("wasm32", "net.wasm", b"\0asm"),
    ],
)
def test_shared_libraries_of_other_systems(
    target: str, name: str, magic: bytes, lecture_step, tmp_path: Path
) -> None:
    """They are written without being asked for, and need no other library than the system's."""
    art = lecture_step.export(tmp_path, "net", target=target, optimize="size")
    data = art.files[name].read_bytes()
    assert data.startswith(magic) and b"net_step" in data and not art.notes
    if name == "net.dylib":
        assert b"@rpath/net.dylib\0" in data and str(tmp_path).encode() not in data
    own = Path(name).suffix[1:]
    if own == "dll":
        time.sleep(1.1)  # no clock shows in a file
    asked = lecture_step.export(tmp_path, "net", target=target, optimize="size", formats=(own,))
    assert asked.files[name].read_bytes() == data
    other = "dll" if own != "dll" else "dylib"
    with pytest.raises(cr.errors.CompileError, match=f'ask for "{own}"'):
        lecture_step.export(tmp_path, "net", target=target, optimize="size", formats=(other,))


@pytest.mark.parametrize("target", ["x86_64-pc-windows-msvc", "arm64-apple-macos", "host"])
def test_what_is_said_without_a_linker(
    target: str, lecture_step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was asked for by name is an error; what was not is left out, and a note tells."""
    monkeypatch.setattr(files, "_linkers", lambda *_: [])
    art = lecture_step.export(tmp_path, "net", target=target, optimize="size")
    assert {"net.o", "libnet.a", "net.h"} <= art.files.keys()
    assert not {"net.so", "net.dll", "net.dylib"} & art.files.keys()
    (note,) = art.notes
    assert re.match(r"net\.(so|dll|dylib) is left out: no linker for .* is found here: .*zig", note)
    with pytest.raises(cr.errors.CompileError, match="no linker for"):
        lecture_step.export(tmp_path, "net", target=target, formats=("so",))


@pytest.mark.parametrize(
    "wrong",
    [
        {"examples": ("js",)},
        {"examples": ("java",)},
        {"examples": "c"},
        {"examples": ("c",), "target": "wasm32"},
        {"optimize": "beauty"},
        {"cpu": ("x86-64-v3", "znver5")},
        {"cpu": (), "target": "host"},
        {"cpu": ("x86-64-v3",), "target": "aarch64"},
    ],
    ids=str,
)
def test_what_there_is_not(wrong: dict[str, object], lecture_step, tmp_path: Path) -> None:
    with pytest.raises(cr.errors.CompileError):
        lecture_step.export(tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(host_target().arch != "x86_64", reason="this is no x86-64")
def test_several_levels_by_cpu(lecture_step, tmp_path: Path) -> None:
    levels = ("x86-64-v2", "x86-64-v4", "x86-64-v3")
    art = lecture_step.export(tmp_path, "net", cpu=levels, formats=("json",), optimize="size")
    assert [v["level"] for v in art.certificate["variants"]] == [
        "x86-64-v4", "x86-64-v3", "x86-64-v2",
    ]  # fmt: skip
