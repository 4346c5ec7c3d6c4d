from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.errors import FeedError
from chainrule.nn import optim

BAD = [
    (optim.SGD, {"lr": 0.0}, "lr is a number above 0"),
    (optim.SGD, {"lr": -1.0}, "lr"),
    (optim.SGD, {"lr": math.nan}, "lr"),
    (optim.SGD, {"lr": math.inf}, "lr"),
    (optim.SGD, {"lr": "0.1"}, "lr"),
    (optim.SGD, {"lr": True}, "lr"),
    (optim.SGD, {"momentum": 1.0}, "momentum is a number from 0.0 to below 1.0, not 1.0"),
    (optim.SGD, {"momentum": -0.1}, "momentum"),
    (optim.SGD, {"nesterov": True}, "nesterov"),
    (optim.SGD, {"weight_decay": -1e-4}, "weight_decay"),
    (optim.Adam, {"betas": (1.0, 0.9)}, "first of betas"),
    (optim.Adam, {"betas": (0.9, 1.0)}, "second of betas"),
    (optim.Adam, {"betas": (-0.1, 0.9)}, "first of betas"),
    (optim.Adam, {"betas": 0.9}, "betas are two numbers"),
    (optim.Adam, {"eps": 0.0}, "eps is a number above 0"),
    (optim.Adam, {"eps": -1e-8}, "eps"),
    (optim.AdamW, {"weight_decay": math.nan}, "weight_decay"),
]


@pytest.mark.parametrize(("kind", "options", "text"), BAD)
def test_ranges(kind: Any, options: dict[str, Any], text: str) -> None:
    with pytest.raises(FeedError, match=text):
        kind(**options)


