"""Training on a simulated GPU: the bits of the CPU, one launch a step, and nothing half done."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule_runtime.gpu import epochs

ROWS, WIDTH, CLASSES = 50, 6, 3


@pytest.fixture
def data() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
    return {"x": x, "y": rng.integers(0, CLASSES, ROWS).astype(np.int32)}


def make(backend: str, **options: Any) -> cr.TrainingStep:
    x, y = cr.input("x", ("batch", WIDTH)), cr.input("y", ("batch",), dtype="int32")
    h = cr.dropout(cr.tanh(x @ cr.parameter("W", (WIDTH, 8)) + cr.parameter("b", (8,))), 0.4)
    z = h @ cr.parameter("V", (8, CLASSES))
    return cr.training_step(
        cr.losses.cross_entropy(z, y),
        cr.optim.Adam(1e-2),
        backend=backend,
        seed=3,
        metrics={"mean": cr.mean(cr.abs(z))},
        outputs={"z": z},
        **options,
    )


def trained(backend: str, data: dict[str, np.ndarray]) -> list[np.ndarray]:
    """All that comes of a few steps, two epochs, and a prediction."""
    step = make(backend)
    losses = [step(**{k: a[:16] for k, a in data.items()}) for _ in range(2)]
    logs = step.run(**data, batch_size=16, epochs=2)
    parameters = [step.parameters[name] for name in ("W", "b", "V")]
    return [np.float32(losses), logs, *parameters, step.predict(x=data["x"])["z"]]


def test_it_trains_to_the_bits_of_the_cpu(data: dict[str, np.ndarray], gpu: Any) -> None:
    for ours, native in zip(trained("cuda", data), trained("cpu", data), strict=True):
        np.testing.assert_array_equal(ours, native)


def outside(calls: list[str]) -> list[str]:
    """What was asked of the GPU while it was not the thread's."""
    depth, found = 0, []
    for call in calls:
        depth += (call == "enter") - (call == "leave")
        found += [call] if not depth and call != "leave" else []
    assert depth == 0
    return found


def test_the_gpu_is_the_thread_s_while_it_is_asked_and_no_longer(
    data: dict[str, np.ndarray], gpu: Any
) -> None:
    step = make("cuda", tune={"batch": 16})
    step.run(**data, batch_size=16)
    step(**{k: a[:16] for k, a in data.items()})
    step.report(measure=True, sizes={"batch": 16})
    with pytest.raises(cr.errors.NonFiniteError):
        step(x=data["x"][:16] + np.inf, y=data["y"][:16])
    del step
    gc.collect()
    assert outside(gpu.calls) == [] and "release" in gpu.calls and "play" in gpu.calls


def test_so_it_does_launch_by_launch(
    data: dict[str, np.ndarray], gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epochs, "PER_LAUNCH", 0)
    for ours, native in zip(trained("cuda", data), trained("cpu", data), strict=True):
        np.testing.assert_array_equal(ours, native)


def test_so_does_its_ptx(data: dict[str, np.ndarray], emulator: Any) -> None:
    for ours, native in zip(trained("cuda", data), trained("cpu", data), strict=True):
        np.testing.assert_array_equal(ours, native)


def test_many_steps_of_a_tiny_net_are_one_launch(data: dict[str, np.ndarray], gpu: Any) -> None:
    step = make("cuda")
    step.run(**data, batch_size=16, epochs=1)
    del gpu.calls[:]
    step.run(**data, batch_size=16, epochs=5)
    assert gpu.calls.count("launch") == 1 and not {"play", "record"} & set(gpu.calls)


def test_a_kernel_stays_for_so_many_steps_at_most(
    data: dict[str, np.ndarray], gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epochs, "STAYS", 3)
    ours, native = make("cuda", snapshot_every=5), make("cpu")
    np.testing.assert_array_equal(*(s.run(**data, batch_size=16, epochs=2) for s in (ours, native)))
    assert gpu.calls.count("launch") == 3  # of 3 steps, 2, and 3 after a snapshot


def test_a_net_that_is_not_tiny_has_no_kernel_that_stays(gpu: Any) -> None:
    x = cr.input("x", ("batch", 512))
    loss = cr.mean((x @ cr.parameter("W", (512, 512))) ** 2)
    assert "@resident(" not in cr.training_step(loss, cr.optim.SGD(0.1), backend="cuda").show("ptx")
    assert "@resident(" in make("cuda").show("ptx")


