"""One step, and what a step refuses."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import chainrule as cr
from chainrule.errors import (
    ArtifactError,
    CompileError,
    DTypeError,
    FeedError,
    GradientError,
    NonFiniteError,
    ShapeError,
)
from chainrule.nn import losses, optim
from chainrule.train import TrainingStep, training_step

pytestmark = pytest.mark.usefixtures("compiled_once")

Make = Callable[..., TrainingStep]
Data = dict[str, np.ndarray]


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(a[n].tobytes() == b[n].tobytes() for n in a)


def test_it_learns(make: Make, data: Data, backend: str) -> None:
    step = make(backend=backend)
    first = step(**data)
    for _ in range(60):
        last = step(**data)
    assert isinstance(first, float) and last < first / 2 and step.steps == 61
    assert step.metrics["accuracy"] > 0.9
    logits = step.predict(x=data["x"])["logits"]
    assert logits.shape == (50, 3) and (logits.argmax(1) == data["y"]).mean() > 0.9


def test_both_backends_agree(make: Make, data: Data) -> None:
    native, reference = make(dtype="float64"), make(dtype="float64", backend="reference")
    for n in (50, 7, 1, 50):
        batch = {k: v[:n] for k, v in data.items()}
        assert native(**batch) == pytest.approx(reference(**batch), rel=1e-9)
        assert native.metrics["accuracy"] == pytest.approx(reference.metrics["accuracy"], rel=1e-12)
    for name, a in native.state_dict().items():
        np.testing.assert_allclose(a, reference.state_dict()[name], rtol=1e-9, atol=1e-12)


def test_parameters_are_live(make: Make, data: Data, backend: str) -> None:
    step = make(backend=backend)
    view = step.parameters["V"]
    before, logits = view.copy(), step.predict(x=data["x"])["logits"]
    assert list(step.parameters) == ["W0", "b0", "V"] and view.flags.writeable
    step(**data)
    assert not np.array_equal(view, before)
    view[...] = 0
    assert (step.predict(x=data["x"])["logits"] == 0).all()
    assert step(**data) == pytest.approx(np.log(3), rel=1e-6)
    assert not (logits == 0).all()  # what was given before stays


def test_the_learning_rate_is_a_run_time_value(make: Make, data: Data, backend: str) -> None:
    step = make(optim.SGD(0.1), backend=backend)
    assert step.learning_rate == 0.1
    step.learning_rate = 0.0
    before = step.parameters["V"].copy()
    step(**data)
    np.testing.assert_array_equal(step.parameters["V"], before)
    step.learning_rate = 3e-4
    assert step.learning_rate == 3e-4
    for bad in (-1, np.nan, np.inf, "1"):
        with pytest.raises(FeedError, match="learning_rate"):
            step.learning_rate = bad  # type: ignore[assignment]
    assert step.learning_rate == 3e-4


@pytest.mark.parametrize("bad", [3, -1, 2**31 - 1, -(2**31)])
def test_labels_out_of_range(make: Make, data: Data, backend: str, bad: int) -> None:
    step = make(backend=backend)
    before = step.state_dict()
    wrong = {**data, "y": data["y"].copy()}
    wrong["y"][17] = bad
    with pytest.raises(FeedError, match=rf"y holds {bad}, where only 0 to 2") as error:
        step(**wrong)
    assert "[17]" in str(error.value) and "test_step.py" in str(error.value)
    with pytest.raises(FeedError, match=rf"y holds {bad}") as error:
        step.run(**wrong, batch_size=4)
    assert "[17]" in str(error.value)
    assert same(step.state_dict(), before)
    step(**data)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite(make: Make, data: Data, backend: str, bad: float) -> None:
    step = make(backend=backend)
    step(**data)
    before = step.state_dict()
    wrong = {**data, "x": data["x"].copy()}
    wrong["x"][3, 2] = bad
    wrong["x"][4, 2] = np.nan
    with pytest.raises(NonFiniteError, match="loss is nan in step 2"):
        step(**wrong)
    assert same(step.state_dict(), before)
    with pytest.raises(NonFiniteError, match="in step 3"):  # the first minibatch is whole
        step.run(**{k: v[::-1] for k, v in wrong.items()}, batch_size=45, shuffle=False)
    assert step.steps == 2
    assert np.isfinite(step(**data))


def test_wrong_feeds_change_nothing(make: Make, data: Data, backend: str) -> None:
    step = make(backend=backend)
    before = step.state_dict()
    x, y = data["x"], data["y"]
    for feeds, text in [
        ({"x": x}, "y is not given"),
        ({"x": x, "y": y, "z": y}, "no input 'z'"),
        ({"X": x, "y": y}, "did you mean 'x'"),
        ({"x": x[:, :5], "y": y}, "axis 1 is 5, not 6"),
        ({"x": x, "y": y[:49]}, "axis 0 is 49, not 50"),
        ({"x": x, "y": y[:, None]}, "2 axes"),
        ({"x": x, "y": y.astype(np.float32)}, "fractions"),
        ({"x": x.astype(complex), "y": y}, "complex"),
        ({"x": x[:0], "y": y[:0]}, "batch is 0"),
    ]:
        with pytest.raises(FeedError, match=text):
            step(**feeds)
    assert same(step.state_dict(), before)


@pytest.mark.parametrize("how", ["list", "float64", "float16", "swapped", "strided", "read-only"])
def test_every_form_of_feed_gives_the_same_step(make: Make, data: Data, how: str) -> None:
    x = data["x"].astype(np.float16).astype(np.float32)
    strided = np.zeros((100, 12), np.float32)[::2, ::2]
    strided[...] = x
    fixed = x.copy()
    fixed.flags.writeable = False
    forms = {
        "list": x.tolist(),
        "float64": x.astype(np.float64),
        "float16": x.astype(np.float16),
        "swapped": x.astype(">f4"),
        "strided": strided,
        "read-only": fixed,
    }
    a, b = make(), make()
    assert a(x=x, y=data["y"]) == b(x=forms[how], y=data["y"].tolist())
    assert same(a.state_dict(), b.state_dict())


def test_seeds(make: Make) -> None:
    a, b, c = make(seed=1), make(seed=1), make(seed=2)
    assert same(a.state_dict(), b.state_dict())
    assert not np.array_equal(a.parameters["V"], c.parameters["V"])
    assert not np.array_equal(a.parameters["V"][:6], a.parameters["W0"][:, :3])
    make(seed=2**64 - 1)
    for bad in (-1, 2**64, 1.5, None, True):
        with pytest.raises(CompileError, match="seed"):
            make(seed=bad)


def test_train_limits_what_is_updated(make: Make, data: Data, backend: str) -> None:
    step = make(train=["V"], backend=backend)
    before = {n: a.copy() for n, a in step.parameters.items()}
    step(**data)
    moved = [n for n, a in step.parameters.items() if not np.array_equal(a, before[n])]
    assert moved == ["V"] and list(step.gradients) == ["V"]
    assert "optimizer.m.W0" not in step.state_dict()
    with pytest.raises(CompileError, match="train names 'U'"):
        make(train=["U"])


def test_share_uses_the_same_storage(data: Data) -> None:
    x, y = cr.input("x", ("batch", 6)), cr.input("y", ("batch",), dtype="int32")
    w, v = cr.parameter("w", (6, 3)), cr.parameter("v", (6, 3))
    one = training_step(losses.cross_entropy(x @ w, y), optim.SGD(0.1), seed=1)
    two = training_step(
        losses.cross_entropy(x @ (w + v), y), optim.SGD(0.1), train=[v], share=one, seed=2
    )
    assert np.shares_memory(one.parameters["w"], two.parameters["w"])
    assert two.parameters["w"].any()
    one(**data)
    first = two(**data)
    one(**data)
    assert two(**data) != first
    with pytest.raises(CompileError, match="none of this one's parameters"):
        training_step(
            losses.mse(v, cr.constant(np.zeros((6, 3), np.float32))), optim.SGD(), share=one
        )


def test_states_change_through_updates(data: Data, backend: str) -> None:
    x = cr.input("x", ("batch", 6))
    w, mean = cr.parameter("w", (6,)), cr.state("mean", (6,))
    loss = cr.mean((x - mean) @ w) ** 2 + cr.sum(w**2)
    nxt = 0.9 * mean + 0.1 * cr.mean(x, axis=0)
    step = training_step(loss, optim.SGD(0.1), updates={mean: nxt}, outputs=mean, backend=backend)
    assert (step.predict() == 0).all()
    step(x=data["x"])
    np.testing.assert_allclose(step.predict(), 0.1 * data["x"].mean(0), rtol=1e-5, atol=1e-7)
    with pytest.raises(ShapeError, match="next mean"):
        training_step(loss, optim.SGD(0.1), updates={mean: cr.sum(nxt)})
    with pytest.raises(CompileError, match="is trained"):
        training_step(loss, optim.SGD(0.1), updates={w: w})


def test_outputs_come_in_their_structure(data: Data, backend: str) -> None:
    x = cr.input("x", ("batch", 6))
    w = cr.parameter("w", (6,))
    z = x @ w
    for outputs in (z, [z, w], {"z": z, "more": (w,)}):
        step = training_step(cr.mean(z**2), optim.SGD(0.1), outputs=outputs, backend=backend)
        got = step.predict(x=data["x"])
        if isinstance(outputs, dict):
            assert got["more"][0].shape == (6,) and isinstance(got["more"], tuple)
            got = got["z"]
        got = got[0] if isinstance(got, list) else got
        np.testing.assert_allclose(got, data["x"] @ step.parameters["w"], rtol=1e-5, atol=1e-5)
    with pytest.raises(CompileError, match="outputs"):
        training_step(cr.mean(z**2), optim.SGD(0.1), backend=backend).predict(x=data["x"])


def test_predicted_parameters_are_copies(data: Data) -> None:
    w = cr.parameter("w", (6,))
    step = training_step(cr.sum(w**2), optim.SGD(0.1), outputs=w)
    assert not np.shares_memory(step.predict(), step.parameters["w"])


def test_a_parameter_view_can_be_fed(backend: str) -> None:
    """The step reads the feed after it has begun to write what the feed is a view of."""
    x = cr.input("x", (6,), dtype="float64")
    w = cr.parameter("w", (6,), init=np.arange(6.0), dtype="float64")
    step = training_step(cr.sum((w - 2 * x) ** 2), optim.SGD(0.25), backend=backend)
    step(x=step.parameters["w"])
    np.testing.assert_allclose(step.parameters["w"], 1.5 * np.arange(6.0))


def test_two_leaves_of_one_name() -> None:
    a, b = cr.parameter("w", (3,)), cr.parameter("w", (3,))
    with pytest.raises(CompileError, match="two leaves are called 'w'") as error:
        training_step(cr.sum(a * b), optim.SGD(0.1))
    assert str(error.value).count("test_step.py") >= 2


def test_what_is_no_training() -> None:
    x, w = cr.input("x", (3,)), cr.parameter("w", (3,))
    n = cr.input("n", (3,), dtype="int32")
    sgd = optim.SGD(0.1)
    with pytest.raises(GradientError, match="no parameter to train"):
        training_step(cr.sum(x), sgd)
    with pytest.raises(GradientError, match="scalar"):
        training_step(x * w, sgd)
    with pytest.raises((GradientError, DTypeError)):
        training_step(cr.sum(n), sgd)
    with pytest.raises(CompileError, match="make one: SGD"):
        training_step(cr.sum(w), optim.SGD)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="metric"):
        training_step(cr.sum(w), sgd, metrics={"m": w})
    with pytest.raises(FeedError, match="parameter u can't begin as 'xavier'") as error:
        cr.parameter("u", (3,), init="xavier")
    assert "test_step.py" in str(error.value)


@pytest.mark.parametrize(
    "option",
    [
        {"backend": "tpu"},
        {"threads": -4},
        {"threads": 0},
        {"precision": "float16"},
    ],
)
def test_options_that_are_not_built(make: Make, option: dict[str, object]) -> None:
    with pytest.raises(CompileError):
        make(**option)


def test_options_at_their_defaults(make: Make) -> None:
    make(threads=1)
    make(threads=4)
    make(threads=None, precision=None, memory_budget=None, ensemble=None)


def test_two_threads_train_one_step(make: Make, data: Data, backend: str) -> None:
    step = make(backend=backend)
    errors: list[BaseException] = []

    def work(rows: int) -> None:
        try:
            for _ in range(20):
                step(**{k: v[:rows] for k, v in data.items()})
                step.predict(x=data["x"][:rows])
            step.run(**data, batch_size=rows)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in (5, 10)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors and step.steps == 40 + 10 + 5


def test_looking_inside(make: Make) -> None:
    step = make()
    for level in ("graph", "optimized", "kernels", "loops", "llvm", "asm"):
        assert step.show(level)
    assert str(step.report())
    assert "softmax" in str(step.gradients["V"])
    with pytest.raises(CompileError):
        make(backend="reference").show("asm")


def test_a_state_of_another_step(make: Make) -> None:
    step = make()
    state = step.state_dict()
    del state["V"]
    state["W0"] = state["W0"][:2]
    state["U"] = state["b0"]
    state["b0"] = state["b0"].astype(np.float64)
    with pytest.raises(ArtifactError) as error:
        step.load_state_dict(state)
    for part in ("V is missing", "U is unknown", "W0 is float32 of shape (2, 8)", "b0 is float64"):
        assert part in str(error.value)


class Rule(optim.Optimizer):
    """An optimizer of a user's own."""

    def __init__(self, begins: Any = None, update: Any = None) -> None:  # no super().__init__()
        self.begins, self.rule = begins, update

    def init(self, w: cr.Tensor) -> Any:
        return {} if self.begins is None else self.begins(w)

    def update(self, w: Any, g: Any, state: Any, lr: Any, t: Any) -> Any:
        if self.rule is None:
            return super().update(w, g, state, lr, t)
        return self.rule(w, g, state, lr, t)


