"""Every rule of every set: both sides equal, no NaN hidden, one normal form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from chainrule.errors import CompileError
from chainrule.ir.evaluate import evaluate
from chainrule.ir.formula import Call, Formula, Name, parse
from chainrule.ir.graph import Graph
from chainrule.ir.node import Node, apply
from chainrule.ir.size import Dim, Size
from chainrule.ir.types import TensorType, bool_, float32, float64, int64
from chainrule.ops.along import TakeAlong
from chainrule.ops.assemble import Concat
from chainrule.ops.axes import Expand, Sum
from chainrule.ops.build import call, keep_axes
from chainrule.ops.composite import LogSoftmax, Softmax
from chainrule.ops.contract import contract, matmul, transpose
from chainrule.ops.index import OneHot, ScatterAdd, Take
from chainrule.ops.layout import Permute, Place, Reshape, Slice
from chainrule.ops.max_pooling import Unpool
from chainrule.ops.source import Constant, constant, full, leaf, size_of
from chainrule.rewrite import exponentials
from chainrule.rewrite.along import AXES, speaks_of_axes, spell_along
from chainrule.rewrite.canonical import CANONICAL, is_moderate
from chainrule.rewrite.lookup import LOOKUPS
from chainrule.rewrite.lower import LOWERING
from chainrule.rewrite.outward import OUTWARD
from chainrule.rewrite.passes import stabilize
from chainrule.rewrite.recognition import RECOGNITION
from chainrule.rewrite.rule import Recognizer, Rewriter, Rule, Rules, rewrite, rule
from chainrule.rewrite.simplify import SIMPLIFY
from chainrule.rewrite.stability import STABILITY

SETS = {
    "canonical": CANONICAL,
    "stable": CANONICAL + STABILITY + RECOGNITION,
    "simple": CANONICAL + OUTWARD + SIMPLIFY,
    "lookups": LOOKUPS,
    "low": LOWERING,
}
RULES = {r.name: (r, s) for s in SETS.values() for r in s.all}
TEXTUAL = [pytest.param(r, s, id=n) for n, (r, s) in RULES.items() if isinstance(r, Rule)]
VALUES = np.array([-3.0, -1.5, -0.25, 0.125, 0.5, 1.0, 1.75, 4.0])
N = len(VALUES)
REAL, MATRIX = TensorType(float64, (N,)), TensorType(float64, (3, 4))


WIDE = TensorType(float64, (N, 4))
LIKE = leaf("input", "like", WIDE)
ALONG = apply(Sum((1,)), LIKE)
IMAGE = leaf("input", "image", TensorType(float64, (2, 6)))
FOLDS = {"sum", "max", "mean", "var", "norm", "logsumexp"}


def is_narrow(tree: Formula) -> bool:
    """Whether a formula about axes is of what is left when those are gone."""
    if not isinstance(tree, Call) or tree.fn == "repeat":
        return False
    return tree.fn in FOLDS or any(map(is_narrow, tree.args))


def places(tree: Formula, narrow: bool) -> dict[str, bool]:
    """Of each variable of a formula about axes, whether it stands where those are gone."""
    if isinstance(tree, Name):
        return {tree.name: narrow}
    if not isinstance(tree, Call):
        return {}
    below = tree.fn not in FOLDS and (narrow or tree.fn == "repeat")
    return {k: v for arg in tree.args for k, v in places(arg, below).items()}


def bindings(r: Rule) -> dict[str, Node]:
    """Leaves for a rule's variables; numbers, that it takes, for those that must be numbers."""
    bound = bindings_with(r, 2.5)
    return bound if r.when is None or r.when(bound) else bindings_with(r, -2.5)


