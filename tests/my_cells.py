"""Cells as a user may write them: each uses a part of the notation that the catalogue does not."""

from gatework.compiler import (
    Bias,
    Blocks,
    Constant,
    Gain,
    H,
    Input,
    Matrix,
    Scalar,
    State,
    Vector,
    exp,
    layer_norm,
    log,
    maximum,
    mean,
    minimum,
    relu,
    rms_norm,
    sigmoid,
    softplus,
    sqrt,
    sum,
    tanh,
    where,
)


def normalised(x: Input, h: State, W: Matrix, U: Matrix, gain: Vector, b: Bias, count: Vector, *, eps=1e-5):
    """Layer norm of the pre-activation; `count` sums to one over the features."""
    a = W @ x + U @ h
    centred = a - sum(count * a)
    variance = sum(count * centred * centred)
    h = tanh(gain * centred / sqrt(variance + eps) + b)
    return dict(h=h), dict(variance=variance, centred=centred)


def masked(x: Input, mask: Input[H], h: State, W: Matrix, U: Matrix, b: Bias):
    """Zoneout: a unit keeps its old state where the mask is 1."""
    new = tanh(W @ x + U @ h + b)
    return dict(h=mask * h + (1.0 - mask) * new), dict(new=new)


def conditioned(x: Input, context: Constant, h: State, W: Matrix, U: Matrix, V: Matrix, b: Bias):
    """A vector for the whole sequence enters every step, through a matrix and element by element."""
    h = tanh(W @ x + U @ h + V @ context + context * h + b)
    return dict(h=h)


def deep(x: Input, h: State, W: Matrix, U: Matrix, b: Bias):
    """Deep transition: a second product, of a value computed in the step."""
    inner = relu(W @ x + U.inner @ h + b.inner)
    return dict(h=tanh(U.outer @ inner + b.outer)), dict(inner=inner)


def elementary(x: Input, h: State, W: Matrix, U: Matrix, b: Bias):
    """Every element-wise function that the catalogue does without."""
    a = W.a @ x + U.a @ h + b.a
    e = W.e @ x + U.e @ h + b.e
    positive = exp(minimum(a, 1.5)) + softplus(e) + abs(a) + 0.1
    chosen = where(a < e, log(positive), maximum(a, -e) / positive)
    h = tanh(relu(chosen) - 0.5 * sigmoid(chosen) + sqrt(positive) * where(a >= 0.0, 1.0, h))
    return dict(h=h), dict(positive=positive, chosen=chosen)


def shared_row(x: Input, h: State, W: Matrix, U: Matrix, b: Bias):
    """One row of U multiplies two vectors, the state and a value of the step."""
    a = tanh(W @ x + U.r @ h + b.a)
    return dict(h=tanh(U.r @ (a * h) + a + b.h)), dict(a=a)


def two_states(x: Input, h: State, m: State, W: Matrix, U: Matrix, V: Matrix, b: Bias):
    """Both states are multiplied by matrices, and each reaches the other."""
    gate = sigmoid(W.g @ x + U.g @ h + V.g @ m + b.g)
    new = gate * m + (1.0 - gate) * tanh(W.n @ x + V.n @ m + b.n)
    return dict(h=tanh(U.n @ h + new), m=new), dict(gate=gate)


def switched(x: Input, h: State, W: Matrix, U: Matrix, v: Matrix, b: Bias, level: Vector):
    """What only decides, and never reaches a value, has the gradient 0: here `level` and `v`."""
    a = tanh(W @ x + U @ h + b)
    return dict(h=where(v @ x < level, a, h)), dict(a=a)


def spans(x: Input, dt: Scalar, h: State, W: Matrix, U: Matrix, p: Vector, b: Bias):
    """One number per step scales, decides, and is computed with before it spreads."""
    fade = exp(-abs(dt) * p)
    a = tanh(W @ x + U @ h + dt * dt + b)
    h = where(dt < 0.5, fade * h + (1.0 - fade) * a, a / (1.0 + softplus(dt)))
    return dict(h=h), dict(fade=fade)


def means(x: Input, h: State, W: Matrix, U: Matrix, gain: Gain, b: Bias):
    """Means over vectors of two sizes, and the norms that are made of them."""
    a, c = layer_norm(W.a @ x, U.a @ h)
    n = gain * rms_norm(a + c - mean(x * x), eps=0.1) + b
    return dict(h=tanh(n + mean(h) * (W.n @ x))), dict(n=n)


def heads(x: Input, h: State, W: Matrix, R: Blocks, V: Blocks, b: Bias):
    """Block-diagonal matrices, of the state and of a value of the step."""
    a = sigmoid(W @ x + R.a @ h + b.a)
    return dict(h=tanh(V @ (a * h) + R.h @ h + a + b.h)), dict(a=a)


def centres(x: Input, h: State, W: Matrix, U: Matrix, gain: Gain, b: Bias):
    """Means that are taken away again: with factors that vectors have in common, and with others of their own."""
    a, c = W.a @ x, U.a @ h
    both, level = mean(a + c) / 2.0, mean(b)
    p, q = a - both, c - both
    width = 0.1 + mean(p * p + q * q) + 0.5 * mean(p * p)
    alone = a - mean(a)
    n = (p + q * mean(h)) / sqrt(width) + gain * mean(alone * alone) + (c - mean(a)) / (1.0 + level * level)
    return dict(h=tanh(n + alone * mean(c) + b)), dict(width=width)


CELLS = [normalised, masked, conditioned, deep, elementary, shared_row, two_states, switched, spans, means, heads,
         centres]
