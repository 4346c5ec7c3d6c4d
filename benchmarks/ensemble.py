"""Many small nets at once, beside as many one after the other and JAX's vmap, interleaved.

    taskset -c 0 python benchmarks/ensemble.py

Two hidden layers, ten classes, Adam, minibatches of 32, one thread each. An epoch of 32 steps is
timed in turn for each contender, medians of so many rounds, in microseconds of CPU time a step of
one net (so that what else a machine does counts little): `alone` is `run` of one net, `called` a
call a step; `ensemble` and `vmap` train all of them, JAX in one `lax.scan` of a vmapped step,
compiled. JAX is left out where it is not installed.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import numpy as np  # noqa: E402

import chainrule as cr  # noqa: E402

INPUTS, CLASSES, BATCH, STEPS, RATE, ROUNDS = 16, 10, 32, 32, 1e-3, 15
WIDTHS, COUNTS = (4, 8, 16, 32), (16, 64)
Array = np.ndarray[Any, Any]


def net(width: int) -> cr.Tensor:
    x, y = cr.input("x", ("batch", INPUTS)), cr.input("y", ("batch",), dtype="int32")
    h, last = x, INPUTS
    for i in range(2):
        w, b = cr.parameter(f"W{i}", (last, width)), cr.parameter(f"b{i}", (width,))
        h, last = cr.relu(h @ w + b), width
    z = h @ cr.parameter("W2", (last, CLASSES)) + cr.parameter("b2", (CLASSES,))
    return cr.losses.cross_entropy(z, y)


def ours(width: int, count: int | None, data: dict[str, Array]) -> Callable[[], object]:
    step = cr.training_step(net(width), cr.optim.Adam(RATE), ensemble=count, threads=1)
    return lambda: step.run(**data, batch_size=BATCH, shuffle=False)


def called(width: int, data: dict[str, Array]) -> Callable[[], object]:
    step = cr.training_step(net(width), cr.optim.Adam(RATE), threads=1)
    batches = [{k: a[i * BATCH :][:BATCH] for k, a in data.items()} for i in range(STEPS)]

    def epoch() -> None:
        for batch in batches:
            step(**batch)

    return epoch


def vmapped(width: int, count: int, data: dict[str, Array]) -> Callable[[], object] | None:
    try:
        import jax
        import jax.numpy as jnp
    except ImportError:
        return None
    sizes = [(INPUTS, width), (width, width), (width, CLASSES)]
    rng = np.random.default_rng(0)
    weights = [
        (
            jnp.asarray(rng.normal(size=(count, *s)) / s[0] ** 0.5, "float32"),
            jnp.zeros((count, s[1])),
        )
        for s in sizes
    ]

    def loss_of(layers: Any, x: Any, y: Any) -> Any:
        h = x
        for w, b in layers[:-1]:
            h = jax.nn.relu(h @ w + b)
        w, b = layers[-1]
        logs = jax.nn.log_softmax(h @ w + b)
        return -jnp.mean(jnp.take_along_axis(logs, y[:, None], axis=1))

    def one(layers: Any, m: Any, v: Any, t: Any, x: Any, y: Any) -> Any:
        loss, slopes = jax.value_and_grad(loss_of)(layers, x, y)
        tree = jax.tree_util.tree_map
        m = tree(lambda a, g: 0.9 * a + 0.1 * g, m, slopes)
        v = tree(lambda a, g: 0.999 * a + 0.001 * g * g, v, slopes)
        first, second = 1 - 0.9**t, 1 - 0.999**t

        def moved(w: Any, a: Any, b: Any) -> Any:
            return w - RATE * (a / first) / (jnp.sqrt(b / second) + 1e-8)

        return tree(moved, layers, m, v), m, v, loss

    def step(state: Any, batch: Any) -> Any:
        layers, m, v, t = state
        each = jax.vmap(one, in_axes=(0, 0, 0, None, None, None))
        layers, m, v, loss = each(layers, m, v, t + 1, *batch)
        return (layers, m, v, t + 1), loss

    run = jax.jit(lambda state, batches: jax.lax.scan(step, state, batches))
    batches = tuple(a.reshape(STEPS, BATCH, *a.shape[1:]) for a in (data["x"], data["y"]))
    zeros = jax.tree_util.tree_map(jnp.zeros_like, weights)
    held = [(weights, zeros, zeros, 0.0)]

    def epoch() -> None:
        held[0], losses = run(held[0], batches)
        losses.block_until_ready()

    return epoch


def main() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH * STEPS, INPUTS)).astype(np.float32)
    data = {"x": x, "y": rng.integers(0, CLASSES, len(x)).astype(np.int32)}
    print(
        "| width | nets | alone | called | ensemble | vmap | alone/ens. | called/ens. | vmap/ens. |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for width in WIDTHS:
        for count in COUNTS:
            made = {
                "alone": ours(width, None, data),
                "called": called(width, data),
                "ensemble": ours(width, count, data),
                "vmap": vmapped(width, count, data),
            }
            taken: dict[str, list[float]] = {name: [] for name in made}
            for epoch in made.values():
                if epoch is not None:
                    epoch()
            for _ in range(ROUNDS):
                for name, epoch in made.items():
                    if epoch is not None:
                        epoch()  # whatever was left in caches by the one before
                        begun = time.process_time()
                        epoch()
                        share = count if name in ("ensemble", "vmap") else 1
                        taken[name].append((time.process_time() - begun) / STEPS / share * 1e6)
            us = {name: statistics.median(t) if t else float("nan") for name, t in taken.items()}
            ratios = [us[name] / us["ensemble"] for name in ("alone", "called", "vmap")]
            cells = [f"{v:.2f}" for v in us.values()] + [f"{r:.1f}" for r in ratios]
            print(f"| {width} | {count} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
