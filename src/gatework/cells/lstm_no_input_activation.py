from ..compiler import Bias, Input, Matrix, State, Vector, sigmoid, tanh


def lstm_no_input_activation(x: Input, h: State, c: State, W: Matrix, U: Matrix, p: Vector, b: Bias):
    """Peephole LSTM without input activation, "NIAF" (Greff et al., "LSTM: a search space odyssey", 2017).

    Unlike the LSTM its candidate is linear: no tanh bounds what one step may write.
    """
    i = sigmoid(W.i @ x + U.i @ h + p.i * c + b.i)  # input gate
    f = sigmoid(W.f @ x + U.f @ h + p.f * c + b.f)  # forget gate
    g = W.g @ x + U.g @ h + b.g                     # candidate
    c = f * c + i * g                               # cell state
    o = sigmoid(W.o @ x + U.o @ h + p.o * c + b.o)  # output gate, sees the new cell state
    h = o * tanh(c)
    return dict(h=h, c=c), dict(i=i, f=f, g=g, o=o)
