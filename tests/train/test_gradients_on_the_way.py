"""What happens to gradients before an update, and to parameters after it; groups of parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.errors import CompileError, FeedError
from chainrule.nn import optim
from chainrule.train import TrainingStep, training_step

RNG = np.random.default_rng(7)
START = {"w": RNG.normal(size=(4, 3)), "layer.bias": RNG.normal(size=3), "v": RNG.normal(size=2)}
SLOPES = [{n: 3 * RNG.normal(size=a.shape) for n, a in START.items()} for _ in range(24)]
FEED = {"w": "gw", "layer.bias": "gb", "v": "gv"}


def make(optimizer: optim.Optimizer, dtype: str = "float64", **options: Any) -> TrainingStep:
    """A step whose gradients are what it is fed."""
    ws = {n: cr.parameter(n, a.shape, init=a, dtype=dtype) for n, a in START.items()}
    gs = {n: cr.input(FEED[n], a.shape, dtype=dtype) for n, a in START.items()}
    loss = cr.sum(ws["w"] * gs["w"]) + cr.sum(ws["layer.bias"] * gs["layer.bias"])
    outputs = {n: 2.0 * w for n, w in ws.items()}
    return training_step(loss + cr.sum(ws["v"] * gs["v"]), optimizer, outputs=outputs, **options)


def feed(slopes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {FEED[n]: g for n, g in slopes.items()}


def descend(slopes: list[dict[str, np.ndarray]], lr: float) -> dict[str, np.ndarray]:
    """Where plain gradient descent ends."""
    return {n: START[n] - lr * sum(g[n] for g in slopes) for n in START}


def same(step: TrainingStep, expected: dict[str, np.ndarray], rtol: float = 1e-12) -> None:
    for n, a in step.parameters.items():
        np.testing.assert_allclose(a, expected[n], rtol=rtol, atol=1e-14, err_msg=n)


def clipped(g: dict[str, np.ndarray], most: float) -> dict[str, np.ndarray]:
    """PyTorch's clip_grad_norm_."""
    norm = np.sqrt(sum((a * a).sum() for a in g.values()))
    return {n: a * min(1.0, most / (norm + 1e-6)) for n, a in g.items()}


def test_clip_value(backend: str) -> None:
    step = make(optim.SGD(0.1, clip_value=0.5), backend=backend)
    for g in SLOPES:
        step(**feed(g))
    same(step, descend([{n: np.clip(a, -0.5, 0.5) for n, a in g.items()} for g in SLOPES], 0.1))
    step.hyperparameters["clip_value"] = 1e6
    step(**feed(SLOPES[0]))
    with pytest.raises(FeedError, match="clip_value"):
        step.hyperparameters["clip_value"] = 0.0


def test_clip_norm(backend: str) -> None:
    step = make(optim.SGD(0.1, clip_norm=5.0), backend=backend)
    scales = [1e-3, 1.0, 1e3]  # below the norm, about it, far above
    slopes = [{n: a * scales[i % 3] for n, a in g.items()} for i, g in enumerate(SLOPES)]
    for g in slopes:
        step(**feed(g))
    same(step, descend([clipped(g, 5.0) for g in slopes], 0.1))


def test_clip_norm_against_torch() -> None:
    torch = pytest.importorskip("torch")
    step = make(optim.Adam(0.05, clip_value=2.0, clip_norm=3.0))
    theirs = {n: torch.tensor(a, requires_grad=True) for n, a in START.items()}
    optimizer = torch.optim.Adam(theirs.values(), lr=0.05)
    for g in SLOPES:
        step(**feed(g))
        for n, w in theirs.items():
            w.grad = torch.tensor(g[n])
        torch.nn.utils.clip_grad_value_(theirs.values(), 2.0)
        torch.nn.utils.clip_grad_norm_(theirs.values(), 3.0)
        optimizer.step()
        same(step, {n: w.detach().numpy() for n, w in theirs.items()}, 1e-9)


def test_gradients_that_are_zero_are_not_divided_by() -> None:
    step = make(optim.SGD(0.1, clip_norm=1.0))
    step(**{name: np.zeros_like(START[n]) for n, name in FEED.items()})
    same(step, START)


