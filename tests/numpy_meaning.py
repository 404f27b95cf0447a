"""What the operations mean, in numpy: written without looking at the reference backend, and compared with it."""

from __future__ import annotations

import numpy as np

from gatework.compiler import Cell, Expr
from gatework.compiler.expr import number, order

NUMPY = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide,
    "sigmoid": lambda a: 1.0 / (1.0 + np.exp(-a)),
    "tanh": np.tanh, "exp": np.exp, "log": np.log, "sqrt": np.sqrt, "abs": np.abs,
    "relu": lambda a: np.maximum(a, 0.0),
    "softplus": lambda a: np.logaddexp(0.0, a),
    "minimum": np.minimum, "maximum": np.maximum,
    "where": lambda c, a, b: np.where(np.not_equal(c, 0.0), a, b),
    "lt": lambda a, b: np.less(a, b) * 1.0,
    "le": lambda a, b: np.less_equal(a, b) * 1.0,
    "sum": lambda a: np.sum(a, -1, keepdims=True),
    "copy": np.copy,
    "matvec": lambda m, a: np.einsum("ij,...j->...i", m, a),
    "matvecT": lambda m, d: np.einsum("ij,...i->...j", m, d),
    "outer": lambda a, b: np.einsum("i,j->ij", a, b),
}


def _number(e: Expr, sizes: dict[str, int]) -> float:
    return number(e) if e.op == "const" else float(sizes[e.attr])


def compute(e: Expr, env: dict[Expr, np.ndarray], sizes: dict[str, int]):
    """The value of one operation from those of its arguments; scalars have one feature, until they are expanded."""
    args = [_number(a, sizes) if a.op in ("const", "size") else env[a] for a in e.args]
    if e.op == "expand":
        lead = np.shape(args[0])[:-1]
        return np.broadcast_to(args[0], (*lead, sizes[e.dims[0]]))
    return NUMPY[e.op](*args)


def evaluate(e: Expr, env: dict[Expr, np.ndarray], sizes: dict[str, int]):
    known = dict(env)
    for n in order([e], known=env):
        known[n] = np.float64(_number(n, sizes)) if n.op in ("const", "size") else compute(n, known, sizes)
    return known[e]


def draw_leaf(rng: np.random.Generator, e: Expr, sizes: dict[str, int], lead: tuple[int, ...] = ()) -> np.ndarray:
    """A value for a leaf. Vectors of parameters are positive: a cell may take a root of what they scale."""
    shape = tuple(sizes[d] for d in e.dims) or (1,)
    if e.op == "param":
        return rng.uniform(0.1, 0.9, shape) if len(shape) == 1 else rng.uniform(-1.0, 1.0, shape)
    return rng.standard_normal((*lead, *shape))


def draw_parameters(rng: np.random.Generator, cell: Cell, sizes: dict[str, int]) -> dict[Expr, np.ndarray]:
    return {e: draw_leaf(rng, e, sizes) for f in cell.families.values() for e in f.parts.values()}


def stacked(cell: Cell, parts: dict[Expr, np.ndarray]) -> list[np.ndarray]:
    """The parameters as a layer stores them: the row blocks of a family below one another."""
    return [np.concatenate([parts[e] for e in f.parts.values()]) for f in cell.families.values()]
