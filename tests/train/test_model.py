"""`cr.Model`: the same bits as its step alone, and Keras' meaning of weights, splits, history."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.errors import ArtifactError, CompileError, DTypeError, FeedError, ShapeError
from chainrule.ops.philox import permutation
from chainrule.train import built
from chainrule.train.problem import trained_of

pytestmark = pytest.mark.usefixtures("compiled_once")

RNG = np.random.default_rng(7)
X = RNG.normal(size=(70, 6)).astype(np.float32)
Y = RNG.integers(0, 3, 70)
T = (X @ RNG.normal(size=(6, 2))).astype(np.float32)


def net(x: cr.Tensor) -> cr.Tensor:
    w1, b1 = cr.parameter("w1", (6, 8)), cr.parameter("b1", (8,))
    w2 = cr.parameter("w2", (8, 3))
    return cr.tanh(x @ w1 + b1) @ w2


def make(**options: Any) -> cr.Model:
    options = {"metrics": ["accuracy"], "threads": 1, "seed": 4, **options}
    return cr.Model(net, optimizer=cr.optim.Adam(1e-2), **options)


def same(a: cr.Model, b: cr.Model) -> bool:
    one, other = a.step.state_dict(), b.step.state_dict()
    return one.keys() == other.keys() and all(one[n].tobytes() == other[n].tobytes() for n in one)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.smoke
@pytest.mark.parametrize("shuffle", [True, False])
def test_fit_is_run(shuffle: bool) -> None:
    model = make()
    history = model.fit(X, Y, epochs=3, batch_size=16, shuffle=shuffle)
    x, y = cr.input("x", ("batch", 6)), cr.input("y", ("batch",), dtype="int32")
    z = net(x)
    step = cr.training_step(
        cr.losses.cross_entropy(z, y),
        cr.optim.Adam(1e-2),
        metrics={"accuracy": cr.metrics.accuracy(z, y)},
        threads=1,
        seed=4,
    )
    losses = step.run(x=X, y=Y, epochs=3, batch_size=16, shuffle=shuffle)
    for name, array in step.state_dict().items():
        assert model.step.state_dict()[name].tobytes() == array.tobytes(), name
    rows = np.array([16.0, 16, 16, 16, 6])
    wanted = (losses.reshape(3, 5) * rows).sum(axis=1) / 70
    # both are means in float64 of the same float32 numbers
    np.testing.assert_allclose(history.history["loss"], wanted, rtol=1e-12)
    assert history.epoch == [0, 1, 2] and list(history.history) == ["loss", "accuracy"]


class Looking(cr.callbacks.Callback):
    """Looks at every epoch and every step, so that nothing goes together."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def on_epoch_begin(self, epoch: int, logs: Any) -> None:
        self.seen.append(("epoch", epoch))

    def on_batch_begin(self, batch: int, logs: Any) -> None:
        self.seen.append(("begin", batch))

    def on_batch_end(self, batch: int, logs: Any) -> None:
        assert list(logs) == ["loss", "accuracy"]
        self.seen.append(("end", batch))


def test_who_looks_changes_nothing() -> None:
    one, other, third = make(), make(), make(backend="reference")
    looking = Looking()
    a = one.fit(X, Y, epochs=2, batch_size=32)
    b = other.fit(X, Y, epochs=2, batch_size=32, callbacks=[looking], verbose=2)
    assert a.history == b.history and same(one, other)
    steps = [(what, i) for i in range(3) for what in ("begin", "end")]
    assert looking.seen == [("epoch", 0), *steps, ("epoch", 1), *steps]
    c = third.fit(X, Y, epochs=2, batch_size=32, callbacks=[Looking()])
    np.testing.assert_allclose(c.history["loss"], a.history["loss"], rtol=1e-5)  # float32


def test_fits_follow_one_another() -> None:
    one, other = make(), make()
    one.fit(X, Y, epochs=5)
    other.fit(X, Y, epochs=2)
    history = other.fit(X, Y, epochs=5, initial_epoch=2)
    assert history.epoch == [2, 3, 4] and same(one, other)
    other.fit(X, Y, epochs=0)
    assert same(one, other)


