"""The cache of machine code: what it gives back is what was put in, or nothing."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chainrule.codegen import cache
from chainrule.codegen.cache import ObjectCache, key_of

KEY = key_of(["a program", "a target"])


@pytest.fixture
def kept(tmp_path):
    store = ObjectCache(tmp_path / "cache")
    assert store.put(KEY, b"machine code")
    return store


def file_of(store):
    (path,) = store.folder.glob("*.object")
    return path


def test_what_was_kept_is_found_under_its_key_alone(kept):
    assert kept.get(KEY) == b"machine code"
    assert kept.get(key_of(["a program", "another target"])) is None


def test_texts_are_told_apart_where_their_joins_are_equal():
    assert key_of(["ab", "c"]) != key_of(["a", "bc"]) != key_of(["abc"])


def test_the_folder_is_the_users_alone(kept):
    assert kept.folder.stat().st_mode & 0o777 == 0o700
    assert file_of(kept).stat().st_mode & 0o077 == 0


def test_every_changed_byte_is_seen(kept):
    path = file_of(kept)
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert kept.get(KEY) is None
    path.write_bytes(whole)
    assert kept.get(KEY) == b"machine code"


def test_every_shorter_file_is_seen(kept):
    path = file_of(kept)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert kept.get(KEY) is None


def test_a_file_under_anothers_name_is_no_use(kept):
    other = key_of(["another"])
    file_of(kept).rename(kept.folder / (other.hex() + ".object"))
    assert kept.get(other) is None


def test_a_damaged_file_is_written_again(kept):
    file_of(kept).write_bytes(b"")
    assert kept.put(KEY, b"machine code")
    assert kept.get(KEY) == b"machine code"


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no owners of files here")
def test_what_others_may_write_is_not_run(kept):
    path = file_of(kept)
    path.chmod(0o622)
    assert kept.get(KEY) is None
    path.chmod(0o600)
    assert kept.get(KEY) == b"machine code"
    kept.folder.chmod(0o777)
    assert kept.get(KEY) is None
    assert not kept.put(KEY, b"machine code")
    kept.folder.chmod(0o700)


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="links are followed here")
def test_a_link_is_not_followed(kept, tmp_path):
    path = file_of(kept)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert kept.get(KEY) is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_in_its_place_is_not_waited_for_and_is_replaced(kept):
    file_of(kept).unlink()
    os.mkfifo(kept.folder / f"{KEY.hex()}.object", 0o600)
    assert kept.get(KEY) is None
    assert kept.put(KEY, b"again") and kept.get(KEY) == b"again"


def test_a_folder_that_can_t_be_made_keeps_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    store = ObjectCache(tmp_path / "file" / "cache")
    assert not store.put(KEY, b"x")
    assert store.get(KEY) is None


def test_the_least_used_goes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "LIMIT", 4000)
    store = ObjectCache(tmp_path)
    os.chmod(tmp_path, 0o700)
    keys = [key_of([str(i)]) for i in range(6)]
    for age, key in enumerate(keys[:3]):
        store.put(key, bytes(1000))
        past = time.time() - 100 + age
        os.utime(tmp_path / f"{key.hex()}.object", (past, past))
    assert store.get(keys[0]) is not None  # and now it is the youngest
    store.put(keys[3], bytes(1000))
    assert [store.get(k) is not None for k in keys[:4]] == [True, False, False, True]


def test_what_a_dead_writer_left_goes_in_time(kept):
    left = kept.folder / "left.part"
    left.write_bytes(b"half")
    kept.put(KEY, b"x")
    assert left.exists()  # its writer may be at work
    past = time.time() - 7200
    os.utime(left, (past, past))
    kept.put(KEY, b"x")
    assert not left.exists()


def test_writers_and_readers_in_turns_never_meet_half_a_file(tmp_path):
    """Processes write one key at once; one is killed. A reader meets a whole file or none."""
    script = (
        "import sys, pathlib; from chainrule.codegen.cache import ObjectCache\n"
        "store = ObjectCache(pathlib.Path(sys.argv[1])); key = bytes.fromhex(sys.argv[2])\n"
        "print('ready', flush=True)\n"
        "while True: store.put(key, sys.argv[3].encode() * 100_000)\n"
    )
    store = ObjectCache(tmp_path / "cache")
    roots = os.pathsep.join(str(Path(__file__).parents[2] / r) for r in ("compiler", "runtime"))
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(store.folder), KEY.hex(), letter],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": roots},
        )
        for letter in "ab"
    ]
    try:
        for writer in writers:
            assert writer.stdout.readline() == b"ready\n"
        while store.get(KEY) is None:
            time.sleep(0.01)
        end, seen = time.monotonic() + 1, set()
        while time.monotonic() < end:
            seen.add(store.get(KEY))
        writers[0].kill()
        writers[0].wait()
        seen.add(store.get(KEY))
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
            writer.stdout.close()
    assert seen <= {b"a" * 100_000, b"b" * 100_000}