def next_values(
    optimizer: optim.Optimizer,
    w: np.ndarray,
    g: np.ndarray,
    state: dict[str, np.ndarray],
    t: int,
    backend: str = "cpu",
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """An update, computed."""
    leaves = {n: cr.input(n, a.shape, dtype=a.dtype) for n, a in {"w": w, "g": g, **state}.items()}
    lr = cr.input("lr", (), dtype=w.dtype)
    time = cr.input("time", (), dtype="int32")
    slots = {n: leaves[n] for n in state}
    new, changed = optimizer.update(leaves["w"], leaves["g"], slots, lr, time)
    fn = cr.compile({"w": new, **changed}, backend=backend)
    feeds = {"w": w, "g": g, **state, "lr": optimizer.lr, "time": t}
    out = fn(**{n: feeds[n] for n in fn.inputs})
    return out.pop("w"), out


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_no_denormals_arise(kind: type, backend: str) -> None:
    tiny = float(np.finfo(kind).tiny)
    w = np.ones(6, kind)
    g = np.array([0, tiny / 4, tiny, math.sqrt(tiny), 1e-3, np.nan], kind)
    m = np.array([tiny, tiny * 1.01, -tiny, tiny / 8, 0, 0], kind)
    for optimizer, state in (
        (optim.SGD(momentum=0.9), {"m": m}),
        (optim.Adam(), {"m": m, "v": abs(m)}),
        (optim.Lion(), {"m": m}),
        (optim.RMSprop(), {"s": abs(m)}),
        (optim.Adadelta(), {"s": abs(m), "u": abs(m)}),
        (optim.Adagrad(), {"s": abs(m) * (abs(m) >= tiny)}),
    ):
        _, changed = next_values(optimizer, w, g * 0, state, 3, backend)
        for a in changed.values():
            a = a[np.isfinite(a)]
            assert ((a == 0) | (abs(a) >= tiny)).all()
    v = next_values(optim.Adam(), w, g, {"m": m, "v": abs(m)}, 3, backend)[1]["v"]
    finite = v[np.isfinite(v)]
    assert ((finite == 0) | (finite >= tiny)).all() and np.isnan(v[5])


def test_bias_correction_keeps_its_digits() -> None:
    """1 - beta2^t in float32 at t = 1 is 0.001 to a few parts in 10^7, not to one in 10^4."""
    w, g = np.zeros(1, np.float32), np.ones(1, np.float32)
    zeros = {"m": np.zeros(1, np.float32), "v": np.zeros(1, np.float32)}
    new, _ = next_values(optim.Adam(lr=1.0), w, g, zeros, 1)
    assert new[0] == pytest.approx(-1.0, rel=1e-6)


def test_odd_numbers_are_refused_in_our_words() -> None:
    for bad in (10**400, -(10**400), np.array(0.1), np.True_, 1j):
        with pytest.raises(FeedError, match="lr is a number"):
            optim.SGD(bad)  # type: ignore[arg-type]
    with pytest.raises(FeedError, match="nesterov is True or False"):
        optim.SGD(0.1, 0.9, nesterov="yes")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_mean_of_squares_is_never_negative(kind: type) -> None:
    """old + (1 - decay)·(g² - old), however the rounding falls; its root would be NaN."""
    rng = np.random.default_rng(11)
    g = (rng.normal(size=4000) * 10.0 ** rng.uniform(-15, 5, 4000)).astype(kind)
    old = (10.0 ** rng.uniform(-30, 10, 4000)).astype(kind)
    x, v = cr.input("x", g.shape, dtype=kind), cr.input("v", g.shape, dtype=kind)
    for decay in (0.0, 1e-6, 0.5, 0.999, 1 - 1e-7):
        for backend in ("cpu", "reference"):
            mean = cr.compile(optim.average_square(decay, v, x), backend=backend)(x=g, v=old)
            assert (mean >= 0).all()
            wide = decay * old.astype(np.float64) + (1 - decay) * g.astype(np.float64) ** 2
            # three roundings of numbers no larger than the larger of both
            limit = 4 * np.finfo(kind).eps * np.maximum(old, g.astype(np.float64) ** 2)
            assert (abs(mean - wide) <= limit + np.finfo(kind).tiny / (1 - decay)).all()


def by_formula(name: str, s: dict[str, Any], g: np.ndarray, t: int) -> np.ndarray:
    """How far an element moves at lr = 1, by the papers' formulas, in IEEE 754's arithmetic."""
    if name == "Adagrad":
        s["s"] = s["s"] + g**2
        return g / (np.sqrt(s["s"]) + 1e-10)
    decay = {"RMSprop": 0.99, "Adadelta": 0.9}.get(name, 0.999)
    s["s"] = decay * s["s"] + (1 - decay) * g**2
    if name == "RMSprop":
        return g / (np.sqrt(s["s"]) + 1e-8)
    if name == "Adadelta":
        d = np.sqrt(s["u"] + 1e-6) / np.sqrt(s["s"] + 1e-6) * g
        s["u"] = 0.9 * s["u"] + 0.1 * d**2
        return d
    s["m"] = 0.9 * s["m"] + 0.1 * g
    return s["m"] / (1 - 0.9**t) / (np.sqrt(s["s"] / (1 - 0.999**t)) + 1e-8)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", ["Adam", "Adagrad", "Adadelta", "RMSprop"])
def test_a_square_that_overflows_stops_its_element(name: str, backend: str) -> None:
    """And is no NaN later, when what is remembered decays; a gradient that is infinite is."""
    seen = np.array([0.5, 1e21, 2.0, -1e30, 1e37, 0.25, -3.0, 0.0], np.float32)
    once = np.array([1.0, 0.5, -2.0, 1e19, 1e-30, 0.0, 0.5, 2.0], np.float32)
    poles = np.array([1.0, np.inf, 1.0, 1.0, np.nan, 1.0, 1.0, 1.0], np.float32)
    kind = getattr(optim, name)(1.0)
    w = np.ones(3, np.float32)
    slots = {"Adagrad": "s", "RMSprop": "s", "Adadelta": "su"}.get(name, "mv")
    state = {slot: np.zeros(3, np.float32) for slot in slots}
    by_hand = {slot: np.zeros(2, np.float32) for slot in "smu"}
    for t, g in enumerate(np.stack([seen, once, poles], 1), 1):
        new, state = next_values(kind, w, g, state, t, backend)
        with np.errstate(over="ignore"):
            moves = by_formula(name, by_hand, g[:2], t)
        # 1 - 0.999 in float32 is off by 2e-5 of itself; w, below 16, by 1e-6
        np.testing.assert_allclose((w - new)[:2], moves, rtol=2e-5, atol=1e-6)
        assert np.isfinite(new[2]) == (t == 1)
        w = new


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_other_updates_from_squares_that_overflow(backend: str) -> None:
    for optimizer, slots in (
        (optim.AdamW(1e-3), ("m", "v")),
        (optim.RMSprop(1e-3, momentum=0.9, centered=True), ("s", "a", "m")),
        (optim.NAdam(1e-3), ("m", "v", "product")),
    ):
        w = np.ones(1, np.float32)
        state = {n: np.zeros(() if n == "product" else 1, np.float32) for n in slots}
        if "product" in state:
            state["product"] = np.ones((), np.float32)
        for t, g in enumerate((0.1, 1e38, 0.1, -1e38, 3e37, 0.0), 1):
            w, state = next_values(optimizer, w, np.full(1, g, np.float32), state, t, backend)
            assert abs(w - 1) < 0.1, (optimizer, t)
