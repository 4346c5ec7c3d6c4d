"""Ensembles: member i is, to the last bit, what a step of its own with seed + i would be.

Each net alone is held to references elsewhere; here ensembles are held to nets alone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule import nn
from chainrule.errors import ArtifactError, CompileError, FeedError, NonFiniteError
from chainrule.train import TrainingStep, training_step

pytestmark = pytest.mark.usefixtures("compiled_once")

Array = np.ndarray[Any, Any]
Data = dict[str, Array]
Net = tuple[cr.Tensor, cr.Tensor, Data]

SEED, ROWS = 5, 22
RNG = np.random.default_rng(0)


def labels(classes: int = 3) -> Array:
    return RNG.integers(0, classes, ROWS).astype(np.int32)


def normal(*shape: int) -> Array:
    return RNG.normal(size=(ROWS, *shape)).astype(np.float32)


def mlp() -> Net:
    """Dropout, a fold along rows (the softmax) and biases, whose gradients are folds over rows."""
    x, y = cr.input("x", ("batch", 6)), cr.input("y", ("batch",), dtype="int32")
    net = nn.Sequential([nn.Dense(8, "tanh"), nn.Dropout(0.3), nn.Dense(7, "relu"), nn.Dense(3)])
    z = net(x)
    return z, cr.losses.cross_entropy(z, y), {"x": normal(6), "y": labels()}


def wide_rows() -> Net:
    """Folds along rows that are longer than a vector, of a known length and of an unknown one."""
    x, y = cr.input("x", ("batch", 5)), cr.input("y", ("batch", 37))
    z = nn.LayerNorm()(nn.Dense(37)(nn.Dense(32, "sigmoid")(x)))
    loss = cr.mean(cr.square(z - y)) + 0.1 * cr.mean(cr.softmax(z))
    return z, loss, {"x": normal(5), "y": normal(37)}


def cnn() -> Net:
    x, y = cr.input("x", ("batch", 1, 6, 6)), cr.input("y", ("batch",), dtype="int32")
    layers = [nn.Conv2D(3, 3, activation="relu"), nn.MaxPool(2), nn.Flatten(), nn.Dense(3)]
    z = nn.Sequential(layers)(x)
    return z, cr.losses.cross_entropy(z, y), {"x": normal(1, 6, 6), "y": labels()}


def lstm() -> Net:
    x, y = cr.input("x", ("batch", 4, 3)), cr.input("y", ("batch",), dtype="int32")
    h = nn.LSTM(5, return_sequences=True)(x)
    z = nn.Dense(3)(h[:, -1])
    return z, cr.losses.cross_entropy(z, y), {"x": normal(4, 3), "y": labels()}


def words() -> Net:
    """An LSTM over words, whose table is multiplied, and its gradient from sums of rows."""
    x, y = cr.input("x", ("batch", 8), dtype="int32"), cr.input("y", ("batch",), dtype="int32")
    z = nn.Dense(3)(nn.LSTM(5)(nn.Embedding(4, 32)(x)))
    tokens = RNG.integers(0, 4, (ROWS, 8)).astype(np.int32)
    return z, cr.losses.cross_entropy(z, y), {"x": tokens, "y": labels()}


def attention() -> Net:
    """Embeddings, whose gradient adds up at places known when called, and two heads."""
    x, y = cr.input("x", ("batch", 5), dtype="int32"), cr.input("y", ("batch",), dtype="int32")
    h = nn.TransformerBlock(heads=2)(nn.Embedding(7, 8)(x))
    z = nn.Dense(3)(cr.mean(h, axis=1))
    tokens = RNG.integers(0, 7, (ROWS, 5)).astype(np.int32)
    return z, cr.losses.cross_entropy(z, y), {"x": tokens, "y": labels()}


def normed() -> Net:
    """Batch norm, whose states are each member's own."""
    x, y = cr.input("x", ("batch", 6)), cr.input("y", ("batch",))
    # no bias before the norm, which would take it away: its gradient would be rounding errors
    z = nn.Dense(1)(nn.BatchNorm()(nn.Dense(4, use_bias=False)(x)))[:, 0]
    return z, cr.mean(cr.square(z - y)), {"x": normal(6), "y": normal()}


#: one member, a vector of them that is not full, one that is, several of which the last is not
COUNTS = [(mlp, 1), (mlp, 3), (mlp, 16), (mlp, 33), (normed, 3)]
COUNTS += [(net, 17) for net in (wide_rows, cnn, lstm, words, attention)]


def train(net: Net, **options: Any) -> tuple[TrainingStep, Array]:
    z, loss, data = net
    options = {"outputs": {"z": z}, "metrics": {"size": cr.sum(cr.abs(z))}, "seed": SEED, **options}
    step = training_step(loss, options.pop("optimizer", cr.optim.Adam(1e-2)), **options)
    return step, step.run(**data, batch_size=8, epochs=2, shuffle=False)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("make", "count"), COUNTS)