def test_an_optimizer_of_ones_own(make: Make, data: Data, backend: str) -> None:
    momentum = Rule(
        lambda w: {"m": cr.zeros_like(w)},
        lambda w, g, s, lr, t: (w - lr * (0.9 * s["m"] + g), {"m": 0.9 * s["m"] + g}),
    )
    one, other = make(momentum, backend=backend), make(optim.SGD(0.01, 0.9), backend=backend)
    assert one.learning_rate == 0.01
    for _ in range(5):
        assert one(**data) == pytest.approx(other(**data), rel=1e-6)


class Forgetful(optim.Optimizer):
    """One whose rate would silently be another."""

    def __init__(self, lr: float, beta: float) -> None:
        self.beta = beta

    def update(self, w: Any, g: Any, state: Any, lr: Any, t: Any) -> Any:
        return w - lr * self.beta * g, {}


def zeros(w: cr.Tensor) -> dict[str, cr.Tensor]:
    return {"m": cr.zeros_like(w)}


WRONG_RULES = {
    "a rate it forgets": (Forgetful(0.5, 0.9), "does not keep it: it would train with 0.01"),
    "no update": (Rule(), "without an update"),
    "nothing": (Rule(None, lambda *a: None), "not None"),
    "one thing": (Rule(None, lambda w, *a: w), "a dict of the new state"),
    "three things": (Rule(None, lambda w, *a: (w, {}, 1)), "a dict of the new state"),
    "a list": (Rule(None, lambda w, *a: (w, [])), "a dict of the new state"),
    "a number": (Rule(None, lambda w, *a: (0.0, {})), "is a Tensor, not 0.0"),
    "another type": (Rule(None, lambda w, *a: (w.astype("float64"), {})), "must stay"),
    "another shape": (Rule(None, lambda w, *a: (cr.sum(w), {})), "must stay"),
    "other names": (Rule(zeros, lambda w, *a: (w, {"n": w})), "remembers"),
    "init of nothing": (Rule(lambda w: ["m"], lambda w, *a: (w, {})), "a dict of Tensors"),
    "init of numbers": (Rule(lambda w: {"m": 0.0}, lambda w, *a: (w, {})), "'m': 0.0"),
    "init of arrays": (
        Rule(lambda w: {"m": np.zeros((99, 9))}, lambda w, *a: (w, {})),
        r"cr\.zeros_like\(w\)",
    ),
    "init with odd names": (Rule(lambda w: {1: w}, lambda w, *a: (w, {})), "by name"),
    "init of what is fed": (
        Rule(lambda w: {"m": cr.sum(cr.input("fed", (3,)))}, lambda w, g, s, *a: (w, s)),
        "may use the parameter, not fed",
    ),
}


