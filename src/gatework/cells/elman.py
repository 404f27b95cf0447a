from ..compiler import Bias, Input, Matrix, State, relu, tanh


def elman(x: Input, h: State, W: Matrix, U: Matrix, b: Bias, d: Bias, *, nonlinearity="tanh"):
    """Plain recurrent network (Elman, "Finding structure in time", 1990), in the form of torch.nn.RNN.

    Unlike the LSTM it has no gate and no cell state: everything it knows is rewritten in every step. The setting
    `nonlinearity` is "tanh" or "relu".
    """
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f'nonlinearity is "tanh" or "relu"; {nonlinearity!r} was given')
    act = tanh if nonlinearity == "tanh" else relu
    h = act(W @ x + b + U @ h + d)
    return dict(h=h)
