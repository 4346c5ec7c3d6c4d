"""Compiled code that was kept: the same bits, no LLVM, and never another program's code."""

import importlib
import inspect
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

import chainrule as cr
from chainrule import config
from chainrule.codegen import cache
from chainrule.codegen.host import host_target
from chainrule.codegen.team import has_threads
from chainrule.driver.kept import packed, unpacked
from chainrule.driver.levels import LEVELS
from chainrule.errors import FeedError
from chainrule.ir.graph import Graph
from chainrule.loops.choice import Choice
from chainrule.schedule.budget import Budget
from chainrule_runtime.manifest import Check, Manifest, Stage, Tensor, TunedThreads

ROOT = Path(__file__).parents[2]
#: the module, whose name is also that of its function
build = importlib.import_module("chainrule.driver.build")
lower = importlib.import_module("chainrule.driver.lower")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CHAINRULE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def trained(width=5, rate=0.1, target=None, batch="batch"):
    x, w = cr.input("x", (batch, width)), cr.parameter("w", (width, 3))
    step = cr.training_step(cr.mean(cr.tanh(x @ w) ** 2), cr.optim.Adam(rate), seed=3)
    rows = np.linspace(-1, 1, 40 * width, dtype=np.float32).reshape(40, width)
    losses = step.run(x=rows, batch_size=8, epochs=3)
    return step, losses


def found(step):
    return step._engine.compiled.native.cached


def test_a_program_is_compiled_once(folder, monkeypatch):
    first, losses = trained()
    assert not found(first)
    monkeypatch.setattr(build, "compile_object", None)  # LLVM is not asked again
    second, again = trained()
    assert found(second)
    np.testing.assert_array_equal(losses, again)
    np.testing.assert_array_equal(first.parameters["w"], second.parameters["w"])
    assert second.show("llvm") == first.show("llvm")


@pytest.mark.parametrize("other", [{"width": 6}, {"batch": 40}])
def test_another_program_is_another_file(folder, other):
    trained()
    assert not found(trained(**other)[0])
    assert len(list(folder.glob("*.object"))) == 2


def test_a_number_fed_at_run_time_is_the_same_program(folder):
    trained(rate=0.1)
    assert found(trained(rate=0.01)[0])


def test_another_target_is_another_file(folder, monkeypatch):
    trained()
    monkeypatch.setenv(config.TARGET.variable, "generic")
    assert not found(trained()[0])


def test_off_keeps_nothing(folder, monkeypatch):
    monkeypatch.setenv("CHAINRULE_CACHE", "off")
    assert not found(trained()[0])
    assert not folder.exists()


def test_where_it_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "not absolute")
    monkeypatch.chdir(tmp_path)
    for chosen, want in {
        "": ".cache/chainrule", "~": "", "~/c": "c", "c/d": "c/d", str(tmp_path / "~"): "~",
    }.items():  # fmt: skip
        monkeypatch.setenv("CHAINRULE_CACHE", chosen)
        assert config.cache_folder() == tmp_path / want
    monkeypatch.setenv("CHAINRULE_CACHE", "~nobody of that name/c")
    assert config.cache_folder() is None


def test_what_is_damaged_is_compiled_again(folder):
    _, losses = trained()
    (kept,) = folder.glob("*.object")
    data = bytearray(kept.read_bytes())
    data[len(data) // 2] ^= 0xFF
    kept.write_bytes(data)
    step, again = trained()
    assert not found(step)
    np.testing.assert_array_equal(losses, again)
    assert found(trained()[0])


def test_processes_that_race_get_the_same_numbers(folder):
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_cache as t\n"
        "step, losses = t.trained(); print(losses.tobytes().hex())"
    )
    roots = os.pathsep.join(str(ROOT / r) for r in ("compiler", "runtime"))
    command = [sys.executable, "-c", script, str(Path(__file__).parent)]
    env = {**os.environ, "PYTHONPATH": roots}
    running = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE) for _ in range(4)]
    running[0].kill()  # one dies on its way
    results = {p.communicate(timeout=120)[0] for p in running[1:]}
    running[0].communicate()
    assert len(results) == 1
    assert results != {b""}
    assert not [f for f in folder.iterdir() if f.stat().st_mode & 0o077]


def test_what_is_found_goes_through_no_level(folder, monkeypatch):
    first, losses = trained()
    monkeypatch.setattr(lower, "run_passes", None)
    monkeypatch.setattr(build, "compile_object", None)
    second, again = trained()
    np.testing.assert_array_equal(losses, again)
    monkeypatch.undo()
    for level in LEVELS:  # what it was on its way is worked out when it is asked for
        if level != "passes":  # which tells times
            assert second.show(level) == first.show(level)
    told, tells = first.report().as_dict(), second.report().as_dict()
    for name in ("kernels", "memory", "arena", "code_size", "functions", "target", "threads"):
        assert told[name] == tells[name]
    assert first.report().reserved(batch=8) == second.report().reserved(batch=8)


