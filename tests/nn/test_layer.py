"""`cr.nn.Layer`: names, sharing, freezing, errors; Sequential, Residual, Dense, functions."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.errors import CompileError, DTypeError, FeedError, ShapeError
from chainrule.nn import Dense, Dropout, Flatten, Layer, Residual, Sequential
from chainrule.nn.scope import kind_of

Array = np.ndarray[Any, Any]


def inputs(width: int = 6, name: str = "x") -> cr.Tensor:
    return cr.input(name, ("batch", width))


class Scale(Layer):
    def forward(self, x: cr.Tensor) -> cr.Tensor:
        return x * self.parameter("scale", (x.shape[-1],), init="ones")


class Block(Layer):
    """Children in an attribute, a list and a dict, and an __init__ that calls no other."""

    def __init__(self, width: int) -> None:
        self.first = Dense(width)
        self.rest = [Dense(width), Dense(width, name="own")]
        self.heads = {"left": Dense(width)}
        self.inner = Sequential([Dense(width), Dense(width)])

    def forward(self, x: cr.Tensor) -> cr.Tensor:
        x = self.first(x)
        for layer in self.rest:
            x = layer(x)
        return self.heads["left"](self.inner(x))


def run(y: cr.Tensor, seed: int = 0, **feeds: Array) -> Array:
    """The value of y with its leaves fed at random, unless given."""
    fn = cr.compile(y, backend="reference")
    rng = np.random.default_rng(seed)
    given = dict(feeds)
    for name in fn.inputs:
        given.setdefault(name, rng.normal(size=(4, 6)).astype(np.float32))
    return np.asarray(fn(**given))


# names


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Dense", "dense"),
        ("BatchNorm", "batch_norm"),
        ("Conv2D", "conv2d"),
        ("LSTM", "lstm"),
        ("RMSNorm", "rms_norm"),
        ("MyMLP", "my_mlp"),
        ("_Hidden", "hidden"),
    ],
)
def test_a_kind_is_the_class_in_snake_case(name: str, kind: str) -> None:
    assert kind_of(type(name, (), {})) == kind


@pytest.mark.smoke
def test_layers_are_numbered_among_those_on_the_same_inputs() -> None:
    for _ in range(2):  # whatever was made before
        x = inputs()
        first, second = Dense(4), Dense(3)
        y = second(first(x))
        tower = Dense(2)
        tower(x)
        assert [first.name, second.name, tower.name] == ["dense1", "dense2", "dense3"]
        assert list(first.parameters) == ["dense1.weight", "dense1.bias"]
        assert y.shape[-1] == 3


def test_two_inputs_that_meet_are_one_scope() -> None:
    x, z = inputs(), inputs(name="z")
    joint, after = Dense(4), Dense(4)
    joint(cr.concat([x, z], axis=1))
    after(z)
    assert (joint.name, after.name) == ("dense1", "dense2")


def test_a_layer_used_on_other_inputs_keeps_its_name_there() -> None:
    x, z = inputs(), inputs(name="z")
    shared, other = Dense(6), Dense(6)
    shared(x)
    other(shared(z))
    assert (shared.name, other.name) == ("dense1", "dense2")


def test_a_step_of_a_loop_is_in_the_scope_around_it() -> None:
    xs = cr.input("xs", ("time", "batch", 6))
    outer, inner, after = Dense(6), Dense(6), Dense(6)
    hs = outer(xs)

    def step(h: cr.Tensor, x: cr.Tensor) -> tuple[cr.Tensor, cr.Tensor]:
        h = cr.tanh(inner(x) + after(h))
        return h, h

    cr.scan(step, cr.zeros(("batch", 6)), hs)
    assert (outer.name, inner.name) == ("dense1", "dense2")
    assert after.name == "dense3"


def test_children_are_called_by_attribute() -> None:
    block = Block(6)
    block(inputs())
    layers = list(dict.fromkeys(n.rpartition(".")[0] for n in block.parameters))
    assert layers == [
        "block1.first",
        "block1.rest1",
        "block1.own",
        "block1.heads.left",
        "block1.inner.dense1",
        "block1.inner.dense2",
    ]


def test_an_unnamed_sequential_is_not_seen_and_a_named_one_is() -> None:
    x = inputs()
    plain = Sequential([Dense(4), Sequential([Dense(4, name="mid"), Dense(4)])])
    named = Sequential([Dense(4)], name="net")
    plain(x)
    named(x)
    assert [n for n in plain.parameters if n.endswith("weight")] == [
        "dense1.weight",
        "mid.weight",
        "dense2.weight",
    ]
    assert list(named.parameters) == ["net.dense1.weight", "net.dense1.bias"]


def test_a_layer_in_no_attribute_is_taken_in_where_it_is_called() -> None:
    hidden = Dense(6)
    net = Sequential([lambda x: hidden(x), Dense(2)])
    net(inputs())
    assert hidden in net.layers
    assert set(net.parameters) >= set(hidden.parameters)


def test_a_layer_made_anew_at_each_call_is_refused() -> None:
    class Forgetful(Layer):
        def forward(self, x: cr.Tensor) -> cr.Tensor:
            return Dense(3)(x)  # type: ignore[no-any-return]

    net, x = Forgetful(), inputs()
    net(x)
    with pytest.raises(CompileError, match="keep them in attributes"):
        net(x)


def test_two_layers_of_one_given_name_are_refused_when_compiled() -> None:
    x = inputs()
    y = Dense(6, name="same")(x) @ cr.ones((6, 6))
    with pytest.raises(CompileError, match=r"two leaves are called 'same\.(.|\n)*name="):
        cr.compile(Dense(6, name="same")(y))


# what a layer is


@pytest.mark.smoke
def test_a_later_call_shares_the_parameters() -> None:
    x = inputs()
    layer = Scale()
    once = layer(x)
    assert layer(x).node is once.node
    assert list(layer.parameters) == ["scale1.scale"]


def test_a_call_on_other_sizes_is_refused() -> None:
    layer = Dense(3)
    layer(inputs(6))
    with pytest.raises(ShapeError, match=r"dense1 was first called .* f32\[6, 3\].* f32\[5, 3\]"):
        layer(inputs(5))


def test_a_call_that_fails_leaves_no_trace() -> None:
    x = inputs(6)
    net = Sequential([Dense(4), lambda h: h @ cr.ones((5, 2)), Dense(2)])
    with pytest.raises(ShapeError, match="matmul"):
        net(x)
    assert not net.built
    assert not net.parameters
    assert not any(layer.built or layer.name for layer in net.layers)
    again = Sequential([Dense(4), Dense(2)])
    again(x)
    assert next(iter(again.parameters)) == "dense1.weight"


def test_an_error_says_in_which_layer_and_on_whose_line() -> None:
    net = Sequential([Dense(4, name="here"), lambda h: h, Dense(2, activation=lambda z: z @ z)])
    with pytest.raises(ShapeError) as caught:
        net(inputs())
    text = str(caught.value)
    assert "in layer dense1, called on f32[batch, 4]" in text
    assert "test_layer.py" in text
    assert text.count("in layer") == 1


def test_a_copy_makes_parameters_of_its_own() -> None:
    x = inputs()
    layer = Sequential([Dense(6)])
    layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert not other.built
        other(layer(x))
        assert not set(other.parameters) & set(layer.parameters)


def test_parameters_have_the_type_of_what_the_layer_is_called_on() -> None:
    layer = Dense(3)
    layer(cr.input("x", ("batch", 4), dtype="float64"))
    assert layer["weight"].dtype == cr.float64
    with pytest.raises(CompileError, match=r"there are: dense1\.weight"):
        layer["wait"]


def test_freezing_goes_down_and_is_undone() -> None:
    x = inputs()
    body, head = Sequential([Dense(4), Dense(4)]), Dense(2)
    net = Sequential([body, head])
    net(x)
    body.trainable = False
    assert list(net.trainable_parameters) == list(head.parameters)
    assert len(net.parameters) == 6
    assert body.freeze() is body
    assert not body.layers[0].trainable
    body.unfreeze()
    assert list(net.trainable_parameters) == list(net.parameters)


def test_frozen_parameters_stay_in_training() -> None:
    x, y = inputs(), cr.input("y", ("batch", 2))
    body, head = Dense(4, "tanh").freeze(), Dense(2)
    net = Sequential([body, head])
    loss = cr.losses.mse(net(x), y)
    step = cr.training_step(loss, cr.optim.SGD(0.1), train=list(net.trainable_parameters.values()))
    before = {k: np.array(v) for k, v in step.parameters.items()}
    rng = np.random.default_rng(0)
    step(x=rng.normal(size=(8, 6)), y=rng.normal(size=(8, 2)))
    for name, value in step.parameters.items():
        assert np.array_equal(value, before[name]) == (name in body.parameters)


@pytest.mark.parametrize("name", ["parameters", "states", "layers", "parameter", "built"])
def test_what_every_layer_has_is_not_overwritten(name: str) -> None:
    with pytest.raises(CompileError, match="another name"):
        setattr(Scale(), name, [])


def test_parameters_are_asked_for_in_forward() -> None:
    class Early(Layer):
        def __init__(self) -> None:
            self.w = self.parameter("w", (3,))

    with pytest.raises(CompileError, match="ask for it in forward"):
        Early()


def test_a_forward_that_gives_nothing_is_refused() -> None:
    class Forgot(Layer):
        def forward(self, x: cr.Tensor) -> None:
            x + 1.0

    with pytest.raises(CompileError, match="gives a Tensor"):
        Forgot()(inputs())
    with pytest.raises(CompileError, match="without a forward"):
        Layer()(inputs())


def test_a_deep_net_takes_linear_time() -> None:
    net = Sequential([Scale() for _ in range(3000)])
    y = net(inputs())
    for _ in range(1500):
        y = Scale()(y)
    assert len(net.parameters) == 3000
    last = Scale()
    last(y)
    assert last.name == "scale4501"


# Dense and its neighbours


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("lead", [(), ("batch",), ("batch", 3)])
def test_dense_is_a_product(use_bias: bool, lead: tuple[Any, ...]) -> None:
    x = cr.input("x", (*lead, 5), dtype="float64")
    layer = Dense(3, "tanh", use_bias=use_bias)
    fn = cr.compile(layer(x))
    rng = np.random.default_rng(1)
    v = rng.normal(size=(*(4, 3)[: len(lead)], 5))
    w, b = rng.normal(size=(5, 3)), rng.normal(size=3)
    bias = {"dense1.bias": b} if use_bias else {}
    got = fn(**{"x": v, "dense1.weight": w, **bias})
    # float64: two products of five terms and tanh, each within a few ulp
    np.testing.assert_allclose(got, np.tanh(v @ w + (b if use_bias else 0)), rtol=1e-13)


def test_dense_prints_as_a_textbook_writes_it() -> None:
    x = inputs()
    net = Sequential([Dense(4, "relu"), Dense(2)])
    loss = cr.mean(cr.square(net(x)))
    last = str(cr.grad(loss, net["dense1.weight"])).splitlines()
    assert last[0] == "h1 = relu(x @ dense1.weight + dense1.bias)"
    assert last[-1] == "dense1.dweight = xᵀ @ dz1"
    assert r"\partial \mathrm{dense1.weight}" in cr.grad(loss, net["dense1.weight"]).latex()


def test_initialisers_are_those_given() -> None:
    layer = Dense(3, weight_init=cr.init.constant(2.0), bias_init="ones")
    loss = cr.mean(layer(inputs()))
    step = cr.training_step(loss, cr.optim.SGD(1e-9))
    assert (step.parameters["dense1.weight"] == 2).all()
    assert (step.parameters["dense1.bias"] == 1).all()


def test_plain_functions_and_names_are_layers_too() -> None:
    x = inputs()
    net = Sequential([lambda h: 2.0 * h, "relu", cr.square, cr.abs])
    value = np.array([[-1, 0, 1, 2, -3, 0.5]], np.float32)
    np.testing.assert_array_equal(run(net(x), x=value), (2 * np.maximum(value, 0)) ** 2)
    assert len(net) == 4
    assert net[2] is cr.square


@pytest.mark.parametrize("kind", [Flatten, Dense, Dropout])
def test_classes_are_no_layers(kind: type[Layer]) -> None:
    for make in (lambda: Sequential([kind]), lambda: Residual(kind), lambda: Dense(2, kind)):
        with pytest.raises(DTypeError, match=rf"(?s)is a class.*{kind.__name__}\(\.\.\.\)"):
            make()


def test_residual_adds() -> None:
    x = inputs()
    value = np.arange(6, dtype=np.float32)[None]
    np.testing.assert_array_equal(run(Residual(cr.square)(x), x=value), value + value**2)
    both = Residual([cr.square, cr.abs], shortcut=lambda t: -t)
    np.testing.assert_array_equal(run(both(x), x=value), value**2 - value)
    with pytest.raises(ShapeError, match=r"f32\[batch, 6\] and f32\[batch, 3\](.|\n)*shortcut"):
        Residual(Dense(3))(x)


def test_dropout_differs_between_training_and_inference() -> None:
    x = cr.input("x", (1000,))
    y = Dropout(0.25)(x)
    ones = np.ones(1000, np.float32)
    np.testing.assert_array_equal(cr.compile(y)(x=ones), ones)
    dropped = cr.compile(y, training=True)(x=ones)
    assert set(np.unique(dropped)) == {np.float32(0), np.float32(1 / 0.75)}


def test_flatten_keeps_the_first_axis() -> None:
    x = cr.input("x", ("batch", 2, 3, 4))
    assert Flatten()(x).shape == (x.shape[0], 24)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: Dense(0), ShapeError, "units is an int of at least 1, not 0"),
        (lambda: Dense(2.0), ShapeError, "units"),  # type: ignore[arg-type]
        (lambda: Dense(True), ShapeError, "units"),
        (lambda: Dense(2, "rellu"), CompileError, "did you mean relu"),
        (lambda: Dense(2, 3), DTypeError, "by name or as a function"),  # type: ignore[arg-type]
        (lambda: Dropout(1.5), ShapeError, "rate"),
        (lambda: Dropout("a"), ShapeError, "rate"),  # type: ignore[arg-type]
        (lambda: Sequential(Dense(2)), DTypeError, "a list"),  # type: ignore[arg-type]
        (lambda: Sequential([3]), DTypeError, "by name or as a function"),
        (lambda: Residual(3), DTypeError, "by name or as a function"),
        (lambda: Dense(2, name=""), ShapeError, "a layer's name"),
        (lambda: Dense(2)(cr.input("i", ("n", 3), dtype="int32")), DTypeError, "takes floats"),
        (lambda: Dense(2)(cr.input("s", ())), ShapeError, "rank at least 1"),
        (lambda: Dense(2)(cr.input("s", ("n", "m"))), ShapeError, "axis 1 of .* size is m"),
        (lambda: Dense(2)(cr.input("s", ("n", 0))), ShapeError, "size is 0"),
        (lambda: Dense(2, lambda z: 1)(inputs()), DTypeError, "an activation gives a Tensor"),
        (lambda: Sequential([lambda z: 1])(inputs()), DTypeError, "a function in Sequential"),
        (lambda: Dense(2, weight_init="no")(inputs()), FeedError, "dense1.weight can't begin"),
        (lambda: Flatten()(cr.input("s", ())), ShapeError, "Flatten"),
    ],
)
def test_what_does_not_fit_is_refused(make: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make()


def test_zeros_that_two_nets_begin_with_do_not_make_them_one() -> None:
    nets = []
    for _ in range(2):
        x = cr.input("x", ("batch", 3, 5))
        zeros = cr.zeros((x.shape[0], 4))  # the same node each time
        lstm = cr.nn.LSTM(4)
        nets.append((lstm, lstm(x, (zeros, zeros))))
    assert [lstm.name for lstm, _ in nets] == ["lstm1", "lstm1"]


def test_a_name_is_of_a_parameter_or_of_a_state() -> None:
    class Both(cr.nn.Layer):
        def forward(self, x: cr.Tensor) -> cr.Tensor:
            return x * self.parameter("a", (4,)) + self.state("a", (4,))

    with pytest.raises(CompileError, match="its a is a parameter, not a state"):
        Both()(cr.input("x", ("batch", 4)))


@pytest.mark.parametrize("make", ["parameter", "state"])
@pytest.mark.parametrize("name", [3, None, ["w"]])
def test_the_name_of_a_parameter_is_text(make: str, name: Any) -> None:
    class Odd(cr.nn.Layer):
        def forward(self, x: cr.Tensor) -> cr.Tensor:
            w: cr.Tensor = getattr(self, make)(name, (4,))
            return x * w

    with pytest.raises(ShapeError, match=f"the name of a {make} is text, not"):
        Odd()(inputs())
