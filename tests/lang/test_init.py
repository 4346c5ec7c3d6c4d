from __future__ import annotations

import math

import numpy as np
import pytest

from chainrule.errors import FeedError
from chainrule.lang import init
from chainrule.ops import philox

F32, F64 = np.dtype(np.float32), np.dtype(np.float64)
SHAPE = (300, 200)


@pytest.mark.parametrize(
    ("name", "variance"),
    [
        ("glorot", 2 / 500),
        ("he", 2 / 300),
        ("lecun", 1 / 300),
    ],
)
def test_scaled_ones_have_their_papers_variance(name: str, variance: float) -> None:
    u = init.draw(f"{name}_uniform", SHAPE, F32, 7, 0)
    n = init.draw(f"{name}_normal", SHAPE, F32, 7, 0)
    limit = math.sqrt(3 * variance)
    assert abs(u).max() <= limit and abs(u).max() > 0.999 * limit
    for a in (u, n):
        assert a.dtype == F32 and a.shape == SHAPE
        assert abs(a.mean()) < 4 * math.sqrt(variance / a.size)
        assert a.var() == pytest.approx(variance, rel=0.03)


def test_fans() -> None:
    assert init.fans((3, 4)) == (3, 4)
    assert init.fans((8, 2, 5, 5)) == (50, 200)  # (out, in, ...)
    assert init.fans((6,)) == (6, 6) and init.fans(()) == (1, 1)


def test_the_same_on_every_machine_and_of_every_size() -> None:
    a = init.draw("he_normal", (4, 5), F64, 3, 1)
    np.testing.assert_array_equal(a, init.draw(init.he_normal, (4, 5), F64, 3, 1))
    np.testing.assert_array_equal(a, init.draw(init.he_normal(), (4, 5), F64, 3, 1))
    for seed, index in ((4, 1), (3, 2)):
        assert not np.array_equal(a, init.draw("he_normal", (4, 5), F64, seed, index))
    # pinned: uniform(0, 1) of seed 0, parameter 0, so that checkpoints' beginnings never move
    pinned = init.draw(init.uniform(0.0, 1.0), (2,), F32, 0, 0)
    words = philox.words(0, 0, 0x40000000, 2)
    np.testing.assert_array_equal(
        pinned, (words[:, 0] >> 8).astype(np.float32) * np.float32(2**-24)
    )


def test_plain_ones() -> None:
    assert (init.draw("zeros", (2, 2), F32, 0, 0) == 0).all()
    assert (init.draw(init.ones(), (2, 2), F32, 0, 0) == 1).all()
    assert (init.draw(init.constant(0.5), (), F64, 0, 0) == 0.5).all()
    assert init.draw(np.arange(3.0), (3,), F32, 0, 0).dtype == F32
    n = init.draw(init.normal(2.0, 3.0), (10000,), F64, 0, 0)
    assert n.mean() == pytest.approx(2, abs=0.15) and n.std() == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("bad", ["xavier", None, 3, object()])
def test_unknown_ones_list_what_there_is(bad: object) -> None:
    with pytest.raises(FeedError, match="glorot_uniform"):
        init.resolve(bad)


def test_bad_arguments() -> None:
    for make in (
        lambda: init.uniform(1.0, 0.0),
        lambda: init.normal(0.0, 0.0),
        lambda: init.normal(0.0, math.nan),
        lambda: init.constant(math.inf),
        lambda: init.constant("1"),  # type: ignore[arg-type]
    ):
        with pytest.raises(FeedError):
            make()