@pytest.mark.parametrize(("rule", "text"), WRONG_RULES.values(), ids=WRONG_RULES.keys())
def test_wrong_optimizers(make: Make, rule: optim.Optimizer, text: str) -> None:
    with pytest.raises((CompileError, ShapeError, DTypeError), match=text):
        make(rule)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"updates": [1]}, "updates are Tensors"),
        ({"updates": {"s": cr.constant(1.0)}}, "'s' can't become"),
        ({"updates": {cr.state("s", ()): 3.0}}, "can't become 3.0"),
        ({"train": [3]}, "train names 3"),
        ({"train": [None]}, "train names None"),
        ({"train": 3}, "train is a list"),
        ({"train": []}, "empty"),
        ({"train": [cr.parameter("apart", (2,))]}, "no parameter of this loss"),
        ({"metrics": {1: cr.constant(1.0)}}, "with a name of its own"),
        ({"metrics": {"": cr.constant(1.0)}}, "with a name of its own"),
    ],
)
def test_wrong_options(make: Make, options: dict[str, Any], text: str) -> None:
    with pytest.raises(CompileError, match=text):
        make(**options)


def test_train_takes_any_iterable(make: Make) -> None:
    assert list(make(train=(name for name in ["V", "b0", "V"])).gradients) == ["b0", "V"]


