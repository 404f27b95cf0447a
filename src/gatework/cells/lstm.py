from ..compiler import Bias, Input, Matrix, State, sigmoid, tanh


def lstm(x: Input, h: State, c: State, W: Matrix, U: Matrix, b: Bias, d: Bias):
    """Long short-term memory with a forget gate (Hochreiter & Schmidhuber, 1997; Gers et al., 2000), as torch.nn.LSTM.

    The cell state c is a conveyor belt: the forget gate scales what it carries, the input gate what is put on it, the
    output gate what is shown of it.
    """
    i = sigmoid(W.i @ x + b.i + U.i @ h + d.i)  # input gate
    f = sigmoid(W.f @ x + b.f + U.f @ h + d.f)  # forget gate
    g = tanh(W.g @ x + b.g + U.g @ h + d.g)     # candidate
    o = sigmoid(W.o @ x + b.o + U.o @ h + d.o)  # output gate
    c = f * c + i * g                           # cell state
    h = o * tanh(c)
    return dict(h=h, c=c), dict(i=i, f=f, g=g, o=o)
