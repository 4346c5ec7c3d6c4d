"""`chainrule_runtime.load` needs no compiler, and maps nothing that was not verified."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import chainrule_runtime
from chainrule.errors import CompileError
from chainrule_runtime import ArtifactError, artifact

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
sys.modules["chainrule"] = None  # an import of it raises ImportError
import numpy as np
import chainrule_runtime

kernel = chainrule_runtime.load(sys.argv[1])
kernel.init(seed=0)
x = np.linspace(0, 1, 8 * 64, dtype=np.float32).reshape(8, 64)
y = np.arange(8) % 10
losses = [kernel.step(x=x, y=y) for _ in range(20)]
assert losses[-1] < losses[0], losses
assert kernel.predict(x=x).shape == (8, 10)
assert "llvmlite" not in sys.modules
print(repr(losses[-1]))
"""


def test_a_process_without_the_compiler(digits_net) -> None:
    here = {**os.environ, "PYTHONPATH": str(ROOT / "runtime")}
    path = digits_net.artifact.files["digits.so"]
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, path], env=here, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert 0 < float(run.stdout) < 2.4


def copied(net, folder: Path) -> tuple[Path, Path]:
    """A copy of the library and of its manifest, to be damaged."""
    files = net.artifact.files
    paths = folder / "digits.so", folder / "digits.json"
    for path in paths:
        path.write_bytes(files[path.name].read_bytes())
    return paths


def flip(library: Path, manifest: Path) -> None:
    data = bytearray(library.read_bytes())
    data[len(data) // 2] ^= 1
    library.write_bytes(data)


def cut(library: Path, manifest: Path) -> None:
    library.write_bytes(library.read_bytes()[:-100])


def empty(library: Path, manifest: Path) -> None:
    library.write_bytes(b"")


def no_manifest(library: Path, manifest: Path) -> None:
    manifest.unlink()


def not_json(library: Path, manifest: Path) -> None:
    manifest.write_text("{")


def deep(library: Path, manifest: Path) -> None:
    manifest.write_text("[" * 100_000)


def foreign(library: Path, manifest: Path) -> None:
    manifest.write_text('{"format": "another"}')


def newer(library: Path, manifest: Path) -> None:
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"abi": 2}))


def relabelled(library: Path, manifest: Path) -> None:
    told = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(told | {"state_bytes": 64}))


def renamed(library: Path, manifest: Path) -> None:
    told = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(told | {"name": "digitz"}))


def other_machine(library: Path, manifest: Path) -> None:
    import hashlib

    data = bytearray(library.read_bytes())
    data[18:20] = (8).to_bytes(2, "little")  # MIPS
    library.write_bytes(data)
    told = json.loads(manifest.read_text())
    told["sha256"]["digits.so"] = hashlib.sha256(data).hexdigest()
    manifest.write_text(json.dumps(told))


def not_ours(library: Path, manifest: Path) -> None:
    import _ctypes
    import hashlib

    data = Path(_ctypes.__file__).read_bytes()
    library.write_bytes(data)
    told = json.loads(manifest.read_text())
    told["sha256"]["digits.so"] = hashlib.sha256(data).hexdigest()
    manifest.write_text(json.dumps(told))


