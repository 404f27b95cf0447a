from ..compiler import Bias, Gain, Input, Matrix, State, layer_norm, sigmoid, tanh


def layer_norm_lstm(x: Input, h: State, c: State, W: Matrix, U: Matrix, gx: Gain, gh: Gain, gc: Gain, b: Bias, *,
                    eps=1e-5):
    """LSTM with layer normalisation (Ba et al., "Layer normalization", 2016).

    Unlike the LSTM both products are normalised, each over the features of all four gates, and so is what is shown of
    the cell state; gx, gh and gc scale them again. The shifts of the paper's three norms are the bias b: those of the
    two products add up to one.
    """
    xi, xf, xg, xo = layer_norm(W.i @ x, W.f @ x, W.g @ x, W.o @ x, eps=eps)
    hi, hf, hg, ho = layer_norm(U.i @ h, U.f @ h, U.g @ h, U.o @ h, eps=eps)
    i = sigmoid(gx.i * xi + gh.i * hi + b.i)  # input gate
    f = sigmoid(gx.f * xf + gh.f * hf + b.f)  # forget gate
    g = tanh(gx.g * xg + gh.g * hg + b.g)     # candidate
    o = sigmoid(gx.o * xo + gh.o * ho + b.o)  # output gate
    c = f * c + i * g                         # cell state
    h = o * tanh(gc * layer_norm(c, eps=eps) + b.c)
    return dict(h=h, c=c), dict(i=i, f=f, g=g, o=o)