@pytest.mark.parametrize("name", ["training.seed", "training.epoch", "__metadata__"])
def test_names_that_a_checkpoint_needs(name: str) -> None:
    w = cr.parameter(name, (3,))
    with pytest.raises(CompileError, match="checkpoints") as error:
        training_step(cr.sum(w**2), optim.SGD(0.1))
    assert "test_step.py" in str(error.value)


def test_a_learning_rate_beyond_the_type(make: Make, data: Data, backend: str) -> None:
    step = make(backend=backend)
    for bad in (1e39, 10**400):
        with pytest.raises(FeedError, match="learning_rate"):
            step.learning_rate = bad
    with pytest.raises(FeedError, match="infinite as float32"):
        make(optim.SGD(1e300), backend=backend)
    step.learning_rate = -0.0
    assert str(step.learning_rate) == "0.0"


@pytest.mark.parametrize(
    ("name", "mend"),
    [
        ("seed", r"cr\.training_step\(\.\.\., seed=1\)"),
        ("backend", "when the step is made"),
        ("ensemble", "when the step is made"),
        ("parameters", r"step\.parameters\[name\]\[\.\.\.\] = value"),
        ("averages", r"step\.averages\[name\]\[\.\.\.\] = value"),
        ("hyperparameters", r"step\.hyperparameters\[name\] = value"),
        ("steps", "load_state_dict"),
        ("epochs", "load_state_dict"),
        ("metrics", "make another"),
        ("loss", "make another"),
        ("gradients", "make another"),
    ],
)
def test_what_a_step_is_does_not_change(make: Make, name: str, mend: str) -> None:
    step = make()
    before = repr(getattr(step, name))
    with pytest.raises(FeedError, match=rf"^{name} of a training step can be read.*\n.*\n.*{mend}"):
        setattr(step, name, 1)
    assert repr(getattr(step, name)) == before


