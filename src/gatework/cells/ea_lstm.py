from ..compiler import Bias, Constant, Input, Matrix, Size, State, sigmoid, tanh

S = Size("S")  # attributes that stay the same over the sequence


def ea_lstm(x: Input, s: Constant[S], h: State, c: State, V: Matrix, W: Matrix, U: Matrix, b: Bias):
    """Entity-aware LSTM (Kratzert et al., "Towards learning universal, regional, and local hydrological behaviors",
    2019): one model for many catchments.

    Unlike the LSTM its input gate never sees the sequence: the attributes s of the place decide, once for all steps,
    which units each input may write.
    """
    i = sigmoid(V @ s + b.i)              # input gate, static
    f = sigmoid(W.f @ x + U.f @ h + b.f)  # forget gate
    g = tanh(W.g @ x + U.g @ h + b.g)     # candidate
    o = sigmoid(W.o @ x + U.o @ h + b.o)  # output gate
    c = f * c + i * g                     # cell state
    h = o * tanh(c)
    return dict(h=h, c=c), dict(i=i, f=f, g=g, o=o)
