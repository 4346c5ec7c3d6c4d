"""The one product: a sum of products over shared axes, named by letters as einsum names them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from chainrule.errors import DTypeError, ShapeError
from chainrule.ir.node import Array, Node, Op, Sample, apply
from chainrule.ir.notation import ATOM, MATMUL, MULTIPLY, POWER, Notation, infix
from chainrule.ir.size import Dim, product
from chainrule.ir.types import TensorType, float64, int64, promote
from chainrule.ops import build, reading
from chainrule.ops.axes import Sum
from chainrule.ops.layout import Permute
from chainrule.records import dataclass


@dataclass(frozen=True)
class Contract(Op):
    """`einsum(f"{a},{b}->{out}", x, y)`.

    A letter stands once in each operand, and every letter of an operand stands in the other or in
    the result (what stands in one alone is summed before).

    With two `parts` a processor that multiplies blocks of bfloat16 may take a float32 factor as the
    sum of two such (loops.blocks), which leaves an error of at most 2**-16 of the products' sizes.
    With `tf32` a GPU with tensor cores may round float32 factors to TF32 (loops.tensor), of 2**-11
    of themselves at most.
    """

    role = "contract"
    letter = "z"
    name = "contract"
    a: str
    b: str
    out: str
    parts: int = 1
    tf32: bool = False

    @property
    def spec(self) -> str:
        """The einsum subscripts."""
        return f"{self.a},{self.b}->{self.out}"

    @property
    def summed(self) -> str:
        """The letters that are summed over, in the first operand's order."""
        return "".join(c for c in self.a if c not in self.out)

    def infer(self, *inputs: TensorType) -> TensorType:
        x, y = inputs
        if x.dtype != y.dtype or x.dtype.is_bool:
            raise DTypeError(f"a product needs one numeric element type: {x}, {y}")
        sizes: dict[str, Dim] = {}
        for letters, t in ((self.a, x), (self.b, y)):
            if len(letters) != t.rank:
                raise ShapeError(f"{self.spec} does not fit {x}, {y}")
            for letter, dim in zip(letters, t.shape, strict=True):
                if sizes.setdefault(letter, dim) != dim:
                    raise ShapeError(
                        f"a product needs its shared axes to agree: {self.spec} of {x}, {y}",
                        f"{letter} is {sizes[letter]} and {dim}",
                    )
        return x.with_shape(tuple(sizes[letter] for letter in self.out))

    def flops(self, out: TensorType, *inputs: TensorType) -> Dim:
        sizes = dict(zip(self.a, inputs[0].shape, strict=True))
        return 2 * product(out.shape) * product(tuple(sizes[c] for c in self.summed))

    def ref(self, *inputs: Array) -> Array:
        return np.asarray(np.einsum(self.spec, *inputs, optimize=True), inputs[0].dtype)

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        x, y = inputs
        return (
            contract(self.out, self.b, self.a, ct, y),
            contract(self.a, self.out, self.b, x, ct),
        )

    def notation(self, *inputs: Node) -> Notation:
        group = "".join(c for c in self.out if c in self.a and c in self.b)
        rows = "".join(c for c in self.a if c not in self.b)
        columns = "".join(c for c in self.b if c not in self.a)
        k, rest = self.summed, self.out.removeprefix(group)
        stacked = len(rows) == len(columns) == 1  # of vectors, @ would read as another product
        if len(k) == 1 and len(columns) <= 1 and (stacked or not group):
            lead, m = rows[:-1], rows[-1:]
            left = {group + lead + m + k: "", group + k + m: "ᵀ"} if not lead else {rows + k: ""}
            right = {group + k + columns: "", group + columns + k: "ᵀ"}
            known = self.a in left and self.b in right
            if known and rest == rows + columns:
                transposed = left[self.a] if m else "", right[self.b] if columns else ""
                return _product("0", transposed[0], "1", transposed[1])
            if known and not lead and m and columns and rest == columns + rows:
                flip = {"": "ᵀ", "ᵀ": ""}
                return _product("1", flip[right[self.b]], "0", flip[left[self.a]])
        if not k and "" in (self.a, self.b) and self.out == self.a + self.b:
            return infix("*", r"\,", MULTIPLY)
        if not k and not group and len(self.a) == len(self.b) == 1 and self.out == self.a + self.b:
            tex = r"{0} \otimes {1}"
            return Notation("outer({0}, {1})", tex, ATOM, (), MATMUL, (ATOM, ATOM))
        return Notation(
            f'einsum("{self.spec}", {{0}}, {{1}})',
            rf"\operatorname{{{{einsum}}}}_{{{{{self.spec}}}}}\left({{0}}, {{1}}\right)",
        )

    @classmethod
    def words(cls) -> dict[str, reading.Word]:
        return {"einsum": einsum, "outer": lambda x, y: einsum("i,j->ij", x, y)}

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield cls("mk", "kn", "mn"), [TensorType(float64, (2, 3)), TensorType(float64, (3, 4))]
        yield cls("km", "nk", "mn"), [TensorType(float64, (3, 2)), TensorType(float64, (4, 3))]
        yield cls("k", "k", ""), [TensorType(float64, (5,)), TensorType(float64, (5,))]
        yield cls("m", "n", "nm"), [TensorType(float64, (5,)), TensorType(float64, (2,))]
        x, y = TensorType(float64, (2, 3, 4)), TensorType(float64, (2, 4, 5))
        yield cls("gmk", "gkn", "gmn"), [x, y]
        yield cls("abk", "kn", "abn"), [x, TensorType(float64, (4, 5))]
        yield cls("mk", "kn", "mn"), [TensorType(int64, (2, 3)), TensorType(int64, (3, 4))]


