from ..compiler import Bias, Input, Matrix, State, sigmoid, tanh


def gru(x: Input, h: State, W: Matrix, U: Matrix, b: Bias, d: Bias):
    """Gated recurrent unit in the form of torch.nn.GRU and cuDNN: reset after the product (after Cho et al., 2014).

    Unlike the LSTM it has one state and two gates: the update gate z keeps the old state where it is 1.
    """
    r = sigmoid(W.r @ x + b.r + U.r @ h + d.r)      # reset gate
    z = sigmoid(W.z @ x + b.z + U.z @ h + d.z)      # update gate
    n = tanh(W.n @ x + b.n + r * (U.n @ h + d.n))   # candidate
    h = (1.0 - z) * n + z * h
    return dict(h=h), dict(r=r, z=z, n=n)
