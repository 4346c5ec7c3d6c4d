"""Checkpoints: the format, damage of every kind, and files that stay whole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chainrule.errors import ArtifactError
from chainrule.train import checkpoint

pytestmark = pytest.mark.usefixtures("compiled_once")

RNG = np.random.default_rng(0)
TENSORS = {
    "W": RNG.normal(size=(3, 4)).astype(np.float32),
    "b": RNG.normal(size=4),
    "count": np.array(7, np.int32),
    "empty": np.zeros((0, 3), np.float32),
    "flags": np.array([True, False]),
    "bytes": np.arange(5, dtype=np.uint8),
    "seed": np.array(2**64 - 1, np.uint64),
    "odd name \n\0 é": np.arange(3),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    checkpoint.write(tmp_path / "a.safetensors", TENSORS)
    return tmp_path / "a.safetensors"


def test_what_is_written_is_read(path: Path) -> None:
    back = checkpoint.read(path)
    assert list(back) == list(TENSORS)
    for name, array in TENSORS.items():
        assert back[name].dtype == array.dtype and back[name].shape == array.shape
        np.testing.assert_array_equal(back[name], array)
        assert back[name].flags.writeable


def test_it_is_a_safetensors_file(path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    back = safetensors.load_file(str(path))
    for name, array in TENSORS.items():
        np.testing.assert_array_equal(back[name], array)


def test_layouts_and_byte_orders(tmp_path: Path) -> None:
    a = RNG.normal(size=(4, 6))
    given = {"f": np.asfortranarray(a), "s": a[::2, ::-1], "b": a.astype(">f8")}
    checkpoint.write(tmp_path / "f", given)
    for name, array in checkpoint.read(tmp_path / "f").items():
        np.testing.assert_array_equal(array, given[name])


def test_every_flipped_bit_is_seen(path: Path) -> None:
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for at in range(len(whole)):
        for bit in (0, 6):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                back = checkpoint.read(path)
            except ArtifactError:
                continue
            # what is not seen has changed nothing: a blank that pads the header
            assert at < header and chr(whole[at]) == " "
            assert all((back[n] == TENSORS[n]).all() for n in TENSORS)


def test_every_truncation_is_seen(path: Path) -> None:
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(ArtifactError):
            checkpoint.read(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ArtifactError):
        checkpoint.read(path)


def forged(path: Path, entries: dict[str, Any], body: bytes = bytes(16)) -> None:
    """A file with a right digest around wrong descriptions."""
    about = {
        "format": checkpoint.FORMAT,
        "version": "1",
        "sha256": checkpoint._digest(entries, body),
    }
    header = json.dumps({"__metadata__": about, **entries}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + body)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [5], "data_offsets": [0, 20]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [4], "data_offsets": [4, 20]},
        {"dtype": "F32", "shape": [4], "data_offsets": [0, 2**80]},
        {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [4.0], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [True, 4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": "4", "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [1] * 40, "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [4], "data_offsets": [0, 8, 16]},
        {"dtype": "F16", "shape": [8], "data_offsets": [0, 16]},
        {"dtype": ["F32"], "shape": [4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [4]},
        [1, 2],
        None,
    ],
)
def test_wrong_descriptions(tmp_path: Path, entry: Any) -> None:
    forged(tmp_path / "f", {"w": entry})
    with pytest.raises(ArtifactError, match="can be trusted"):
        checkpoint.read(tmp_path / "f")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(7),
        bytes(8),
        (2**63).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (4).to_bytes(8, "little") + b"null",
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
        (14).to_bytes(8, "little") + b'{"a":1,"a": 2}',
        (2).to_bytes(8, "little") + b"\xff\xfe",
        b"\x80\x04\x95" + bytes(40),
    ],
)
def test_other_files(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "f").write_bytes(data)
    with pytest.raises(ArtifactError):
        checkpoint.read(tmp_path / "f")


def test_a_failed_save_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtifactError, match="No space left") as error:
        checkpoint.write(path, {"w": np.zeros(1000)})
    assert "bytes" in str(error.value)
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_permissions_are_those_of_any_new_file(path: Path) -> None:
    plain = path.parent / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode
    path.chmod(0o600)
    checkpoint.write(path, TENSORS)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("bad", [None, 3, 3.5, "", "a\0b", "\ud800", ["a"]])
def test_paths_that_are_none(bad: Any) -> None:
    for call in (checkpoint.read, lambda p: checkpoint.write(p, TENSORS)):
        with pytest.raises(ArtifactError):
            call(bad)


def test_paths_of_other_kinds(tmp_path: Path) -> None:
    names = [b"bytes", "y" * 250, "ä \n"]
    for name in names:
        path = os.path.join(os.fsencode(tmp_path), os.fsencode(name))
        checkpoint.write(path, TENSORS)  # type: ignore[arg-type]
        assert list(checkpoint.read(path)) == list(TENSORS)  # type: ignore[arg-type]
    assert len(os.listdir(tmp_path)) == len(names)


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for target in (tmp_path / "pipe", tmp_path):
        with pytest.raises(ArtifactError, match="no file"):
            checkpoint.write(target, TENSORS)
        with pytest.raises(ArtifactError, match="no file"):
            checkpoint.read(target)
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_link_is_followed(tmp_path: Path, path: Path) -> None:
    link = tmp_path / "latest"
    link.symlink_to(path)
    checkpoint.write(link, {"w": np.ones(2)})
    assert link.is_symlink() and list(checkpoint.read(path)) == ["w"]


def test_random_damage_behind_a_right_digest(tmp_path: Path) -> None:
    """Headers that say anything end in an ArtifactError or in tensors, never in anything else."""
    rng = np.random.default_rng(0)
    values: list[Any] = [0, 1, 4, 16, -1, 2**62, 2**63, 2**70, 1.5, True, None, "F32", [], {}, [0]]
    shapes: list[Any] = [[], [4], [0, 2**62, 2**62], [2**70, 0], [1] * 32, [0] * 32, [[4]]]
    for _ in range(400):
        offsets = [values[i] for i in rng.integers(len(values), size=2)]
        entry = {
            "dtype": ["F32", "BOOL", "U8"][rng.integers(3)],
            "shape": (values + shapes)[rng.integers(len(values + shapes))],
            "data_offsets": [[0, 0], [0, 16], offsets][rng.integers(3)],
        }
        forged(tmp_path / "f", {"w": entry}, bytes([0, 16][rng.integers(2)]))
        try:
            checkpoint.read(tmp_path / "f")
        except ArtifactError:
            continue