def _product(first: str, first_t: str, second: str, second_t: str) -> Notation:
    tex = {"": "", "ᵀ": r"^{{\top}}"}
    by_place = (first_t, second_t) if first == "0" else (second_t, first_t)
    return Notation(
        f"{{{first}}}{first_t} @ {{{second}}}{second_t}",
        rf"{{{first}}}{tex[first_t]} \, {{{second}}}{tex[second_t]}",
        MATMUL,
        tuple(ATOM if transposed else POWER for transposed in by_place),
    )


_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def contract(a: str, b: str, out: str, x: Node, y: Node, *, parts: int = 1) -> Node:
    """The contraction, its letters renamed in order of appearance: equal ones are one."""
    rename = {c: _LETTERS[i] for i, c in enumerate(dict.fromkeys(a + b))}
    a, b, out = ("".join(rename[c] for c in letters) for letters in (a, b, out))
    return apply(Contract(a, b, out, parts), x, y)


def matmul(x: Node, y: Node) -> Node:
    """The matrix product by the array API standard: vectors, matrices, stacks of matrices."""
    if x.type.rank == 0 or y.type.rank == 0:
        what = f"matmul takes vectors and matrices: {x.type} @ {y.type}"
        raise ShapeError(what, "to scale use *")
    inner, other = x.type.shape[-1], y.type.shape[-2 if y.type.rank > 1 else 0]
    if inner != other:
        axis = y.type.rank - 2 if y.type.rank > 1 else 0
        raise ShapeError(
            f"matmul needs inner sizes to agree: {x.type} @ {y.type}",
            f"{inner} (axis {x.type.rank - 1} of the left) != {other} (axis {axis} of the right)",
        )
    dtype = promote(x.type.dtype, y.type.dtype)
    x, y = build.cast(x, dtype), build.cast(y, dtype)
    lead_x, lead_y = x.type.shape[:-2], y.type.shape[:-2]
    m = "Y" if x.type.rank > 1 else ""
    n = "Z" if y.type.rank > 1 else ""
    if lead_x and lead_y:
        lead = build.broadcast_shapes([lead_x, lead_y], "matmul", [x, y])
        x = build.broadcast(x, lead + x.type.shape[-2:])
        y = build.broadcast(y, lead + y.type.shape[-2:])
        lead_x = lead_y = lead
    letters = _LETTERS[: max(len(lead_x), len(lead_y))]
    gx, gy = letters if lead_x else "", letters if lead_y else ""
    return contract(gx + m + "K", gy + "K" + n, letters + m + n, x, y)


def einsum(subscripts: str, x: Node, y: Node) -> Node:
    """A contraction of two operands; letters that stand in one alone are summed first."""
    inputs, arrow, out = subscripts.replace(" ", "").partition("->")
    parts = inputs.split(",")
    if not arrow or len(parts) != 2 or any(len(set(p)) != len(p) for p in [*parts, out]):
        raise ShapeError(
            f"einsum takes two operands, no letter twice in one, and '->': {subscripts!r}"
        )
    if not set(out) <= set(parts[0] + parts[1]) or not subscripts.isascii():
        raise ShapeError(f"einsum: a letter of the result is in no operand: {subscripts!r}")
    for letters, operand in zip(parts, (x, y), strict=True):
        if len(letters) != operand.type.rank:
            raise ShapeError(f"einsum: {letters!r} does not fit {operand.type}")
    dtype = promote(x.type.dtype, y.type.dtype)
    a, x = _sum_lone(parts[0], parts[1] + out, x)
    b, y = _sum_lone(parts[1], parts[0] + out, y)
    return contract(a, b, out, build.cast(x, dtype), build.cast(y, dtype))


def _sum_lone(letters: str, others: str, x: Node) -> tuple[str, Node]:
    lone = tuple(i for i, c in enumerate(letters) if c not in others)
    kept = "".join(c for c in letters if c in others)
    return kept, apply(Sum(lone), x) if lone else x


def transpose(x: Node, perm: Sequence[int]) -> Node:
    """`x` with its axes permuted; x itself where nothing moves."""
    perm = tuple(perm)
    return x if perm == tuple(range(len(perm))) else apply(Permute(perm), x)
