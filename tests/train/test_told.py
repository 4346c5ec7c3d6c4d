"""A step that is found compiled derives nothing, and is never another's: the loss, the optimizer
and all else that decides it are told before any gradient is. Each change below must make a program
of its own; what is derived later must be what a process that compiles derives.
"""

import functools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import chainrule as cr
from chainrule.codegen import cache
from chainrule.collector import uncollected
from chainrule.errors import CompileError, GradientError
from chainrule.ops import build
from chainrule.ops.contract import Contract
from chainrule.train import plan as plans

ROOT = Path(__file__).parents[2]
ROWS = np.linspace(-1, 1, 48, dtype=np.float32).reshape(12, 4)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CHAINRULE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def net(dtype="float32", power=2, names=("w", "b")):
    x = cr.input("x", ("batch", 4), dtype=dtype)
    w, b = cr.parameter(names[0], (4, 3), dtype=dtype), cr.parameter(names[1], (3,), dtype=dtype)
    return cr.mean(cr.tanh(x @ w + b) ** power)


def made(optimizer=None, loss=None, **options):
    chosen = cr.optim.Adam(0.01) if optimizer is None else optimizer
    return cr.training_step(net() if loss is None else loss, chosen, threads=1, **options)


def measured():
    loss = net()
    return made(loss=loss, metrics={"twice": 2 * loss})


def found(step):
    return step._engine.compiled.native.cached


@pytest.fixture
def no_derivation(monkeypatch):
    """Call to let every derivation fail."""

    def refuse(*args, **options):
        raise AssertionError("this step derives")

    return lambda: monkeypatch.setattr(plans, "gradients", refuse)


def test_a_step_that_is_found_derives_nothing(folder, no_derivation):
    first = measured()
    losses = first.run(x=ROWS, batch_size=5, epochs=2)
    no_derivation()
    second = measured()
    assert found(second)
    np.testing.assert_array_equal(second.run(x=ROWS, batch_size=5, epochs=2), losses)
    assert second.state_dict().keys() == first.state_dict().keys()


#: of each thing that decides a step, another value than `made()` has
OTHERS = {
    "loss": lambda: made(loss=net(power=4)),
    "dtype": lambda: made(loss=net("float64")),
    "metric": measured,
    "kind": lambda: made(cr.optim.AdamW(0.01, weight_decay=0.0)),
    "momentum": lambda: made(cr.optim.SGD(0.01, momentum=0.9)),
    "nesterov": lambda: made(cr.optim.SGD(0.01, momentum=0.9, nesterov=True)),
    "no term": lambda: made(cr.optim.Adam(0.01, weight_decay=0.1)),
    "clip_norm": lambda: made(cr.optim.Adam(0.01, clip_norm=1.0)),
    "clip_value": lambda: made(cr.optim.Adam(0.01, clip_value=1.0)),
    "accumulate": lambda: made(cr.optim.Adam(0.01, accumulate=2)),
    "longer": lambda: made(cr.optim.Adam(0.01, accumulate=3)),
    "ema": lambda: made(cr.optim.Adam(0.01, ema=0.9)),
    "schedule": lambda: made(cr.optim.Adam(cr.schedules.cosine(0.01, steps=10))),
    "its steps": lambda: made(cr.optim.Adam(cr.schedules.cosine(0.01, steps=11))),
    "train": lambda: made(train=["w"]),
    "the other": lambda: made(train=["b"]),
    "groups": lambda: made(cr.optim.Groups(cr.optim.Adam(0.01), {"w": cr.optim.SGD(0.01)})),
    "swapped": lambda: made(cr.optim.Groups(cr.optim.SGD(0.01), {"b": cr.optim.Adam(0.01)})),
    "groups, adding up": lambda: made(cr.optim.Groups(cr.optim.SGD(0.1), {"w": cr.optim.SGD(0.1)},
                                                       accumulate=2)),
    "groups, longer": lambda: made(cr.optim.Groups(cr.optim.SGD(0.1), {"w": cr.optim.SGD(0.1)},
                                                    accumulate=3)),
    "members": lambda: made(ensemble=3),
    "more of them": lambda: made(ensemble=4),
    "dropout": lambda: made(loss=net() + cr.mean(cr.dropout(cr.input("z", (9,)), 0.5))),
    "rate of it": lambda: made(loss=net() + cr.mean(cr.dropout(cr.input("z", (9,)), 0.6))),
    "precision": lambda: made(precision="bfloat16"),
}  # fmt: skip


