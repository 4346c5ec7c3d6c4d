"""Handwritten digits of 8x8 pixels: 1,797 real images of ten classes, by 13 writers.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits" (test set), UCI
Machine Learning Repository, 1998, https://doi.org/10.24432/C50P49, CC BY 4.0. ATTRIBUTION.md beside
this file says what was changed.
"""

from __future__ import annotations

from numbers import Real
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chainrule.errors import FeedError
from chainrule.ops.philox import permutation
from chainrule.records import dataclass

CLASSES = 10
DARKEST = 16  # of 4x4 scanned dots, how many were on
_FILE = Path(__file__).with_name("digits.npz")


@dataclass(frozen=True, eq=False)
class Digits:
    """Images as rows of 64 pixels in [0, 1], row-major 8x8, and the digits they show, 0 to 9."""

    x_train: NDArray[np.float32]
    y_train: NDArray[np.int32]
    x_test: NDArray[np.float32]
    y_test: NDArray[np.int32]


def digits(held_out: float = 0.2, seed: int = 0) -> Digits:
    """The digits, shuffled, with the fraction `held_out` of each class set aside for testing.

    Every class keeps its share on both sides to within one image, and at least one image to train
    on; the same seed gives the same split on every machine. Raises FeedError where `held_out` is
    not in [0, 1) or `seed` not in [0, 2**64).

        data = digits(held_out=0.2, seed=0)
        data.x_train.shape, data.x_test.shape  # (1438, 64), (359, 64)
    """
    _check_fraction(held_out)
    with np.load(_FILE, allow_pickle=False) as file:
        pixels, labels = file["pixels"], file["labels"]
    order = permutation(seed, 0, len(labels))
    pixels, labels = pixels[order], labels[order]
    tested = _first_of_each_class(labels, held_out)
    x = pixels.astype(np.float32) / np.float32(DARKEST)
    y = labels.astype(np.int32)
    return Digits(x[~tested], y[~tested], x[tested], y[tested])


def _check_fraction(held_out: object) -> None:
    if isinstance(held_out, Real) and not isinstance(held_out, bool) and 0 <= float(held_out) < 1:
        return
    raise FeedError(
        f"held_out is the fraction set aside for testing, in [0, 1), not {held_out!r}",
        "held_out=0.2 sets every fifth image aside",
    )


def _first_of_each_class(labels: NDArray[np.uint8], fraction: float) -> NDArray[np.bool_]:
    chosen = np.zeros(len(labels), bool)
    for digit in range(CLASSES):
        rows = np.flatnonzero(labels == digit)
        chosen[rows[: min(round(fraction * len(rows)), len(rows) - 1)]] = True
    return chosen
