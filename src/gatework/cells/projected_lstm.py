from ..compiler import Bias, Input, Matrix, P, State, sigmoid, tanh


def projected_lstm(x: Input, h: State[P], c: State, W: Matrix, U: Matrix, b: Bias, d: Bias, R: Matrix[P]):
    """LSTM with a projected state, "LSTMP" (Sak et al., 2014), in the form of torch.nn.LSTM with proj_size.

    Unlike the LSTM its output is a product R m of size P, usually far smaller than the cell state, and the gates see
    only that.
    """
    i = sigmoid(W.i @ x + b.i + U.i @ h + d.i)  # input gate
    f = sigmoid(W.f @ x + b.f + U.f @ h + d.f)  # forget gate
    g = tanh(W.g @ x + b.g + U.g @ h + d.g)     # candidate
    o = sigmoid(W.o @ x + b.o + U.o @ h + d.o)  # output gate
    c = f * c + i * g                           # cell state
    m = o * tanh(c)
    h = R @ m
    return dict(h=h, c=c), dict(i=i, f=f, g=g, o=o, m=m)
