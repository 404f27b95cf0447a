"""Reverse-mode derivative: receives outputs of one step, hands on the gradients as new expressions."""

from __future__ import annotations

from . import ops
from .expr import Expr, add, const, is_const, node, order


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
    for y in reversed(order(outputs)):
        if y in gradient and y.args:
            for a, d in zip(y.args, ops.DERIVATIVE[y.op](gradient[y], y, *y.args)):
                give(a, d)
    return [gradient.get(e, const(0)) for e in wrt]
