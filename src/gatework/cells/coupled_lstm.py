from ..compiler import Bias, Input, Matrix, State, sigmoid, tanh


def coupled_lstm(x: Input, h: State, c: State, W: Matrix, U: Matrix, b: Bias):
    """LSTM with coupled input and forget gate, "CIFG" (Greff et al., "LSTM: a search space odyssey", 2017).

    Unlike the LSTM it forgets exactly as much as it writes, f = 1 - i: one gate and a quarter of the weights fewer.
    """
    i = sigmoid(W.i @ x + U.i @ h + b.i)  # input gate
    f = 1.0 - i                           # forget gate
    g = tanh(W.g @ x + U.g @ h + b.g)     # candidate
    o = sigmoid(W.o @ x + U.o @ h + b.o)  # output gate
    c = f * c + i * g                     # cell state
    h = o * tanh(c)
    return dict(h=h, c=c), dict(i=i, f=f, g=g, o=o)
