from ..compiler import Bias, Input, Matrix, State, Vector, sigmoid, tanh


def lstm_no_input_gate(x: Input, h: State, c: State, W: Matrix, U: Matrix, p: Vector, b: Bias):
    """Peephole LSTM without an input gate, "NIG" (Greff et al., "LSTM: a search space odyssey", 2017).

    Unlike the LSTM it writes every candidate in full, i = 1: only the forget gate guards what is remembered.
    """
    f = sigmoid(W.f @ x + U.f @ h + p.f * c + b.f)  # forget gate
    g = tanh(W.g @ x + U.g @ h + b.g)               # candidate
    c = f * c + g                                   # cell state
    o = sigmoid(W.o @ x + U.o @ h + p.o * c + b.o)  # output gate, sees the new cell state
    h = o * tanh(c)
    return dict(h=h, c=c), dict(f=f, g=g, o=o)