def bindings_with(r: Rule, c: float) -> dict[str, Node]:
    """Leaves for a rule's variables, and `c` where it has to be a number."""
    tree = parse(r.lhs)
    wide = WIDE.shape if speaks_of_axes(tree) else (N,)
    numbers = {n: 0.125 if v is None else v for n, v in r.numbers}
    if r.when is not None:
        numbers = {"c": c, "d": 0.25} | numbers
    bound: dict[str, Node] = {}
    for name, narrow in places(tree, is_narrow(tree)).items():
        shape = (N,) if narrow else wide
        if f"where({name}," in r.lhs:
            bound[name] = leaf("input", name, TensorType(bool_, shape))
        elif "pick(" in r.lhs and name == "y":
            bound[name] = leaf("input", name, TensorType(int64, (N,)))
        elif name in numbers:
            bound[name] = full(numbers[name], float64, shape)
        else:
            bound[name] = leaf("input", name, TensorType(float64, shape))
    return bound


def both(r: Rule) -> tuple[Node, Node, list[Node]]:
    bound = bindings(r)
    like = next(iter(bound.values()))
    left, right = (spell_along(parse(s), bound | {AXES: ALONG}, like) for s in (r.lhs, r.rhs))
    return left, right, [n for n in bound.values() if n.op.name == "input"]


def feeds(leaves: list[Node], shift: int, special: float | None = None) -> dict[Node, np.ndarray]:
    fed = {}
    for i, node in enumerate(leaves):
        values = np.roll(VALUES, shift * i)
        if len(node.shape) > 1:
            values = np.add.outer(values, np.roll([-1.0, 0.5, 0.25, 2.0], shift + i))
        if special is not None and i == shift % len(leaves):
            values = np.full_like(values, special)
        fed[node] = values > 0 if node.dtype.is_bool else values
        if node.dtype.is_integer:
            fed[node] = np.arange(N) % 4
    return fed


@pytest.mark.parametrize(("r", "rules"), TEXTUAL)
def test_both_sides_are_equal(r: Rule, rules: Rules) -> None:
    left, right, leaves = both(r)
    assert left.type == right.type
    seen = 0
    for shift in range(N):
        a, b = evaluate([left, right], feeds(leaves, shift))
        defined = np.isfinite(a)
        seen += int(defined.sum())
        np.testing.assert_allclose(b[defined], a[defined], rtol=1e-12, atol=1e-13)
    assert seen >= N


@pytest.mark.parametrize(("r", "rules"), TEXTUAL)
def test_no_nan_is_hidden(r: Rule, rules: Rules) -> None:
    left, right, leaves = both(r)
    for shift in range(len(leaves)):
        a, b = evaluate([left, right], feeds(leaves, shift, float("nan")))
        assert np.isnan(b[np.isnan(a)]).all()


@pytest.mark.parametrize(("r", "rules"), TEXTUAL)
def test_both_sides_have_one_normal_form(r: Rule, rules: Rules) -> None:
    left, right, _ = both(r)
    (a,), (b,) = (Rewriter(rules).run(Graph((side,))) for side in (left, right))
    assert a is b, (a, b)
    again = Rewriter(rules)
    assert again.run(Graph((a,))) == [a]
    assert not again.applied


def var(*shape: Dim) -> Node:
    return leaf("input", "x", TensorType(float64, shape))


def kept(x: Node, axis: int = 1) -> Node:
    return keep_axes(x, (axis,))


def along(x: Node, shape: tuple[int, ...], axes: tuple[int, ...]) -> Node:
    return apply(Expand(shape, axes), x)


def labels() -> Node:
    return leaf("input", "y", TensorType(int64, (3,)))


def positions(*shape: int) -> Node:
    return leaf("input", "at", TensorType(int64, shape))


def looked_up() -> Node:
    return apply(Take(0, 1), var(3, 40), positions(8))


def code() -> Node:
    return apply(OneHot(4, float64), labels())


def over_their_sums(of: Callable[[Node], Node], shape: tuple[int, ...]) -> Node:
    e = call("exp", var(*M))
    return call("div", of(e), along(apply(Sum((1,)), e), shape, (1,)))


def four_terms() -> Node:
    total = call("add", call("exp", var(3)), call("mul", call("exp", var(3)), 2.0))
    return call("add", call("add", total, 3.0), call("exp", var(3)))


