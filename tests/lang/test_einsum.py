"""The subscripts of einsum beside NumPy's: diagonals, axes that broadcast, results left out."""

from __future__ import annotations

import numpy as np

import chainrule as cr

A = np.random.default_rng(31).normal(size=(3, 4))
C = np.random.default_rng(32).normal(size=(2, 3, 4)).astype("float32")
V = np.array([3.0, -1.0, 2.0, 0.0, 5.0])
SQUARES = np.stack([A[:, :3]] * 2)
EINSUMS = {
    "ii": (A[:, :3],), "ii->i": (A[:, :3],), "iij->j": (np.stack([A[:, :3]] * 3, 1),),
    "...ij,...jk->...ik": (C, C.swapaxes(1, 2)), "...i,...i": (C, C[0]), "i...->...": (C,),
    "...": (C,), "b...,...->b...": (C, C[0]), "ij,jk": (A, A.T), "ba": (A,),
    "...ii->...": (SQUARES,), "ijj,j->i": (SQUARES, V[:3]), "i,j,k->kji": (V, V, V),
    "ij,ik->jk": (A, A[:1]), "ij,ij": (A[:1], A), "...a,...b->...ab": (C[:, :1], C[0]),
}  # fmt: skip


def test_einsum_is_numpys() -> None:
    tensors, want, feeds = [], [], {}
    for text, arrays in EINSUMS.items():
        names = [f"x{len(feeds) + i}" for i in range(len(arrays))]
        feeds |= dict(zip(names, arrays, strict=True))
        inputs = [
            cr.input(n, a.shape, dtype=a.dtype.name) for n, a in zip(names, arrays, strict=True)
        ]
        tensors.append(cr.einsum(text, *inputs))
        want.append(np.einsum(text, *arrays))
    for backend in ("cpu", "reference"):
        for text, got, wanted in zip(
            EINSUMS, cr.compile(tensors, backend=backend)(**feeds), want, strict=True
        ):
            np.testing.assert_allclose(got, wanted, 2e-6, 2e-6, err_msg=text)


def test_einsum_has_its_derivative() -> None:
    """It is linear in its first operand x: x times the derivative along x is the value."""
    found, feeds = [], {}
    for text, arrays in EINSUMS.items():
        names = [f"x{len(feeds) + i}" for i in range(len(arrays))]
        feeds |= {n: a.astype("float64") for n, a in zip(names, arrays, strict=True)}
        first, *others = (cr.input(n, feeds[n].shape, dtype="float64") for n in names)
        out = cr.sum(cr.einsum(text, first, *others) ** 2) / 2
        found.append([cr.sum(cr.grad(out, first) * first) / 2, out])
    for text, (got, want) in zip(EINSUMS, cr.compile(found)(**feeds), strict=True):
        np.testing.assert_allclose(got, want, 1e-12, err_msg=text)
