"""chainrule: workloads written as users would.

chainrule       one native call runs `spec.scan` consecutive minibatches (`step.run`)
chainrule-call  one Python call a step, with the minibatch's arrays as keyword arguments
"""

from __future__ import annotations

import math
from typing import Any

VARIANTS = {"chainrule": {"whole": True}, "chainrule-call": {"whole": False}}
NEEDS = ("chainrule",)
SLOW = ()
SETTINGS = {
    "chainrule": "one native call for many steps (step.run)",
    "chainrule-call": "one Python call a step",
}
#: the kinds of workload that are spelled below
KINDS = ("mlp", "logreg", "cnn", "vae", "lstm", "gpt")


def env(threads: int, cache: str, **_: Any) -> dict[str, str]:
    """What the worker runs in: a cache of its own, so that every compile is cold."""
    return {"CHAINRULE_CACHE": cache}


def supports(spec: Any, threads: int, **_: Any) -> str | None:
    """Why a workload can't be run, or None."""
    return None if spec.kind in KINDS else f"no spelling of {spec.kind!r}"


def loss_of(spec: Any, params: dict[str, Any]) -> Any:
    """The loss of a workload as an expression, with its initial weights."""
    import chainrule as cr

    p = {name: cr.parameter(name, a.shape, init=a) for name, a in params.items()}
    return globals()[f"_{spec.kind}"](cr, spec.shape, p)


def _mlp(cr: Any, shape: dict[str, Any], p: dict[str, Any]) -> Any:
    sizes, last = shape["sizes"], len(shape["sizes"]) - 2
    h = cr.input("x", ("batch", sizes[0]))
    for i in range(last + 1):
        h = h @ p[f"W{i}"] + p[f"b{i}"]
        if i < last:
            h = getattr(cr, shape["act"])(h)
            if shape.get("dropout"):
                h = cr.dropout(h, shape["dropout"])
    if shape["loss"] == "mse":
        return cr.losses.mse(h, cr.input("t", ("batch", sizes[-1])))
    return cr.losses.cross_entropy(h, cr.input("y", ("batch",), dtype="int32"))


def _logreg(cr: Any, shape: dict[str, Any], p: dict[str, Any]) -> Any:
    x = cr.input("x", ("batch", shape["sizes"][0]))
    z = (x @ p["W0"] + p["b0"])[:, 0]
    return cr.losses.binary_cross_entropy(z, cr.input("t", ("batch",)))


def _cnn(cr: Any, shape: dict[str, Any], p: dict[str, Any]) -> Any:
    channels, side = shape["image"]
    h = cr.input("x", ("batch", channels, side, side))
    for i, (_, out, _, padding, pool) in enumerate(shape["conv"]):
        h = cr.relu(cr.conv(h, p[f"K{i}"], padding=padding) + cr.reshape(p[f"kb{i}"], (out, 1, 1)))
        h = cr.max_pool(h, 2) if pool else h
    h = cr.reshape(h, (h.shape[0], -1))
    for i in range(len(shape["dense"]) - 1):
        h = h @ p[f"W{i}"] + p[f"b{i}"]
        h = cr.relu(h) if i < len(shape["dense"]) - 2 else h
    return cr.losses.cross_entropy(h, cr.input("y", ("batch",), dtype="int32"))


def _vae(cr: Any, shape: dict[str, Any], p: dict[str, Any]) -> Any:
    x = cr.input("x", ("batch", shape["d"]))
    noise = cr.input("eps", ("batch", shape["z"]))
    h = cr.relu(x @ p["W0"] + p["b0"])
    mu, logvar = h @ p["W1"] + p["b1"], h @ p["W2"] + p["b2"]
    z = mu + noise * cr.exp(0.5 * logvar)
    logits = cr.relu(z @ p["W3"] + p["b3"]) @ p["W4"] + p["b4"]
    bce = cr.maximum(logits, 0) - logits * x + cr.log1p(cr.exp(-cr.abs(logits)))
    kl = -0.5 * cr.sum(1 + logvar - mu * mu - cr.exp(logvar), axis=-1)
    return cr.mean(cr.sum(bce, axis=-1) + kl)