def test_evaluate_and_predict_are_numpys() -> None:
    model = make()
    model.fit(X, Y, epochs=2)
    w = model.step.parameters
    z = np.tanh(X @ w["w1"] + w["b1"]) @ w["w2"]
    np.testing.assert_allclose(model.predict(X), z, atol=1e-5)  # float32
    assert (model.predict(X, batch_size=9) == model.predict(X)).all()
    found = model.evaluate(X, Y, batch_size=11)
    each = -np.log(softmax(z.astype(np.float64))[np.arange(70), Y])
    assert found["loss"] == pytest.approx(each.mean(), rel=1e-5)
    assert found["accuracy"] == pytest.approx((z.argmax(axis=1) == Y).mean())
    weights = np.arange(70.0)
    weighed = model.evaluate(X, Y, sample_weight=weights)
    assert weighed["loss"] == pytest.approx((each * weights).mean(), rel=1e-5)
    parts = [(X[:30], Y[:30]), (X[30:], Y[30:])]
    assert model.evaluate(parts) == found
    np.testing.assert_array_equal(model.predict([(X[:30],), (X[30:],)]), model.predict(X))


def test_sample_weight_is_the_mean_of_weight_times_loss() -> None:
    """Of one step of plain descent, by central differences of that mean in float64."""
    weights = RNG.uniform(0, 3, 70)
    model = cr.Model(net, optimizer=cr.optim.SGD(1.0), dtype="float64", threads=1)
    model.build(X.astype(np.float64), Y)
    before = {n: a.astype(np.float64) for n, a in model.weights().items()}
    model.fit(X, Y, batch_size=70, sample_weight=weights)
    after = model.weights()

    def loss(w: dict[str, np.ndarray]) -> float:
        p = softmax(np.tanh(X.astype(np.float64) @ w["w1"] + w["b1"]) @ w["w2"])
        return float((-np.log(p[np.arange(70), Y]) * weights).mean())

    h = 1e-5
    for name, at in (("w1", (2, 3)), ("b1", (5,)), ("w2", (7, 1))):
        sides = []
        for move in (h, -h):
            moved = {n: a.copy() for n, a in before.items()}
            moved[name][at] += move
            sides.append(loss(moved))
        slope = (sides[0] - sides[1]) / (2 * h)
        # parameters are float32, so the step is known to about 1e-7
        assert before[name][at] - after[name][at] == pytest.approx(slope, abs=2e-6)


@pytest.mark.parametrize("loss", sorted(set(cr.losses.BY_NAME)))
def test_weights_of_one_are_no_weights(loss: str) -> None:
    """Of every loss: kl_divergence sums over the last axis where others take the mean."""
    targets: Any = Y if loss in ("cross_entropy", "nll") else np.full((70, 3), 0.25, np.float32)
    one, other = make(loss=loss, metrics=[]), make(loss=loss, metrics=[])
    a = one.fit(X, targets, epochs=2, batch_size=16).history["loss"]
    b = other.fit(X, targets, epochs=2, batch_size=16, sample_weight=np.ones(70)).history["loss"]
    np.testing.assert_allclose(a, b, rtol=1e-5)  # float32 means in two orders
    found, weighed = one.evaluate(X, targets), one.evaluate(X, targets, sample_weight=np.ones(70))
    assert weighed["loss"] == pytest.approx(found["loss"], rel=1e-5)


def test_class_weight_multiplies() -> None:
    one, other, third = make(), make(), make()
    weights = RNG.uniform(0, 3, 70).astype(np.float32)
    factor = np.where(Y == 2, np.float32(5), np.float32(1))
    one.fit(X, Y, epochs=2, class_weight={2: 5.0}, sample_weight=weights)
    other.fit(X, Y, epochs=2, sample_weight=weights * factor)
    assert same(one, other)
    third.fit([(X, Y, weights)], epochs=2, class_weight={2: 5.0})
    assert not same(one, third)
    # weights of 1 are no weights, up to the order in which a mean is taken
    plain, ones = make(), make()
    a = plain.fit(X, Y, epochs=2).history
    b = ones.fit(X, Y, epochs=2, sample_weight=np.ones(70)).history
    np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)


def test_weights_may_come_later() -> None:
    model = make()
    model.fit(X, Y, epochs=1)
    before = model.weights()
    steps = model.step.steps
    model.fit(X, Y, epochs=1, sample_weight=np.ones(70))
    assert model.step.steps == 2 * steps
    assert any((model.weights()[n] != before[n]).any() for n in before)


