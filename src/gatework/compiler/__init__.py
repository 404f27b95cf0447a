"""From equations to time loops: trace, derivative, split. Imports nothing but the standard library.

    function --trace--> Cell --vjp--> gradients --split--> Scan --text--> equations, graph, loop, LaTeX, JSON
"""

from .expr import CellError, Expr
from .grad import vjp
from .ops import (
    exp,
    layer_norm,
    log,
    maximum,
    mean,
    minimum,
    relu,
    rms_norm,
    sigmoid,
    softplus,
    sqrt,
    sum,
    tanh,
    where,
)
from .scan import Backward, Scan, Terms, split
from .trace import (
    Bias,
    Blocks,
    Cell,
    Constant,
    D,
    Family,
    Gain,
    H,
    I,
    Input,
    Kind,
    Matrix,
    P,
    Scalar,
    Size,
    State,
    Vector,
    trace,
)

__all__ = [
    "Backward", "Bias", "Blocks", "Cell", "CellError", "Constant", "D", "Expr", "Family", "Gain", "H", "I", "Input",
    "Kind", "Matrix", "P", "Scalar", "Scan", "Size", "State", "Terms", "Vector", "exp", "layer_norm", "log", "maximum",
    "mean", "minimum", "relu", "rms_norm", "sigmoid", "softplus", "split", "sqrt", "sum", "tanh", "trace", "vjp",
    "where",
]
