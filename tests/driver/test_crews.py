"""How many threads tuning chooses, that it is kept and told, and that no bit depends on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.codegen.host import host_target
from chainrule.codegen.team import has_threads
from chainrule.driver import calibrate, clock, crews, lower
from chainrule.target.speeds import Speeds
from chainrule_runtime import program
from chainrule_runtime.pool import TEAM

SPEEDS = Speeds(2e11, ((2**15, 3e11), (2**20, 1.5e11), (0, 2e10)), 1e-6, 3e-7)
pytestmark = pytest.mark.skipif(not has_threads(host_target()), reason="no threads for steps here")


@pytest.fixture(autouse=True)
def four(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine of four CPUs whose kernels are not timed."""
    monkeypatch.setenv("CHAINRULE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(program, "usable_cpus", lambda: 4)
    build = import_module("chainrule.driver.build")  # which its function hides
    monkeypatch.setattr(build, "worth_sharing", lambda *_: (0, 0))
    monkeypatch.setattr(calibrate, "_measured", lambda: SPEEDS)
    monkeypatch.setattr(lower, "tuned", lambda *_: {})
    monkeypatch.setattr(clock, "SECONDS", 0.0)
    monkeypatch.setattr(crews, "BLOCK", 0.0)
    monkeypatch.setattr(calibrate, "_here", {})
    calibrate._known.cache_clear()
    yield
    calibrate._known.cache_clear()


def net(loss_of: Any = cr.mean, **options: Any) -> cr.TrainingStep:
    x = cr.input("x", ("batch", 40))
    h = cr.tanh(x @ cr.parameter("W", (40, 70)) + cr.parameter("b", (70,)))
    loss = loss_of((h @ cr.parameter("V", (70, 33))) ** 2)
    return cr.training_step(loss, cr.optim.Adam(1e-2), **options)


def parts(step: cr.TrainingStep, batch: int) -> int:
    """How many share a step of so many rows, once it is made."""
    step(x=np.random.default_rng(1).standard_normal((batch, 40)).astype(np.float32))
    return step._engine._program._current.parts  # type: ignore[attr-defined,no-any-return]


def bits(step: cr.TrainingStep) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in step.state_dict().items()}


def times(seconds: Mapping[int, float]) -> Any:
    return lambda ways: {n: seconds[n] for n in ways}


@pytest.mark.parametrize(
    ("most", "numbers"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (4, [1, 2, 4]), (6, [1, 2, 4, 6])]
)
def test_the_numbers_that_are_timed(most: int, numbers: list[int]) -> None:
    assert crews.numbers_of_threads(most) == numbers


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({1: 4e-3, 2: 3e-3, 4: 5e-3}, 2),
        ({1: 4e-3, 2: 5e-3, 4: 3e-3}, 4),
        ({1: 4.0e-3, 2: 3.9e-3, 4: 3.9e-3}, 1),  # more threads than gain anything are not taken
        ({1: 1e-3, 2: 3e-3, 4: 5e-3}, 1),
    ],
)
def test_what_was_fastest_is_kept_with_the_program(
    seconds: dict[int, float], chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crews, "_timed", times(seconds))
    plain, first = net(), net(tune={"batch": 30})
    monkeypatch.setattr(crews, "_timed", times({}))
    second = net(tune={"batch": 30})
    assert second._engine.compiled.native.cached  # type: ignore[attr-defined]
    for step in (first, second):
        # where there is more work, nothing was found out
        assert [parts(step, n) for n in (8, 30, 31, 300)] == [chosen, chosen, 4, 4]
        text = str(step.report())
        assert f"; {chosen} at batch 30 and below, the fastest of those timed: " in text
        told = step.report().as_dict()["tuned_threads"]
        assert told["most"] == chosen and dict(told["seconds"]) == seconds
        assert step.report(sizes={"batch": 30}).kernels[0].parts <= chosen
    assert [parts(plain, n) for n in (8, 30, 31, 300)] == [4] * 4
    assert bits(plain) == bits(first) == bits(second)


def test_what_may_be_chosen_is_what_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []

    def none(ways: Mapping[int, Any]) -> dict[int, float]:
        asked.append([*ways])
        return dict.fromkeys(ways, 1.0)

    monkeypatch.setattr(crews, "_timed", none)
    for threads in (3, 2, 9, None, 1):
        net(tune={"batch": 30}, threads=threads)
    assert asked == [[1, 2, 3], [1, 2], [1, 2, 4]]  # the last of them is kept; one has no choice


def test_steps_are_shared_while_they_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each number of threads for as long as it is timed, with no trials in between."""
    monkeypatch.setattr(program, "usable_cpus", lambda: 2)
    before, jobs, calls = TEAM.jobs, [0, 0], [0, 0]
    timed = crews._timed

    def watched(ways: Mapping[int, Any]) -> dict[int, float]:
        def counted(n: int) -> Any:
            def step() -> None:
                start = TEAM.jobs
                ways[n]()
                jobs[n - 1] += TEAM.jobs - start
                calls[n - 1] += 1

            return step

        return timed({n: counted(n) for n in ways})

    monkeypatch.setattr(crews, "_timed", watched)
    step = net(tune={"batch": 30})
    assert TEAM.jobs > before and jobs == [0, calls[1]] and min(calls) > clock.CALLS
    told = step.report().as_dict()["tuned_threads"]
    assert told["most"] in (1, 2) and all(s > 0 for _, s in told["seconds"])


def test_what_made_up_values_cant_time_is_told() -> None:
    step = net(lambda z: cr.mean(cr.log(-1.0 - z)), tune={"batch": 30})
    assert "; none timed at batch 30 and below: made-up values did not do: " in str(step.report())
    assert step.report().as_dict()["tuned_threads"]["most"] == 0


def test_a_function_is_timed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crews, "_timed", times({1: 2.0, 2: 1.0, 4: 2.0}))
    x = cr.input("x", (640, 400))
    fn = cr.compile(x @ cr.input("w", (400, 300)), tune=True)
    assert "; 2, the fastest of those timed: " in str(fn.report())