@pytest.mark.parametrize("loss", ["mse", "mae", "huber", cr.losses.mse])
def test_regression(loss: Any) -> None:
    model = cr.Model(lambda x: cr.nn.Dense(2)(x), loss, cr.optim.Adam(0.05), threads=1)
    history = model.fit(X, T, epochs=60, validation_split=0.2)
    assert history.history["val_loss"][-1] < 0.1 * history.history["val_loss"][0]


def test_validation_is_over_all_rows() -> None:
    one, other, third = make(), make(), make()
    a = one.fit(X, Y, epochs=2, validation_split=0.3)
    b = other.fit(X[:49], Y[:49], epochs=2, validation_data=(X[49:], Y[49:]))
    c = third.fit(
        X[:49], Y[:49], epochs=2, validation_data=[(X[49:60], Y[49:60]), (X[60:], Y[60:])]
    )
    assert a.history == b.history == c.history and same(one, other)
    assert list(a.history) == ["loss", "accuracy", "val_loss", "val_accuracy"]
    found = one.evaluate(X[49:], Y[49:])
    assert found["loss"] == a.history["val_loss"][-1]


def test_several_inputs_and_a_loss_of_ones_own() -> None:
    def both(left: cr.Tensor, right: cr.Tensor) -> cr.Tensor:
        return left @ cr.parameter("w", (6, 2)) + right @ cr.parameter("v", (2, 2))

    def cube(p: cr.Tensor, y: cr.Tensor) -> cr.Tensor:
        return cr.abs(p - y) ** 3

    def worst(p: cr.Tensor, y: cr.Tensor) -> cr.Tensor:
        return cr.max(cr.abs(p - y))

    model = cr.Model(both, cube, "sgd", metrics={"worst": worst}, threads=1)
    data = {"left": X, "right": T}
    history = model.fit(data, T, epochs=3, sample_weight=np.ones(70))
    assert list(history.history) == ["loss", "worst"]
    w = model.step.parameters
    p = X @ w["w"] + T @ w["v"]
    found = model.evaluate(data, T)
    assert found["loss"] == pytest.approx((np.abs(p - T) ** 3).mean(), rel=1e-4)
    assert found["worst"] == pytest.approx(np.abs(p - T).max(), rel=1e-4)
    with pytest.raises(FeedError, match="right is not given"):
        model.evaluate({"left": X}, T)


def test_integers_are_taken_as_the_net_takes_them() -> None:
    pixels = RNG.integers(0, 255, (40, 6)).astype(np.uint8)
    dense = cr.Model(lambda x: cr.nn.Dense(3)(x * (1 / 255)), threads=1).build(pixels, Y[:40])
    assert dense.problem.inputs["x"].dtype == "float32"
    words = cr.Model(
        cr.nn.Sequential([cr.nn.Embedding(255, 4), cr.nn.Flatten(), cr.nn.Dense(3)]), threads=1
    ).build(pixels, Y[:40])
    assert words.problem.inputs["x"].dtype == "int32"
    binary = cr.Model(lambda x: cr.nn.Dense(1)(x), "binary_cross_entropy", threads=1)
    binary.fit(X, (Y > 0)[:, None].astype(int))
    assert binary.problem.target.dtype == "float32"


def test_predicted_before_trained() -> None:
    one, other = make(), make()
    z = one.predict(X)
    one.fit(X, Y, epochs=2)
    other.fit(X, Y, epochs=2)
    assert z.shape == (70, 3) and same(one, other)
    regression = cr.Model(lambda x: cr.nn.Dense(2)(x), "mse", threads=1)
    assert regression.predict(X).shape == (70, 2)
    regression.fit(X, T)


def test_partial_fit_is_a_step() -> None:
    one, other = make(), make()
    a = [one.partial_fit(X[i : i + 10], Y[i : i + 10]) for i in range(0, 70, 10)]
    b = other.fit(X, Y, batch_size=10, shuffle=False)
    assert np.mean(a) == pytest.approx(b.history["loss"][0], rel=1e-12)
    assert {n: a.tobytes() for n, a in one.weights().items()} == {
        n: a.tobytes() for n, a in other.weights().items()
    }


