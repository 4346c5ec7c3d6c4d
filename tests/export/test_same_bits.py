"""An exported kernel computes what the compiled step does, bit for bit, on one machine."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

import chainrule as cr
import chainrule_runtime
from chainrule.codegen.host import host_target


def digest(arrays: dict[str, np.ndarray]) -> str:
    """One SHA-256 of tensors by name."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        total.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
    return total.hexdigest()


def states(net, kernel: chainrule_runtime.Kernel) -> tuple[str, str]:
    """The digests of what both keep, the count of epochs apart, which a kernel keeps elsewhere."""
    theirs = net.step.state_dict()
    theirs.pop("training.epoch")
    return digest({n: kernel.get(n) for n in kernel.tensors}), digest(theirs)


@pytest.mark.sampled(2)
def test_a_hundred_steps(any_net) -> None:
    net = any_net
    kernel = net.kernel()
    for i in range(100):
        batch = net.batch(i, 17 if i % 3 else 32)
        assert kernel.step(**batch) == net.step(**batch), f"step {i}"
        assert kernel.metrics == net.step.metrics
    ours, theirs = states(net, kernel)
    assert ours == theirs
    batch = net.batch(200, 9)
    inputs = {"x": batch["x"]}
    assert np.array_equal(kernel.predict(**inputs), net.step.predict(**inputs))
    assert states(net, kernel)[0] == ours, "predict changed the state"


def test_attention_some_rows_at_a_time(places_net) -> None:
    kernel, step = places_net.kernel(), places_net.step
    assert any(k.form == "attend" for k in step.report().kernels)
    for i in range(3):
        batch = places_net.batch(i, 5 + i)
        assert kernel.step(**batch) == step(**batch), f"step {i}"
    ours, theirs = states(places_net, kernel)
    assert ours == theirs


def test_initial_values_are_drawn_natively(any_net) -> None:
    """From the seed alone, orthogonal matrices too."""
    net = any_net
    kernel = net.kernel()
    kernel.init(net.step.seed)
    for name in kernel.tensors:
        assert kernel.get(name).tobytes() == net.step.state_dict()[name].tobytes(), name
    before = {n: kernel.get(n) for n in kernel.tensors}
    kernel.init(net.step.seed + 1)
    assert digest({n: kernel.get(n) for n in kernel.tensors}) != digest(before)


@pytest.mark.parametrize("optimize", ["speed", "size"])
def test_whole_epochs_shuffled_alike(optimize: str, digits_nets) -> None:
    digits_net = digits_nets(optimize)
    kernel, step = digits_net.kernel(), digits_net.step
    data = digits_net.batch(0, 301)
    losses = [kernel.run(batch_size=32, epochs=2, **data) for _ in range(2)]
    wanted = [step.run(batch_size=32, epochs=2, **data) for _ in range(2)]
    assert np.array_equal(losses, wanted)
    plain = kernel.run(batch_size=32, shuffle=False, **data)
    assert np.array_equal(plain, step.run(batch_size=32, shuffle=False, **data))
    ours, theirs = states(digits_net, kernel)
    assert ours == theirs


def test_a_state_goes_on_where_it_was_saved(net, tmp_path) -> None:
    kernel, path = net.kernel(), tmp_path / "state"
    for i in range(3):
        kernel.step(**net.batch(i, 8))
    kernel.save(path)
    wanted = [kernel.step(**net.batch(i, 8)) for i in range(3, 6)]
    other = net.kernel()
    other.load(path)
    assert [other.step(**net.batch(i, 8)) for i in range(3, 6)] == wanted


SHAPES = [(7, 28), (5, 5), (9, 3), (2, 3), (3, 2), (1, 4), (4, 1), (33, 17), (17, 33, 2)]


@pytest.mark.parametrize("optimize", ["speed", "size"])
def test_orthogonal_matrices_begin_alike(optimize: str, linker: None, tmp_path) -> None:
    """Rows or columns, one or many: sums go in one order in NumPy and in the kernel."""
    x = cr.input("x", ("batch", 3))
    kinds = [(s, t) for s in SHAPES for t in ("float32", "float64")]
    ws = [
        cr.parameter(f"w{i}", s, init=cr.init.orthogonal(1.7), dtype=t)
        for i, (s, t) in enumerate(kinds)
    ]
    total = sum(cr.sum(cr.astype(w, "float32") ** 2) for w in ws)
    step = cr.training_step(cr.mean(x) * total, cr.optim.SGD(0.1), seed=5)
    art = step.export(tmp_path, name="net", formats=("so", "json"), optimize=optimize)
    kernel = chainrule_runtime.load(art.files["net.so"])
    kernel.init(5)
    for name, value in step.parameters.items():
        assert kernel.get(name).tobytes() == np.asarray(value).tobytes(), name


@pytest.mark.parametrize("parts", [1, 3])
def test_products_of_bfloat16_have_the_bits_of_a_step(tmp_path: Path, parts: int) -> None:
    """Factors are rounded by branches among the loops; with tiles a step has another order."""
    if host_target().blocks:
        pytest.skip("exported kernels ask for no tiles")
    x, y = cr.input("x", ("batch", 40)), cr.input("y", ("batch",), dtype="int32")
    h = cr.relu(x @ cr.parameter("w", (40, 48), init="he_normal"))
    loss = cr.losses.cross_entropy(h @ cr.parameter("v", (48, 10), init="he_normal"), y)
    step = cr.training_step(loss, cr.optim.Adam(0.01), precision="bfloat16", seed=3)
    art = step.export(tmp_path, formats=("so", "json"), max_parts=parts)
    kernel = chainrule_runtime.load(art.files["net.so"])
    kernel.init(3)
    rng = np.random.default_rng(0)
    for rows in (1, 17, 64):
        given = rng.standard_normal((rows, 40)).astype(np.float32)
        given[0, :3] = 1e-40, 0.0, -3e-39  # the first and the last are subnormal
        feeds = {"x": given, "y": np.arange(rows, dtype=np.int32) % 10}
        assert kernel.step(**feeds) == step(**feeds)
    for name, value in step.parameters.items():
        assert kernel.get(name).tobytes() == np.asarray(value).tobytes(), name


def test_the_learning_rate_may_change(digits_net) -> None:
    kernel, step = digits_net.kernel(), digits_net.step
    assert kernel.learning_rate == step.learning_rate
    kernel.learning_rate = step.learning_rate = 3e-3
    for i in range(3):
        batch = digits_net.batch(i, 16)
        assert kernel.step(**batch) == step(**batch)
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(chainrule_runtime.FeedError):
            kernel.learning_rate = bad
    assert kernel.learning_rate == 3e-3


def test_the_self_test_passes_here(any_net) -> None:
    any_net.kernel().selftest()


def test_tensors_are_set_and_got(digits_net) -> None:
    kernel = digits_net.kernel()
    value = np.arange(10, dtype=np.float32)
    kernel.set("b2", value)
    assert np.array_equal(kernel.parameters["b2"], value)
    with pytest.raises(chainrule_runtime.FeedError, match="no tensor"):
        kernel.get("b3")
    with pytest.raises(chainrule_runtime.FeedError):
        kernel.set("b2", value[:9])