M = (3, 4)
TRIL = np.tri(3, 4) > 0
BATCH = Size.symbol("batch")
# what each rule in code is given, built anew, and the op that is then at the root
BUILT: dict[str, tuple[Callable[[], Node], str]] = {
    "fold_numbers": (lambda: call("exp", full(1.5, float64, M)), "full"),
    "uniform_constant": (
        lambda: apply(Constant(np.full(M, 2.0).tobytes(), TensorType(float64, M))),
        "full",
    ),
    "number_to_the_right": (lambda: call("mul", 2.5, var(*M)), "mul"),
    "number_outward": (lambda: call("mul", call("mul", var(3), 2.0), var(3)), "mul"),
    "merge_permutes": (
        lambda: transpose(transpose(var(2, 3, 4), (1, 2, 0)), (1, 2, 0)),
        "permute",
    ),
    "merge_reshapes": (lambda: apply(Reshape((2, 6)), apply(Reshape((12,)), var(*M))), "reshape"),
    "reshape_of_expand": (
        lambda: apply(Reshape((1, 3, 4)), along(var(3), (3, 4), (1,))),
        "expand",
    ),
    "merge_expands": (lambda: along(along(var(3), (3, 4), (1,)), (2, 3, 4), (0,)), "expand"),
    "negative_out_of_expand": (lambda: along(call("neg", var(3)), (3, 4), (1,)), "neg"),
    "product_with_reciprocal": (
        lambda: call("mul", var(*M), along(call("div", 1.0, var(3)), M, (1,))),
        "div",
    ),
    "elementwise_inside_expand": (
        lambda: call("maximum", along(var(3), M, (1,)), along(var(3), M, (1,))),
        "expand",
    ),
    "product_through_permute": (
        lambda: matmul(transpose(var(4, 3), (1, 0)), var(4, 2)),
        "contract",
    ),
    "sum_of_expand": (lambda: apply(Sum((0, 1)), along(var(3), M, (1,))), "sum"),
    "sum_of_picked": (
        lambda: apply(Sum((0, 1)), call("mul", code(), apply(LogSoftmax(1), var(*M)))),
        "sum",
    ),
    "one_along_axis": (
        lambda: apply(TakeAlong(1), apply(LogSoftmax(1), var(*M)), kept(labels())),
        "expand",
    ),
    "softmax_of_masked": (
        lambda: apply(Softmax(1), call("where", constant(TRIL), var(*M), float("-inf"))),
        "masked_softmax",
    ),
    "attention": (
        lambda: matmul(
            apply(Softmax(1), call("div", matmul(var(2, 3), var(3, 4)), 2.0)), var(4, 2)
        ),
        "attention",
    ),
    "product_over_sum_of_exp": (
        lambda: over_their_sums(lambda e: matmul(e, var(4, 2)), (3, 2)),
        "contract",
    ),
    "log_of_product_with_exp": (
        lambda: call("log", matmul(call("exp", var(*M)), var(4, 2))),
        "add",
    ),
    "log_of_viewed": (
        lambda: call(
            "log",
            apply(Slice((0, 1), (3, 2), (1, 1)), call("sub", 1.0, apply(Softmax(1), var(*M)))),
        ),
        "slice",
    ),
    "log_of_terms": (lambda: call("log", four_terms()), "logaddexp"),
    "over_terms": (lambda: call("div", var(3), four_terms()), "mul"),
    "exp_into_terms": (
        lambda: call(
            "mul",
            call("sub", call("exp", var(3)), call("mul", call("exp", var(3)), 2.0)),
            call("exp", call("neg", var(3))),
        ),
        "sub",
    ),
    "sum_of_number": (lambda: apply(Sum((1,)), full(2.5, float64, M)), "full"),
    "known_choice": (
        lambda: call("where", full(True, bool_, M), var(*M), call("exp", var(*M))),
        "input",
    ),
    "choice_before_unpool": (
        lambda: call(
            "where",
            call("le", IMAGE, 0.0),
            0.0,
            apply(Unpool((2,), (2,), (0,)), var(2, 3), IMAGE),
        ),
        "unpool",
    ),
    "common_factor": (
        lambda: call("mul", call("div", var(3), call("mul", var(3), 3.0)), 3.0),
        "div",
    ),
    "product_with_number": (lambda: matmul(full(2.0, float64, (2, 3)), var(3, 4)), "expand"),
    "sum_of_one_hot": (lambda: apply(Sum((1,)), code()), "full"),
    "size_out_of_choice": (
        lambda: call("where", call("gt", var(3), 1.0), call("div", var(3), 4.0), 0.0),
        "div",
    ),
    "sign_out_of_choice": (
        lambda: call("where", call("gt", var(3), 1.0), call("neg", var(3)), 0.0),
        "neg",
    ),
    "size_out_of_numerator": (lambda: call("div", call("div", var(3), 4.0), var(3)), "div"),
    "size_out_of_expand": (
        lambda: call("mul", var(*M), along(call("div", var(3), 4.0), M, (1,))),
        "div",
    ),
    "common_divisor_through_sum": (
        lambda: call(
            "sub",
            call("div", var(*M), 4.0),
            call(
                "mul",
                var(*M),
                along(apply(Sum((1,)), call("div", var(*M), 4.0)), M, (1,)),
            ),
        ),
        "div",
    ),
    "sign_out_of_sum": (
        lambda: along(apply(Sum((1,)), call("neg", var(*M))), M, (1,)),
        "neg",
    ),
    "size_over_itself": (
        lambda: call(
            "div",
            call("mul", size_of(BATCH, float64), apply(Sum((0,)), var(BATCH))),
            size_of(BATCH, float64),
        ),
        "sum",
    ),
    "number_out_of_numerator": (
        lambda: call("mul", var(3), call("div", 3.0, var(3))),
        "mul",
    ),
    "sign_out_of_numerator": (lambda: call("div", -3.0, var(3)), "neg"),
    "product_of_rows": (lambda: matmul(looked_up(), var(40, 2)), "take"),
    "sum_with_rows": (
        lambda: call(
            "add",
            apply(Take(0, 1), matmul(var(3, 4), var(4, 2)), positions(8)),
            along(var(2), (8, 2), (0,)),
        ),
        "take",
    ),
    "permuted_rows": (
        lambda: transpose(apply(Take(1, 2), var(2, 3), positions(4, 2)), (0, 2, 1)),
        "take",
    ),
    "product_over_rows": (lambda: contract("tk", "tn", "kn", looked_up(), var(8, 2)), "contract"),
    "sums_of_product": (
        lambda: apply(ScatterAdd(0, 3), matmul(var(8, 2), var(2, 40)), positions(8)),
        "contract",
    ),
    "product_without_sum": (lambda: contract("i", "j", "ij", var(2), var(3)), "mul"),
    "product_without_free_axes": (
        lambda: contract("ij", "ij", "i", var(*M), var(*M)),
        "sum",
    ),
    "split_fold": (lambda: apply(Sum((0, 2)), var(2, 3, 4)), "sum"),
    "split_concat": (lambda: apply(Concat(0), *(var(2) for _ in range(40))), "concat"),
    "sum_of_places": (
        lambda: call(
            "add",
            call(
                "add",
                apply(Place((4,), (5,), (1,)), var(1)),
                apply(Place((0,), (5,), (1,)), var(2)),
            ),
            apply(Place((2,), (5,), (1,)), var(2)),
        ),
        "concat",
    ),
    "slice_of_parted": (
        lambda: apply(Reshape((2, 3, 2)), apply(Slice((0, 4), (2, 6), (1, 1)), var(2, 12))),
        "slice",
    ),
    "sum_of_scaled": (
        lambda: apply(Sum((1,)), call("mul", code(), along(var(3), M, (1,)))),
        "",
    ),
}
RECOGNIZERS = [pytest.param(r, s, id=n) for n, (r, s) in RULES.items() if isinstance(r, Recognizer)]


