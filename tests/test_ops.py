"""Every operation: its value against numpy, its derivative against finite differences in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy_meaning import NUMPY, draw_leaf, evaluate

from gatework.backends import reference
from gatework.compiler import ops, vjp
from gatework.compiler.expr import Expr, elementwise, leaf, mul, node

SIZES = {"H": 4, "I": 3}
UNARY = ("sigmoid", "tanh", "relu", "exp", "log", "sqrt", "abs", "softplus")
BINARY = ("add", "sub", "mul", "div", "minimum", "maximum", "lt", "le")
# Central differences with step h err by about h*h from curvature and 1e-16/h from rounding; both are below 1e-9 here.
STEP, BOUND = 1e-6, 1e-7


def vector(name: str, size: str = "H") -> Expr:
    return leaf("input", name, (size,))


def row(op: str) -> tuple[Expr, list[Expr]]:
    """One operation on fresh leaves."""
    if op in ("matvec", "matvecT"):
        m, a = leaf("param", ("M", ""), ("H", "I")), vector("a", "I" if op == "matvec" else "H")
        return {"matvec": ops.matvec, "matvecT": ops.matvec_t}[op](m, a), [m, a]
    if op == "expand":
        a = leaf("input", "a", ())
        return node("expand", a, dims=("H",)), [a]
    if op in ("sum", "copy"):
        a = vector("a")
        return node(op, a, dims=() if op == "sum" else ("H",)), [a]
    leaves = [vector(name) for name in ("c", "a", "b")[:3 if op == "where" else 2 if op in BINARY else 1]]
    return elementwise(op, *leaves), leaves


def draw(op: str, leaves: list[Expr], rng: np.random.Generator) -> dict[Expr, np.ndarray]:
    values = {e: draw_leaf(rng, e, SIZES) for e in leaves}
    if op == "where":
        values[leaves[0]] = np.array([0.0, 1.0, -2.0, 0.0])
    return {e: np.abs(v) + 0.1 for e, v in values.items()} if op in ("log", "sqrt", "div") else values


def gradient_error(outputs: list[Expr], values: dict[Expr, np.ndarray], rng: np.random.Generator) -> float:
    """The largest distance between the derived gradients of a weighted sum of the outputs and central differences."""
    weights = {leaf("cotangent", "d", y.dims): np.asarray(rng.standard_normal(np.shape(evaluate(y, values, SIZES))))
               for y in outputs}
    derived = vjp(outputs, list(weights), list(values))

    def loss(changed: dict[Expr, np.ndarray]) -> float:
        return sum(np.sum(w * evaluate(y, changed, SIZES)) for y, w in zip(outputs, weights.values()))

    worst = 0.0
    for e, graph in zip(values, derived):
        got = np.broadcast_to(evaluate(graph, values | weights, SIZES), values[e].shape)
        for at in np.ndindex(values[e].shape):
            up, down = values[e].copy(), values[e].copy()
            up[at] += STEP
            down[at] -= STEP
            slope = (loss(values | {e: up}) - loss(values | {e: down})) / (2 * STEP)
            worst = max(worst, abs(got[at] - slope) / (1.0 + abs(slope)))
    return worst


def test_every_operation_has_a_derivative_a_reference_meaning_and_a_numpy_meaning():
    assert set(reference.MEANING) == set(ops.DERIVATIVE)
    assert set(NUMPY) | {"expand"} == set(ops.DERIVATIVE) | {"outer"}


@pytest.mark.parametrize("op", ops.DERIVATIVE)
def test_reference_value_equals_numpy(op):
    rng = np.random.default_rng(1)
    y, leaves = row(op)
    values = draw(op, leaves, rng)
    got = reference.evaluate(y, {e: torch.from_numpy(v) for e, v in values.items()}).numpy()
    wanted = evaluate(y, values, SIZES)
    # both are float64 library functions, right within a few units in the last place
    np.testing.assert_allclose(np.broadcast_to(got, wanted.shape), wanted, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("op", UNARY)
def test_reference_value_at_nan_infinities_zeros_and_large_numbers_equals_numpy(op, dtype):
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 30.0, -30.0, 1e4, -1e4, 1e-30], dtype)
    y, (a,) = row(op)
    got = reference.evaluate(y, {a: torch.from_numpy(special)}).numpy()
    with np.errstate(all="ignore"):
        wanted = NUMPY[op](special.astype(np.float64)).astype(dtype)
    # 4 units in the last place: vectorised library functions are not rounded correctly
    np.testing.assert_allclose(got, wanted, rtol=4 * np.finfo(dtype).eps, atol=np.finfo(dtype).tiny)


@pytest.mark.parametrize("op", BINARY)
def test_reference_value_of_nan_and_infinite_pairs_equals_numpy(op):
    special = np.array([np.nan, np.inf, -np.inf, 0.0, 2.0])
    left, right = map(np.ravel, np.meshgrid(special, special))
    y, (a, b) = row(op)
    got = reference.evaluate(y, {a: torch.from_numpy(left), b: torch.from_numpy(right)}).numpy()
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(got, NUMPY[op](left, right))


@pytest.mark.parametrize("op", ops.DERIVATIVE)
def test_derivative_equals_finite_differences(op):
    rng = np.random.default_rng(2)
    y, leaves = row(op)
    assert gradient_error([y], draw(op, leaves, rng), rng) < BOUND


def spoiled(rule):
    """The rule with every gradient 1 % too large, and one where there should be none."""
    def scale(d: Expr, given: Expr) -> Expr:
        if d is None:
            return given
        return ops.outer(mul(1.01, d.args[0]), d.args[1]) if d.op == "outer" else mul(1.01, d)
    return lambda d, y, *args: tuple(scale(g, d) for g in rule(d, y, *args))


@pytest.mark.parametrize("op", ops.DERIVATIVE)
def test_spoiling_a_derivative_rule_by_one_percent_is_found_by_finite_differences(op, monkeypatch):
    rng = np.random.default_rng(2)
    y, leaves = row(op)
    values = draw(op, leaves, rng)
    assert gradient_error([y], values, rng) < BOUND
    monkeypatch.setitem(ops.DERIVATIVE, op, spoiled(ops.DERIVATIVE[op]))
    assert gradient_error([y], values, rng) > 100 * BOUND


@pytest.mark.parametrize(("op", "argument"), [(op, k) for op in ops.DERIVATIVE for k in range(len(row(op)[1]))])
def test_spoiling_the_gradient_of_a_single_argument_is_found(op, argument, monkeypatch):
    rng = np.random.default_rng(3)
    y, leaves = row(op)
    rule, bad = ops.DERIVATIVE[op], spoiled(ops.DERIVATIVE[op])
    monkeypatch.setitem(ops.DERIVATIVE, op, lambda *a: tuple(
        bad(*a)[k] if k == argument else g for k, g in enumerate(rule(*a))))
    assert gradient_error([y], draw(op, leaves, rng), rng) > 100 * BOUND


@pytest.mark.parametrize("op", ["sigmoid", "tanh", "exp", "log", "sqrt", "softplus"])
def test_derivative_of_a_smooth_function_at_nan_is_nan(op):
    assert np.isnan(slope_at(op, np.array([np.nan]))).all()


@pytest.mark.parametrize(("op", "at", "slope"), [
    ("sigmoid", [-np.inf, np.inf], [0.0, 0.0]),
    ("tanh", [-np.inf, np.inf], [0.0, 0.0]),
    ("exp", [-np.inf], [0.0]),
    ("log", [np.inf, 0.0], [0.0, np.inf]),
    ("sqrt", [np.inf, 0.0], [0.0, np.inf]),
    ("softplus", [-np.inf, np.inf], [0.0, 1.0]),
    ("relu", [-np.inf, -1.0, 0.0, np.inf], [0.0, 0.0, 0.0, 1.0]),
    ("abs", [-np.inf, -2.0, 0.0, 2.0, np.inf], [-1.0, -1.0, 0.0, 1.0, 1.0]),
])
def test_derivative_at_infinities_and_kinks(op, at, slope):
    np.testing.assert_array_equal(slope_at(op, np.array(at)), slope)


def slope_at(op: str, at: np.ndarray) -> np.ndarray:
    y, (a,) = row(op)
    d = vector("d")
    (gradient,) = vjp([y], [d], [a])
    with np.errstate(all="ignore"):
        return evaluate(gradient, {a: at, d: np.ones_like(at)}, {"H": at.size})


@pytest.mark.parametrize("op", ["minimum", "maximum"])
def test_at_a_tie_the_whole_gradient_goes_to_the_first_argument(op):
    y, (a, b) = row(op)
    d = vector("d")
    tie = {a: np.full(4, 0.5), b: np.full(4, 0.5), d: np.arange(4.0)}
    first, second = (evaluate(g, tie, SIZES) for g in vjp([y], [d], [a, b]))
    np.testing.assert_array_equal(first, np.arange(4.0))
    np.testing.assert_array_equal(second, np.zeros(4))


def test_gradients_of_one_matrix_in_two_products_add_up():
    m, a, b = leaf("param", ("M", ""), ("H", "H")), vector("a"), vector("b")
    y = ops.matvec(m, ops.tanh(ops.matvec(m, a) * b))
    rng = np.random.default_rng(4)
    assert gradient_error([y], {e: draw_leaf(rng, e, SIZES) for e in (m, a, b)}, rng) < BOUND


def test_a_scalar_that_spreads_collects_the_gradients_of_all_features():
    a, b = vector("a"), vector("b")
    y = a * ops.sum(a * b) + ops.sqrt(ops.sum(b * b))
    rng = np.random.default_rng(5)
    assert gradient_error([y], {e: draw_leaf(rng, e, SIZES) for e in (a, b)}, rng) < BOUND