def test_frozen_layers_stay() -> None:
    body, head = cr.nn.Dense(4, "relu"), cr.nn.Dense(3)
    model = cr.Model(cr.nn.Sequential([body, head]), threads=1)
    body.freeze()
    model.build(X, Y)
    before = model.weights()
    model.fit(X, Y)
    after = model.weights()
    changed = {n for n in after if (after[n] != before[n]).any()}
    assert changed == {"dense2.weight", "dense2.bias"}
    assert model.summary().trainable == 15
    body.unfreeze()
    model.step.run(x=X, y=Y)
    assert all((model.weights()[n] != after[n]).any() for n in after)
    assert model.summary().trainable == 4 * 6 + 4 + 15


def test_options_are_the_steps() -> None:
    one, other = make(), make(memory_budget=10**6, threads=2)
    one.fit(X, Y, epochs=2), other.fit(X, Y, epochs=2)
    assert same(one, other)


def test_a_regularizer_is_in_every_loss() -> None:
    model = make(regularizer=lambda weights: 0.5 * sum((cr.sum(w * w) for w in weights), 0.0))
    plain = make()
    model.build(X, Y), plain.build(X, Y)
    cost = 0.5 * sum(float((w.astype(np.float64) ** 2).sum()) for w in plain.weights().values())
    assert model.evaluate(X, Y)["loss"] == pytest.approx(
        plain.evaluate(X, Y)["loss"] + cost, rel=1e-5
    )
    a = model.fit(X, Y, batch_size=70).history["loss"][0]
    assert a == pytest.approx(plain.fit(X, Y, batch_size=70).history["loss"][0] + cost, rel=1e-5)


def test_it_can_be_read() -> None:
    model = make()
    with pytest.raises(CompileError, match="has not seen data"):
        _ = model.step
    assert "not built" in repr(model)
    model.build(X, Y)
    assert set(model.gradients()) == {"w1", "b1", "w2"}
    assert "onehot(y)" in str(model.gradients()["w2"])
    assert model.explain("w2").check()
    with pytest.raises(CompileError, match="there are w1, b1, w2"):
        model.explain("w3")
    summary = model.summary()
    assert summary.parameters == summary.trainable == 6 * 8 + 8 + 8 * 3
    assert summary.bytes == 4 * summary.parameters
    # two products, two for each multiply-add; a bias and a tanh, one an element
    assert summary.flops == 2 * 6 * 8 + 8 + 8 + 2 * 8 * 3
    assert "w1" in str(summary) and "80 parameters" in str(summary)
    layers = cr.Model(cr.nn.Sequential([cr.nn.Dense(5, "relu"), cr.nn.Dense(3)]), threads=1)
    rows = layers.summary(X).rows
    assert [(r.name, r.kind, r.parameters) for r in rows] == [
        ("dense1", "Dense", 35),
        ("dense2", "Dense", 18),
    ]


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda m: m.fit(X, Y[:-1]), FeedError, "x has 70, y has 69"),
        (lambda m: m.fit(X, np.where(np.arange(70) == 9, 3, Y)), FeedError, r"holds 3.*\[9\]"),
        (lambda m: m.fit(X, Y, validation_data=(X[:, :4], Y)), FeedError, "validation"),
        (lambda m: m.fit(X, Y, validation_data=(X, Y + 1)), FeedError, "validation"),
        (lambda m: m.fit(X[:0], Y[:0]), FeedError, "0 rows"),
        (lambda m: m.fit(X, Y, batch_size=0), FeedError, "batch_size is an int from 1"),
        (lambda m: m.fit(X, Y, epochs=1.5), FeedError, "epochs is an int"),
        (lambda m: m.fit(X, Y, verbose=7), FeedError, "verbose"),
        (lambda m: m.fit(X, Y, callbacks=[print]), CompileError, "callback"),
        (lambda m: m.fit(X, Y, validation_split=1.0), FeedError, "validation_split"),
        (lambda m: m.fit(X, Y, validation_split="a"), FeedError, "validation_split"),
        (lambda m: m.fit(X, Y, class_weight={"0": 2.0}), FeedError, "'0', which is no class"),
        (lambda m: m.fit(X, Y, class_weight={1: "a"}), FeedError, r"class_weight\[1\]"),
        (lambda m: m.fit(X, Y, class_weight={1: -2.0}), FeedError, r"class_weight\[1\]"),
        (lambda m: m.fit(X, Y, sample_weight=np.ones(3)), FeedError, r"\(70,\)"),
        (lambda m: m.fit(X, Y, sample_weight=-np.ones(70)), FeedError, "-1.0 in row 0"),
        (lambda m: m.fit(X, Y, steps_per_epoch=3), FeedError, "steps_per_epoch"),
        (lambda m: m.fit(X, Y, shuffle="yes"), FeedError, "shuffle"),
        (lambda m: m.fit(X.astype(str), Y), FeedError, "str|U"),
        (lambda m: m.fit(X, T), DTypeError, "class numbers"),
        (lambda m: m.fit(X, Y[:, None]), ShapeError, "one label a row"),
        (lambda m: m.fit(3.0, Y), FeedError, "rows"),
        (lambda m: m.fit(X, Y, resume="/nowhere/at/all"), ArtifactError, "nowhere"),
    ],
)
def test_what_does_not_fit(
    call: Callable[[cr.Model], Any], error: type[Exception], text: str
) -> None:
    model = make()
    with pytest.raises(error, match=f"(?s){text}"):
        call(model)
    assert model.fit(X, Y).history["loss"]  # the next one is as ever


