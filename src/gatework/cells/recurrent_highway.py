from ..compiler import Bias, Input, Matrix, State, sigmoid, tanh


def recurrent_highway(x: Input, h: State, W: Matrix, U: Matrix, b: Bias, *, depth=2):
    """Recurrent highway network, "RHN" (Zilly et al., "Recurrent highway networks", 2017), with coupled gates.

    Unlike the LSTM a step passes through `depth` highway layers, one after the other; only the first sees the input.
    Recorded are the candidates n1, n2, ... and the transform gates t1, t2, ... of the layers.
    """
    if not isinstance(depth, int) or depth < 1:
        raise ValueError(f"depth is the number of highway layers in a step, at least 1; {depth!r} was given")
    record = {}
    for layer in map(str, range(1, depth + 1)):
        to_candidate = getattr(U, "n" + layer) @ h + getattr(b, "n" + layer)
        to_gate = getattr(U, "t" + layer) @ h + getattr(b, "t" + layer)
        if layer == "1":
            to_candidate, to_gate = W.n1 @ x + to_candidate, W.t1 @ x + to_gate
        n, t = tanh(to_candidate), sigmoid(to_gate)
        h = t * n + (1.0 - t) * h
        record |= {"n" + layer: n, "t" + layer: t}
    return dict(h=h), record