def test_accumulate(backend: str) -> None:
    """Four minibatches make one update with their mean; a fifth changes nothing yet."""
    one, four = (
        make(optim.Adam(0.1), backend=backend),
        make(optim.Adam(0.1, accumulate=4), backend=backend),
    )
    for i in range(0, 24, 4):
        one(**feed({n: sum(g[n] / 4 for g in SLOPES[i : i + 4]) for n in START}))
        for g in SLOPES[i : i + 4]:
            four(**feed(g))
        same(four, one.parameters)
        assert four.steps == i + 4
    before = {n: a.copy() for n, a in four.parameters.items()}
    for g in SLOPES[:3]:
        four(**feed(g))
        same(four, before)


def test_accumulation_is_clipped_after_it_and_follows_a_schedule(backend: str) -> None:
    step = make(
        optim.SGD(cr.schedules.exponential(0.1, 0.5), accumulate=2, clip_norm=1.0), backend=backend
    )
    expected = START
    for i in range(0, 8, 2):
        g = clipped({n: (SLOPES[i][n] + SLOPES[i + 1][n]) / 2 for n in START}, 1.0)
        expected = {n: expected[n] - 0.1 * 0.5 ** (i // 2) * g[n] for n in START}
        step(**feed(SLOPES[i]))
        step(**feed(SLOPES[i + 1]))
        same(step, expected)


def test_accumulation_is_resumed(tmp_path: Path) -> None:
    whole, first = make(optim.Adam(accumulate=3)), make(optim.Adam(accumulate=3))
    for g in SLOPES[:4]:
        whole(**feed(g)), first(**feed(g))
    first.save(tmp_path / "a.safetensors")
    second = make(optim.Adam(accumulate=3))
    second.load(tmp_path / "a.safetensors")
    for g in SLOPES[4:9]:
        whole(**feed(g)), second(**feed(g))
    for n in START:
        np.testing.assert_array_equal(whole.parameters[n], second.parameters[n])


def test_ema(backend: str) -> None:
    step = make(optim.SGD(0.1, ema=0.9), backend=backend)
    step.parameters["w"][...] = 5.0  # the average begins after the first update, wherever that is
    mean: dict[str, np.ndarray] = {}
    for g in SLOPES:
        step(**feed(g))
        now = step.parameters
        mean = {n: 0.9 * mean[n] + 0.1 * now[n] if mean else now[n].copy() for n in START}
        for n in START:
            np.testing.assert_allclose(step.averages[n], mean[n], rtol=1e-12)
    assert step.hyperparameters["ema"] == 0.9
    for n, a in step.predict_averaged().items():
        np.testing.assert_allclose(a, 2 * mean[n], rtol=1e-12)
    for n, a in step.predict().items():
        np.testing.assert_allclose(a, 2 * step.parameters[n], rtol=1e-12)


def test_ema_waits_for_the_update() -> None:
    step = make(optim.SGD(0.1, ema=0.5, accumulate=2))
    for g in SLOPES[:2]:
        step(**feed(g))
    same(step, dict(step.averages))
    before = {n: a.copy() for n, a in step.averages.items()}
    step(**feed(SLOPES[2]))
    for n in START:
        np.testing.assert_array_equal(step.averages[n], before[n])


def test_there_are_no_averages_unless_asked_for() -> None:
    step = make(optim.SGD(0.1))
    assert not step.averages
    with pytest.raises(CompileError, match=r"ema=0\.999"):
        step.predict_averaged()


def test_ema_of_bfloat16_is_kept_in_float32() -> None:
    x, w = cr.input("x", ()), cr.parameter("w", (3,), init="ones", dtype="bfloat16")
    loss = cr.sum(w.astype("float32")) * x
    step = training_step(loss, optim.SGD(0.25, ema=0.5), outputs=w)
    step(x=1.0)
    step(x=1.0)
    np.testing.assert_array_equal(step.averages["w"], np.float32([0.625] * 3))
    assert np.asarray(step.predict_averaged(), np.float32).tolist() == [0.625] * 3


# groups


def test_groups(backend: str) -> None:
    """Each parameter goes its own way, as in a step of its own with that optimizer."""
    rest, bias, v = optim.AdamW(0.1), optim.SGD(0.5, momentum=0.9), optim.Lion(0.01)
    step = make(optim.Groups(rest, {"*.bias": bias, ("v", "u*"): v}), backend=backend)
    alone = {n: make(o) for n, o in (("w", rest), ("layer.bias", bias), ("v", v))}
    for g in SLOPES:
        step(**feed(g))
        for other in alone.values():
            other(**feed(g))
    for n, other in alone.items():
        np.testing.assert_allclose(step.parameters[n], other.parameters[n], rtol=1e-12)
    names = list(step.hyperparameters)
    assert names[:2] == ["learning_rate", "beta1"] and "group1.momentum" in names
    step.hyperparameters["group1.momentum"] = 0.5
    assert step.hyperparameters["group1.learning_rate"] == 0.5
    assert step.hyperparameters["group2.beta2"] == 0.99
    assert "optimizer.group2.one_minus_beta2" in step.state_dict()


def test_a_group_may_be_a_tensor_and_the_first_that_fits_counts() -> None:
    w, v = (cr.parameter(n, (2,), init="ones") for n in "wv")
    loss = cr.sum(w) + cr.sum(v)
    step = training_step(
        loss, optim.Groups(optim.SGD(1.0), {w: optim.SGD(2.0), "*": optim.SGD(3.0)})
    )
    step()
    assert step.parameters["w"].tolist() == [-1, -1] and step.parameters["v"].tolist() == [-2, -2]


def test_a_norm_is_over_all_groups() -> None:
    groups = optim.Groups(optim.SGD(0.1), {"v": optim.SGD(0.2)}, clip_norm=1.0)
    step = make(groups)
    step(**feed(SLOPES[0]))
    g = clipped(SLOPES[0], 1.0)
    same(step, {n: START[n] - (0.2 if n == "v" else 0.1) * g[n] for n in START})


def test_groups_that_are_none() -> None:
    with pytest.raises(CompileError, match=r"no parameter that is trained is in group 1: \*\.beta"):
        make(optim.Groups(optim.SGD(0.1), {"*.beta": optim.SGD(0.1)}))
    with pytest.raises(CompileError, match="clip_norm is over all groups together"):
        optim.Groups(optim.SGD(0.1), {"w": optim.SGD(0.1, clip_norm=1.0)})
    with pytest.raises(CompileError, match="accumulate is over all groups together"):
        optim.Groups(optim.SGD(0.1, accumulate=2), {"w": optim.SGD(0.1)})
    for bad in (optim.SGD, optim.Groups(optim.SGD(0.1), {"w": optim.SGD(0.1)}), 0.1):
        with pytest.raises(CompileError, match=r"a group's optimizer is one of cr\.optim"):
            optim.Groups(optim.SGD(0.1), {"w": bad})  # type: ignore[dict-item]
    with pytest.raises(CompileError, match="by pattern or parameter"):
        optim.Groups(optim.SGD(0.1), [optim.SGD(0.1)])  # type: ignore[arg-type]


def test_options_out_of_range() -> None:
    for option in (
        {"clip_value": 0.0},
        {"clip_norm": -1.0},
        {"ema": 1.0},
        {"ema": 0.0},
        {"accumulate": 0},
        {"accumulate": 2.0},
        {"accumulate": True},
    ):
        with pytest.raises(FeedError, match=next(iter(option))):
            optim.Adam(**option)  # type: ignore[arg-type]


def test_all_at_once_in_the_epoch_loop() -> None:
    """`run` does what single steps do."""
    rng = np.random.default_rng(0)
    data = {"x": rng.normal(size=(50, 3)).astype("f"), "y": rng.normal(size=50).astype("f")}
    steps = []
    for _ in range(2):
        x, y = cr.input("x", ("n", 3)), cr.input("y", ("n",))
        w, b = cr.parameter("w", (3,)), cr.parameter("b", ())
        optimizer = optim.Groups(
            optim.Adam(cr.schedules.cosine(0.1, 10)),
            {"b": optim.SGD(0.1)},
            clip_norm=0.5,
            accumulate=3,
            ema=0.9,
        )
        steps.append(training_step(cr.losses.mse(x @ w + b, y), optimizer))
    losses = steps[0].run(**data, batch_size=8, epochs=3, shuffle=False)
    single = [
        steps[1](**{k: a[i : i + 8] for k, a in data.items()})
        for _ in range(3)
        for i in range(0, 50, 8)
    ]
    np.testing.assert_array_equal(losses, np.float32(single))
    for name, a in steps[0].state_dict().items():
        if name != "training.epoch":
            np.testing.assert_array_equal(a, steps[1].state_dict()[name], name)
