from ..compiler import Bias, Input, Matrix, State, tanh


def leaky_rnn(x: Input, h: State, W: Matrix, U: Matrix, b: Bias, *, leak=0.2):
    """Leaky-integrator network (Jaeger et al., "Optimization and applications of echo state networks with
    leaky-integrator neurons", 2007).

    Unlike the LSTM it has no gates: every unit keeps the same share 1 - leak of its state. `leak` is the time step
    over the time constant, dt / tau; with leak=1 this is the Elman network.
    """
    if not 0.0 < leak <= 1.0:
        raise ValueError(f"leak is the share of the state that a step replaces, above 0, at most 1; {leak!r} was given")
    n = tanh(W @ x + U @ h + b)  # candidate
    h = (1.0 - leak) * h + leak * n
    return dict(h=h), dict(n=n)