def test_nan_is_found_with_its_place() -> None:
    bad = X.copy()
    bad[13, 2] = np.inf
    with pytest.raises(FeedError, match="x holds inf in row 13, feature 2"):
        make().fit(bad, Y)
    with pytest.raises(FeedError, match="validation data: x holds inf in row 13, feature 2"):
        make().fit(X, Y, validation_data=(bad, Y))
    bad[13, 2] = np.nan
    with pytest.raises(cr.errors.NonFiniteError, match="x holds nan at"):
        make().fit(bad, Y, check_data=False)


def test_names_that_are_none() -> None:
    for options, text in [
        ({"loss": "cross_entrpy"}, "cross_entropy"),
        ({"loss": "sparse_categorical_crossentropy"}, "here it is cross_entropy"),
        ({"metrics": ["acuracy"]}, "accuracy"),
        ({"optimizer": "adm"}, "adam"),
        ({"metrics": ["accuracy", "accuracy"]}, "two numbers"),
        ({"backend": "gpu"}, "backend"),
    ]:
        with pytest.raises(CompileError, match=text):
            cr.Model(net, **options)
    with pytest.raises(CompileError, match="a net is"):
        cr.Model(3)  # type: ignore[arg-type]
    with pytest.raises(CompileError, match="a net is"):
        cr.Model(cr.nn.Dense)
    with pytest.raises(CompileError, match="Tensor"):
        cr.Model(net, loss=lambda p, y: 3).build(X, Y)  # type: ignore[arg-type,return-value]
    with pytest.raises(CompileError, match="weighed"):
        cr.Model(net, loss=lambda p, y: cr.sum(p)).fit(X, Y, sample_weight=np.ones(70))


def test_shuffling_is_the_steps() -> None:
    model, order = make(), permutation(4, 0, 70)
    model.fit(X, Y, batch_size=70)
    other = make()
    other.fit(X[order], Y[order], batch_size=70, shuffle=False)
    assert same(model, other)


def test_quiet_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    make().fit(X, Y, epochs=2)
    make().fit(X, Y, epochs=2, verbose=1)
    assert capsys.readouterr() == ("", "")
    make().fit(X, Y, epochs=2, verbose=2)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[1].startswith("epoch 2/2") and "accuracy" in lines[1]


def test_a_bar_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    one, other = make(), make()
    a = one.fit(X, Y, epochs=30, verbose=1)
    b = other.fit(X, Y, epochs=30, verbose=0)
    assert a.history == b.history and same(one, other)
    assert not [t for t in threading.enumerate() if "prefetch" in t.name]


def test_no_warning_comes(recwarn: pytest.WarningsRecorder) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make().fit(X, Y, epochs=1, validation_split=0.2)


