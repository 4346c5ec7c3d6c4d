"""Comparing expressions whatever their parts are called."""

from __future__ import annotations

import chainrule as cr


def net(names: str, activation: object = cr.tanh, batch: str = "batch") -> list[cr.Tensor]:
    x, w, b = (cr.input(n, s) for n, s in zip(names, [(batch, 4), (4, 3), (3,)], strict=True))
    z = activation(x @ w + b)  # type: ignore[operator]
    return [cr.grad(cr.sum(cr.square(z)) / 2.0, t) for t in (w, b)]


def test_equal_but_for_names() -> None:
    found = cr.compare(net("xwb"), net("uvc", batch="n"))
    assert found
    assert found.equal
    assert str(found) == "equal but for names"
    (first, _), (second, _) = net("xwb"), net("xwb")
    assert cr.compare(first, second)
    assert cr.compare(first, first)
    assert cr.compare({"w": first}, [second])


def test_the_first_difference_is_said() -> None:
    found = cr.compare(net("xwb")[0], net("xwb", cr.sigmoid)[0])
    assert not found
    text = str(found)
    assert text.startswith("another operation:\n")
    assert "test_compare.py:" in text
    assert "1 - h1²" in text or "h1" in text


def test_leaves_types_and_counts() -> None:
    x, y = cr.input("x", (3,)), cr.input("y", (3,))
    w = cr.parameter("w", (3,))
    wide = cr.input("x", (3,), dtype="float64")
    assert "input and parameter" in str(cr.compare(cr.exp(x), cr.exp(w)))
    assert "element type, float32 and float64" in str(cr.compare(cr.exp(x), cr.exp(wide)))
    assert "another shape" in str(cr.compare(x, cr.input("x", (4,))))
    assert "1 expressions against 2" in str(cr.compare(x, [x, y]))
    u, v = cr.input("u", (3,)), cr.input("v", (3,))
    assert "another input" in str(cr.compare(x * x + y, u * v + v))
    assert cr.compare(x * y, u * v)
    assert not cr.compare(x - y, y - x)  # both hold x and y, which stand for themselves
    assert not cr.compare(cr.exp(x) * 2.0, cr.exp(u) * 3.0)


def test_sizes_correspond_one_to_one() -> None:
    def total(*sizes: str) -> cr.Tensor:
        return cr.sum(cr.input("x", sizes)) / cr.sum(cr.ones((sizes[0],)))

    assert cr.compare(total("a", "b"), total("n", "m"))
    assert not cr.compare(total("a", "b"), total("n", "n"))
    assert not cr.compare(total("a", "a"), total("n", "m"))


def test_users_ops_go_by_meaning() -> None:
    x = cr.input("x", (3,))
    f, g = cr.elementwise("f", "x*exp(x)"), cr.elementwise("g", "x*exp(x)")
    other = cr.elementwise("f", "x*sin(x)")
    assert cr.compare(f(x), g(x))
    assert not cr.compare(f(x), other(x))


def test_deep_and_shared_graphs_are_walked_once() -> None:
    def deep() -> cr.Tensor:
        h = cr.input("x", (3,))
        for _ in range(3000):
            h = cr.tanh(h + h)
        return h

    assert cr.compare(deep(), deep())
