from ..compiler import Bias, Input, Matrix, State, Vector, sigmoid, tanh


def coupled_peephole_lstm(x: Input, h: State, c: State, W: Matrix, U: Matrix, p: Vector, b: Bias):
    """Peephole LSTM with coupled input and forget gate, "CIFG" as measured (Greff et al., "LSTM: a search space
    odyssey", 2017).

    Unlike the LSTM it forgets exactly as much as it writes, f = 1 - i. `coupled_lstm` is the same without peepholes.
    """
    i = sigmoid(W.i @ x + U.i @ h + p.i * c + b.i)  # input gate
    f = 1.0 - i                                     # forget gate
    g = tanh(W.g @ x + U.g @ h + b.g)               # candidate
    c = f * c + i * g                               # cell state
    o = sigmoid(W.o @ x + U.o @ h + p.o * c + b.o)  # output gate, sees the new cell state
    h = o * tanh(c)
    return dict(h=h, c=c), dict(i=i, f=f, g=g, o=o)