def _lstm(cr: Any, shape: dict[str, Any], p: dict[str, Any]) -> Any:
    hidden, length = shape["hidden"], shape["seq"]
    xy = cr.input("xy", ("batch", length + 1), dtype="int32")
    x, y = xy[:, :-1], xy[:, 1:]
    inputs = cr.take(p["emb"], cr.matrix_transpose(x), axis=0) @ p["Wih"] + (p["bih"] + p["bhh"])

    def cell(carry: Any, gates: Any) -> Any:
        h, c = carry
        z = gates + h @ p["Whh"]
        i, f, n, o = (z[:, k * hidden : (k + 1) * hidden] for k in range(4))
        c = cr.sigmoid(f) * c + cr.sigmoid(i) * cr.tanh(n)
        h = cr.sigmoid(o) * cr.tanh(c)
        return (h, c), h

    start = cr.zeros((xy.shape[0], hidden))
    _, hs = cr.scan(cell, (start, start), inputs)
    return cr.losses.cross_entropy(hs @ p["W0"] + p["b0"], cr.matrix_transpose(y))


def _gpt(cr: Any, shape: dict[str, Any], p: dict[str, Any]) -> Any:
    width, heads, length = shape["d"], shape["heads"], shape["ctx"]
    xy = cr.input("xy", ("batch", length + 1), dtype="int32")
    x, y = xy[:, :-1], xy[:, 1:]
    batch = xy.shape[0]
    h = cr.take(p["wte"], x, axis=0) + p["wpe"]
    for i in range(shape["layers"]):
        a = cr.layer_norm(h, p[f"ln1g_{i}"], p[f"ln1b_{i}"]) @ p[f"Wqkv_{i}"] + p[f"bqkv_{i}"]
        q, k, v = (
            cr.permute_dims(
                cr.reshape(
                    a[:, :, j * width : (j + 1) * width], (batch, length, heads, width // heads)
                ),
                (0, 2, 1, 3),
            )
            for j in range(3)
        )
        a = cr.permute_dims(cr.attention(q, k, v, causal=True), (0, 2, 1, 3))
        h = h + cr.reshape(a, (batch, length, width)) @ p[f"Wo_{i}"] + p[f"bo_{i}"]
        f = cr.layer_norm(h, p[f"ln2g_{i}"], p[f"ln2b_{i}"]) @ p[f"Wfc_{i}"] + p[f"bfc_{i}"]
        h = h + cr.gelu(f, approximate="tanh") @ p[f"Wpr_{i}"] + p[f"bpr_{i}"]
    z = cr.layer_norm(h, p["lnfg"], p["lnfb"]) @ p["W0"]
    return cr.losses.cross_entropy(z, y)


def optimizer_of(options: dict[str, Any]) -> Any:
    """The optimizer that a workload names."""
    import chainrule as cr

    if options["kind"] == "sgd":
        return cr.optim.SGD(options["lr"], momentum=options["momentum"])
    betas = (options["b1"], options["b2"])
    if options["kind"] == "adam":
        return cr.optim.Adam(options["lr"], betas=betas, eps=options["eps"])
    return cr.optim.AdamW(
        options["lr"], betas=betas, eps=options["eps"], weight_decay=options["wd"]
    )


class ChainruleStep:
    """A workload's training step over its minibatches, in order and around."""

    def __init__(self, spec: Any, threads: int, whole: bool) -> None:
        import chainrule as cr

        self.batch, self.count, self.data = spec.batch, spec.nbatch, spec.data()
        self.steps_per_call = math.gcd(spec.scan, spec.nbatch) if whole else 1
        loss = loss_of(spec, spec.params())
        self.step = cr.training_step(loss, optimizer_of(spec.opt), threads=threads, seed=spec.seed)
        self.last: Any = [math.nan]

    def __call__(self, i: int) -> None:
        first = i % self.count * self.batch
        rows = slice(first, first + self.steps_per_call * self.batch)
        feeds = {name: a[rows] for name, a in self.data.items()}
        if self.steps_per_call == 1:
            self.last = [self.step(**feeds)]
        else:
            self.last = self.step.run(batch_size=self.batch, shuffle=False, **feeds)

    def loss(self) -> float:
        """The loss of the last step."""
        return float(self.last[-1])

    def losses(self) -> list[float]:
        """The losses of the last call's steps."""
        return [float(loss) for loss in self.last]

    def sync(self) -> None:
        """Nothing is left to do when a call returns."""


def make_step(spec: Any, threads: int, **options: Any) -> ChainruleStep:
    """The workload, ready to run."""
    return ChainruleStep(spec, threads, **options)