@pytest.mark.parametrize(("r", "rules"), RECOGNIZERS)
def test_rules_in_code_keep_the_value(r: Recognizer, rules: Rules) -> None:
    assert r.name in BUILT, "give an example of this rule"
    build, root = BUILT[r.name]
    given = build()
    assert any(Rewriter(Rules([r])).run(Graph((n,))) != [n] for n in Graph((given,)).nodes), (
        "does not fire"
    )
    run = Rewriter(rules)
    (found,) = run.run(Graph((given,)))
    assert run.applied
    if root:
        assert found.op.name == root
    leaves = [n for n in Graph((given,)).nodes if n.op.name == "input"]
    rng = np.random.default_rng(2)
    shapes = {n: tuple(d if isinstance(d, int) else 3 for d in n.shape) for n in leaves}
    fed = {
        n: rng.integers(0, 3, s) if n.dtype.is_integer else rng.uniform(0.5, 2, s)
        for n, s in shapes.items()
    }
    a, b = evaluate([given, found], fed)
    np.testing.assert_allclose(b, a, rtol=1e-13)
    if any(n.dtype.is_float for n in leaves):
        fed = {n: v if n.dtype.is_integer else np.full(v.shape, np.nan) for n, v in fed.items()}
        a, b = evaluate([given, found], fed)
        assert np.isnan(b[np.isnan(a)]).all()
    assert Rewriter(rules).run(Graph((found,))) == [found]


