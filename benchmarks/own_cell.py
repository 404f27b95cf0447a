"""A user's own cell for the benchmark: in no library, three row blocks, two vectors of weights."""

from gatework.compiler import Bias, Input, Matrix, State, Vector, sigmoid, tanh


def leaky_memory(x: Input, h: State, m: State, W: Matrix, U: Matrix, q: Vector, r: Vector, b: Bias):
    """A memory that leaks at a rate of its own per unit; k mixes the old and the new, s decides what is shown."""
    k = sigmoid(W.k @ x + U.k @ h + b.k)
    n = tanh(W.n @ x + U.n @ h + b.n)
    m = sigmoid(r) * k * m + (1.0 - k) * n
    s = sigmoid(W.s @ x + U.s @ h + q * m + b.s)
    h = s * tanh(m)
    return dict(h=h, m=m), dict(k=k, n=n, s=s)
