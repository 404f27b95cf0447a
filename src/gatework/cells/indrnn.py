from ..compiler import Bias, Input, Matrix, State, Vector, relu


def indrnn(x: Input, h: State, W: Matrix, u: Vector, b: Bias):
    """Independently recurrent network, "IndRNN" (Li et al., "Building a longer and deeper RNN", 2018).

    Unlike the LSTM each unit sees only itself of the step before, through one weight: units meet in the next layer.
    Keep |u| at most 2**(1 / T), or activations grow over T steps.
    """
    h = relu(W @ x + u * h + b)
    return dict(h=h)
