"""A GPU that is lost in mid-run: what is on the host then, and what is said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import chainrule as cr

ROWS, SIZE = 40, 4  # an epoch is ten steps


def data() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal((ROWS, 3), np.float32)}


def make(backend: str, **options: Any) -> cr.TrainingStep:
    x = cr.input("x", ("batch", 3))
    loss = cr.mean((x @ cr.parameter("w", (3, 2)) - 1.0) ** 2)
    return cr.training_step(loss, cr.optim.Adam(1e-2), backend=backend, seed=1, **options)


def same(step: cr.TrainingStep, steps: int) -> None:
    """It stands where the CPU does after so many steps, as a whole."""
    wanted = make("cpu")
    if steps:
        bound = wanted.bind(data(), SIZE)
        wanted.advance(bound, 0, steps, True)
    assert step.steps == steps
    for name, array in step.state_dict().items():
        np.testing.assert_array_equal(array, wanted.state_dict()[name], err_msg=name)


@pytest.mark.parametrize(("plays", "kept"), [(3, 0), (17, 16)])
def test_a_run_leaves_its_last_snapshot(failing: Any, plays: int, kept: int) -> None:
    failing(plays)
    step = make("cuda", snapshot_every=4)
    with pytest.raises(cr.errors.DeviceError, match=f"are those after step {kept}\n.*new process"):
        step.run(**data(), batch_size=SIZE, epochs=2)
    same(step, kept)


def test_the_next_run_begins_with_it(failing: Any) -> None:
    gpu = failing(9)
    step = make("cuda", snapshot_every=4)
    with pytest.raises(cr.errors.DeviceError):
        step.run(**data(), batch_size=SIZE)
    gpu.left = 1 << 30  # as if in a new process
    other = make("cuda")
    other.load_state_dict(step.state_dict())
    other.advance(other.bind(data(), SIZE), 8, 10, True)
    same(other, 10)


def test_without_snapshots_it_is_as_before_the_run(failing: Any) -> None:
    failing(9)
    step = make("cuda")
    with pytest.raises(cr.errors.DeviceError, match="step 0; snapshot_every=1000 would") as caught:
        step.run(**data(), batch_size=SIZE)
    assert "the GPU is lost: it was pulled out" in str(caught.value)
    same(step, 0)


def test_a_snapshot_that_breaks_off_changes_nothing(failing: Any) -> None:
    gpu = failing(1 << 30)
    step = make("cuda", snapshot_every=4)
    changed = len(step._engine.compiled.code.changed)  # type: ignore[attr-defined]
    for left in (0, changed - 1):
        gpu.downloads_left = left
        with pytest.raises(cr.errors.DeviceError):
            step.run(**data(), batch_size=SIZE)
        same(step, 0)
    gpu.downloads_left = 2 * changed - 1  # the first is whole, the second is not
    with pytest.raises(cr.errors.DeviceError):
        step.run(**data(), batch_size=SIZE)
    same(step, 4)


def test_a_single_call_that_is_lost_changes_nothing(failing: Any) -> None:
    failing(0)
    step = make("cuda")
    with pytest.raises(cr.errors.DeviceError, match="after step 0"):
        step(x=data()["x"][:SIZE])
    same(step, 0)


def test_a_model_takes_snapshots(failing: Any) -> None:
    failing(7)
    options = {"optimizer": "adam", "seed": 1, "backend": "cuda", "snapshot_every": 3}
    model = cr.Model(cr.nn.Dense(2), loss="cross_entropy", **options)
    with pytest.raises(cr.errors.DeviceError, match="after step 6"):
        model.fit(data()["x"], np.zeros(ROWS, np.int32), batch_size=SIZE, verbose=0)
    assert model.step.steps == 6


def test_snapshots_of_a_good_run_change_nothing(gpu: Any) -> None:
    step = make("cuda", snapshot_every=3)
    logs = step.run(**data(), batch_size=SIZE)
    np.testing.assert_array_equal(logs, make("cpu").run(**data(), batch_size=SIZE))
    same(step, 10)


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True, "often"])
def test_what_is_no_number_of_steps_is_refused(wrong: Any) -> None:
    with pytest.raises((cr.errors.FeedError, cr.errors.CompileError), match="snapshot_every"):
        make("cpu", snapshot_every=wrong)
