"""Targets are chosen by feature bits, and may be forced."""

from __future__ import annotations

import pytest

from chainrule.codegen.host import host_target
from chainrule.errors import CompileError
from chainrule.target import LEVEL_FEATURES, TARGETS, best_level, target


def test_levels_by_feature_bits():
    have: set[str] = set()
    assert best_level(frozenset()) == "generic"
    for level, needed in LEVEL_FEATURES.items():
        assert best_level(frozenset(have | set(needed[1:]))) != level
        have |= set(needed)
        assert best_level(frozenset(have)) == level
    assert best_level(frozenset(LEVEL_FEATURES["x86-64-v4"])) == "generic"


def test_registers():
    assert TARGETS["x86-64-v4"].registers_of(4, 16) == 1
    assert TARGETS["x86-64-v3"].registers_of(8, 16) == 4
    assert TARGETS["x86-64-v4"].registers_of(1, 16) == 1


def test_forced(monkeypatch):
    host = host_target()
    monkeypatch.setenv("CHAINRULE_TARGET", "generic" if host.level != "aarch64" else "aarch64")
    assert host_target().level in ("generic", "aarch64")
    monkeypatch.setenv("CHAINRULE_TARGET", "x86-64-v9")
    with pytest.raises(CompileError, match="no target is called"):
        host_target()
    with pytest.raises(CompileError, match="no target is called"):
        target("avx2")
