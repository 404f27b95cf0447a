from ..compiler import Bias, Input, Matrix, State, sigmoid, tanh


def gru_reset_before(x: Input, h: State, W: Matrix, U: Matrix, b: Bias):
    """Gated recurrent unit as published: reset before the product (Cho et al., "Learning phrase representations" 2014).

    Unlike torch's form the reset gate acts on the state, not on its product with U.n, so a step has two products, one
    after the other. z keeps the old state where it is 1, as in the paper.
    """
    r = sigmoid(W.r @ x + U.r @ h + b.r)        # reset gate
    z = sigmoid(W.z @ x + U.z @ h + b.z)        # update gate
    n = tanh(W.n @ x + U.n @ (r * h) + b.n)     # candidate
    h = (1.0 - z) * n + z * h
    return dict(h=h), dict(r=r, z=z, n=n)