def test_a_step_of_a_run_is_one_launch(
    data: dict[str, np.ndarray], gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epochs, "PER_LAUNCH", 0)
    step = make("cuda")
    step.run(**data, batch_size=16, epochs=1)
    del gpu.calls[:]
    step.run(**data, batch_size=16, epochs=5)
    assert gpu.calls.count("play") == 5 * 4
    assert gpu.calls.count("record") == 2  # of a full minibatch, and of the last
    first, last = (f(i for i, c in enumerate(gpu.calls) if c == "play") for f in (min, max))
    assert set(gpu.calls[first:last]) == {"play"}  # data, order and logs stay on the GPU


def test_memory_does_not_grow(data: dict[str, np.ndarray], gpu: Any) -> None:
    step = make("cuda")
    step.run(**data, batch_size=16)
    before = sum(map(len, gpu.blocks.values()))
    for _ in range(5):
        step.run(**data, batch_size=16)
    assert sum(map(len, gpu.blocks.values())) == before
    del step
    assert not gpu.blocks
    assert gpu.calls.count("forget") == gpu.calls.count("record")
    assert gpu.calls.count("unload") == gpu.calls.count("load")


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_loss_that_is_no_number_stops_a_run(
    data: dict[str, np.ndarray], gpu: Any, shuffle: bool
) -> None:
    data["x"][37] = np.inf
    steps = [make(backend) for backend in ("cuda", "cpu")]
    for step in steps:
        with pytest.raises(cr.errors.NonFiniteError, match="loss is nan in step"):
            step.run(**data, batch_size=16, shuffle=shuffle)
    for name in ("W", "b", "V"):
        np.testing.assert_array_equal(*(s.parameters[name] for s in steps))
    assert steps[0].steps == steps[1].steps


def test_a_label_out_of_range_changes_nothing(data: dict[str, np.ndarray], gpu: Any) -> None:
    step = make("cuda")
    before = step.parameters["W"].copy()
    data["y"][20] = CLASSES
    with pytest.raises(cr.errors.FeedError, match=r"y holds 3"):
        step(**data)
    np.testing.assert_array_equal(step.parameters["W"], before)


def test_no_room_on_the_gpu_is_said(data: dict[str, np.ndarray], gpu: Any) -> None:
    gpu.room = 4096
    with pytest.raises(cr.errors.DeviceError, match="no room"):
        make("cuda").run(**data)


@pytest.mark.parametrize("kind", ["gpu", "emulator"])
def test_a_scan_whose_slices_begin_anywhere(kind: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(kind)
    x = cr.input("x", ("time", "batch", 3))
    w = cr.parameter("w", (3, 3))
    final, ys = cr.scan(lambda h, v: (cr.tanh(h @ w + v), h * 2), cr.zeros_like(x[0]), x)
    loss = cr.mean(final**2) + cr.mean(ys**2)
    rng = np.random.default_rng(1)
    feeds = {"x": rng.standard_normal((5, 3, 3), np.float32)}
    feeds["w"] = rng.standard_normal((3, 3), np.float32)
    outputs = [loss, ys, cr.grad(loss, w)]
    ours, native = (cr.compile(outputs, backend=b)(**feeds) for b in ("cuda", "cpu"))
    for a, b in zip(ours, native, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", ["gpu", "emulator"])
def test_a_scan_that_looks_its_rows_up(kind: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(kind)
    at = cr.input("at", (6, "batch"), dtype="int32")
    e, u = cr.parameter("e", (3, 32)), cr.parameter("u", (32, 20))
    w, b = cr.parameter("w", (20, 20)), cr.parameter("b", (20,))
    rows = cr.take(e, at, axis=0) @ u + b
    start = cr.zeros((at.shape[1], 20))
    final, ys = cr.scan(lambda h, v: (cr.tanh(h @ w + v), h * 2), start, rows)
    loss = cr.mean(final**2) + cr.mean(ys**2)
    rng = np.random.default_rng(1)
    feeds = {t.name: rng.standard_normal(t.shape, np.float32) / 4 for t in (e, u, w, b)}
    feeds["at"] = rng.integers(-3, 2, (6, 3)).astype(np.int32)
    outputs = [ys, final, *cr.grad(loss, [e, u, w, b])]
    ours, native = (cr.compile(outputs, backend=b)(**feeds) for b in ("cuda", "cpu"))
    for mine, theirs in zip(ours, native, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_model_fits(data: dict[str, np.ndarray], gpu: Any) -> None:
    def fitted(backend: str) -> np.ndarray:
        net = cr.nn.Sequential([cr.nn.Dense(8, "relu"), cr.nn.BatchNorm(), cr.nn.Dense(CLASSES)])
        model = cr.Model(net, loss="cross_entropy", optimizer="adam", backend=backend, seed=1)
        model.fit(data["x"], data["y"], epochs=2, batch_size=16, verbose=0)
        return np.asarray(model.predict(data["x"]))

    np.testing.assert_array_equal(fitted("cuda"), fitted("cpu"))
