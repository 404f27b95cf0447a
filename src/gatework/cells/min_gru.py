from ..compiler import Bias, Input, Matrix, State, sigmoid


def min_gru(x: Input, h: State, W: Matrix, b: Bias):
    """GRU without recurrence in its gates, "minGRU" (Feng et al., "Were RNNs all we needed?", 2024), step by step.

    Unlike the LSTM neither gate nor candidate sees the state, so no matrix is multiplied inside the loop, and the
    candidate has no bound. z writes where it is 1.
    """
    z = sigmoid(W.z @ x + b.z)  # update gate
    n = W.n @ x + b.n           # candidate
    h = (1.0 - z) * h + z * n
    return dict(h=h), dict(z=z, n=n)