def folder(library: Path, manifest: Path) -> None:
    library.unlink()
    library.mkdir()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flip, "SHA-256"),
        (cut, "SHA-256"),
        (empty, "SHA-256"),
        (no_manifest, "can't read"),
        (not_json, "not JSON"),
        (deep, "not JSON"),
        (foreign, "no manifest of a kernel"),
        (newer, "version 2"),
        (relabelled, "another kernel"),
        (renamed, "another kernel"),
        (not_ours, "no kernel of chainrule"),
        (other_machine, "machine 8"),
        (folder, "no file"),
    ],
)
def test_what_is_not_whole_is_not_mapped(
    damage: Callable[[Path, Path], None],
    said: str,
    digits_net,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library, manifest = copied(digits_net, tmp_path)
    damage(library, manifest)
    monkeypatch.setattr(artifact, "mapped", None)  # it would be a TypeError
    with pytest.raises(ArtifactError, match=said):
        chainrule_runtime.load(library)


def test_an_object_is_no_library(digits_net) -> None:
    with pytest.raises(ArtifactError, match="no shared library"):
        chainrule_runtime.load(digits_net.artifact.files["digits.o"])


@pytest.mark.parametrize("path", ["", "a\0b", 7])
def test_what_is_no_path(path: object) -> None:
    with pytest.raises(ArtifactError):
        chainrule_runtime.load(path)  # type: ignore[arg-type]


def test_damaged_states_change_nothing(digits_net, tmp_path: Path) -> None:
    kernel, path = digits_net.kernel(), tmp_path / "state"
    kernel.step(**digits_net.batch(0, 8))
    kernel.save(path)
    whole = path.read_bytes()
    kernel.step(**digits_net.batch(1, 8))
    before = {n: kernel.get(n).tobytes() for n in kernel.tensors}
    places = [0, 8, 16, 24, 33, 41, 70, len(whole) // 2, len(whole) - 1]
    for data in [whole[:-64], whole + bytes(64), b"", *(flipped(whole, at) for at in places)]:
        path.write_bytes(data)
        with pytest.raises(ArtifactError):
            kernel.load(path)
        assert before == {n: kernel.get(n).tobytes() for n in kernel.tensors}
    for bad in (None, "a\0b", tmp_path, "/dev/zero"):
        with pytest.raises(ArtifactError):
            kernel.load(bad)  # type: ignore[arg-type]
        if bad != "/dev/zero":
            with pytest.raises(ArtifactError):
                kernel.save(bad)  # type: ignore[arg-type]
    path.write_bytes(whole)
    kernel.load(path)
    assert kernel.get("optimizer.step") == 1


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


def test_feeds_that_do_not_fit(digits_net) -> None:
    kernel, batch = digits_net.kernel(), digits_net.batch(0, 8)
    before = {n: kernel.get(n).tobytes() for n in kernel.tensors}
    wrong = [
        {"x": batch["x"]},
        {**batch, "z": 1},
        {**batch, "x": batch["x"][:, :63]},
        {**batch, "y": batch["y"][:7]},
        {**batch, "y": batch["y"] + 10},
        {**batch, "y": batch["y"] - 10},
        {**batch, "x": batch["x"].astype(complex)},
        digits_net.batch(0, 33),
        digits_net.batch(0, 0),
    ]
    for feeds in wrong:
        with pytest.raises(chainrule_runtime.FeedError):
            kernel.step(**feeds)
    with pytest.raises(chainrule_runtime.NonFiniteError):
        kernel.step(x=batch["x"] + float("inf"), y=batch["y"])
    assert before == {n: kernel.get(n).tobytes() for n in kernel.tensors}


def test_arguments_that_are_none(digits_net) -> None:
    kernel, batch = digits_net.kernel(), digits_net.batch(0, 8)
    before = {n: kernel.get(n).tobytes() for n in kernel.tensors}
    for call, said in (
        (lambda: kernel.step(*batch.values()), "2 inputs are given without their names"),
        (lambda: kernel.predict(batch["x"]), "1 inputs are given without their names"),
        (lambda: kernel.run(**batch, epochs=-1), "epochs is an int"),
        (lambda: kernel.run(**batch, epochs=1.5), "epochs is an int"),
        (lambda: kernel.run(**batch, batch_size=True), "batch_size is an int"),
        (lambda: setattr(kernel, "learning_rate", "0.1"), "learning_rate is a number"),
        (lambda: setattr(kernel, "learning_rate", None), "learning_rate is a number"),
        (lambda: kernel.init(seed=np.int64(-1)), "a seed is an int"),
    ):
        with pytest.raises(chainrule_runtime.FeedError, match=said):
            call()
    assert before == {n: kernel.get(n).tobytes() for n in kernel.tensors}
    kernel.init(seed=np.uint64(2**64 - 1))
    theirs = {n: kernel.get(n).tobytes() for n in kernel.tensors}
    kernel.init(seed=2**64 - 1)
    assert theirs == {n: kernel.get(n).tobytes() for n in kernel.tensors}


def test_where_to_and_how_large_an_export_is(digits_net, tmp_path: Path) -> None:
    for options in ({"target": None}, {"target": 3}, {"max_sizes": 3}):
        with pytest.raises(CompileError):
            digits_net.step.export(tmp_path, formats=("h",), **options)
    assert not [*tmp_path.iterdir()]


def test_a_kernel_is_no_value(digits_net) -> None:
    """A shallow copy would share its state, and a deep one has no library."""
    kernel = chainrule_runtime.load(digits_net.artifact.files["digits.so"])
    for copied_ in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(chainrule_runtime.RuntimeFault, match="can't be copied or pickled"):
            copied_(kernel)
