"""The closed table of operations: their names in the notation and, beside each, its derivative.

Receives `Expr`, hands on `Expr`. A rule takes the gradient d of the result, the result y and the arguments, and
returns one gradient (or None) per argument. A backend adds one line per row: how the operation is computed. What is
made of other operations (mean and the norms) has no row, and needs none.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from .expr import CellError, Expr, add, const, div, elementwise, lift, mul, node, size, sub, written_at


def sigmoid(a) -> Expr:
    """1 / (1 + exp(-a)), element by element."""
    return elementwise("sigmoid", a)


def tanh(a) -> Expr:
    """Hyperbolic tangent, element by element."""
    return elementwise("tanh", a)


def relu(a) -> Expr:
    """max(a, 0), element by element; its derivative at 0 is 0."""
    return elementwise("relu", a)


def exp(a) -> Expr:
    """e to the power a, element by element."""
    return elementwise("exp", a)


def log(a) -> Expr:
    """Natural logarithm, element by element; nan below 0."""
    return elementwise("log", a)


def sqrt(a) -> Expr:
    """Square root, element by element; nan below 0."""
    return elementwise("sqrt", a)


def softplus(a) -> Expr:
    """log(1 + exp(a)), element by element."""
    return elementwise("softplus", a)


def minimum(a, b) -> Expr:
    """The smaller of two values, element by element; nan if either is. At a tie the gradient goes to the first."""
    return elementwise("minimum", a, b)


def maximum(a, b) -> Expr:
    """The larger of two values, element by element; nan if either is. At a tie the gradient goes to the first."""
    return elementwise("maximum", a, b)


def where(condition, a, b) -> Expr:
    """a where the condition holds (is not 0), else b, element by element."""
    return elementwise("where", condition, a, b)


def sum(a) -> Expr:
    """The sum over the features of a vector: a scalar, which spreads again over whatever it meets."""
    return node("sum", _vector("sum() adds up the features", a), dims=())


def mean(a) -> Expr:
    """The mean over the features of a vector: a scalar, which spreads again over whatever it meets.

    >>> from gatework.compiler import Input, Matrix, State, mean, trace
    >>> from gatework.compiler.text import show
    >>> def centred(x: Input, h: State, W: Matrix):
    ...     a = W @ x + h
    ...     return dict(h=a - mean(a))
    >>> print(show(trace(centred), "equations"))
    t1 = W @ x + h
    h' = t1 - mean(t1)
    """
    a = _vector("mean() is taken over the features", a)
    return div(sum(a), size(a.dims[0]))


def layer_norm(a, *more, eps: float = 1e-5):
    """The features of a vector, shifted and scaled to mean 0 and variance 1 (Ba et al., "Layer normalization", 2016).

    (a - mean(a)) / sqrt(variance + eps), with the variance mean((a - mean(a))^2). Several vectors of one size are
    taken as one long vector, as the gates of a cell are in the paper, and come back as a list. Gain and shift are
    parameters of the cell: gain * layer_norm(a) + b. Raises CellError for what is no vector, or of several sizes.

    >>> from gatework.compiler import Gain, Input, Matrix, State, layer_norm, trace
    >>> def cell(x: Input, h: State, W: Matrix, gain: Gain):
    ...     return dict(h=gain * layer_norm(W @ x + h))
    >>> trace(cell)
    <Cell cell: states h, parameters W, gain>
    """
    vectors = [_vector("layer_norm() is taken over the features", v) for v in (a, *more)]
    centre = _mean_of_all(vectors)
    centred = [sub(v, centre) for v in vectors]
    deviation = sqrt(add(_mean_of_all([mul(v, v) for v in centred]), eps))
    scaled = [div(v, deviation) for v in centred]
    return scaled if more else scaled[0]


def rms_norm(a, eps: float = 1e-5) -> Expr:
    """A vector over the root of its mean square, a / sqrt(mean(a^2) + eps) (Zhang & Sennrich, 2019).

    The gain is a parameter of the cell: gain * rms_norm(a). Raises CellError for what is no vector.
    """
    a = _vector("rms_norm() is taken over the features", a)
    return div(a, sqrt(add(mean(mul(a, a)), eps)))


def _vector(what: str, a) -> Expr:
    a = lift(a)
    if len(a.dims) != 1:
        raise CellError(f"{written_at()}: {what} of a vector; what was given has "
                        f"{'no features' if not a.dims else 'two dimensions'}")
    return a


def _mean_of_all(vectors: list[Expr]) -> Expr:
    total = functools.reduce(add, vectors)  # one sum over features for all
    return div(mean(total), len(vectors))


def matvec(matrix: Expr, a: Expr) -> Expr:
    return node("matvec", matrix, a, dims=matrix.dims[:1])


def matvec_t(matrix: Expr, a: Expr) -> Expr:
    return node("matvecT", matrix, a, dims=matrix.dims[1:])


def outer(a: Expr, b: Expr) -> Expr:
    return node("outer", a, b, dims=a.dims + b.dims)


def expand(a: Expr, like: Expr) -> Expr:
    return a if a.dims == like.dims or a.op == "const" else node("expand", a, dims=like.dims)


def _sum(d: Expr, like: Expr) -> Expr:
    # A constant gradient has no shape of its own; spread it before adding it up.
    return node("sum", d if d.dims else node("expand", d, dims=like.dims), dims=())


def _sign(a: Expr) -> Expr:
    return where(lift(a) < 0.0, -1.0, where(const(0.0) < a, 1.0, 0.0))


DERIVATIVE: dict[str, Callable] = {
    "add": lambda d, y, a, b: (d, d),
    "sub": lambda d, y, a, b: (d, mul(-1.0, d)),
    "mul": lambda d, y, a, b: (mul(d, b), mul(d, a)),
    "div": lambda d, y, a, b: (div(d, b), mul(-1.0, div(mul(d, y), b))),
    "sigmoid": lambda d, y, a: (mul(mul(d, y), sub(1.0, y)),),
    "tanh": lambda d, y, a: (mul(d, sub(1.0, mul(y, y))),),
    "relu": lambda d, y, a: (where(lift(0.0) < y, d, 0.0),),
    "exp": lambda d, y, a: (mul(d, y),),
    "log": lambda d, y, a: (div(d, a),),
    "sqrt": lambda d, y, a: (div(mul(0.5, d), y),),
    "abs": lambda d, y, a: (mul(d, _sign(a)),),
    "softplus": lambda d, y, a: (mul(d, sigmoid(a)),),
    "minimum": lambda d, y, a, b: (where(a <= b, d, 0.0), where(a <= b, 0.0, d)),
    "maximum": lambda d, y, a, b: (where(lift(b) <= a, d, 0.0), where(lift(b) <= a, 0.0, d)),
    "where": lambda d, y, c, a, b: (None, where(c, d, 0.0), where(c, 0.0, d)),
    "lt": lambda d, y, a, b: (None, None),
    "le": lambda d, y, a, b: (None, None),
    "sum": lambda d, y, a: (expand(d, a),),
    "expand": lambda d, y, a: (_sum(d, y),),
    "copy": lambda d, y, a: (d,),
    "matvec": lambda d, y, m, a: (outer(d, a), matvec_t(m, d)),
    "matvecT": lambda d, y, m, a: (outer(a, d), matvec(m, d)),
}
PRODUCTS = {"matvec", "matvecT", "outer"}

__all__ = [
    "exp", "layer_norm", "log", "maximum", "mean", "minimum", "relu", "rms_norm", "sigmoid", "softplus", "sqrt", "sum",
    "tanh", "where",
]