@pytest.mark.parametrize(
    ("build", "want"),
    [
        (lambda x, y: call("mul", call("div", x, 1e30), y), (1e30, 1e30, 1e30)),
        (lambda x, y: call("div", call("div", x, 1e30), y), (1e30, 1e-30, 1e30)),
        (lambda x, y: call("mul", x, call("div", 1e30, y)), (1e-30, 1e30, 1e-30)),
        (lambda x, y: call("mul", x, call("div", 1e-30, y)), (1e30, 1e-30, 1e30)),
        (lambda x, y: call("add", call("div", x, 1e30), call("div", y, 1e30)), (3e38, 3e38, 6e8)),
    ],
)
def test_numbers_far_from_1_stay_where_they_keep_others_small(
    build: Callable[[Node, Node], Node], want: tuple[float, float, float]
) -> None:
    x, y = (leaf("input", name, TensorType(float32, ())) for name in "xy")
    (out,) = rewrite(Graph((build(x, y),)), SETS["simple"]).outputs
    (value,) = evaluate([out], {x: np.float32(want[0]), y: np.float32(want[1])})
    np.testing.assert_allclose(value, want[2], rtol=1e-6)


@pytest.mark.parametrize(
    ("c", "d", "merged"),
    [
        (2.0, 4.0, True),
        (3.0, 6.0, True),
        (-6.0, 3.0, True),
        (1e30, 1e30, True),
        (1.0, 3.0, False),
        (2.0, 3.0, False),
        (1.0, np.inf, False),
        (np.inf, 2.0, False),
        (0.0, 2.0, False),
        (1.0, 0.0, False),
        (np.nan, 2.0, False),
    ],
)
def test_numbers_are_divided_where_nothing_is_rounded(c: float, d: float, merged: bool) -> None:
    x = leaf("input", "x", TensorType(float32, ()))
    (out,) = rewrite(Graph((call("div", call("mul", x, c), d),)), CANONICAL).outputs
    assert (out.op.name != "div") == merged
    if merged:
        assert evaluate([out], {x: np.float32(5)}) == [np.float32(5 * c / d)]


def test_a_sum_of_no_elements_is_0_whatever_would_repeat() -> None:
    x = leaf("input", "x", TensorType(float64, (3,)))
    sums = [apply(Sum((0,)), apply(Expand((0, 3), (0,)), x))]
    sums += [apply(Sum((0,)), full(value, float64, (0, 3))) for value in (np.inf, np.nan)]
    found = Rewriter(CANONICAL).run(Graph(tuple(sums)))
    for value in evaluate(found, {x: np.array([1.0, np.nan, np.inf])}):
        np.testing.assert_array_equal(value, np.zeros(3))


def test_sums_over_symbolic_axes_count_them() -> None:
    x = leaf("input", "x", TensorType(float64, ()))
    wide = apply(Expand((BATCH, 3), (0, 1)), x)
    (out,) = rewrite(Graph((apply(Sum((0, 1)), wide),)), CANONICAL).outputs
    assert out is call("mul", x, size_of(BATCH * 3, float64))
    ones = full(1, float64, (BATCH, 3))
    (out,) = rewrite(Graph((apply(Sum((0,)), ones),)), CANONICAL).outputs
    assert out is along(size_of(BATCH, float64), (3,), (0,))


