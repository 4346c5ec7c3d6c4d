"""Writes docs/gradients.md, gradients as they print: `python docs/gradients.py`. A test compares.

Each entry is a few lines of Python that make a loss `J`, and the names it is differentiated by.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import chainrule as cr

PAGE = Path(__file__).with_suffix(".md")

HEAD = """\
# Gradients

The gradients of an introductory course, as chainrule derives and prints them: text, then LaTeX.
This page is written by `python docs/gradients.py`; a test holds it to what the code prints, reads
every gradient back with `cr.parse`, and holds it to finite differences.

Each example goes on from these lines, and prints `cr.page(cr.grad(J, [...]))`: the gradients named,
with what they share bound once.

"""

TAIL = """\
How to read them: `@` is the product of matrices, ⊙ that of elements, ᵀ the transpose, `[h > 0]`
is 1 where the condition holds and 0 elsewhere, `onehot(t)` a row with a 1 at the place `t`. `z1`,
`h1`, `p1` are values of the forward pass: a sum of products, an activation, probabilities. `dz1`
is the cotangent of `z1`, ∂J/∂z1; `t1` is some other part, and `g1` a cotangent of something
without a name. `n` is the batch, whatever its size.

A loop says how it begins and then what step t computes, `h[t]` from `h[t-1]`; `h` alone is the
stack of all `h[t]`, and `gh[t]` what step t passes back to the `h` it was given.
"""

SETUP = """\
import chainrule as cr

