"""How each operation is computed on a vector: one row per operation of `compiler.ops`.

exp, sigmoid and tanh share one reduction, exp(x) = 2^n exp(r) with |r| <= ln(2)/2, and a polynomial for exp(r) - 1, so
that tanh is exact to a few units in the last place near 0 too. A range is cut with compare and select: NaN passes.
`docs/design.md` states the measured bounds, `tests/test_maths.py` holds them.
"""

from __future__ import annotations

import math
from fractions import Fraction

from .ir import Function


class _Format:
    """Constants of one floating-point format."""

    def __init__(self, mantissa: int, exponent_bias: int, tanh_limit: float, exp_limits: tuple[float, float],
                 sigmoid_limit: float, exp_degree: int, log_terms: int, log1p_terms: int):
        self.mantissa, self.bias = mantissa, exponent_bias
        self.magic = 1.5 * 2.0**mantissa  # adding it rounds to a whole number and leaves that in the low bits
        self.tanh_limit, self.exp_limits, self.sigmoid_limit = tanh_limit, exp_limits, sigmoid_limit
        self.exp_degree, self.log_terms, self.log1p_terms = exp_degree, log_terms, log1p_terms
        # ln(2) in two parts, the first with so few bits that its product with n is exact
        self.ln2_high = math.ldexp(round(math.ldexp(math.log(2), 12)), -12) if mantissa == 23 else \
            math.ldexp(round(math.ldexp(math.log(2), 33)), -33)
        self.ln2_low = float(Fraction("0.693147180559945309417232121458176568") - Fraction(self.ln2_high))


FORMATS = {4: _Format(23, 127, 9.01, (-104.0, 89.0), 87.0, 6, 5, 9),
           8: _Format(52, 1023, 19.1, (-746.0, 710.0), 708.0, 13, 11, 17)}


def _polynomial(f: Function, x: str, coefficients: list[float]) -> str:
    """Lowest power first."""
    value = f.number(coefficients[-1])
    for c in coefficients[-2::-1]:
        value = f.fma(value, x, f.number(c))
    return value


def _cut(f: Function, x: str, low: float, high: float) -> str:
    # "x < low ? low : x" is false for NaN, which so stays
    x = f.select("ogt", x, f.number(high), f.number(high), x)
    return f.select("olt", x, f.number(low), f.number(low), x)


def _reduce(f: Function, x: str, factor: float = 1.0, exact: bool = False) -> tuple[str, str]:
    """Return (bits that hold the whole number n in their low end, exp(r) - 1) with factor * x = n ln(2) + r.

    `factor` is 1, 2 or -1. Without `exact` float32 takes ln(2) in one piece, 2e-9 off: a few 1e-7 of the result, where
    it is so large or small that a sigmoid or tanh of it no longer changes.
    """
    k = FORMATS[f.module.size]
    shifted = f.fma(x, f.number(factor / math.log(2)), f.number(k.magic))
    n = f.arithmetic("fsub", shifted, f.number(k.magic))
    # r / factor, so that multiplying x costs nothing; the polynomial takes it back
    pieces = [k.ln2_high, k.ln2_low] if exact or f.module.size == 8 else [math.log(2)]
    for piece in pieces:
        x = f.fma(n, f.number(-piece / factor), x)
    q = _polynomial(f, x, [factor**j / math.factorial(j) for j in range(1, k.exp_degree + 1)])
    return f.value(f"bitcast {f.module.vector} {shifted} to {f.module.integers}"), f.arithmetic("fmul", q, x)


def _power_of_two(f: Function, n: str) -> str:
    """2^n from the low bits of n."""
    k, ints = FORMATS[f.module.size], f.module.integers
    moved = f.value(f"shl {ints} {n}, {f.integer_number(k.mantissa)}")
    bits = f.value(f"add {ints} {moved}, {f.integer_number(k.bias << k.mantissa)}")
    return f.value(f"bitcast {ints} {bits} to {f.module.vector}")


def _quotient(f: Function, a: str, b: str) -> str:
    """a / b for b between 1 and 1e38, where an estimate and one Newton step may replace the slow division."""
    fast = f.module.target.fast_division and f.module.size == 4
    return f.arithmetic("fdiv", a, b, "arcp ninf contract" if fast else "")


def exp(f: Function, x: str) -> str:
    k, ints = FORMATS[f.module.size], f.module.integers
    n, p = _reduce(f, _cut(f, x, *k.exp_limits), exact=True)
    # 2^n leaves the format at both ends of the range; two factors do not
    magic = int(k.magic) if k.mantissa == 23 else None
    bits = (0x4B400000 if magic else 0x4338000000000000)
    n = f.value(f"sub {ints} {n}, {f.integer_number(bits)}")
    half = f.value(f"ashr {ints} {n}, {f.integer_number(1)}")
    rest = f.value(f"sub {ints} {n}, {half}")
    low, high = _power_of_two(f, half), _power_of_two(f, rest)
    return f.arithmetic("fmul", f.fma(low, p, low), high)


