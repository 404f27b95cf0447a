from ..compiler import Bias, Input, Matrix, Scalar, State, Vector, exp, tanh


def ct_rnn(x: Input, dt: Scalar, h: State, W: Matrix, U: Matrix, p: Vector, b: Bias, *, tau=1.0):
    """Continuous-time network, tau dh/dt = -h + n (Funahashi & Nakamura, "Approximation of dynamical systems by
    continuous time recurrent neural networks", 1993), for steps of any length.

    Unlike the LSTM it knows how long each step takes: dt [T, B, 1], in the unit of tau. The drive n is held over the
    step, and the decay exp(-dt / tau) is exact, so no dt is too large and dt = 0 changes nothing. The time constant of
    a unit is tau * exp(p): learned, and equal to the setting where p is 0.
    """
    if not tau > 0.0:
        raise ValueError(f"tau is a time constant above 0, in the unit of dt; {tau!r} was given")
    n = tanh(W @ x + U @ h + b)        # drive
    keep = exp(-dt / (tau * exp(p)))    # what is left of the state
    h = keep * h + (1.0 - keep) * n
    return dict(h=h), dict(n=n, keep=keep)
