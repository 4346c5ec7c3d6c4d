"""Initial values that are drawn natively: the bits of NumPy's, found again on disk, refused where
what lies there is no longer what it was.
"""

import numpy as np
import pytest

import chainrule as cr
from chainrule.codegen import cache
from chainrule.codegen.host import host_target
from chainrule.driver import draws
from chainrule.ops import philox

pytestmark = pytest.mark.skipif(not host_target().fma, reason="bits are shared where fma is")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A cache of its own, and a process that has loaded nothing."""
    monkeypatch.setenv("CHAINRULE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(draws, "_loaded", {})
    return tmp_path / "cache"


@pytest.fixture
def soon(folder, monkeypatch):
    """Whatever would be loaded is compiled."""
    monkeypatch.setattr(draws, "COMPILE", draws.LOAD)


MANY = (1, 10**7)


@pytest.mark.parametrize("distribution", ["uniform", "normal"])
def test_bits_are_those_of_numpy(folder, distribution):
    drawing = draws.drawings({distribution: MANY})[distribution]
    line = np.float32(0.3), np.float32(-0.1)
    for count in (1, 15, 16, 17, 63, 4099, 2**16 + 1):
        for seed, number in ((0, 0), (7, philox.INITIAL_DRAWS + 3), (2**64 - 1, 2**32 - 1)):
            out = np.full(count + 1, 9, np.float32)
            drawing.fill(out[:count], seed, number, *map(float, line))
            drawn = getattr(philox, distribution)(seed, 0, number, (count,))
            np.testing.assert_array_equal(out[:count], drawn * line[0] + line[1])
            assert out[count] == 9


def net(init, ensemble=None, backend="cpu", dtype="float32"):
    x = cr.input("x", ("batch", 600), dtype=dtype)
    w = cr.parameter("w", (600, 700), init=init, dtype=dtype)
    small = cr.parameter("v", (700,), init="normal", dtype=dtype)
    loss = cr.mean((x @ w * small) ** 2)
    return cr.training_step(loss, cr.optim.SGD(0.1), seed=5, ensemble=ensemble, backend=backend)


@pytest.mark.parametrize("init", ["glorot_uniform", "he_normal", "lecun_uniform"])
def test_a_step_begins_as_the_reference_does(soon, init):
    natively, reference = net(init), net(init, backend="reference")
    for name, array in reference.parameters.items():
        np.testing.assert_array_equal(natively.parameters[name], array)
    assert {d for d, _ in draws._loaded} == {init.rpartition("_")[2]}


def test_members_begin_as_each_alone(soon):
    members = net("he_uniform", ensemble=3)
    for i in range(3):
        x = cr.input("x", ("batch", 600))
        w = cr.parameter("w", (600, 700), init="he_uniform")
        one = cr.training_step(cr.mean((x @ w) ** 2), cr.optim.SGD(0.1), seed=5 + i)
        np.testing.assert_array_equal(members.parameters["w"][i], one.parameters["w"])
    assert draws._loaded


def test_other_types_and_distributions_are_drawn_as_ever(soon):
    for init, dtype in (("he_uniform", "float64"), ("truncated_normal", "float32")):
        net(init, dtype=dtype)
    assert not draws._loaded


def test_few_numbers_load_nothing_and_some_compile_nothing(folder):
    few, some, many = (round(s / draws.NUMBER["uniform"]) for s in (1e-3, 1e-2, 1))
    assert not draws.drawings({"uniform": (1, few)})
    assert not draws.drawings({"uniform": (1, some)})  # it would take longer to compile
    assert not folder.exists()
    assert draws.drawings({"uniform": (1, many)})
    assert not draws.drawings({"uniform": (1, few)})
    draws._loaded.clear()
    assert draws.drawings({"uniform": (1, some)})["uniform"].native.cached  # but not to load


@pytest.mark.parametrize("content", [b"", b"{}\n", b"null\ncode", None])
def test_what_is_foreign_or_damaged_is_compiled_again(folder, content):
    draws.drawings({"uniform": MANY})
    (path,) = folder.glob("*.object")
    if content is None:
        data = bytearray(path.read_bytes())
        data[-9] ^= 0xFF
        path.write_bytes(data)
    else:
        assert cache.ObjectCache(folder).put(bytes.fromhex(path.stem), content)
    for cached in (False, True):
        draws._loaded.clear()
        drawing = draws.drawings({"uniform": MANY})["uniform"]
        assert drawing.native.cached == cached
        out = np.empty(33, np.float32)
        drawing.fill(out, 1, 2, 1.0, 0.0)
        np.testing.assert_array_equal(out, philox.uniform(1, 0, 2, (33,)))


def test_a_machine_that_fuses_nothing_draws_in_numpy(folder, monkeypatch):
    monkeypatch.setenv("CHAINRULE_TARGET", "generic")
    assert not draws.drawings({"uniform": MANY, "normal": MANY})