def test_a_member_has_the_bits_of_a_net_alone(make: Callable[[], Net], count: int) -> None:
    net = make()
    both, losses = train(net, ensemble=count, threads=1)
    assert losses.shape == (6, count)
    assert both.metrics["size"].shape == (6, count)
    predicted, kept = both.predict(x=net[2]["x"])["z"], both.state_dict()
    # convolutions of a net alone may sum along memory, in lanes that an ensemble has other uses for
    same = np.testing.assert_array_equal if make is not cnn else close
    for i in sorted({0, count - 1}):
        alone, want = train(net, seed=SEED + i, threads=1)
        same(losses[:, i], want)
        same(predicted[i], alone.predict(x=net[2]["x"])["z"])
        same(both.metrics["size"][:, i], alone.metrics["size"])
        for name, array in alone.state_dict().items():
            same(kept[name][i] if kept[name].ndim > array.ndim else kept[name], array)


def close(a: Array, b: Array) -> None:
    """Sums in another order, of six steps with Adam, which divides by what may be small."""
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


def test_threads_and_company_change_no_bit() -> None:
    net = mlp()
    few, want = train(net, ensemble=3, threads=1)
    many, losses = train(net, ensemble=40, threads=2)
    np.testing.assert_array_equal(losses[:, :3], want)
    for name, array in few.parameters.items():
        np.testing.assert_array_equal(many.parameters[name][:3], array)


@pytest.mark.parametrize("make", [mlp, lstm, normed])
def test_the_reference_agrees(make: Callable[[], Net]) -> None:
    net = make()
    ours, losses = train(net, ensemble=3)
    theirs, want = train(net, ensemble=3, backend="reference")
    close(losses, want)
    close(ours.predict(x=net[2]["x"])["z"], theirs.predict(x=net[2]["x"])["z"])


@pytest.mark.parametrize("batch", ["batch", 2])
def test_padded_images_of_all_are_laid_down_for_each(batch: int | str) -> None:
    """A kernel's gradient sums over images, whose padding lies in workspace, one after the other:
    copied for all members at once, it was read from workspace that did not exist.
    """
    x, y = cr.input("x", (batch, 3, 16, 14)), cr.input("y", (batch,), dtype="int32")
    layers = [nn.Conv2D(20, 3, stride=2, dilation=2, padding=1), nn.Flatten(), nn.Dense(5)]
    loss = cr.losses.cross_entropy(nn.Sequential(layers)(x), y)
    rng = np.random.default_rng(SEED)
    feeds = {"x": rng.normal(size=(2, 3, 16, 14)).astype(np.float32), "y": np.array([1, 4])}
    found = []
    for backend in ("cpu", "reference"):
        step = training_step(loss, cr.optim.SGD(0.1), ensemble=9, seed=SEED, backend=backend)
        found.append([step(**feeds) for _ in range(3)])
    close(*found)


def test_single_steps_are_those_of_a_run(backend: str) -> None:
    _, loss, data = mlp()
    one, other = (
        training_step(loss, cr.optim.Adam(1e-2), ensemble=5, backend=backend, seed=1)
        for _ in range(2)
    )
    want = one.run(**data, batch_size=8, shuffle=False)
    found = [other(**{k: a[i : i + 8] for k, a in data.items()}) for i in range(0, ROWS, 8)]
    assert all(losses.shape == (5,) for losses in found)
    np.testing.assert_array_equal(np.stack(found), want)
    assert one.ensemble == 5 and one.seed == 1


def test_members_have_hyperparameters_of_their_own(backend: str) -> None:
    _, loss, data = normed()
    optimizer = cr.optim.SGD(0.1, momentum=0.5)
    rates, momenta = np.array([0.1, 0.02, 0.3]), np.array([0.9, 0.5, 0.0])
    step = training_step(loss, optimizer, ensemble=3, seed=SEED, backend=backend)
    np.testing.assert_array_equal(step.learning_rate, [0.1] * 3)
    step.learning_rate = rates
    step.hyperparameters["momentum"] = momenta
    np.testing.assert_array_equal(step.learning_rate, rates)
    losses = step.run(**data, batch_size=8, epochs=2, shuffle=False)
    for i in range(3):
        alone = training_step(loss, optimizer, seed=SEED + i, backend=backend)
        alone.learning_rate = rates[i]
        alone.hyperparameters["momentum"] = momenta[i]
        want = alone.run(**data, batch_size=8, epochs=2, shuffle=False)
        np.testing.assert_array_equal(losses[:, i], want)
    step.learning_rate = 0.25
    np.testing.assert_array_equal(step.learning_rate, [0.25] * 3)
    with pytest.raises(FeedError, match="3 of them"):
        step.learning_rate = [0.1, 0.2]
    with pytest.raises(FeedError):
        step.learning_rate = [0.1, 0.2, -1.0]


