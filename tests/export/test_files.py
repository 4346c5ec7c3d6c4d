"""What an export writes: headers that compilers take, archives, whole files, and the examples."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chainrule as cr
import chainrule_runtime
from chainrule.cli import cli
from chainrule.codegen.formats import undefined_symbols
from chainrule.export.names import identifiers, is_identifier
from chainrule.train.checkpoint import read

ROOT = Path(__file__).parents[2]
CC, CXX = shutil.which("cc"), shutil.which("c++")
FOLDER = ROOT / "examples/export"
needs_cc = pytest.mark.skipif(CC is None, reason="no C compiler is here")


def test_nothing_besides_the_kernel(net) -> None:
    """No undefined symbol, no data that can be written, no change of how floats are rounded."""
    files, name = net.artifact.files, net.artifact.name
    assert undefined_symbols(files[f"{name}.o"].read_bytes()) == []
    text = files[f"{name}.ll"].read_text()
    for word in ("@memset", "@memcpy", "ldmxcsr", "thread_local", " global "):
        assert word not in text
    told = net.artifact.certificate
    assert told["largest_frame"] <= told["stack_bytes"] < 4096
    if (nm := shutil.which("nm")) is not None:
        said = subprocess.run([nm, "-u", files[f"{name}.so"]], capture_output=True, text=True)
        assert said.stdout.strip() == ""


@needs_cc
@pytest.mark.parametrize("words", [["-std=c99", "-x", "c"], ["-std=c++11", "-x", "c++"]], ids=str)
def test_compilers_take_the_header(words: list[str], net, tmp_path: Path) -> None:
    compiler = CXX if "c++" in words else CC
    if compiler is None:
        pytest.skip("no C++ compiler is here")
    name, files = net.artifact.name, net.artifact.files
    told = net.artifact.certificate
    source = tmp_path / "use.c"
    upper = name.upper()
    source.write_text(
        f'#include "{name}.h"\n#include "{name}.h"\n'
        f"int main(void) {{\n"
        f"  if ({name}_state_bytes() != {upper}_STATE_BYTES) return 1;\n"
        f"  size_t most = {upper}_MAX_BATCH;\n"
        f"  if ({name}_workspace_bytes(most) != {upper}_MAX_WORKSPACE_BYTES) return 2;\n"
        f"  if ({name}_workspace_bytes(most + 1) || {name}_workspace_bytes(0)) return 3;\n"
        f"  return {name}_tensors() == {len(told['tensors'])} ? 0 : 4;\n}}\n"
    )
    strict = ["-Wall", "-Wextra", "-pedantic", "-Werror"]
    library = files[f"lib{name}.a"]
    subprocess.run(
        [compiler, *words, *strict, f"-I{library.parent}", source, "-x", "none", library,
         "-o", tmp_path / "use"],
        check=True,
    )  # fmt: skip
    subprocess.run([tmp_path / "use"], check=True)


def test_codes_for_what_c_can_get_wrong(digits_net) -> None:
    """Null, misaligned, too small, begun by nobody or by another: a code, nothing is touched."""
    told = digits_net.artifact.certificate
    code = told["codes"]
    library = ctypes.CDLL(os.fspath(digits_net.artifact.files["digits.so"]))
    library.digits_strerror.restype = ctypes.c_char_p
    size, room = told["state_bytes"], told["workspace_bytes"]

    def block(n: int, offset: int = 0) -> ctypes.Array[ctypes.c_char]:
        raw = ctypes.create_string_buffer(n + 128)
        start = -ctypes.addressof(raw) % 64 + offset
        return (ctypes.c_char * n).from_buffer(raw, start)

    state, work, saved = block(size), block(room), block(size)
    x, y, loss = (ctypes.c_float * 128)(), (ctypes.c_int32 * 2)(), ctypes.c_float(7)

    def z(n: int) -> ctypes.c_size_t:
        return ctypes.c_size_t(n)

    def step(s=state, n=size, w=work, m=room, batch=2, x=x, y=y, out=None) -> int:
        return library.digits_step(
            s, z(n), w, z(m), z(batch), x, y, out or ctypes.byref(loss), None
        )

    assert step() == code["ERROR_STATE"], "called before init"
    seed = ctypes.c_uint64(5)
    assert library.digits_init(None, z(size), seed) == code["ERROR_NULL"]
    assert library.digits_init(block(size, 4), z(size), seed) == code["ERROR_ALIGN"]
    assert library.digits_init(state, z(size - 1), seed) == code["ERROR_ROOM"]
    assert library.digits_init(state, z(size), seed) == 0
    before = bytes(state)
    need = 64 * 1024
    assert step(n=size - 64) == code["ERROR_ROOM"]
    assert step(w=None) == code["ERROR_NULL"]
    assert step(w=block(need, 32)) == code["ERROR_ALIGN"]
    assert step(m=64) == code["ERROR_ROOM"]
    assert step(batch=0) == code["ERROR_SIZE"]
    assert step(batch=told["sizes"]["batch"] + 1) == code["ERROR_SIZE"]
    assert step(batch=2**64 - 1) == code["ERROR_SIZE"]
    assert step(x=None) == code["ERROR_NULL"]
    assert step(x=ctypes.c_void_p(ctypes.addressof(x) + 2)) == code["ERROR_ALIGN"]
    y[1] = 10
    assert step() == code["ERROR_DATA0"]
    y[1] = -1
    assert step() == code["ERROR_DATA0"]
    assert b"y holds" in library.digits_strerror(code["ERROR_DATA0"])
    assert b"DIGITS_ALIGN" in library.digits_strerror(code["ERROR_ALIGN"])  # as the header has it
    y[1] = 9
    x[3] = float("nan")
    assert step() == code["ERROR_FINITE"]
    assert loss.value == 7 and bytes(state) == before
    for at, name in ((0, "STATE"), (8, "VERSION"), (16, "MODEL"), (24, "MODEL"), (12, "STATE")):
        other = block(size)
        other[:] = before
        other[at] = bytes([before[at] ^ 0x40])
        assert step(s=other) == code[f"ERROR_{name}"], at
    assert library.digits_save(state, z(size), saved, z(size - 1)) == code["ERROR_ROOM"]
    assert library.digits_save(state, z(size), saved, z(size)) == 0
    assert library.digits_load(state, z(size), saved, z(32)) == code["ERROR_ROOM"]
    saved[size // 2] = bytes([saved[size // 2][0] ^ 1])
    assert library.digits_load(state, z(size), saved, z(size)) == code["ERROR_DAMAGED"]
    assert bytes(state) == before
    assert library.digits_get(state, z(size), 99, saved, z(4)) == code["ERROR_NAME"]
    assert library.digits_get(state, z(size), 0, saved, z(4)) == code["ERROR_NAME"]
    assert library.digits_tensor(b"W2") == 2 and library.digits_tensor(b"W") == -1
    assert library.digits_strerror(-5)
    x[3] = 0
    assert step() == 0 and loss.value != 7 and bytes(state) != before


def test_codes_of_many_steps(digits_net) -> None:
    """What may be null may not be misaligned; done tells of steps that were made."""
    told = digits_net.artifact.certificate
    code, size, batch = told["codes"], told["state_bytes"], told["sizes"]["batch"]
    library = ctypes.CDLL(os.fspath(digits_net.artifact.files["digits.so"]))
    library.digits_steps_workspace_bytes.restype = ctypes.c_size_t
    z = ctypes.c_size_t
    room = library.digits_steps_workspace_bytes(z(batch))

    def block(n: int) -> int:
        kept.append(ctypes.create_string_buffer(n + 64))
        return ctypes.addressof(kept[-1]) + -ctypes.addressof(kept[-1]) % 64

    kept: list[Any] = []
    state, work, order, losses, done = map(block, (size, room, 1600, 80, 8))
    rows = 100
    x, y = block(rows * 256), (ctypes.c_int32 * rows)()
    assert library.digits_init(ctypes.c_void_p(state), z(size), ctypes.c_uint64(1)) == 0
    before = ctypes.string_at(state, size)

    def steps(w=work, m=room, r=rows, b=batch, o=None, x=x, y=y, losses=losses, done=done) -> int:
        pointers = (ctypes.c_void_p(p) for p in (o, x, ctypes.addressof(y), losses, done))
        return library.digits_steps(ctypes.c_void_p(state), z(size), ctypes.c_void_p(w), z(m),
                                    z(r), z(b), *pointers)  # fmt: skip

    made = ctypes.c_size_t.from_address(done)
    made.value = 7
    assert steps(done=done + 4) == steps(losses=losses + 2) == code["ERROR_ALIGN"]
    assert made.value == 7
    assert steps(o=order + 4) == steps(x=x + 2) == steps(w=work + 32) == code["ERROR_ALIGN"]
    assert made.value == 0
    assert steps(x=None) == steps(w=None) == code["ERROR_NULL"]
    assert steps(m=room - 64) == code["ERROR_ROOM"]
    assert steps(r=0) == steps(b=0) == steps(b=batch + 1) == code["ERROR_SIZE"]
    ctypes.memset(order, 0xFF, 8)
    assert steps(o=order) == code["ERROR_VALUE"]
    assert ctypes.string_at(state, size) == before
    y[batch] = 10
    assert steps() == code["ERROR_DATA0"] and made.value == 1
    y[batch] = 0
    assert steps(losses=None, done=None) == 0
    words = (ctypes.c_void_p(order), z(2 * rows - 1), z(rows))
    assert library.digits_shuffle(ctypes.c_void_p(state), z(size), *words) == code["ERROR_ROOM"]


def test_the_manifest_and_the_state(net) -> None:
    files, name = net.artifact.files, net.artifact.name
    told = json.loads(files[f"{name}.json"].read_text())
    assert told["state_bytes"] == files[f"{name}.state"].stat().st_size
    assert told["gradients"].keys() == net.step.gradients.keys()
    ends = [t["offset"] + t["bytes"] for t in told["tensors"]]
    starts = [t["offset"] for t in told["tensors"]]
    assert all(start % 64 == 0 for start in starts) and ends[-1] <= told["state_bytes"]
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))
    assert read(files[f"{name}.safetensors"]).keys() == net.step.state_dict().keys()


def test_files_are_replaced_whole(digits_net, tmp_path: Path) -> None:
    folder = tmp_path / "a folder, ünïcode"
    step = digits_net.step
    first = step.export(folder, name="net", formats=("h", "json"))
    again = step.export(folder, name="net", formats=("h", "json"))
    assert first.files == again.files
    assert sorted(p.name for p in folder.iterdir()) == ["net.h", "net.json"]
    (tmp_path / "file").write_text("")
    (folder / "net.o").mkdir()
    for bad in (tmp_path / "file", "/proc/nowhere"):
        with pytest.raises(cr.errors.ArtifactError):
            step.export(bad, name="net", formats=("h",))
    with pytest.raises(cr.errors.ArtifactError, match="no file"):
        step.export(folder, name="net", formats=("o",))


def test_names_in_c() -> None:
    odd = ["int", "W 1", "W_1", "7", "*/", "ü", "", "x" * 100, "state", "W 1"]
    made = identifiers(odd)
    assert len(set(made.values())) == len(set(odd))
    assert all(is_identifier(n) for n in made.values())
    assert made["int"] != "int" and made["state"] != "state"


def test_a_name_that_ends_comments(tmp_path: Path) -> None:
    x = cr.input('x*/ int y; /* "??/', ("batch", 3))
    w = cr.parameter('w*/\\"', (3,))
    step = cr.training_step(cr.mean((x @ w) ** 2), cr.optim.SGD(0.1))
    art = step.export(tmp_path, name="odd", formats=("h", "o", "json"))
    text = art.files["odd.h"].read_text()
    assert "int y;" not in text.replace("* / int y; / *", "")
    if CC is not None:
        subprocess.run([CC, "-fsyntax-only", "-Wall", "-Werror", "-x", "c", art.files["odd.h"]],
                       check=True)  # fmt: skip


def test_a_size_may_be_called_anything(tmp_path: Path, linker: None) -> None:
    names = ["b", "i0", "ga", "int", "state", "x0", "size0", "für", "_", "out"]
    w = cr.parameter("w", (3,), init="ones")
    xs = [cr.input(f"x{i}", (name, 3)) for i, name in enumerate(names)]
    step = cr.training_step(sum((cr.mean(cr.tanh(x @ w)) for x in xs), 0.0), cr.optim.SGD(0.1))
    sizes = dict.fromkeys(names, 20)
    art = step.export(tmp_path, name="odd", formats=("h", "so", "state"), max_sizes=sizes)
    kernel = chainrule_runtime.load(art.files["odd.so"])
    kernel.load(art.files["odd.state"])
    rng = np.random.default_rng(5)
    feeds = {f"x{i}": rng.standard_normal((i + 3, 3)).astype("float32") for i, _ in enumerate(xs)}
    for _ in range(2):
        assert kernel.step(**feeds) == step(**feeds)
    if CC is not None:
        subprocess.run([CC, "-fsyntax-only", "-Wall", "-Werror", "-x", "c", art.files["odd.h"]],
                       check=True)  # fmt: skip


@needs_cc
def test_the_example_in_c_learns(tmp_path: Path) -> None:
    command = [sys.executable, FOLDER / "digits.py", tmp_path]
    path = os.pathsep.join([str(ROOT / "compiler"), str(ROOT / "runtime")])
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path})
    program = tmp_path / "train"
    subprocess.run(
        [CC, "-O2", "-Wall", "-Wextra", "-Werror", f"-I{tmp_path}", FOLDER / "digits.c",
         tmp_path / "digits.o", "-o", program],
        check=True,
    )  # fmt: skip
    run = subprocess.run([program, tmp_path / "digits.bin"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    accuracy = float(run.stdout.splitlines()[-1].split()[0])
    assert accuracy > 95, run.stdout


def test_the_command_line(tmp_path: Path) -> None:
    from click.testing import CliRunner

    out = tmp_path / "out"
    source = f"{FOLDER / 'digits.py'}:step"
    words = ["export", source, "--out", str(out), "--formats", "o,h,json", "--target", "aarch64"]
    made = CliRunner().invoke(cli, words)
    assert made.exit_code == 0, made.output
    assert {p.name for p in out.iterdir()} == {"digits.o", "digits.h", "digits.json"}
    seen = CliRunner().invoke(cli, ["inspect", str(out / "digits.o")])
    assert seen.exit_code == 0 and "W1: float32[64, 32]" in seen.output
    assert "dW1 = xᵀ @ dz1" in seen.output
    assert "k' < 64" in seen.output, "loops are told with their bounds"
    whole = (out / "digits.o").read_bytes()
    (out / "digits.o").write_bytes(whole[:-8])
    seen = CliRunner().invoke(cli, ["inspect", str(out / "digits.o")])
    assert seen.exit_code != 0 and "SHA-256" in seen.output
    (out / "digits.o").write_bytes(whole)
    alone = tmp_path / "alone.bin"
    alone.write_bytes((out / "digits.o").read_bytes())
    seen = CliRunner().invoke(cli, ["inspect", str(alone)])
    assert seen.exit_code == 0 and "dW1 = xᵀ @ dz1" in seen.output
    alone.write_bytes(b'{"format": "chainrule-kernel"')
    for wrong in (
        ["inspect", str(alone)],
        ["inspect", str(out / "other.o")],
        ["export", str(FOLDER / "digits.py:z")],
        ["export", source, "--max-size", "batch"],
    ):
        assert CliRunner().invoke(cli, wrong).exit_code != 0