def test_opaque_nodes_are_kept_and_not_looked_through() -> None:
    x = var(3)
    e = call("exp", x)
    y = call("log", e)
    (kept_,) = rewrite(Graph((y,)), CANONICAL + STABILITY, opaque=[e]).outputs
    assert kept_ is y
    (free,) = rewrite(Graph((y,)), CANONICAL + STABILITY).outputs
    assert free is x


def test_rules_that_undo_each_other_are_found() -> None:
    x, y = var(3), var(3)
    loop = Rules([rule("there", "x + y", "y + x")])
    with pytest.raises(CompileError, match="undo each other"):
        rewrite(Graph((call("add", x, y),)), loop)
    grow = Rules([rule("grow", "x + y", "(x + y) + 1")])
    with pytest.raises(CompileError, match="undo each other"):
        rewrite(Graph((call("add", x, y),)), grow)


def test_numbers_do_not_gather_into_overflow() -> None:
    x = var(3)
    h = x
    for _ in range(300):
        h = call("mul", call("mul", h, 2.0), x)
    (out,) = rewrite(Graph((h,)), CANONICAL).outputs
    numbers = [n.op.value for n in Graph((out,)).nodes if n.op.name == "full"]
    assert all(map(is_moderate, numbers))


def test_equal_products_are_one() -> None:
    x = var(2, 3)
    w = leaf("input", "w", TensorType(float64, (4, 3)))
    direct = contract("ac", "bc", "ab", x, w)
    (out,) = rewrite(Graph((matmul(x, apply(Permute((1, 0)), w)),)), CANONICAL).outputs
    assert out is direct


@pytest.mark.parametrize("starts", [(0, 1), (0, 3), (1, 3), (0, 0)])
def test_parts_that_overlap_or_leave_gaps_stay_sums(starts: tuple[int, int]) -> None:
    parts = (apply(Place((at,), (5,), (1,)), var(2)) for at in starts)
    total = call("add", *parts)
    assert rewrite(Graph((total,)), LOWERING).outputs[0].op.name != "concat"


def test_logarithms_of_every_part_of_a_running_sum_are_looked_at_in_linear_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A term is looked at again for each of the parts that it is in, up to a number of terms."""
    looked = 0
    look = exponentials._log_of

    def counted(*args: Any) -> Node | None:
        nonlocal looked
        looked += 1
        return look(*args)

    monkeypatch.setattr(exponentials, "_log_of", counted)
    counts = []
    for parts in (150, 300):
        looked, total, logs = 0, call("exp", var(3)), []
        for _ in range(parts):
            total = call("add", total, call("exp", var(3)))
            logs.append(call("log", total))
        stabilize(Graph(tuple(logs)))
        counts.append(looked)
    assert 0 < counts[1] < 2.5 * counts[0]


@pytest.mark.parametrize("steps", [(1, 1), (-1, 1), (1, -1), (-1, -1)])
@pytest.mark.parametrize("shape", [(3, 2, 2), (3, 4, 1), (3, 1, 4), (6, 2), (3, 2, 2, 1)])
def test_what_is_turned_and_parted_keeps_its_order(
    shape: tuple[int, ...], steps: tuple[int, ...]
) -> None:
    """A part whose rows are taken from the last on was read as if from the first: convolutions by
    kernels flipped along their channels were those of others.
    """
    starts = tuple(n - 1 if s < 0 else 0 for n, s in zip((3, 4), steps, strict=True))
    x = var(3, 4)
    node = apply(Reshape(shape), apply(Slice(starts, (3, 4), steps), x))
    (found,) = Rewriter(LOWERING).run(Graph((node,)))
    values = np.arange(12.0).reshape(3, 4)
    (got,) = evaluate([found], {x: values})
    np.testing.assert_array_equal(got, values[:: steps[0], :: steps[1]].reshape(shape))
