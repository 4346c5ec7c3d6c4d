"""Matrix expressions of SymPy, for tensors of rank 0, 1 (a column) and 2 of any size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from chainrule.errors import CompileError
from chainrule.ir.graph import walk
from chainrule.ir.loop import Get, Local, Value
from chainrule.ir.node import Index, Node
from chainrule.ir.size import Dim, Size
from chainrule.ops.axes import Expand, Sum
from chainrule.ops.contract import Contract
from chainrule.ops.elementwise import Elementwise
from chainrule.ops.layout import Permute, Reshape
from chainrule.ops.source import Constant, Full, Leaf
from chainrule.show.entries import Algebra, spell

Expr = Any  # SymPy ships no types


class Scalars(Algebra, Protocol):
    """SymPy's scalars: an algebra with sizes."""

    def size(self, dim: Dim) -> Expr: ...


class Matrices:
    """Turns nodes into matrix expressions. `uniform` holds those that are one scalar everywhere."""

    def __init__(self, algebra: Scalars) -> None:
        self.algebra = algebra
        self.values: dict[Node, Expr] = {}
        self.uniform: dict[Node, Expr] = {}

    def of(self, root: Node) -> Expr:
        """The expression of a node. Raises CompileError where there is none."""
        for node in walk([root]):
            if node.type.rank > 2:
                self.refuse(node)
            self.values[node] = self.convert(node)
        return self.values[root]

    def refuse(self, node: Node) -> None:
        raise CompileError(
            f"SymPy has no matrix expression for {node!r}",
            "matrices have at most two axes; where every tensor is known to have at most 64 "
            "entries, they are spelled out",
        )

    def convert(self, node: Node) -> Expr:
        op, rank = node.op, node.type.rank
        if isinstance(op, Leaf):
            return self.leaf(node, op.label)
        if isinstance(op, Full):
            return self.spread(node, self.algebra.number(op.value, op.dtype))
        if isinstance(op, Expand):
            return self.expand(node, op)
        if isinstance(op, Elementwise):
            return self.elementwise(node, op)
        if isinstance(op, Contract):
            return self.contract(node, op)
        operands = [self.values[i] for i in node.inputs]
        if isinstance(op, Sum):
            return self.sum(op, node.inputs[0].type.rank, operands[0])
        if isinstance(op, Permute) and rank == 2:
            return _transposed(operands[0])
        if isinstance(op, Reshape):
            return self.reshape(node, operands[0])
        if isinstance(op, Constant):
            return self.constant(op)
        return self.by_entries(node)

    def leaf(self, node: Node, label: str) -> Expr:
        import sympy

        if node.type.rank == 0:
            return sympy.Symbol(label)
        return sympy.MatrixSymbol(label, *self.shape(node))

    def shape(self, node: Node) -> tuple[Expr, Expr]:
        """Rows and columns; a vector is a column."""
        rows, columns = (*node.shape, 1)[:2]
        return self.algebra.size(rows), self.algebra.size(columns)

    def spread(self, node: Node, scalar: Expr) -> Expr:
        """One scalar at every index."""
        import sympy

        self.uniform[node] = scalar
        if node.type.rank == 0:
            return scalar
        if scalar == 0:
            return sympy.ZeroMatrix(*self.shape(node))
        return _times(scalar, sympy.OneMatrix(*self.shape(node)))

    def expand(self, node: Node, op: Expand) -> Expr:
        from sympy import OneMatrix

        (x,) = node.inputs
        value = self.values[x]
        if x in self.uniform or x.type.rank == 0:
            return self.spread(node, self.uniform.get(x, value))
        rows, columns = self.shape(node)
        if op.axes == (0,):
            return _times(OneMatrix(rows, 1), _transposed(value))
        return _times(value, OneMatrix(1, columns))

    def reshape(self, node: Node, value: Expr) -> Expr:
        before = [d for d in node.inputs[0].shape if d != 1]
        after = [d for d in node.shape if d != 1]
        if before != after or len(after) > 1 or node.type.rank == 0:
            self.refuse(node)
        return value if tuple(value.shape) == self.shape(node) else _transposed(value)

    def constant(self, op: Constant) -> Expr:
        import sympy

        array = op.array.reshape(*op.array.shape, *[1] * (2 - op.array.ndim))
        numbers = [self.algebra.number(v.item(), op.type.dtype) for v in array.flat]
        return sympy.ImmutableDenseMatrix(*array.shape, numbers)

    def elementwise(self, node: Node, op: Elementwise) -> Expr:
        import sympy

        values = [self.values[i] for i in node.inputs]
        constant = [self.uniform.get(i) for i in node.inputs]
        if node.type.rank == 0 or all(c is not None for c in constant):
            scalars = [v if c is None else c for v, c in zip(values, constant, strict=True)]
            result = self.algebra.call(op.name, scalars, node.dtype)
            return self.spread(node, result) if node.type.rank else result
        special = getattr(self, f"_{op.name}", None)
        if special is not None:
            return special(values, constant)
        varying = [i for i, c in enumerate(constant) if c is None]
        operands = [node.inputs[i].dtype for i in varying]
        if any(d.is_bool for d in operands) or (len(varying) > 1 and not node.dtype.is_bool):
            return self.by_entries(node)
        x = sympy.Dummy("x")
        if len(varying) > 1:  # a comparison of x and y is one of x - y and 0
            applied = self.algebra.call(op.name, (x, sympy.Integer(0)), node.dtype)
            return _plus(values[0], _times(-1, values[1])).applyfunc(_lambda(x, applied))
        scalars = [x if c is None else c for c in constant]
        applied = self.algebra.call(op.name, scalars, node.dtype)
        return values[varying[0]].applyfunc(_lambda(x, applied))

    def _add(self, values: Sequence[Expr], constant: Sequence[Expr | None]) -> Expr:
        return _plus(*values)

    def _sub(self, values: Sequence[Expr], constant: Sequence[Expr | None]) -> Expr:
        return _plus(values[0], _times(-1, values[1]))

    def _neg(self, values: Sequence[Expr], constant: Sequence[Expr | None]) -> Expr:
        return _times(-1, values[0])

    def _mul(self, values: Sequence[Expr], constant: Sequence[Expr | None]) -> Expr:
        from sympy import HadamardProduct

        for scalar, matrix in zip(constant, values[::-1], strict=True):
            if scalar is not None:
                return _times(scalar, matrix)
        return HadamardProduct(*values)

    def _div(self, values: Sequence[Expr], constant: Sequence[Expr | None]) -> Expr:
        from sympy import Dummy, Lambda

        if constant[1] is not None:
            return _times(1 / constant[1], values[0])
        x = Dummy("x")
        inverse = values[1].applyfunc(Lambda(x, 1 / x))
        return self._mul([values[0], inverse], [constant[0], None])

    def _where(self, values: Sequence[Expr], constant: Sequence[Expr | None]) -> Expr:
        from sympy import HadamardProduct, OneMatrix

        chosen = values[0]
        other = _plus(OneMatrix(*chosen.shape), _times(-1, chosen))
        terms = [
            HadamardProduct(c, v)
            for c, v, s in zip((chosen, other), values[1:], constant[1:], strict=True)
            if s != 0
        ]
        return _plus(*terms) if len(terms) == 2 else terms[0]

    def contract(self, node: Node, op: Contract) -> Expr:
        x, y = (self.values[i] for i in node.inputs)
        k = op.summed
        rows, columns = op.a.replace(k, ""), op.b.replace(k, "")
        if max(map(len, (k, rows, columns))) > 1 or len(set(k + rows + columns)) < len(
            k + rows + columns
        ):
            self.refuse(node)
        if (k and op.a != rows + k) or not rows:  # as rows by k
            x = _transposed(x)
        if (k and op.b != k + columns) or not k:  # as k by columns
            y = _transposed(y)
        product = _times(x, y)
        if not op.out:
            return _only(product)
        return product if op.out == rows + columns and rows else _transposed(product)

    def sum(self, op: Sum, rank: int, x: Expr) -> Expr:
        from sympy import OneMatrix

        rows, columns = x.shape
        if rank == 1 or len(op.axes) == 2:
            return _only(_times(OneMatrix(1, rows), x, OneMatrix(columns, 1)))
        if op.axes == (0,):
            return _times(_transposed(x), OneMatrix(rows, 1))
        return _times(x, OneMatrix(columns, 1))

    def by_entries(self, node: Node) -> Expr:
        """A matrix by the formula of its entry (i, j)."""
        import sympy

        if node.op.buffered:
            self.refuse(node)
        i, j = sympy.Dummy("i", integer=True), sympy.Dummy("j", integer=True)
        index = (Size.symbol("_i"), Size.symbol("_j"))[: node.type.rank]
        readers = [_reader(Local(f"in{k}", n.dtype)) for k, n in enumerate(node.inputs)]
        operands = {f"in{k}": self.values[n] for k, n in enumerate(node.inputs)}
        truths = {f"in{k}" for k, n in enumerate(node.inputs) if n.dtype.is_bool}

        def read(name: str, at: Index) -> Expr:
            places = [self.algebra.size(d).subs(names) for d in (*at, 0)[:2]]
            if not at:
                return operands[name]
            entry = operands[name][tuple(places)]
            return sympy.Ne(entry, 0) if name in truths else entry

        names = {self.algebra.size(s): d for s, d in zip(index, (i, j), strict=False)}
        try:
            entry = spell(node.op.body(index, node.type, *readers), read, self.algebra)
        except NotImplementedError:
            self.refuse(node)
        entry = entry.subs(names)
        if node.type.rank == 0:
            return entry
        return sympy.FunctionMatrix(*self.shape(node), _lambda((i, j), entry))


