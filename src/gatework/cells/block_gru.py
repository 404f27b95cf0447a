from ..compiler import Bias, Blocks, Gain, Input, Matrix, State, rms_norm, sigmoid, tanh


def block_gru(x: Input, h: State, W: Matrix, R: Blocks, V: Blocks, gain: Gain, b: Bias, *, eps=1e-4):
    """Block-diagonal GRU of a world model (Hafner et al., "Mastering diverse domains through world models", DreamerV3,
    2023, as its code has it since 2024).

    Unlike the LSTM it reads x and the state in a normalised hidden layer first, and its gates see only that layer. R
    and V are block-diagonal, with D features per block. The update gate u writes where it is 1 and starts nearly shut.
    """
    a = gain * rms_norm(W @ x + R @ h + b.a, eps)
    a = a * sigmoid(a)                   # hidden layer
    r = sigmoid(V.r @ a + b.r)           # reset gate
    n = tanh(r * (V.n @ a + b.n))        # candidate
    u = sigmoid(V.u @ a + b.u - 1.0)     # update gate
    h = u * n + (1.0 - u) * h
    return dict(h=h), dict(a=a, r=r, n=n, u=u)