@pytest.mark.parametrize("name", ["learning_rte", "lr", "gamma", "parameter", "run"])
def test_what_is_no_attribute_of_a_step_is_refused(make: Make, name: str) -> None:
    step = make()
    with pytest.raises(FeedError, match=rf"no '{name}' to set\n.*\n.*step.learning_rate"):
        setattr(step, name, 1)
    assert name == "run" or not hasattr(step, name)


def test_a_hyperparameter_that_is_set_on_the_step(make: Make) -> None:
    step = make(optim.SGD(0.1, momentum=0.9))
    with pytest.raises(FeedError, match=r"step.hyperparameters\['momentum'\] = ..."):
        step.momentum = 0.5  # type: ignore[attr-defined]
    assert step.hyperparameters["momentum"] == 0.9
    assert "momentum" in step.hyperparameters and "momentom" not in step.hyperparameters


def test_another_array_for_a_parameter_is_refused(make: Make) -> None:
    step = make()
    (name, *_) = step.parameters
    before = step.parameters[name].copy()
    with pytest.raises(FeedError, match=rf"write step.parameters\['{name}'\]\[...\] = value"):
        step.parameters[name] = before + 1  # type: ignore[index]
    assert (step.parameters[name] == before).all()
    assert set(step.parameters) == set(dict(step.parameters)) and len(step.parameters) > 0
    averaged = make(optim.SGD(0.1, ema=0.9))
    with pytest.raises(FeedError, match=r"write step\.averages"):
        averaged.averages[name] = before  # type: ignore[index]


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer.step": np.array(-1, np.int32)},
        {"training.epoch": np.array(-1)},
        {"training.epoch": np.array(2**32)},
        {"optimizer.learning_rate": np.array(np.nan, np.float32)},
        {"optimizer.learning_rate": np.array(-1, np.float32)},
        {"V": [[1.0], [1.0, 2.0]]},
        {"V": "abc"},
        {3: np.zeros(3)},
    ],
)
def test_a_state_that_no_training_leads_to(make: Make, change: dict[Any, Any]) -> None:
    step = make()
    before = step.state_dict()
    with pytest.raises(ArtifactError):
        step.load_state_dict({**before, **change})
    for other in (None, 3, [("V", 1)]):
        with pytest.raises(ArtifactError, match="a dict of arrays"):
            step.load_state_dict(other)  # type: ignore[arg-type]
    assert same(step.state_dict(), before)
    step.load_state_dict({n: a.astype(a.dtype.newbyteorder(">")) for n, a in before.items()})
    assert same(step.state_dict(), before)