# matrices are put together as they stand: by *, + and .T SymPy would spell out every sum in them


def _times(*factors: Expr) -> Expr:
    from sympy import MatMul

    return MatMul(*factors, evaluate=True)


def _plus(*terms: Expr) -> Expr:
    from sympy import MatAdd

    return MatAdd(*terms, evaluate=True)


def _transposed(matrix: Expr) -> Expr:
    from sympy import MatrixBase, OneMatrix, Transpose

    if isinstance(matrix, (MatrixBase, OneMatrix)):
        return matrix.T
    return matrix.arg if isinstance(matrix, Transpose) else Transpose(matrix)


def _only(matrix: Expr) -> Expr:
    """The one entry of a matrix, left standing: SymPy would spell out the whole sum."""
    from sympy.matrices.expressions.matexpr import MatrixElement

    return MatrixElement(matrix, 0, 0)


def _lambda(variables: Expr, result: Expr) -> Expr:
    """A function of scalars; a matrix holds 1 for true and 0 for false."""
    import sympy

    if isinstance(result, sympy.logic.boolalg.Boolean):
        result = sympy.Piecewise((1, result), (0, True))
    return sympy.Lambda(variables, result)


def _reader(local: Local) -> Callable[[Index], Value]:
    return lambda index: Get(local, index)
