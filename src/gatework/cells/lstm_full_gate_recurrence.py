from ..compiler import Bias, Input, Matrix, State, Vector, sigmoid, tanh


def lstm_full_gate_recurrence(x: Input, h: State, c: State, i: State, f: State, o: State, W: Matrix, U: Matrix,
                              R: Matrix, p: Vector, b: Bias):
    """Peephole LSTM whose gates see all gates of the step before, "FGR" (Greff et al., "LSTM: a search space odyssey",
    2017).

    Unlike the LSTM of today, and like that of 1997, its gates are states: nine more matrices, R.f_i from the forget to
    the input gate.
    """
    before = {to: getattr(R, "i_" + to) @ i + getattr(R, "f_" + to) @ f + getattr(R, "o_" + to) @ o for to in "ifo"}
    i = sigmoid(W.i @ x + U.i @ h + before["i"] + p.i * c + b.i)  # input gate
    f = sigmoid(W.f @ x + U.f @ h + before["f"] + p.f * c + b.f)  # forget gate
    g = tanh(W.g @ x + U.g @ h + b.g)                             # candidate
    c = f * c + i * g                                             # cell state
    o = sigmoid(W.o @ x + U.o @ h + before["o"] + p.o * c + b.o)  # output gate, sees the new cell state
    h = o * tanh(c)
    return dict(h=h, c=c, i=i, f=f, o=o), dict(g=g)
