"""chainrule: a deep-learning compiler that shows its work.

Declare a network in expressions; its gradients are derived by the chain rule as mathematics you can
read; forward, backward and update become one native program.
"""

from chainrule import datasets, errors
from chainrule.ir.size import Size
from chainrule.lang.compiled import Function, compile
from chainrule.lang.derive import grad, hvp, vjp
from chainrule.lang.elementwise import elementwise
from chainrule.lang.functions import (
    abs,
    add,
    arange,
    astype,
    broadcast_to,
    cos,
    divide,
    einsum,
    equal,
    erf,
    exp,
    expand_dims,
    expm1,
    flip,
    full,
    greater,
    greater_equal,
    less,
    less_equal,
    log,
    log1p,
    log_sigmoid,
    log_softmax,
    logical_and,
    logical_not,
    logical_or,
    logical_xor,
    logsumexp,
    matmul,
    matrix_transpose,
    max,
    maximum,
    mean,
    min,
    minimum,
    multiply,
    negative,
    not_equal,
    one_hot,
    ones,
    ones_like,
    outer,
    permute_dims,
    pick,
    pow,
    relu,
    reshape,
    rsqrt,
    sigmoid,
    sign,
    sin,
    softmax,
    softplus,
    sqrt,
    square,
    squeeze,
    stop_gradient,
    subtract,
    sum,
    take,
    tanh,
    where,
    zeros,
    zeros_like,
)
from chainrule.lang.inspect import explain, scalars, to_networkx
from chainrule.lang.leaves import constant, input, parameter, state
from chainrule.lang.tensor import Tensor
from chainrule.nn import init, losses, optim
from chainrule.train.step import TrainingStep, training_step
from chainrule.version import __version__

