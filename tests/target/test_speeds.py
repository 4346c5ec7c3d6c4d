"""Speeds of machines, as data: what is read back is what was written, or nothing."""

from __future__ import annotations

import json

import pytest

from chainrule.target import TARGETS
from chainrule.target.speeds import USUAL, Speeds, read_speeds, usual_speeds

MEASURED = Speeds(2.25e11, ((2**15, 3e11), (2**20, 1.6e11), (0, 1.5e10)), 1.1e-6, 3e-7)


@pytest.mark.parametrize("speeds", [MEASURED, *USUAL.values()])
def test_what_is_written_is_read(speeds: Speeds) -> None:
    assert read_speeds(speeds.text()) == speeds


def test_every_level_has_usual_speeds() -> None:
    for level in TARGETS:
        assert read_speeds(usual_speeds(level).text()) == usual_speeds(level)
    assert usual_speeds("x86-64-v4+bf16") == usual_speeds("x86-64-v4")


def test_a_block_is_read_at_the_rate_of_the_nearest_cache_that_holds_it() -> None:
    sizes = (1, 2**15, 2**15 + 1, 2**20, 2**20 + 1, 2**40)
    assert [MEASURED.bandwidth(s) / 1e9 for s in sizes] == [300, 300, 160, 160, 15, 15]


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "speeds 0"},
        {"flops": 0},
        {"flops": "nan"},
        {"flops": None},
        {"fork": -1e-6},
        {"meeting": float("inf")},
        {"reads": []},
        {"reads": [[0, 1e9]]},
        {"reads": [[2**20, 1e9], [2**15, 2e9], [0, 1e8]]},
        {"reads": [[2**15, 1e9], [2**20, 5e8]]},
        {"reads": [[2**15, -1e9], [0, 1e9]]},
        {"more": 1},
    ],
)
def test_what_no_machine_can_be_is_not_read(change: dict[str, object]) -> None:
    data = json.loads(MEASURED.text())
    assert read_speeds(json.dumps(data)) == MEASURED
    assert read_speeds(json.dumps({**data, **change})) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"speeds 1"', "{}"])
def test_what_is_no_text_of_speeds_is_not_read(text: str) -> None:
    assert read_speeds(text) is None
