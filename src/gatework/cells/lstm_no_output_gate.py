from ..compiler import Bias, Input, Matrix, State, Vector, sigmoid, tanh


def lstm_no_output_gate(x: Input, h: State, c: State, W: Matrix, U: Matrix, p: Vector, b: Bias):
    """Peephole LSTM without an output gate, "NOG" (Greff et al., "LSTM: a search space odyssey", 2017).

    Unlike the LSTM it always shows all of its cell state, o = 1.
    """
    i = sigmoid(W.i @ x + U.i @ h + p.i * c + b.i)  # input gate
    f = sigmoid(W.f @ x + U.f @ h + p.f * c + b.f)  # forget gate
    g = tanh(W.g @ x + U.g @ h + b.g)               # candidate
    c = f * c + i * g                               # cell state
    h = tanh(c)
    return dict(h=h, c=c), dict(i=i, f=f, g=g)