def test_whatever_decides_a_step_makes_a_program_of_its_own(folder):
    assert not found(made())
    for name, other in OTHERS.items():
        assert not found(other()), name
    for name, other in OTHERS.items():
        assert found(other()), name


def test_numbers_and_names_that_a_program_does_not_hold_find_it(folder, no_derivation):
    made()
    no_derivation()
    assert found(made(cr.optim.Adam(0.5, betas=(0.5, 0.6), eps=1e-3)))
    assert found(made(loss=net(names=("v", "c"))))


def test_a_state_that_changes_is_told(folder):
    def step(factor, target=None):
        x, w, n = cr.input("x", (4,)), cr.parameter("w", (4,)), cr.state("n", ())
        m = cr.state("m", ())
        changed = {"n": n, "m": m}[target or "n"]
        return cr.training_step(
            cr.mean((x * w + n + m) ** 2), cr.optim.SGD(0.1), updates={changed: changed * factor}
        )

    assert [found(step(2.0)), found(step(2.0)), found(step(3.0))] == [False, True, False]
    assert not found(step(2.0, "m"))


def test_which_state_a_value_becomes_is_told(folder):
    def step(place):
        w, states = cr.parameter("w", (4,)), [cr.state(n, ()) for n in "nm"]
        loss = cr.mean((w + states[0] + states[1]) ** 2)
        return cr.training_step(loss, cr.optim.SGD(0.1), updates={states[place]: states[0] + 1})

    assert [found(step(0)), found(step(0)), found(step(1))] == [False, True, False]


def test_which_group_a_parameter_is_in_is_told(folder):
    """Of two groups of one kind, whose first members are the same."""

    def step(*members):
        u, v, w = (cr.parameter(n, (4,)) for n in "uvw")
        rule = cr.optim.Groups(cr.optim.SGD(0.1), {members: cr.optim.SGD(0.2)})
        return cr.training_step(cr.mean((u + v * w) ** 2), rule)

    assert [found(step("u", "v")), found(step("u", "v")), found(step("u"))] == [False, True, False]


def test_statistics_that_are_tracked_are_told(folder):
    def step(momentum):
        h = cr.nn.BatchNorm(momentum=momentum, name="n")(cr.input("x", ("batch", 3)))
        return cr.training_step(cr.mean(cr.tanh(h) ** 2), cr.optim.SGD(0.1))

    assert [found(step(0.1)), found(step(0.1)), found(step(0.2))] == [False, True, False]


def test_a_schedule_of_ones_own_is_told_by_what_it_computes(folder):
    def step(scale):
        return made(cr.optim.SGD(lambda t: scale / cr.sqrt(t.astype("float32"))))

    rates = {}
    for scale in (0.1, 0.2, 0.1, 0.2):
        trained = step(scale)
        trained(x=ROWS)
        rates.setdefault(scale, []).append((found(trained), trained.parameters["w"].copy()))
    for (fresh, first), (again, second) in rates.values():
        assert (fresh, again) == (False, True)
        np.testing.assert_array_equal(first, second)
    assert np.abs(rates[0.1][0][1] - rates[0.2][0][1]).max() > 1e-4


class Own(cr.optim.Optimizer):
    """An optimizer whose rule no text tells."""

    factor = 1.0

    def update(self, w, g, state, lr, t):
        return w - lr * self.factor * g, {}


def test_an_optimizer_of_ones_own_is_known_by_what_it_writes(folder):
    class Twice(Own):
        factor = 2.0

    results = []
    for kind in (Own, Twice, Own):
        step = made(kind(0.1))
        step(x=ROWS)
        results.append((found(step), step.parameters["w"].copy()))
    assert [cached for cached, _ in results] == [False, False, True]
    np.testing.assert_array_equal(results[0][1], results[2][1])
    assert np.abs(results[0][1] - results[1][1]).max() > 1e-6


