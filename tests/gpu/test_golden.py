"""The code of a few kernels, counted: what its loops and its lanes say there must be of each
instruction, and nothing that a GPU does slowly.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest

import chainrule as cr
from chainrule.loops.launch import BLOCK

HALVES = BLOCK.bit_length() - 1  # steps of a tree over a block


@pytest.fixture(autouse=True)
def sm_80(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAINRULE_GPU", "sm_80")


def kernel(outputs: Any, **options: Any) -> str:
    """The one kernel of a program, as PTX, which has nothing slow in it."""
    text = cr.compile(outputs, backend="cuda", **options).show("ptx")
    bodies = dict(re.findall(r"\.entry (kernel\w+)\(.*?\n\{(.*?)\n\}", text, re.S))
    assert len(bodies) == 1
    (body,) = bodies.values()
    for slow in (".local", "call", ".f64", "ld.generic", "div.rn.f32 \t%f.*local"):
        assert not re.search(slow, body), slow
    return body


def count(pattern: str, body: str) -> int:
    return len(re.findall(rf"^\s*(?:@!?%p\d+ )?{pattern}[.;\s]", body, re.M))


def test_neighbours_are_one_access_each() -> None:
    body = kernel(cr.exp(cr.input("x", ("n", 5))) * cr.input("y", ("n", 5)))
    assert count(r"ld\.global\.v4\.b32", body) == 2 and count(r"st\.global\.v4\.b32", body) == 1
    assert count("bar", body) == count("shfl", body) == 0


def test_many_tensors_are_read_one_by_one() -> None:
    """Four neighbours of each would not fit into registers."""
    xs = [cr.input(f"x{i}", ("n", 8)) for i in range(24)]
    body = kernel(functools.reduce(lambda a, b: a * 0.5 + b, xs))
    assert count(r"ld\.global\.v4\.b32", body) == 0
    assert count(r"ld\.global\.b32", body) == len(xs) + 1  # and the status


def test_a_row_is_folded_by_five_exchanges() -> None:
    body = kernel(cr.softmax(cr.input("x", ("n", 19))))
    assert count(r"shfl\.sync\.down", body) == 2 * 4 and count(r"shfl\.sync\.idx", body) == 2
    assert count(r"bar\.sync", body) == 0


def test_rows_and_columns_are_read_four_neighbours_at_a_time() -> None:
    many = kernel(cr.softmax(cr.input("x", ("n", 128, 96))))
    assert count(r"shfl\.sync\.down", many) == 2 * 2 * 4  # two folds, four cells over four threads
    long, tall = (kernel(cr.sum(cr.input("x", ("n", 4096)), axis=a)) for a in (1, 0))
    for body in (many, long, tall):
        assert count(r"ld\.global\.v4\.b32", body) >= 1
        assert count(r"ld\.global\.b32", body) == 1  # the status
    assert count(r"st\.global\.v4\.b32", many) >= 1 and count(r"st\.global\.b32", many) == 0


def test_a_long_row_is_folded_by_a_tree_in_shared_memory() -> None:
    body = kernel(cr.sum(cr.input("x", ("n", 4096)), axis=1))
    # before each step of the tree, before all read its root, before its memory is used again, and
    # before the sum is written, as what a program is given may be one memory
    assert count(r"bar\.sync", body) == HALVES + 3
    assert count("shfl", body) == 0
    assert count(r"st\.shared", body) == 1 + HALVES


SQUARE = cr.input("x", (512, 512)), cr.input("y", (512, 512))


def test_a_product_is_multiply_adds_from_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAINRULE_GPU", "sm_75")
    body = kernel(SQUARE[0] @ SQUARE[1])
    side, depth = 2, 32  # 256 tiles of 32 x 32, panels of 64 / side terms
    assert count(r"fma\.rn\.f32", body) == side * side * depth
    assert count(r"st\.shared", body) == 2 * (16 * side * depth // BLOCK)
    assert count(r"bar\.sync", body) == 2  # a panel has come, a panel may go
    assert body.count(".shared .align") == 2 and count("cp", body) == 0


def test_its_panels_come_by_themselves_from_sm_80_on() -> None:
    body = kernel(SQUARE[0] @ SQUARE[1])
    side, depth = 2, 32
    # the left factor's terms are neighbours in memory and not in a panel, so they come one by one;
    # the right one's columns by fours; the first panel of each before the loop, the next ones in it
    assert count(r"cp\.async\.ca\.shared\.global", body) == 2 * 16 * side * depth // BLOCK
    assert count(r"cp\.async\.cg\.shared\.global", body) == 2 * 16 * side * depth // (4 * BLOCK)
    assert count(r"cp\.async\.commit_group", body) == 2
    assert count(r"cp\.async\.wait_group", body) == 1
    assert count(r"fma\.rn\.f32", body) == side * side * depth
    assert count(r"st\.shared", body) == 0
    # a panel has come, a panel may go, and the result may lie where a factor did
    assert count(r"bar\.sync", body) == 3


def test_products_on_tensor_cores_multiply_all_words_of_a_panel() -> None:
    words = 16 // 8  # of a line of a panel, eight at a time; 256 tiles of 32 x 32: one a warp
    for precision, kind in {
        "bfloat16": "m16n8k16.row.col.f32.bf16.bf16.f32",
        "tf32": "m16n8k8.row.col.f32.tf32.tf32.f32",
    }.items():
        text = cr.compile(SQUARE[0] @ SQUARE[1], backend="cuda", precision=precision).show("ptx")
        assert text.count(f"mma.sync.aligned.{kind}") == words
        assert ".local" not in text
        # a warp has one tile of either factor, whose words come in one instruction each
        assert text.count("ldmatrix.sync.aligned.m8n8.x4.shared.b16") == words
        assert text.count("ldmatrix.sync.aligned.m8n8.x2.shared.b16") == words
        if precision == "tf32":  # a thread's words of either factor are rounded each
            assert text.count("cvt.rna.tf32.f32") == words * (4 + 2)


def test_columns_go_down_in_threads_of_their_own() -> None:
    body = kernel(cr.sum(cr.input("x", (64, "n")), axis=0))
    assert count("bar", body) == count("shfl", body) == 0
    assert count(r"add\.rn\.f32", body) == 8  # so many rows are read ahead, in order
