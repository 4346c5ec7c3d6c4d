"""Attention and its gradients as they print: what is read back has the same value."""

import numpy as np
import pytest

import chainrule as cr

SEED = 4


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", [None, ("b", "T", "T"), ("T", "T")])
def test_what_is_printed_reads_back(causal, mask):
    q, k, v = (cr.input(name, ("b", "T", 4)) for name in "qkv")
    leaves, feeds = [q, k, v], np.random.default_rng(SEED)
    values = {t.name: feeds.standard_normal((2, 3, 4)).astype("float32") for t in leaves}
    seen = None
    if mask is not None:
        seen = cr.input("seen", mask, dtype="bool")
        leaves.append(seen)
        values["seen"] = feeds.random((2, 3, 3)[-len(mask) :]) > 0.3
    out = cr.attention(q, k, v, causal=causal, mask=seen)
    for expression in (out, *cr.grad(cr.sum(out**2), [q, k, v])):
        back = cr.parse(str(expression), leaves)
        f = cr.compile([expression, back], backend="reference")
        one, other = f(**{name: values[name] for name in f.inputs})
        # the text says the same sums in the same order, up to float32's rounding
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6, err_msg=f"seed {SEED}")
