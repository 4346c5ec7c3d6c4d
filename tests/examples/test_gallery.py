"""The examples of docs/gallery.md: each trains, draws, and reaches what it claims."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

DOCS = Path(__file__).parents[2] / "docs"
pytest.importorskip("sklearn")


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gallery", DOCS / "gallery.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GALLERY = load()
WRITTEN = (DOCS / "gallery.md").read_text(encoding="utf-8")
#: what makes an example short; the others take a second as they are
SHORT: dict[str, dict[str, int]] = {
    "cnn": {"epochs": 3, "seeds": 1},
    "uncertainty": {"splits": 2, "members": 2},
    "vae": {"epochs": 30},
    "reinforce": {"rounds": 40},
    "lstm_text": {"steps": 40},
    "gpt": {"steps": 20},
}
FULL = [pytest.param(name, marks=pytest.mark.long) for name in SHORT]


# What an example claims. Bounds are wide enough for any seed: a mean of several runs with others,
# less some three times their spread. `full` is whether it was trained to the end.


def check_perceptron(found: dict[str, Any], full: bool) -> None:
    assert found["right"] > 0.97  # points that a line does separate


def check_descent(found: dict[str, Any], full: bool) -> None:
    assert found["rate 0.4: good"]["losses"][-1] - found["least"] < 1e-3
    assert found["rate 0.02: too low"]["losses"][-1] - found["least"] > 1e-2
    assert 0.4 < found["limit"] < 0.53
    high = found["rate 0.53: too high"]["losses"]
    assert high[-1] > high[-2] > high[0]


def check_overfitting(found: dict[str, Any], full: bool) -> None:
    heart, dropout, early = found.values()
    assert heart["unseen"][-1] > 1.2 * min(heart["unseen"])
    assert heart["shown"][-1] < 0.2
    assert max(dropout["loss"], early["loss"]) < 0.8 * heart["loss"]
    assert min(dropout["accuracy"], early["accuracy"]) > heart["accuracy"] + 0.05
    assert early["loss"] == pytest.approx(min(early["unseen"]), rel=1e-6)  # float32, once rounded
    assert len(early["shown"]) < len(heart["shown"]) == 100


def check_cnn(found: dict[str, Any], full: bool) -> None:
    assert found["least"] > (0.985 if full else 0.93)
    assert found["mean"] > (0.99 if full else 0.93)


def check_uncertainty(found: dict[str, Any], full: bool) -> None:
    assert found["together"] < found["nothing"] - 0.25
    assert found["together"] < found["alone"]  # a variance has been added where they disagree
    assert 0.8 < found["inside"] < 0.97  # 90 %, of some hundred patients a split


def check_vae(found: dict[str, Any], full: bool) -> None:
    # 64 pixels at their mean cost some 30 nats; what is drawn again must cost less
    assert found["bound"] < (25 if full else 28)
    assert found["kept"] > (0.6 if full else 0.3)
    images = found["images"]
    assert images.min() >= 0
    assert images.max() <= 1
    # what noise gives is as near to some real digit as another real digit is, blurred as it is
    near = [np.sort(((found["x"] - image) ** 2).sum(1))[:2] for image in images]
    real = [np.sort(((found["x"] - image) ** 2).sum(1))[1] for image in found["x"]]
    assert np.mean(near) < 1.3 * np.mean(real)
    assert images.std(axis=0).mean() > 0.1  # and they are not all one digit


def check_lstm_text(found: dict[str, Any], full: bool) -> None:
    # nats a letter: 4.6 is a guess among 96, some 3.2 knows how frequent each is
    assert found["loss"] < (1.8 if full else 3.4)
    assert found["right"] > (0.5 if full else 0.15)  # every seventh is a space


def check_gpt(found: dict[str, Any], full: bool) -> None:
    check_lstm_text(found, full)


def check_reinforce(found: dict[str, Any], full: bool) -> None:
    assert found["lengths"][0] < 40  # by chance a pole stands some 20 steps
    assert found["final"] > (450 if full else 60)


def check_adversarial(found: dict[str, Any], full: bool) -> None:
    plain, robust = found["trained on digits"], found["trained on attacked digits"]
    assert min(plain["accuracy"][0], robust["accuracy"][0]) > 0.93
    assert plain["accuracy"][6] < 0.4
    assert robust["accuracy"][6] > plain["accuracy"][6] + 0.3
    assert plain["attacked"].min() >= 0
    assert plain["attacked"].max() <= 1


CHECKS = {name.removeprefix("check_"): f for name, f in globals().items() if "check_" in name}


def test_every_example_of_the_page_is_checked() -> None:
    assert CHECKS.keys() == GALLERY.COURSE.keys() == GALLERY.entries(WRITTEN).keys()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", GALLERY.COURSE)
def test_it_trains_and_draws_and_the_page_has_its_gradient(name: str, tmp_path: Path) -> None:
    module = GALLERY.load(name)
    found, gradient, figures = GALLERY.run(module, **SHORT.get(name, {}))
    assert f"\n```\n{gradient}\n```\n" in GALLERY.entries(WRITTEN)[name], (
        "run python docs/gallery.py"
    )
    assert re.search(r"\d", figures)
    CHECKS[name](found, full=name not in SHORT)
    pytest.importorskip("PIL")
    GALLERY.draw(module, found, tmp_path / "picture.png")


@pytest.mark.parametrize("name", FULL)
def test_it_reaches_what_the_page_says(name: str) -> None:
    found, _, _ = GALLERY.run(GALLERY.load(name), **({"seeds": 10} if name == "cnn" else {}))
    CHECKS[name](found, full=True)


def test_the_page_is_whole() -> None:
    assert WRITTEN.startswith(GALLERY.HEAD)
    for name, part in GALLERY.entries(WRITTEN).items():
        picture = DOCS / "gallery" / f"{name}.png"
        assert f"](gallery/{name}.png)" in part
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.stat().st_size < GALLERY.LARGEST
        assert f"`python examples/{name}.py" in part
    assert len(list((DOCS / "gallery").iterdir())) == len(GALLERY.COURSE)


def test_files_are_short() -> None:
    for name in GALLERY.COURSE:
        lines = (GALLERY.EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()
        assert len(lines) < (180 if name in ("lstm_text", "gpt") else 110), name


def test_the_way_down_is_the_one_of_the_closed_form() -> None:
    """On a quadratic, w after t steps is w* + (I - rate·H)^t (w - w*)."""
    descent = GALLERY.load("descent")
    X, Y = descent.X, descent.Y
    H = 2 * X.T @ X / len(Y)
    least = np.linalg.lstsq(X, Y)[0]
    path = descent.descend(descent.cr.optim.SGD(0.4), 20)["path"]
    for t, w in enumerate(path):
        expected = least + np.linalg.matrix_power(np.eye(2) - 0.4 * H, t) @ (path[0] - least)
        # float32 rounds the mean of 442 products to some 1e-6
        np.testing.assert_allclose(w, expected, atol=1e-5)


def test_the_cart_moves_as_its_equations_say() -> None:
    """Two equations of motion, of the whole and of the pole about its hinge, solved by NumPy."""
    push = GALLERY.load("reinforce").push
    state = np.random.default_rng(0).uniform(-1, 1, (50, 4))
    right = np.arange(50) % 2 == 0
    after = push(state, right)
    for (_, speed, angle, turning), force, old, new in zip(
        state, np.where(right, 10.0, -10.0), state, after, strict=True
    ):
        sin, cos, mass, half = np.sin(angle), np.cos(angle), 0.1, 0.5
        M = [[1.1, mass * half * cos], [mass * half * cos, 4 / 3 * mass * half**2]]
        f = [force + mass * half * turning**2 * sin, mass * 9.8 * half * sin]
        move, turn = np.linalg.solve(M, f)
        expected = old + 0.02 * np.array([speed, move, turning, turn])
        np.testing.assert_allclose(new, expected, rtol=1e-12, atol=1e-12)  # float64, rounded