def test_names_are_those_of_the_program_at_hand(folder):
    def taken(table, rows):
        x, i = cr.input(table, (5,)), cr.input(rows, (2,), dtype="int32")
        return cr.compile({"out": cr.take(x, i, axis=0)})

    for table, rows in (("x", "i"), ("words", "tokens")):
        fn = taken(table, rows)
        data = {table: np.arange(5, dtype=np.float32), rows: np.array([4, 0], np.int32)}
        np.testing.assert_array_equal(fn(**data)["out"], [4, 0])
        with pytest.raises(FeedError, match=f"{rows} holds 9"):
            fn(**{**data, rows: np.array([0, 9], np.int32)})
        with pytest.raises(FeedError, match=table):
            fn(**{rows: data[rows]})
    assert len(list(folder.glob("*.object"))) == 1


def test_a_position_that_was_named_is_reported_by_that_name(folder):
    x, i = cr.input("x", (5,)), cr.input("i", (2,), dtype="int32")
    data = {"x": np.arange(5, dtype=np.float32), "i": np.array([7, 0], np.int32)}
    for name in ("rows", "places", "rows"):
        fn = cr.compile(cr.take(x, (i * 1 + (3 if name == "rows" else 4)).named(name), axis=0))
        with pytest.raises(FeedError, match=name):
            fn(**data)


def test_a_metric_by_another_name_is_the_same_program(folder):
    def step(metric):
        x, w = cr.input("x", ("batch", 2)), cr.parameter("w", (2,))
        loss = cr.mean((x @ w) ** 2)
        return cr.training_step(loss, cr.optim.SGD(0.1), metrics={metric: cr.max(x @ w)})

    data = np.ones((3, 2), np.float32)
    for name in ("largest", "top"):
        made = step(name)
        made(x=data)
        assert set(made.metrics) == {name}
    assert found(made)


#: of each option of a program, another value than it has by default; None where it is the graph
OTHERS = {
    "graph": None, "feeds": None, "kept": None,
    "outputs": None,  # names alone
    "finite": {"finite": [0]}, "epochs": {"epochs": True}, "threads": {"threads": 1},
    "budget": {"budget": Budget(2**20, {"n": 64})},
    "precision": {"precision": "bfloat16"}, "tune": {"tune": {"n": 64}},
    "target": {"target": replace(host_target(), level="generic", cpu="x86-64")},
}  # fmt: skip


def test_every_option_decides_what_is_found(folder):
    assert OTHERS.keys() == inspect.signature(build.build).parameters.keys()
    x = cr.input("x", ("n",))
    graph = Graph((cr.sum(x).node,))

    def made(**options):
        return build.build(graph, feeds=[x.node], outputs=["out"], **options).native.cached

    assert [made(), made()] == [False, True]
    for options in filter(None, OTHERS.values()):
        if has_threads(host_target()) or "threads" not in options:
            assert [made(**options), made(**options)] == [False, True], options


def test_feeds_in_another_order_are_another_program(folder):
    x, y = cr.input("x", (3,)), cr.input("y", (3,))
    graph = Graph(((x - y).node,))
    for feeds in ([x.node, y.node], [y.node, x.node]):
        assert not build.build(graph, feeds=feeds, outputs=["out"]).native.cached


def with_dropout():
    x, w = cr.input("x", ("batch", 4)), cr.parameter("w", (4, 4))
    return cr.mean(cr.dropout(x @ w, 0.5) ** 2)


def looped():
    x, w = cr.input("x", ("batch", 4)), cr.parameter("w", (4,))
    return cr.mean(cr.scan(lambda h, row: (cr.tanh(h * w + row), None), cr.zeros((4,)), x)[0])


def with_constant():
    x, w = cr.input("x", ("batch", 4)), cr.parameter("w", (4,))
    return cr.mean((x * cr.constant(np.array([1, 2, 3, 4.5], np.float32)) * w) ** 2)


def with_own_functions():
    x, w = cr.input("x", ("batch", 4)), cr.parameter("w", (4,))
    f = cr.elementwise("f", "x*tanh(log(1 + exp(x)))")
    g = cr.custom_derivative(lambda x: cr.sign(x), vjp=lambda ct, out, x: ct)
    return cr.mean(f(x * w) + g(x * w))


@pytest.mark.parametrize("loss", [with_dropout, looped, with_constant, with_own_functions])
def test_what_was_found_computes_the_same_bits(folder, loss):
    rows = np.random.default_rng(4).standard_normal((12, 4), dtype=np.float32)
    results = []
    for _ in range(2):
        step = cr.training_step(loss(), cr.optim.Adam(0.01), seed=5)
        results.append(step.run(x=rows, batch_size=5, epochs=3))
        results.append(step.parameters["w"].copy())
        cr.random.normal((3,))  # what was drawn before shows in no program
    assert found(step)
    np.testing.assert_array_equal(results[0], results[2])
    np.testing.assert_array_equal(results[1], results[3])