def test_the_last_step_there_is_a_number_for(make: Make, data: Data, backend: str) -> None:
    step = make(backend=backend)
    state = step.state_dict()
    state["optimizer.step"][...] = 2**31 - 2
    step.load_state_dict(state)
    for _ in range(3):
        step(**data)
        assert step.steps == 2**31 - 1
    assert np.isfinite(step.parameters["V"]).all()


def test_a_gradient_that_overflows_is_named_in_the_next_step(backend: str) -> None:
    x, w = cr.input("x", ("n",)), cr.parameter("w", (), init=np.array(1e-10))
    loss = cr.mean(x * w) * 1e10
    step = training_step(loss, optim.SGD(0.1), backend=backend)
    assert np.isfinite(step(x=[1e30]))
    with pytest.raises(NonFiniteError, match=r"w was not finite before it"):
        step(x=[1.0])


def test_a_loss_of_nothing_is_positive(backend: str) -> None:
    w = cr.parameter("w", (), init="zeros")
    step = training_step(-(w**2), optim.SGD(0.1), backend=backend)
    assert [str(step()), str(step.run()[0])] == ["0.0", "0.0"]


def test_outputs_in_a_named_tuple(data: Data, backend: str) -> None:
    class Pair(NamedTuple):
        z: Any
        w: Any

    x, w = cr.input("x", ("n", 6)), cr.parameter("w", (6,))
    step = training_step(cr.mean(x @ w), optim.SGD(0.1), outputs=Pair(x @ w, w), backend=backend)
    got = step.predict(x=data["x"])
    assert type(got) is Pair and got.z.shape == (50,) and got.w.shape == (6,)


def test_more_parameters_than_memory() -> None:
    w = cr.parameter("w", (2**24, 2**24))
    with pytest.raises(CompileError, match="no room for"):
        training_step(cr.sum(w), optim.SGD(0.1))
