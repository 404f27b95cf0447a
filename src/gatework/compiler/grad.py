"""Reverse-mode derivative: receives outputs of one step, hands on the gradients as new expressions."""

from __future__ import annotations

import functools
from collections import Counter

from . import ops
from .expr import Expr, add, const, is_const, mul, node, number, order


def vjp(outputs: list[Expr], cotangents: list[Expr], wrt: list[Expr]) -> list[Expr]:
    """The gradient of every value in `wrt`: sum over outputs of cotangent times Jacobian. Not reached: constant 0."""
    gradient: dict[Expr, Expr] = {}

    def give(e: Expr, d: Expr | None):
        if d is not None and e.op != "const" and not is_const(d, 0):
            gradient[e] = plus(gradient[e], d) if e in gradient else d

    def plus(a: Expr, b: Expr) -> Expr:
        # Gradients of one matrix in two products; element-wise arithmetic is for vectors.
        return node("add", a, b, dims=a.dims) if len(a.dims) == 2 else add(a, b)

    for y, d in zip(outputs, cotangents):
        give(y, d)
    nodes = order(outputs)
    for y in reversed(nodes):
        if y in gradient and y.args:
            d = _of_mean(y, nodes, gradient) if y.op == "expand" else gradient[y]
            if not is_const(d, 0):
                for a, given in zip(y.args, ops.DERIVATIVE[y.op](d, y, *y.args)):
                    give(a, given)
    return [gradient.get(e, const(0)) for e in wrt]


def _of_mean(y: Expr, nodes: list[Expr], gradient: dict[Expr, Expr]) -> Expr:
    """The gradient of a scalar that is spread, without what adds up to nothing if it is the mean of vectors.

    What is left of vectors without their mean adds up to 0 over all features, and so does a multiple of it, which is
    what reaches them through their variance. So the mean need not wait for that sum: a normalisation has one round of
    sums in its backward pass instead of two.
    """
    centred = [e for e in nodes if e.op == "sub" and e.args[1] is y and e in gradient]
    if not centred or not _is_mean(y.args[0], [e.args[0] for e in centred]):
        return gradient[y]
    multiples = [Counter(_factor(t, e) for t in _terms(gradient[e])) for e in centred]
    common = functools.reduce(Counter.__and__, multiples)
    del common[None]
    gone = {}
    for e in centred:
        left, rest = Counter(common), const(0.0)
        for t in _terms(gradient[e]):
            if left[factor := _factor(t, e)] > 0:
                left[factor] -= 1
            else:
                rest = add(rest, t)
        gone[mul(-1.0, gradient[e])] = mul(-1.0, rest)
    return functools.reduce(add, (gone.get(t, t) for t in _terms(gradient[y])))


def _is_mean(e: Expr, vectors: list[Expr]) -> bool:
    """Whether a scalar is the mean over the features of all these vectors."""
    several = e.op == "div" and is_const(e.args[1])
    if (number(e.args[1]) if several else 1) != len(vectors):
        return False
    mean = e.args[0] if several else e
    return (mean.op == "div" and mean.args[0].op == "sum" and mean.args[0].args[0] is functools.reduce(add, vectors)
            and (mean.args[1].op, mean.args[1].attr) == ("size", *vectors[0].dims))


def _terms(e: Expr) -> list[Expr]:
    return [t for a in e.args for t in _terms(a)] if e.op == "add" else [e]


def _factor(e: Expr, vector: Expr) -> Expr | None:
    """The scalar that multiplies a vector, spread, if that is what a value is."""
    if e.op == "mul":
        for factor, other in (e.args, e.args[::-1]):
            if other is vector and (factor.op == "expand" or is_const(factor)):
                return factor
    return None
