from ..compiler import Bias, Gain, Input, Matrix, State, layer_norm, sigmoid, tanh


def layer_norm_gru(x: Input, h: State, W: Matrix, U: Matrix, gx: Gain, gh: Gain, b: Bias, d: Bias, *, eps=1e-5):
    """GRU with layer normalisation (Ba et al., "Layer normalization", 2016).

    Unlike the LSTM it has one state and two gates. The products for both gates are normalised together, those for the
    candidate by themselves, and gx and gh scale them again; the reset gate acts after the product. As in that paper z
    writes where it is 1, the other way round than in `gru`.
    """
    xr, xz = layer_norm(W.r @ x, W.z @ x, eps=eps)
    hr, hz = layer_norm(U.r @ h, U.z @ h, eps=eps)
    r = sigmoid(gx.r * xr + gh.r * hr + b.r)  # reset gate
    z = sigmoid(gx.z * xz + gh.z * hz + b.z)  # update gate
    n = tanh(gx.n * layer_norm(W.n @ x, eps=eps) + b.n + r * (gh.n * layer_norm(U.n @ h, eps=eps) + d.n))  # candidate
    h = (1.0 - z) * h + z * n
    return dict(h=h), dict(r=r, z=z, n=n)
