"""What the self-test finds: changed instructions, and a derivative that is not the loss's."""

from __future__ import annotations

import runpy
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

import chainrule as cr
from chainrule.codegen.host import host_target
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


@pytest.mark.long
@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="mutants run in forks")
@pytest.mark.skipif(host_target().arch != "x86_64", reason="x86-64's instructions are changed")
def test_changed_instructions_of_other_nets_are_caught() -> None:
    """99 in 100, of a sample of each net in both kinds of code."""
    made = runpy.run_path(str(MUTANTS))
    caught, missed = 0, []
    for net, optimize in product(("conv", "lstm", "attention"), ("speed", "size")):
        found, more = made["measured"](made["NETS"][net](), 40, SEED, optimize=optimize)
        print(f"{net}, {optimize}, seed {SEED}: {found}")
        caught, missed = caught + found["caught"], missed + more
    assert caught > 150 and 100 * len(missed) <= caught, missed


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


def test_the_gradient_is_that_of_the_loss(lecture_step) -> None:
    """Held to differences of the loss in NumPy, which runs nothing of ours."""
    rng = np.random.default_rng(SEED)
    arrays = {n: np.asarray(a, np.float64) for n, a in lecture_step.parameters.items()}
    arrays |= {"x": rng.standard_normal((5, 4)), "y": rng.integers(0, 3, 5)}
    gradients = exporting._derivative(lecture_step._plan, None)(arrays)
    along = {n: rng.choice([-1.0, 1.0], g.shape) for n, g in gradients.items()}

    def loss(step: float) -> float:
        w = {n: arrays[n] + step * along[n] for n in along}
        z = np.tanh(arrays["x"] @ w["W1"] + w["b1"]) @ w["W2"] + w["b2"]
        chosen = z[np.arange(5), arrays["y"]]
        return float(np.mean(np.log(np.exp(z).sum(axis=1)) - chosen))

    slope = sum((gradients[n] * along[n]).sum() for n in along)
    # central differences of step 1e-6 in float64: some 1e-9
    assert abs((loss(1e-6) - loss(-1e-6)) / 2e-6 - slope) < 1e-7
