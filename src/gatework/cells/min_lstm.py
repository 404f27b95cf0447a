from ..compiler import Bias, Input, Matrix, State, sigmoid, softplus


def min_lstm(x: Input, h: State, W: Matrix, b: Bias):
    """LSTM without recurrence in its gates, "minLSTM" (Feng et al., "Were RNNs all we needed?", 2024), step by step.

    Unlike the LSTM neither gates nor candidate see the state, there is no output gate, and the two gates are scaled to
    add up to 1: f / (f + i) and i / (f + i).
    """
    to_f = W.f @ x + b.f
    to_i = W.i @ x + b.i
    f = sigmoid(softplus(-to_i) - softplus(-to_f))  # sigmoid(to_f) over the sum of both gates, also where both are shut
    i = 1.0 - f
    n = W.n @ x + b.n                               # candidate
    h = f * h + i * n
    return dict(h=h), dict(f=f, i=i, n=n)