def test_a_large_constant_is_not_kept(folder, monkeypatch):
    monkeypatch.setattr(cache, "LIMIT", 4 * 2**16)
    x = cr.input("x", (2**15,))
    array = np.arange(2**15, dtype=np.float32)
    for _ in range(2):
        fn = cr.compile(x + cr.constant(array))
        np.testing.assert_array_equal(fn(x=array), array + array)
    assert not list(folder.glob("*.object"))


def test_another_version_finds_nothing(folder, monkeypatch):
    trained()
    for name, value in (("__version__", "9.9.9"), ("_ROOMS", ("interop",))):
        cache._compiler.cache_clear()
        with monkeypatch.context() as changed:
            changed.setattr(cache, name, value)
            assert not found(trained()[0])
    cache._compiler.cache_clear()
    assert found(trained()[0])


MANIFEST = b'{"sizes":[],"feeds":[],"kept":[],"constants":[],"outputs":[],"arena":[]}'


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"{}\n", b"[]\n", b"null\ncode", b"\xff\xfe\n", MANIFEST + b"\ncode", MANIFEST,
     MANIFEST.replace(b'"constants":[]', b'"constants":["x"]') + b"\ncode"],
)  # fmt: skip
def test_a_foreign_entry_is_as_good_as_none(folder, content):
    """Even one that has all its digests right, as an entry of another version may."""
    _, losses = trained()
    (path,) = folder.glob("*.object")
    assert cache.ObjectCache(folder).put(bytes.fromhex(path.stem), content)
    step, again = trained()
    assert not found(step)
    np.testing.assert_array_equal(losses, again)
    assert found(trained()[0])


def test_an_entry_cut_short_behind_its_manifest_is_as_good_as_none(folder):
    x = cr.input("x", (4,))
    fn = lambda: cr.compile(x + cr.constant(np.array([1, 2, 3, 4], np.float32)))  # noqa: E731
    fn()
    (path,) = folder.glob("*.object")
    store, key = cache.ObjectCache(folder), bytes.fromhex(path.stem)
    head = store.get(key).index(b"\n")
    assert store.put(key, store.get(key)[: head + 9])  # in the middle of the constant
    np.testing.assert_array_equal(fn()(x=np.zeros(4, np.float32)), [1, 2, 3, 4])


def test_a_manifest_comes_back_whole():
    """Every field of it, each as what it has to be."""
    tensors = [Tensor(str(i), "float32", (2, {"terms": [[1, ["n"]]]}), i) for i in range(4)]
    whole = Manifest(
        sizes=("n",), feeds=(tensors[0],), kept=(tensors[1],), constants=(), outputs=(tensors[2],),
        arena=((64, {"terms": [[4, ["n"]]]}), (8,)), temporaries=((3, 0), (4, 1)),
        checks=(Check(1, "0", "0", 7, -7), Check(2, "=h", None, {"terms": [[1, ["n"]]]})),
        nonempty=({"terms": [[1, ["n"]]]},), shared=(({"terms": [[9, ["n"]]]}, 1),), call_work=5,
        step_work=6, stages=(Stage(0, (1, -1), (2,), (1,), (2,), True, (1,)), Stage(meeting=True)),
        tuned=TunedThreads((("n", 64),), 9, 2, ((1, 2e-3), (2, 1e-3)), "no reason"),
    )  # fmt: skip
    assert all(getattr(whole, f.name) or f.name == "constants" for f in fields(Manifest))
    choices = {3: Choice(8, None, True), 0: Choice()}
    assert unpacked(packed(whole, b"code\n", choices)) == (whole, b"code\n", choices)
    arrays = (np.arange(6, dtype=np.int64).reshape(2, 3), np.array(True), np.zeros((0, 2)))
    held = tuple((Tensor("0", a.dtype.name, a.shape, i), a) for i, a in enumerate(arrays))
    manifest, code, _ = unpacked(packed(replace(whole, constants=held), b"\n", {}))
    assert code == b"\n" and replace(manifest, constants=()) == whole
    for (tensor, array), (wanted, given) in zip(manifest.constants, held, strict=True):
        assert tensor == wanted and array.dtype == given.dtype and array.flags.aligned
        np.testing.assert_array_equal(array, given)


def test_a_feed_that_is_given_back_keeps_its_own_name(folder):
    x, i = cr.input("x", (5,)), cr.input("i", (2,), dtype="int32")
    for _ in range(2):
        fn = cr.compile({"out": cr.take(x, i, axis=0), "same": i})
        with pytest.raises(FeedError, match="i holds 9"):
            fn(x=np.zeros(5, np.float32), i=np.array([0, 9], np.int32))
