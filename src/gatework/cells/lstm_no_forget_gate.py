from ..compiler import Bias, Input, Matrix, State, Vector, sigmoid, tanh


def lstm_no_forget_gate(x: Input, h: State, c: State, W: Matrix, U: Matrix, p: Vector, b: Bias):
    """Peephole LSTM without a forget gate, "NFG" (Greff et al., "LSTM: a search space odyssey", 2017).

    Unlike the LSTM of today it never forgets, f = 1, as the LSTM of 1997 did: the cell state only adds up.
    """
    i = sigmoid(W.i @ x + U.i @ h + p.i * c + b.i)  # input gate
    g = tanh(W.g @ x + U.g @ h + b.g)               # candidate
    c = c + i * g                                   # cell state
    o = sigmoid(W.o @ x + U.o @ h + p.o * c + b.o)  # output gate, sees the new cell state
    h = o * tanh(c)
    return dict(h=h, c=c), dict(i=i, g=g, o=o)
