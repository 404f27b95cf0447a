from ..compiler import Bias, Blocks, Input, Matrix, State, exp, maximum, minimum, sigmoid, softplus, tanh, where


def slstm(x: Input, h: State, c: State, n: State, m: State, W: Matrix, R: Blocks, b: Bias, *, forget="sigmoid"):
    """LSTM with exponential gating and memory mixing within heads, "sLSTM" (Beck et al., "xLSTM", 2024).

    Unlike the LSTM its input gate is exp, so a later input can outweigh all before it; n adds up the gates and divides
    the cell state, m holds the largest exponent so far and is taken out of both. The recurrent matrices R are
    block-diagonal: D features per head. `forget` is the forget gate's activation, "sigmoid" or "exp". i and f are
    recorded as they act, scaled by exp(-m).
    """
    if forget not in ("sigmoid", "exp"):
        raise ValueError(f'forget is the activation of the forget gate, "sigmoid" or "exp"; {forget!r} was given')
    log_i = W.i @ x + R.i @ h + b.i
    to_f = W.f @ x + R.f @ h + b.f
    kept = m + (to_f if forget == "exp" else -softplus(-to_f))  # the log of what the forget gate keeps
    # While nothing is stored (n = 0), the first exponent is taken, however small: n is at least 1 from then on.
    m = where(n <= 0.0, log_i, maximum(log_i, kept))
    i = exp(log_i - m)                    # input gate
    f = exp(minimum(kept - m, 0.0))       # forget gate
    z = tanh(W.z @ x + R.z @ h + b.z)     # candidate
    o = sigmoid(W.o @ x + R.o @ h + b.o)  # output gate
    c = f * c + i * z                     # cell state
    n = f * n + i                         # normaliser
    h = o * (c / n)
    return dict(h=h, c=c, n=n, m=m), dict(i=i, f=f, z=z, o=o)
