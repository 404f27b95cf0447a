"""The operations of the notation as Triton writes them; the twin of `backends.cpu.maths`. NaN in gives NaN out."""

from __future__ import annotations

OPERATIONS = {
    "add": "{} + {}",
    "sub": "{} - {}",
    "mul": "{} * {}",
    "div": "{} / {}",
    "sigmoid": "tl.sigmoid({})",
    "tanh": "tanh({})",
    "relu": "tl.maximum({}, 0.0, propagate_nan=tl.PropagateNan.ALL)",
    "exp": "tl.exp({})",
    "log": "tl.log({})",
    "sqrt": "tl.sqrt({})",
    "abs": "tl.abs({})",
    "softplus": "softplus({})",
    "minimum": "tl.minimum({}, {}, propagate_nan=tl.PropagateNan.ALL)",
    "maximum": "tl.maximum({}, {}, propagate_nan=tl.PropagateNan.ALL)",
    "where": "tl.where({} != 0, {}, {})",
    "lt": "tl.where({} < {}, 1.0, 0.0)",
    "le": "tl.where({} <= {}, 1.0, 0.0)",
    "expand": "{}",
    "copy": "{}",
}

# Triton has no hyperbolic tangent on every device. Where exp(-2 |a|) is near 1 the difference loses digits of the
# value, not of the whole: the error stays below 1.2e-7, as the error of the sigmoid does.
FUNCTIONS = '''@triton.jit
def tanh(a):
    e = tl.exp(-2.0 * tl.abs(a))
    t = (1.0 - e) / (1.0 + e)
    return tl.where(a < 0, -t, t)


@triton.jit
def softplus(a):
    return tl.maximum(a, 0.0, propagate_nan=tl.PropagateNan.ALL) + tl.log(1.0 + tl.exp(-tl.abs(a)))
'''
