from ..compiler import Bias, Input, Matrix, State, sigmoid, tanh


def minimal_gated_unit(x: Input, h: State, W: Matrix, U: Matrix, b: Bias):
    """Minimal gated unit, "MGU" (Zhou et al., "Minimal gated unit for recurrent neural networks", 2016).

    Unlike the LSTM it has one gate, which decides both what the candidate sees of the state and what replaces it.
    """
    f = sigmoid(W.f @ x + U.f @ h + b.f)     # forget gate
    n = tanh(W.n @ x + U.n @ (f * h) + b.n)  # candidate
    h = (1.0 - f) * h + f * n
    return dict(h=h), dict(f=f, n=n)