def test_inputs_by_other_names_than_the_nets() -> None:
    def both(left: cr.Tensor, right: cr.Tensor) -> cr.Tensor:
        return cr.nn.Dense(3)(left + right)

    model = cr.Model(both, threads=1)
    with pytest.raises(FeedError, match=r"(?s)called left, rihgt.*it takes left, right"):
        model.fit({"left": X, "rihgt": X}, Y)
    with pytest.raises(FeedError, match=r"(?s)called image.*it takes x"):
        cr.Model(cr.nn.Sequential([cr.nn.Dense(3)])).fit({"image": X}, Y)
    assert model.fit({"left": X, "right": X}, Y).history["loss"]


def test_a_regularizer_is_a_function() -> None:
    for given in (0.1, "l2"):
        with pytest.raises(CompileError, match=r"(?s)a regularizer is a function.*l2"):
            make(regularizer=given)


def test_weights_of_another_width_are_converted() -> None:
    model = make().build(X, Y)
    model.set_weights({"b1": np.full(8, 0.25)})  # float64, as NumPy makes them
    np.testing.assert_array_equal(model.weights()["b1"], np.full(8, 0.25, np.float32))
    for wrong in (np.zeros(8, complex), np.zeros(7), "b1"):
        with pytest.raises(ArtifactError, match="b1"):
            model.set_weights({"b1": wrong})
    with pytest.raises(ArtifactError, match="dict of arrays by name, not NoneType"):
        model.set_weights(None)  # type: ignore[arg-type]


def test_a_net_that_is_frozen_whole() -> None:
    layer = cr.nn.Dense(3)
    model = cr.Model(layer, threads=1)
    model.fit(X, Y)
    layer.freeze()
    with pytest.raises(CompileError, match=r"(?s)is frozen.*unfreeze"):
        model.fit(X, Y)
    assert model.predict(X).shape == (70, 3)
    step, before = model.step, model.weights()
    for train in (lambda: step(x=X, y=Y), lambda: step.run(x=X, y=Y)):
        with pytest.raises(CompileError, match=r"(?s)is frozen.*unfreeze"):
            train()
    assert all((model.weights()[n] == before[n]).all() for n in before) and step.steps == 3
    layer.unfreeze()
    assert model.fit(X, Y).history["loss"]


def test_layers_are_asked_only_where_some_were_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their parameters are many, and a step is asked for at every call."""
    asked: list[object] = []
    monkeypatch.setattr(built, "trained_of", lambda net: asked.append(net) or trained_of(net))
    layer, other = cr.nn.Dense(3), cr.nn.Dense(3)
    model = cr.Model(layer, backend="reference").build(X, Y)
    asked.clear()
    for _ in range(3):
        assert model.step and model.predict(X).shape == (70, 3)
    assert not asked
    other.freeze()
    for _ in range(3):
        assert model.step
    assert asked == [layer]


def test_layers_frozen_in_a_callback_are_frozen_from_the_next_fit_on() -> None:
    """A fit that a callback begins is over before the one around it, which trains on its step."""
    layer = cr.nn.Dense(3)
    model = cr.Model(layer, backend="reference")

    class Freezes(cr.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: object) -> None:
            if epoch == 0:
                model.fit(X, Y, batch_size=70)
                layer.freeze()
            assert model.step.steps == (2, 3)[epoch]

    model.fit(X, Y, epochs=2, batch_size=70, callbacks=[Freezes()])
    assert model.step.steps == 3
    with pytest.raises(CompileError, match="is frozen"):
        model.step(x=X, y=Y)


def test_a_net_that_was_frozen_before_it_saw_data() -> None:
    """It predicts, is scored and is saved as any other; only training is refused."""
    layer = cr.nn.Dense(3)
    layer.freeze()
    model = cr.Model(layer, metrics=["accuracy"], threads=1)
    z = model.predict(X)
    assert model.summary().trainable == 0
    # predictions are float32 sums of 6 products of numbers near 1
    w = model.weights()
    np.testing.assert_allclose(z, X @ w["dense1.weight"] + w["dense1.bias"], atol=1e-5)
    # a float32 share: right to its last digit
    right = np.mean(z.argmax(axis=1) == Y)
    assert model.evaluate(X, Y)["accuracy"] == pytest.approx(right, rel=1e-6)
    for train in (model.fit, model.partial_fit):
        with pytest.raises(CompileError, match="is frozen"):
            train(X, Y)  # type: ignore[operator]
    assert all((model.weights()[n] == w[n]).all() for n in w)
    layer.unfreeze()
    assert model.fit(X, Y).history["loss"]