def sigmoid(f: Function, x: str) -> str:
    limit = FORMATS[f.module.size].sigmoid_limit
    n, p = _reduce(f, _cut(f, x, -limit, limit), factor=-1.0)
    scale = _power_of_two(f, n)
    e = f.fma(scale, p, scale)
    value = _quotient(f, f.number(1.0), f.arithmetic("fadd", e, f.number(1.0)))
    # A shut gate is 0, not the smallest normal number: what that multiplies would be denormal, a hundred times slower.
    return f.select("olt", x, f.number(-limit), f.number(0.0), value)


def tanh(f: Function, x: str) -> str:
    limit = FORMATS[f.module.size].tanh_limit
    n, p = _reduce(f, _cut(f, x, -limit, limit), factor=2.0)
    scale = _power_of_two(f, n)
    t = f.fma(scale, p, f.arithmetic("fsub", scale, f.number(1.0)))  # exp(2x) - 1
    return _quotient(f, t, f.arithmetic("fadd", t, f.number(2.0)))


def _atanh_series(f: Function, s: str, terms: int) -> str:
    """2 atanh(s) = log((1 + s) / (1 - s))."""
    z = f.arithmetic("fmul", s, s)
    series = _polynomial(f, z, [2 / (2 * j + 1) for j in range(1, terms)])
    return f.fma(f.arithmetic("fmul", f.arithmetic("fmul", s, z), series), f.number(1.0),
                 f.arithmetic("fadd", s, s))


def log(f: Function, x: str) -> str:
    m, k = f.module, FORMATS[f.module.size]
    ints = m.integers
    tiny, lift = 2.0 ** (1 - k.bias), 2.0 ** (k.mantissa + 1)
    lifted = f.arithmetic("fmul", x, f.number(lift))
    normal = f.select("olt", x, f.number(tiny), lifted, x)
    shift = f.select("olt", x, f.number(tiny), f.number(-(k.mantissa + 1.0)), f.number(0.0))
    bits = f.value(f"bitcast {m.vector} {normal} to {ints}")
    # move the mantissa to [sqrt(1/2), sqrt(2)), the exponent to a whole number
    root = 0x3F3504F3 if m.size == 4 else 0x3FE6A09E667F3BCD
    offset = f.value(f"sub {ints} {bits}, {f.integer_number(root)}")
    power = f.value(f"ashr {ints} {offset}, {f.integer_number(k.mantissa)}")
    moved = f.value(f"shl {ints} {power}, {f.integer_number(k.mantissa)}")
    mantissa = f.value(f"bitcast {ints} " + f.value(f"sub {ints} {bits}, {moved}") + f" to {m.vector}")
    n = f.arithmetic("fadd", f.value(f"sitofp {ints} {power} to {m.vector}"), shift)
    s = f.arithmetic("fdiv", f.arithmetic("fsub", mantissa, f.number(1.0)),
                     f.arithmetic("fadd", mantissa, f.number(1.0)))
    value = f.fma(n, f.number(k.ln2_low), _atanh_series(f, s, k.log_terms))
    value = f.fma(n, f.number(k.ln2_high), value)
    value = f.select("oeq", x, f.number(math.inf), x, value)
    value = f.select("oeq", x, f.number(0.0), f.number(-math.inf), value)
    value = f.select("olt", x, f.number(0.0), f.number(math.nan), value)
    return f.select("uno", x, x, x, value)


def softplus(f: Function, x: str) -> str:
    """max(x, 0) + log(1 + exp(-|x|)); the logarithm of 1 + e as 2 atanh(e / (2 + e))."""
    k = FORMATS[f.module.size]
    e = exp(f, f.value(f"fneg {f.module.vector} {f.intrinsic('fabs', x)}"))
    s = f.arithmetic("fdiv", e, f.arithmetic("fadd", e, f.number(2.0)))
    return f.arithmetic("fadd", relu(f, x), _atanh_series(f, s, k.log1p_terms))


def relu(f: Function, x: str) -> str:
    return f.select("olt", x, f.number(0.0), f.number(0.0), x)


def _compare(name: str):
    return lambda f, a, b: f.select(name, a, b, f.number(1.0), f.number(0.0))


def _either_nan(f: Function, a: str, b: str, value: str) -> str:
    return f.select("uno", a, b, f.arithmetic("fadd", a, b), value)


OPERATIONS = {
    "add": lambda f, a, b: f.arithmetic("fadd", a, b),
    "sub": lambda f, a, b: f.arithmetic("fsub", a, b),
    "mul": lambda f, a, b: f.arithmetic("fmul", a, b),
    "div": lambda f, a, b: f.arithmetic("fdiv", a, b),
    "sigmoid": sigmoid,
    "tanh": tanh,
    "relu": relu,
    "exp": exp,
    "log": log,
    "sqrt": lambda f, a: f.intrinsic("sqrt", a),
    "abs": lambda f, a: f.intrinsic("fabs", a),
    "softplus": softplus,
    "minimum": lambda f, a, b: _either_nan(f, a, b, f.select("olt", b, a, b, a)),
    "maximum": lambda f, a, b: _either_nan(f, a, b, f.select("ogt", b, a, b, a)),
    "where": lambda f, c, a, b: f.select("une", c, f.number(0.0), a, b),
    "lt": _compare("olt"),
    "le": _compare("ole"),
    "expand": lambda f, a: a,
    "copy": lambda f, a: a,
}