def test_parameters_are_live_with_members_first(backend: str) -> None:
    x, w = cr.input("x", ("batch", 2)), cr.parameter("w", (2,), init="zeros")
    step = training_step(
        cr.mean(x @ w), cr.optim.SGD(1.0), outputs=x @ w, ensemble=18, backend=backend
    )
    rows = np.ones((4, 2), np.float32)
    start = np.arange(36, dtype=np.float32).reshape(18, 2)
    step.parameters["w"][...] = start  # a view that nobody holds any more when the next step begins
    np.testing.assert_array_equal(step(x=rows), start.sum(1))
    held = step.parameters["w"]
    np.testing.assert_array_equal(held, start - 1)  # the gradient of each is 1
    step(x=rows)
    np.testing.assert_array_equal(held, start - 2)
    held[7] = 5
    np.testing.assert_array_equal(step.predict(x=rows)[7], [10] * 4)
    np.testing.assert_array_equal(step.state_dict()["w"][7], [5, 5])
    assert step.parameters["w"] is held
    assert list(step.parameters) == ["w"] and len(step.parameters) == 1


def test_a_run_that_is_resumed_equals_one_that_was_not(backend: str, tmp_path: Path) -> None:
    _, loss, data = mlp()

    def make(**options: Any) -> TrainingStep:
        return training_step(loss, cr.optim.Adam(1e-2), ensemble=18, backend=backend, **options)

    whole, first, second = make(seed=3), make(seed=3), make(seed=99)
    want = whole.run(**data, batch_size=8, epochs=3)
    before = first.run(**data, batch_size=8, epochs=1)
    first.save(tmp_path / "a.safetensors")
    second.load(tmp_path / "a.safetensors")
    assert second.seed == 3
    after = second.run(**data, batch_size=8, epochs=2)
    np.testing.assert_array_equal(np.concatenate([before, after]), want)
    with pytest.raises(ArtifactError, match="shape"):
        training_step(loss, cr.optim.Adam(1e-2), ensemble=17).load(tmp_path / "a.safetensors")


def test_a_loss_that_is_not_finite_names_its_member_and_changes_none(backend: str) -> None:
    x, w = cr.input("x", ("batch",)), cr.parameter("w", (), init="ones")
    step = training_step(cr.mean(x * w), cr.optim.SGD(0.1), ensemble=20, backend=backend)
    step.parameters["w"][17] = np.inf
    before = step.state_dict()
    with pytest.raises(NonFiniteError, match="loss of member 17 is inf in step 1"):
        step(x=[1.0, 2.0])
    with pytest.raises(NonFiniteError, match="loss of member 17"):
        step.run(x=np.ones(4), batch_size=2)
    for name, array in step.state_dict().items():
        if name != "training.epoch":
            np.testing.assert_array_equal(array, before[name], name)


def test_labels_are_checked_before_anything_changes(backend: str) -> None:
    _, loss, data = mlp()
    step = training_step(loss, cr.optim.Adam(1e-2), ensemble=3, backend=backend)
    before = step.state_dict()
    wrong = {**data, "y": np.where(np.arange(ROWS) == 4, 3, data["y"]).astype(np.int32)}
    for attempt in (lambda: step(**wrong), lambda: step.run(**wrong)):
        with pytest.raises(FeedError, match="y holds 3"):
            attempt()
    for name, array in step.state_dict().items():
        np.testing.assert_array_equal(array, before[name], name)


def test_more_members_than_a_small_output_holds() -> None:
    x, w = cr.input("x", ("batch",)), cr.parameter("w", (), init="ones")
    step = training_step(cr.mean(x * w), cr.optim.SGD(0.1), ensemble=1500)
    step.parameters["w"][...] = np.arange(1500)
    losses = step.run(x=np.ones(4), batch_size=2)
    np.testing.assert_array_equal(losses[0], np.arange(1500))
    assert step(x=np.ones(4)).shape == (1500,)


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True, "3"])
def test_what_is_no_number_of_members(wrong: Any) -> None:
    with pytest.raises(CompileError, match="ensemble is None or an int from 1 on"):
        training_step(cr.sum(cr.parameter("w", (2,))), cr.optim.SGD(0.1), ensemble=wrong)


def test_seeds_that_do_not_fit() -> None:
    loss = cr.sum(cr.parameter("w", (2,)))
    training_step(loss, cr.optim.SGD(0.1), ensemble=2, seed=2**64 - 2)
    with pytest.raises(CompileError, match="seed above"):
        training_step(loss, cr.optim.SGD(0.1), ensemble=3, seed=2**64 - 2)


def test_counts_may_be_numpy_s() -> None:
    x = cr.input("x", ("n", 2))
    loss = cr.mean((x @ cr.parameter("w", (2,))) ** 2)
    few, two = np.int64(1), np.int32(2)
    step = training_step(loss, cr.optim.SGD(0.1), threads=few, ensemble=two)
    assert step(x=np.ones((3, 2))).shape == (2,)
    assert cr.compile(cr.sum(x), threads=two)(x=np.ones((3, 2))) == 6
