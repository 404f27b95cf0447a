"""From equations to time loops: trace, derivative, split. Imports nothing but the standard library.

    function --trace--> Cell --vjp--> gradients --split--> Scan --text--> equations, graph, loop, LaTeX, JSON
"""

from .expr import CellError, Expr
from .grad import vjp
from .ops import exp, log, maximum, minimum, relu, sigmoid, softplus, sqrt, sum, tanh, where
from .scan import Backward, Scan, Terms, split
from .trace import Bias, Cell, Constant, Family, H, I, Input, Kind, Matrix, P, Size, State, Vector, trace

__all__ = [
    "Backward", "Bias", "Cell", "CellError", "Constant", "Expr", "Family", "H", "I", "Input", "Kind", "Matrix", "P",
    "Scan", "Size", "State", "Terms", "Vector", "exp", "log", "maximum", "minimum", "relu", "sigmoid", "softplus",
    "split", "sqrt", "sum", "tanh", "trace", "vjp", "where",
]