@pytest.mark.parametrize("place", ["class", "class, under its name", "instance"])
def test_a_rule_of_ours_that_was_changed_is_another(folder, monkeypatch, place):
    def rising(w, g, state, lr, t):
        return w + lr * g, {}

    made(cr.optim.SGD(0.1))
    optimizer = cr.optim.SGD(0.1)
    if place != "instance":
        update = lambda self, *given: rising(*given)  # noqa: E731
        named = functools.wraps(cr.optim.SGD.update)(update) if "," in place else update
        monkeypatch.setattr(cr.optim.SGD, "update", named)
    else:
        optimizer.update = rising
    step = made(optimizer)
    before = step.parameters["b"].copy()
    first = step(x=ROWS)
    assert not found(step) and step(x=ROWS) > first
    assert (before != step.parameters["b"]).any()


def squared(decay, old, new):
    return new * new


def negative(self, ct, out, *inputs, rule=Contract.vjp):
    return rule(self, build.call("neg", ct), out, *inputs)


#: functions that rules are written with and derived by, and others in their place
REPLACED = {
    "a helper": ("chainrule.nn.optim.adam.average_square", squared),
    "a helper's helper": ("chainrule.nn.optim.values.quiet_square", lambda x: cr.abs(x)),
    "a function": ("chainrule.lang.functions.sqrt", lambda x: x),
    "what clips": ("chainrule.train.updates._wide", lambda x: x * 2),
    "in our decorator": (
        "chainrule.nn.optim.adam.Adam.moments",
        uncollected(lambda self, g, state: (g, g * g)),
    ),
    "a derivative": ("chainrule.ops.contract.Contract.vjp", negative),
}


@pytest.mark.parametrize("name", REPLACED)
def test_what_a_replaced_function_writes_is_never_found_in_its_place(folder, monkeypatch, name):
    """Nor kept in its place, for a process in which nothing was replaced."""
    place, new = REPLACED[name]
    with monkeypatch.context() as changed:
        changed.setattr(place, new)
        other = made(cr.optim.Adam(0.01, clip_norm=0.1))
        other(x=ROWS)
    step = made(cr.optim.Adam(0.01, clip_norm=0.1))
    step(x=ROWS)
    assert not found(other) and not found(step)
    assert np.abs(step.parameters["w"] - other.parameters["w"]).max() > 1e-6


def test_a_method_of_another_optimizer_is_not_this_ones(folder):
    plain, other = (cr.optim.SGD(0.1, momentum=0.9) for _ in range(2))
    other.update = cr.optim.SGD(0.1, momentum=0.9, nesterov=True).update
    assert not found(made(plain)) and not found(made(other))


def test_a_class_that_says_it_is_of_ours_is_known_by_what_it_writes(folder):
    own = type("Adam", (cr.optim.Adam,), {"__module__": "chainrule.nn.optim.other"})
    assert not found(made()) and not found(made(own(0.01))) and found(made(own(0.01)))


@pytest.mark.parametrize("value", ["x".upper, len, np.ones(3), object(), print])
def test_what_else_hangs_at_an_optimizer_does_no_harm(folder, value):
    for cached in (False, True):
        optimizer = cr.optim.SGD(0.1)
        optimizer.own = value
        assert found(made(optimizer)) == cached  # by what it writes


def test_a_setting_of_a_class_that_was_changed_is_another(folder, monkeypatch):
    made(cr.optim.Adam(0.1, weight_decay=0.1))
    monkeypatch.setattr(cr.optim.Adam, "decoupled", True)
    assert not found(made(cr.optim.Adam(0.1, weight_decay=0.1)))


def test_a_derivative_of_ones_own_is_known_by_what_it_gives(folder):
    def step(slope, looped):
        f = cr.custom_derivative(cr.sign, vjp=lambda ct, out, x: ct * slope)
        x, w = cr.input("x", ("batch", 4)), cr.parameter("w", (4,), init="ones")
        if looped:
            h, _ = cr.scan(lambda h, row: (h + f(row * w), None), cr.zeros((4,)), x)
        else:
            h = f(x * w)
        return cr.training_step(cr.mean((h - 3) ** 2), cr.optim.SGD(0.1))

    for looped in (False, True):
        results = []
        for slope in (1.0, -1.0, 1.0):
            trained = step(slope, looped)
            trained(x=ROWS)
            results.append((found(trained), trained.parameters["w"] - 1))
        assert [cached for cached, _ in results] == [False, False, True], looped
        np.testing.assert_array_equal(results[0][1], results[2][1])
        np.testing.assert_allclose(results[0][1], -results[1][1], rtol=1e-5)


