from __future__ import annotations

import math
from collections.abc import Callable

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


@pytest.mark.parametrize("shape", [(8, 8), (6, 9), (9, 6), (5, 3, 2, 2)])
@pytest.mark.parametrize("gain", [1.0, 2.5])
def test_orthogonal_ones_keep_lengths(shape: tuple[int, ...], gain: float) -> None:
    m = init.draw(init.orthogonal(gain), shape, F64, 3, 1).reshape(shape[0], -1)
    small = m @ m.T if m.shape[0] <= m.shape[1] else m.T @ m
    np.testing.assert_allclose(small, gain**2 * np.eye(len(small)), atol=1e-13)


@pytest.mark.long
def test_orthogonal_ones_are_uniform_over_rotations() -> None:
    """Each element of a random 2 by 2 rotation or reflection is a cosine: mean 0, variance 1/2."""
    many = np.array([init.draw("orthogonal", (2, 2), F64, 0, i) for i in range(2000)])
    assert abs(many.mean(axis=0)).max() < 4 * math.sqrt(0.5 / 2000)
    np.testing.assert_allclose(many.var(axis=0), 0.5, rtol=0.1)
    assert abs((np.linalg.det(many) > 0).mean() - 0.5) < 4 * 0.5 / math.sqrt(2000)


def test_truncated_ones_stay_within_two_deviations() -> None:
    a = init.draw(init.truncated_normal(1.0, 0.5), SHAPE, F64, 0, 0)
    assert abs(a - 1.0).max() <= 1.0
    assert abs(a - 1.0).max() > 0.999
    # the variance of the normal distribution within 2 deviations, by its density at 2
    phi, mass = math.exp(-2) / math.sqrt(2 * math.pi), math.erf(math.sqrt(2))
    assert a.var() == pytest.approx(0.25 * (1 - 4 * phi / mass), rel=0.03)
    assert a.mean() == pytest.approx(1.0, abs=0.01)
    inside = philox.normal(0, 0, philox.INITIAL_DRAWS, SHAPE, F64)
    kept = abs(inside) <= 2
    np.testing.assert_array_equal(a[kept], 1.0 + 0.5 * inside[kept])


@pytest.mark.parametrize("distribution", ["uniform", "normal", "truncated_normal"])
@pytest.mark.parametrize(("fan", "n"), [("in", 300), ("out", 200), ("mean", 250)])
def test_the_general_form_has_its_variance(distribution: str, fan: str, n: float) -> None:
    a = init.draw(init.variance_scaling(1.5, fan, distribution), SHAPE, F64, 2, 0)
    assert a.var() == pytest.approx(1.5 / n, rel=0.03)


def test_pytorchs_beginning_is_within_one_over_the_root_of_fan_in() -> None:
    a = init.draw("torch_uniform", (16, 3, 5, 5), F64, 0, 0)
    limit = 1 / math.sqrt(75)
    assert 0.99 * limit < abs(a).max() <= limit


@pytest.mark.parametrize(
    "make",
    [
        lambda: init.orthogonal(0.0),
        lambda: init.truncated_normal(0.0, -1.0),
        lambda: init.variance_scaling(-1.0),
        lambda: init.variance_scaling(1.0, "both"),
        lambda: init.variance_scaling(1.0, "in", "cauchy"),
        lambda: init.draw("orthogonal", (3,), F32, 0, 0),
    ],
)
def test_what_is_no_beginning_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(FeedError):
        make()
