"""Python's collector waits where many objects are made, and goes on as it was before."""

import gc
import weakref

import pytest

import chainrule as cr
from chainrule import collector


class Thing:
    """What can be watched."""


def cycle():
    thing = Thing()
    thing.itself = thing
    return weakref.ref(thing)


@pytest.fixture(autouse=True)
def collects():
    """As in a process where nothing is frozen, unlike in one that runs tests."""
    gc.enable()
    gc.unfreeze()
    yield
    gc.enable()
    gc.freeze()


@pytest.mark.parametrize("settle", [False, True])
def test_it_waits_and_goes_on(settle):
    frozen = gc.get_freeze_count()  # Python 3.12 begins with some
    with collector.waiting(settle):
        assert not gc.isenabled()
    assert gc.isenabled() and gc.get_freeze_count() == frozen


@pytest.mark.parametrize("settle", [False, True])
def test_it_goes_on_after_an_error(settle):
    with pytest.raises(ValueError, match="no"), collector.waiting(settle):
        raise ValueError("no")
    assert gc.isenabled()


def test_where_it_was_off_it_stays_off():
    gc.disable()
    with collector.waiting(settle=True):
        pass
    assert not gc.isenabled()


def test_what_settled_is_collected_all_the_same():
    with collector.waiting(settle=True):
        thing = cycle()
    assert thing() is not None
    gc.collect()
    assert thing() is None


def test_what_somebody_froze_stays_frozen():
    gc.collect()
    gc.freeze()
    count = gc.get_freeze_count()
    with collector.waiting(settle=True):
        pass
    assert count and gc.get_freeze_count() == count


def test_a_function_that_fails_leaves_it_as_it_was(monkeypatch):
    monkeypatch.setattr(collector, "_settled", False)
    with pytest.raises(cr.errors.ChainruleError):
        cr.training_step(cr.input("x", ()), cr.optim.SGD(0.1))
    assert gc.isenabled() and collector._settled


def test_a_step_that_is_dropped_is_gone_without_it():
    """It holds arrays, so it should not wait for cycles to be found."""
    gc.disable()
    x, w = cr.input("x", ("batch", 4)), cr.parameter("w", (4,))
    step = cr.training_step(cr.mean((x @ w) ** 2), cr.optim.SGD(0.1))
    array = weakref.ref(step.parameters["w"])
    del step
    assert array() is None