x, y = cr.input("x", ("n", 4)), cr.input("y", ("n",))
Y, t = cr.input("Y", ("n", 3)), cr.input("t", ("n",), dtype="int32")
w, b = cr.parameter("w", (4,)), cr.parameter("b", ())
W, c = cr.parameter("W", (4, 3)), cr.parameter("c", (3,))
"""

#: heading -> title -> (the code, what the loss is differentiated by)
EXAMPLES: dict[str, dict[str, tuple[str, str]]] = {
    "One layer": {
        "Linear regression": ("J = cr.mean((x @ w + b - y) ** 2)", "w b"),
        "Ridge regression": ("J = cr.sum((x @ w - y) ** 2) + 0.1 * cr.sum(w**2)", "w"),
        "Lasso": ("J = cr.mean((x @ w - y) ** 2) + 0.1 * cr.sum(cr.abs(w))", "w"),
        "Perceptron": ("J = cr.sum(cr.relu(-y * (x @ w + b)))", "w b"),
        "Support vector machine": (
            "J = cr.sum(w**2) / 2 + 10.0 * cr.mean(cr.relu(1 - y * (x @ w + b)))",
            "w b",
        ),
        "Logistic regression": ("J = cr.losses.binary_cross_entropy(x @ w + b, y)", "w b"),
        "Softmax regression": ("J = cr.losses.cross_entropy(x @ W + c, t)", "W c"),
        "Poisson regression": ("J = cr.mean(cr.exp(x @ w) - y * (x @ w))", "w"),
    },
    "Losses": {
        "Mean squared error": ("J = cr.losses.mse(x @ W + c, Y)", "W c"),
        "Mean absolute error": ("J = cr.losses.mae(x @ W + c, Y)", "W"),
        "Huber": ("J = cr.losses.huber(x @ W + c, Y)", "W"),
        "Hinge": ("J = cr.mean(cr.relu(1 - y * (x @ w)))", "w"),
        "Hinge of several classes": (
            "z = x @ W\n"
            "margin = cr.relu(1 + z - cr.pick(z, t)[:, None])\n"
            "J = cr.mean(cr.sum(margin, axis=1))",
            "W",
        ),
        "Cross-entropy of soft labels": (
            "J = -cr.mean(cr.sum(Y * cr.log_softmax(x @ W), axis=1))",
            "W",
        ),
        "Label smoothing": (
            "soft = 0.9 * cr.one_hot(t, 3) + 0.05\n"
            "J = -cr.mean(cr.sum(soft * cr.log_softmax(x @ W), axis=1))",
            "W",
        ),
        "Kullback-Leibler divergence": (
            "J = cr.mean(cr.sum(Y * (cr.log(Y) - cr.log_softmax(x @ W)), axis=1))",
            "W",
        ),
        "Cosine distance": (
            "u = x @ W\n"
            "length = cr.sqrt(cr.sum(u**2, axis=1))\n"
            "J = 1 - cr.mean(cr.sum(u * Y, axis=1) / length)",
            "W",
        ),
        "Policy gradient": (
            'r = cr.input("r", ("n",))\nJ = -cr.mean(r * cr.pick(cr.log_softmax(x @ W), t))',
            "W",
        ),
    },
    "Networks": {
        "Two layers, sigmoid": (
            'V = cr.parameter("V", (3, 2))\n'
            "J = cr.losses.cross_entropy(cr.sigmoid(x @ W + c) @ V, t)",
            "V W c",
        ),
        "Three layers, ReLU": (
            'V, U = cr.parameter("V", (3, 5)), cr.parameter("U", (5, 2))\n'
            "J = cr.losses.cross_entropy(cr.relu(cr.relu(x @ W + c) @ V) @ U, t)",
            "U V W",
        ),
        "Dropout": (
            'm, V = cr.input("m", ("n", 3)), cr.parameter("V", (3, 2))\n'
            'h = (cr.relu(x @ W) * m / 0.5).named("h")\n'
            "J = cr.losses.cross_entropy(h @ V, t)",
            "V W",
        ),
        "Residual block": (
            'V, U = cr.parameter("V", (4, 6)), cr.parameter("U", (6, 4))\n'
            'h = (x + cr.relu(x @ V) @ U).named("h")\n'
            "J = cr.losses.cross_entropy(h @ W, t)",
            "W U V",
        ),
        "Autoencoder": (
            'V = cr.parameter("V", (3, 4))\nJ = cr.losses.mse(cr.sigmoid(x @ W + c) @ V, x)',
            "V W",
        ),
        "Autoencoder, tied weights": ("J = cr.losses.mse((x @ W) @ W.T, x)", "W"),
        "Variational autoencoder": (
            'e = cr.input("ε", ("n", 2))\n'
            'A, B, D = (cr.parameter(k, s) for k, s in zip("ABD", ((4, 2), (4, 2), (2, 4))))\n'
            'mean, s = (x @ A).named("μ"), (x @ B).named("s")\n'
            'z = (mean + cr.exp(s / 2) * e).named("z")\n'
            "J = cr.sum((z @ D - x) ** 2) + cr.sum(mean**2 + cr.exp(s) - s - 1) / 2",
            "D A B",
        ),
    },
    "Normalization": {
        "Batch norm": (
            'gamma, beta = cr.parameter("γ", (3,)), cr.parameter("β", (3,))\n'
            'z = (x @ W).named("z")\n'
            "centred = z - cr.mean(z, axis=0)\n"
            "h = centred / cr.sqrt(cr.var(z, axis=0) + 1e-5)\n"
            "J = cr.losses.mse(gamma * h + beta, Y)",
            "gamma beta W",
        ),
        "Layer norm": (
            'gamma, beta = cr.parameter("γ", (3,)), cr.parameter("β", (3,))\n'
            'z = (x @ W).named("z")\n'
            "J = cr.losses.mse(cr.layer_norm(z, gamma, beta), Y)",
            "gamma beta W",
        ),
        "RMS norm": (
            'gamma = cr.parameter("γ", (3,))\n'
            'z = (x @ W).named("z")\n'
            "h = z / cr.sqrt(cr.mean(z**2, axis=1, keepdims=True) + 1e-5)\n"
            "J = cr.losses.mse(gamma * h, Y)",
            "gamma W",
        ),
    },
    "Images, sequences, words": {
        "Convolution": (
            's, k = cr.input("s", ("n", 2, 10)), cr.parameter("k", (5, 2, 3))\n'
            "J = cr.mean(cr.tanh(cr.conv(s, k)) ** 2)",
            "k",
        ),
        "Convolution, max pooling and a dense layer": (
            's, k = cr.input("s", ("n", 1, 8, 8)), cr.parameter("k", (5, 1, 3, 3))\n'
            'd, V = cr.parameter("d", (5,)), cr.parameter("V", (45, 3))\n'
            "h = cr.max_pool(cr.relu(cr.conv(s, k) + d[:, None, None]), 2)\n"
            "J = cr.losses.cross_entropy(cr.reshape(h, (-1, 45)) @ V, t)",
            "V k d",
        ),
        "Average pooling": (
            's, k = cr.input("s", ("n", 1, 8, 8)), cr.parameter("k", (5, 1, 3, 3))\n'
            "J = cr.mean(cr.avg_pool(cr.tanh(cr.conv(s, k)), 2) ** 2)",
            "k",
        ),
        "Recurrent network, three steps": (
            'U, V = cr.parameter("U", (3, 3)), cr.parameter("V", (3, 2))\n'
            'h = cr.input("h0", ("n", 3))\n'
            "for i in range(1, 4):\n"
            '    h = cr.tanh(cr.input(f"x{i}", ("n", 4)) @ W + h @ U)\n'
            "J = cr.losses.cross_entropy(h @ V, t)",
            "V U W",
        ),
        "LSTM cell": (
            'h, c = cr.input("h", ("n", 3)), cr.input("c", ("n", 3))\n'
            'Wf, Wi, Wo, Wg = (cr.parameter("W" + k, (4, 3)) for k in "fiog")\n'
            'Uf, Ui, Uo, Ug = (cr.parameter("U" + k, (3, 3)) for k in "fiog")\n'
            'f = cr.sigmoid(x @ Wf + h @ Uf).named("f")\n'
            'i = cr.sigmoid(x @ Wi + h @ Ui).named("i")\n'
            'o = cr.sigmoid(x @ Wo + h @ Uo).named("o")\n'
            'g = cr.tanh(x @ Wg + h @ Ug).named("g")\n'
            'new = (f * c + i * g).named("c2")\n'
            "J = cr.losses.mse(o * cr.tanh(new), Y)",
            "Wo Wg Wf Uf",
        ),
        "GRU cell": (
            'h = cr.input("h", ("n", 3))\n'
            'Wz, Wr, Wg = (cr.parameter("W" + k, (4, 3)) for k in "zrg")\n'
            'Uz, Ur, Ug = (cr.parameter("U" + k, (3, 3)) for k in "zrg")\n'
            'z = cr.sigmoid(x @ Wz + h @ Uz).named("z")\n'
            'r = cr.sigmoid(x @ Wr + h @ Ur).named("r")\n'
            'g = cr.tanh(x @ Wg + (r * h) @ Ug).named("g")\n'
            "J = cr.losses.mse((1 - z) * h + z * g, Y)",
            "Wz Wg Wr",
        ),
        "Recurrent network": (
            'X, H0 = cr.input("X", ("T", "n", 4)), cr.input("H0", ("n", 3))\n'
            'U = cr.parameter("U", (3, 3))\n'
            "def step(h, x):\n"
            '    h = cr.tanh(x @ W + h @ U + c).named("h")\n'
            "    return h, h\n"
            "last, hs = cr.scan(step, H0, X)\n"
            "J = cr.losses.mse(last, Y)",
            "U W c",
        ),
        "Recurrent network, an output at every step": (
            'X, R = cr.input("X", ("T", "n", 4)), cr.input("R", ("T", "n", 2))\n'
            'U, V = cr.parameter("U", (3, 3)), cr.parameter("V", (3, 2))\n'
            "def step(h, x):\n"
            '    h = cr.tanh(x @ W + h @ U).named("h")\n'
            "    return h, h\n"
            'last, hs = cr.scan(step, cr.zeros(("n", 3)), X)\n'
            "J = cr.losses.mse(hs @ V, R)",
            "V U W",
        ),
        "LSTM": (
            'X = cr.input("X", ("T", "n", 4))\n'
            'Wf, Wi, Wo, Wg = (cr.parameter("W" + k, (4, 3)) for k in "fiog")\n'
            'Uf, Ui, Uo, Ug = (cr.parameter("U" + k, (3, 3)) for k in "fiog")\n'
            "def step(carry, x):\n"
            "    h, c = carry\n"
            '    f = cr.sigmoid(x @ Wf + h @ Uf).named("f")\n'
            '    i = cr.sigmoid(x @ Wi + h @ Ui).named("i")\n'
            '    o = cr.sigmoid(x @ Wo + h @ Uo).named("o")\n'
            '    g = cr.tanh(x @ Wg + h @ Ug).named("g")\n'
            '    c = (f * c + i * g).named("c")\n'
            '    return ((o * cr.tanh(c)).named("h"), c), None\n'
            'zero = cr.zeros(("n", 3))\n'
            "(h, c), _ = cr.scan(step, (zero, zero), X)\n"
            "J = cr.losses.mse(h, Y)",
            "Wf Uf",
        ),
        "GRU": (
            'X = cr.input("X", ("T", "n", 4))\n'
            'Wz, Wr, Wg = (cr.parameter("W" + k, (4, 3)) for k in "zrg")\n'
            'Uz, Ur, Ug = (cr.parameter("U" + k, (3, 3)) for k in "zrg")\n'
            "def step(h, x):\n"
            '    z = cr.sigmoid(x @ Wz + h @ Uz).named("z")\n'
            '    r = cr.sigmoid(x @ Wr + h @ Ur).named("r")\n'
            '    g = cr.tanh(x @ Wg + (r * h) @ Ug).named("g")\n'
            '    return ((1 - z) * h + z * g).named("h"), None\n'
            'h, _ = cr.scan(step, cr.zeros(("n", 3)), X)\n'
            "J = cr.losses.mse(h, Y)",
            "Ur",
        ),
        "Attention": (
            'Q, K, V, O = (cr.input(k, ("T", 16)) for k in "QKVO")\n'
            'P = cr.softmax(Q @ K.T / 4.0).named("P")\n'
            'J = cr.sum((P @ V).named("A") * O)',
            "V K Q",
        ),
        "Self-attention": (
            's, O = cr.input("s", ("T", 8)), cr.input("O", ("T", 4))\n'
            'Wq, Wk, Wv = (cr.parameter("W" + k, (8, 4)) for k in "qkv")\n'
            'Q, K, V = (s @ Wq).named("Q"), (s @ Wk).named("K"), (s @ Wv).named("V")\n'
            'P = cr.softmax(Q @ K.T / 2.0).named("P")\n'
            'J = cr.losses.mse((P @ V).named("A"), O)',
            "Wv Wk Wq",
        ),
        "Embedding": (
            'E, s = cr.parameter("E", (20, 4)), cr.input("s", ("n",), dtype="int32")\n'
            "J = cr.losses.cross_entropy(E[s] @ W, t)",
            "W E",
        ),
        "Word vectors, negative sampling": (
            'u, v = cr.parameter("u", (4,)), cr.parameter("v", (4,))\n'
            'N = cr.parameter("N", (5, 4))\n'
            "J = -cr.log(cr.sigmoid(u @ v)) - cr.sum(cr.log(cr.sigmoid(-(N @ v))))",
            "u v N",
        ),
    },
    "Matrices": {
        "Matrix factorization": (
            'R, U, V = (cr.input(k, s) for k, s in zip("RUV", (("m", "k"), ("m", 3), ("k", 3))))\n'
            "J = cr.sum((R - U @ V.T) ** 2) + 0.1 * (cr.sum(U**2) + cr.sum(V**2))",
            "U V",
        ),
        "Principal components, tr(Wᵀ S W)": (
            'S = cr.input("S", (4, 4))\nJ = cr.sum(W * (S @ W))',
            "W",
        ),
        "Quadratic form": ('A = cr.input("A", (4, 4))\nJ = w @ A @ w', "w"),
        "Least squares of a norm": ("J = cr.sqrt(cr.sum((x @ w - y) ** 2))", "w"),
        "Smooth maximum": ("J = cr.logsumexp(x @ w)", "w"),
    },
}

#: activations, each of a vector
ACTIVATIONS = (
    "sigmoid",
    "tanh",
    "relu",
    "relu6",
    "leaky_relu",
    "elu",
    "selu",
    "softplus",
    "log_sigmoid",
    "silu",
    "mish",
    "gelu",
    "softsign",
    "tanhshrink",
    "hard_sigmoid",
    "hard_swish",
    "softmax",
    "log_softmax",
)
#: derivatives of what is no loss: title -> the code that makes `D`
DERIVATIVES = {
    "Jacobian of a layer": 'A = cr.parameter("A", (5, 4))\nD = cr.jacobian(cr.tanh(A @ w), w)',
    "Jacobian of softmax": "D = cr.jacobian(cr.softmax(w), w)",
    "Hessian of logistic regression": (
        "D = cr.hessian(cr.losses.binary_cross_entropy(x @ w, y), w)"
    ),
    "Hessian of a quadratic form": 'A = cr.input("A", (4, 4))\nD = cr.hessian(w @ A @ w, w)',
    "Hessian times a vector": (
        'v = cr.input("v", (4,))\nJ = cr.mean(cr.exp(x @ w) - y * (x @ w))\nD = cr.hvp(J, w, v)'
    ),
    "Jacobian times a vector": 'v = cr.input("v", (4,))\nD = cr.jvp(cr.tanh(x @ w), w, v)',
}
VECTOR = 'v, a = cr.input("v", (5,)), cr.input("a", (5,))\n'


def derivative(code: str) -> cr.Tensor:
    """The derivative `D` that a code makes."""
    names: dict[str, object] = {}
    exec(compile(SETUP + code, "gradients.py", "exec"), names)
    found = names["D"]
    assert isinstance(found, cr.Tensor)
    return found


def derive(code: str, by: str) -> tuple[cr.Tensor, list[cr.Tensor], list[cr.Tensor]]:
    """The loss that a code makes, its gradients, and every leaf there is."""
    names: dict[str, object] = {}
    exec(compile(SETUP + code, "gradients.py", "exec"), names)
    loss = names["J"]
    assert isinstance(loss, cr.Tensor)
    wanted = [t for name in by.split() if isinstance(t := names[name], cr.Tensor)]
    return loss.named("J"), cr.grad(loss, wanted), wanted


def examples() -> Iterator[tuple[str, str, str, str]]:
    """Heading, title, code and names of every example."""
    for heading, group in EXAMPLES.items():
        for title, (code, by) in group.items():
            yield heading, title, code, by
    for name in ACTIVATIONS:
        yield "Activations", name, f"{VECTOR}J = cr.sum(cr.{name}(v) * a)", "v"


def page() -> str:
    """The whole page."""
    parts = [HEAD, f"```python\n{SETUP}```\n\n", TAIL]
    last = ""
    for heading, title, code, by in examples():
        if heading != last:
            parts.append(f"\n## {heading}\n")
            last = heading
        shown = cr.page(derive(code, by)[1])
        if heading == "Activations":
            code = code.removeprefix(VECTOR)
        parts.append(
            f"\n### {title}\n\n```python\n{code}\n```\n\n```\n{shown}\n```\n\n"
            f"$$\n{shown.latex()}\n$$\n"
        )
    parts.append(
        "\n## Jacobians, Hessians\n\nThese print `D`, in the rows that they are made of.\n"
    )
    for title, code in DERIVATIVES.items():
        found = derivative(code)
        parts.append(
            f"\n### {title}\n\n```python\n{code}\n```\n\n```\n{found}\n```\n\n"
            f"$$\n{found.latex()}\n$$\n"
        )
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
