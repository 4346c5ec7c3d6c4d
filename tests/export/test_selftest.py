"""What the self-test finds: changed instructions, and a derivative that is not the loss's."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import chainrule as cr
from chainrule.codegen import host_target
from chainrule.export import differences, kernel
from chainrule.train import export as exporting

MUTANTS = Path(__file__).parents[2] / "benchmarks/mutants.py"
SEED = 5


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="mutants run in forks")
@pytest.mark.skipif(host_target().arch != "x86_64", reason="x86-64's instructions are changed")
@pytest.mark.parametrize("optimize", ["speed", "size"])
def test_changed_instructions_are_caught(optimize: str, lecture_step) -> None:
    """A sample; benchmarks/mutants.py takes as many as one likes."""
    measured = runpy.run_path(str(MUTANTS))["measured"]
    found, missed = measured(lecture_step, 5, SEED, optimize=optimize)
    print(f"seed {SEED}: {found}")
    assert not missed and found["caught"] >= 3, missed


def slopes_of(step: cr.TrainingStep, folder: Path, monkeypatch, factor: float = 1.0) -> list:
    """The slopes that self-tests are held to, where gradients are `factor` times what they are."""
    found = []
    chosen = differences.chosen

    def seen(model, arrays, difference):
        def wrong(given):
            return {n: factor * g for n, g in model.derivative(given).items()}

        found.append(chosen(replace(model, derivative=wrong), arrays, difference))
        return found[-1]

    monkeypatch.setattr(kernel, "chosen", seen)
    step.export(folder, "net", formats=("o",))
    assert found[0] is None or found[0].within < abs(found[0].difference)
    return found


def test_finite_differences_agree_with_the_formulas(net, tmp_path: Path, monkeypatch) -> None:
    (slope,) = slopes_of(net.step, tmp_path, monkeypatch)
    assert slope is not None


@pytest.mark.parametrize("factor", [-1.0, 0.5, 1.5])
def test_a_wrong_derivative_is_no_slope(
    factor: float, lecture_step, tmp_path: Path, monkeypatch
) -> None:
    (wrong,) = slopes_of(lecture_step, tmp_path, monkeypatch, factor)
    assert wrong is None


def test_the_slope_is_the_derivative_along_the_signs(lecture_step) -> None:
    """Held to differences of the reference evaluator's loss, which runs none of our native code."""
    rng = np.random.default_rng(SEED)
    plan = lecture_step._plan
    arrays = {n: np.asarray(a, np.float64) for n, a in lecture_step.parameters.items()}
    arrays |= {"x": rng.standard_normal((5, 4)), "y": rng.integers(0, 3, 5)}
    gradients = exporting._derivative(plan)(arrays)
    sides = []
    for step in (1e-6, -1e-6):
        moved = dict(arrays)
        for name in gradients:
            w = arrays[name]
            moved[name] = w + step * differences.signs(w.size).reshape(w.shape)
        x, y = moved["x"], moved["y"]
        h = np.tanh(x @ moved["W1"] + moved["b1"])
        z = h @ moved["W2"] + moved["b2"]
        log_sum = np.log(np.exp(z).sum(axis=1))
        sides.append(np.mean(log_sum - z[np.arange(5), y]))
    parts = [(g.reshape(-1) * differences.signs(g.size)).sum() for g in gradients.values()]
    # central differences of step 1e-6 in float64: some 1e-9
    assert abs((sides[0] - sides[1]) / 2e-6 - sum(parts)) < 1e-7