def test_another_source_of_any_room_that_derives_finds_nothing(folder, monkeypatch):
    made()
    rooms = cache._ROOMS
    for room in ("autodiff", "lang", "nn", "nn/optim", "train"):
        assert room in rooms
        cache._compiler.cache_clear()
        with monkeypatch.context() as changed:
            changed.setattr(cache, "_ROOMS", tuple(r for r in rooms if r != room))
            assert not found(made())
    cache._compiler.cache_clear()
    assert found(made())


def test_what_is_derived_later_is_what_it_was(folder):
    first = made(cr.optim.AdamW(0.01, clip_norm=1.0, ema=0.9))
    optimizer = cr.optim.AdamW(0.01, clip_norm=1.0, ema=0.9)
    second = made(optimizer)
    assert found(second)
    optimizer.clip_norm = optimizer.ema = None  # it is as it was when the step was made
    optimizer.decoupled = False
    for level in ("graph", "optimized", "kernels", "loops", "llvm"):
        assert second.show(level) == first.show(level), level
    mine, theirs = ({n: str(g) for n, g in step.gradients.items()} for step in (first, second))
    assert mine == theirs
    told, tells = first.report().as_dict(), second.report().as_dict()
    for name in ("kernels", "memory", "arena", "code_size"):
        assert told[name] == tells[name]


SCRIPT = """
import sys
import chainrule as cr, numpy as np
x, w = cr.input("x", ("batch", 4)), cr.parameter("w", (4, 3))
h = (x @ w).named("h")
step = cr.training_step(cr.mean(cr.tanh(h) ** 2), cr.optim.Adam(0.01), threads=1)
step(x=np.ones((2, 4), np.float32))
print(step._engine.compiled.native.cached)
print(step.show("graph"))
print(step.gradients["w"])
print(step.show("kernels"))
print(cr.explain(step.loss, w))
"""


def test_another_process_derives_the_same_text_and_lines(folder, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    roots = os.pathsep.join(str(ROOT / r) for r in ("compiler", "runtime"))
    env = {**os.environ, "PYTHONPATH": roots}
    texts = []
    for _ in range(2):
        ran = subprocess.run(
            [sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=120
        )
        assert ran.returncode == 0, ran.stderr
        texts.append(ran.stdout.split("\n", 1))
    assert [cached for cached, _ in texts] == ["False", "True"]
    assert texts[0][1] == texts[1][1]
    assert "script.py:6" in texts[0][1]  # what the optimizer wrote is of the step's line


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_loss_without_a_derivative_is_refused_each_time(folder, backend):
    x, w = cr.input("x", ("batch", 4)), cr.parameter("w", (4,))
    loss = cr.sum(cr.sort(x * w).astype("int32").astype("float32")) + 0 * cr.sum(x)
    for _ in range(2):
        with pytest.raises(GradientError):
            cr.training_step(loss, cr.optim.SGD(0.1), backend=backend)
    assert not list(folder.glob("*.object")) if folder.exists() else True


def test_an_update_that_does_not_fit_is_refused_each_time(folder):
    class Bad(Own):
        def update(self, w, g, state, lr, t):
            return cr.sum(w), {}

    for _ in range(2):
        with pytest.raises(CompileError.__base__, match="must stay"):
            made(Bad(0.1))


def test_a_foreign_entry_under_a_steps_key_is_as_good_as_none(folder):
    losses = made().run(x=ROWS, batch_size=5, epochs=2)
    (path,) = folder.glob("*.object")
    assert cache.ObjectCache(folder).put(bytes.fromhex(path.stem), b"{}\n")
    step = made()
    assert not found(step)
    np.testing.assert_array_equal(step.run(x=ROWS, batch_size=5, epochs=2), losses)
    assert found(made())
