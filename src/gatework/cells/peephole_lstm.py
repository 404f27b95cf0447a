from ..compiler import Bias, Input, Matrix, State, Vector, sigmoid, tanh


def peephole_lstm(x: Input, h: State, c: State, W: Matrix, U: Matrix, p: Vector, b: Bias, *, peepholes="ifo"):
    """LSTM whose gates also see the cell state (Gers & Schmidhuber, "Recurrent nets that time and count", 2000).

    Unlike the LSTM, the input and the forget gate look at the old cell state and the output gate at the new one, each
    through one weight per unit. The setting `peepholes` names the gates that look: any of the letters i, f, o.
    """
    unknown = set(peepholes) - set("ifo")
    if unknown or not peepholes:
        raise ValueError(f'peepholes names gates that see the cell state, any of "ifo"; {peepholes!r} was given')
    peep_i = p.i * c if "i" in peepholes else 0.0
    peep_f = p.f * c if "f" in peepholes else 0.0
    i = sigmoid(W.i @ x + U.i @ h + peep_i + b.i)  # input gate
    f = sigmoid(W.f @ x + U.f @ h + peep_f + b.f)  # forget gate
    g = tanh(W.g @ x + U.g @ h + b.g)              # candidate
    c = f * c + i * g                              # cell state
    peep_o = p.o * c if "o" in peepholes else 0.0
    o = sigmoid(W.o @ x + U.o @ h + peep_o + b.o)  # output gate, sees the new cell state
    h = o * tanh(c)
    return dict(h=h, c=c), dict(i=i, f=f, g=g, o=o)
