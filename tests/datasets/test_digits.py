"""The bundled digits: the real ones, split as promised."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from chainrule.datasets import Digits, digits
from chainrule.errors import ChainruleError

# of the UCI file optdigits.tes: images of each digit, and a digest of all pixels, then all labels
COUNTS = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"


def rows(x: np.ndarray, y: np.ndarray) -> list[bytes]:
    """Each example as bytes, sorted: what a split must neither lose nor repeat."""
    examples = np.column_stack([np.rint(x * 16), y]).astype(np.uint8)
    return sorted(row.tobytes() for row in examples)


def equal(a: Digits, b: Digits) -> bool:
    names = ("x_train", "y_train", "x_test", "y_test")
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)


@pytest.mark.smoke
def test_types_and_counts() -> None:
    data = digits()
    assert data.x_train.shape == (1438, 64)
    assert data.x_test.shape == (359, 64)
    assert data.x_train.dtype == data.x_test.dtype == np.float32
    assert data.y_train.dtype == data.y_test.dtype == np.int32
    assert data.x_train.flags.c_contiguous
    assert data.x_test.flags.c_contiguous
    assert data.x_train.min() == 0
    assert data.x_train.max() == 1


def test_file_is_the_source() -> None:
    from chainrule.datasets import optdigits

    with np.load(optdigits._FILE, allow_pickle=False) as file:
        pixels, labels = file["pixels"], file["labels"]
    assert pixels.dtype == labels.dtype == np.uint8
    assert pixels.max() == optdigits.DARKEST
    assert hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest() == SHA256
    assert optdigits._FILE.stat().st_size < 100_000


@pytest.mark.parametrize("held_out", [0.0, 0.01, 0.2, 1 / 3, 0.5, 0.999])
def test_every_class_keeps_its_share(held_out: float) -> None:
    data = digits(held_out)
    tested = np.bincount(data.y_test, minlength=10)
    trained = np.bincount(data.y_train, minlength=10)
    assert (trained + tested).tolist() == COUNTS
    assert np.all(np.abs(tested - held_out * np.array(COUNTS)) <= 1)
    assert trained.min() >= 1


def test_split_is_disjoint_and_complete() -> None:
    whole, half = digits(0.0), digits(0.5)
    assert len(whole.x_test) == 0
    together = sorted(rows(half.x_train, half.y_train) + rows(half.x_test, half.y_test))
    assert together == rows(whole.x_train, whole.y_train)


def test_seed_decides_the_split() -> None:
    assert equal(digits(seed=3), digits(seed=3))
    assert not equal(digits(seed=3), digits(seed=4))


def test_is_shuffled() -> None:
    """The source repeats 0, 1, ..., 9; a minibatch in file order would be no sample of it."""
    labels = digits().y_train
    assert 0.05 < np.mean((labels[:-1] + 1) % 10 == labels[1:]) < 0.15


def test_arrays_are_the_callers() -> None:
    first = digits()
    first.x_train[:] = 0
    assert digits().x_train.max() == 1


@pytest.mark.parametrize("held_out", [-0.1, 1, 1.5, 20, float("nan"), True, "0.2", None])
def test_bad_held_out(held_out: object) -> None:
    with pytest.raises(ChainruleError, match=r"held_out .* in \[0, 1\)") as raised:
        digits(held_out)  # type: ignore[arg-type]
    assert isinstance(raised.value, ValueError)
    assert "digits(held_out)" in str(raised.value)  # the caller's own line


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_bad_seed(seed: int) -> None:
    with pytest.raises(ChainruleError, match="seed"):
        digits(seed=seed)


def test_equals_scikit_learns_copy() -> None:
    theirs = pytest.importorskip("sklearn.datasets").load_digits()
    ours = digits(0.0)
    assert rows(ours.x_train, ours.y_train) == rows(theirs.data / 16, theirs.target)
