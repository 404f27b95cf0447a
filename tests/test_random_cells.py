"""Cells that nobody would write: equations drawn at random, fused, against the reference backend."""

from __future__ import annotations

import random

import pytest
from examples import Example, assert_close

from gatework.compiler import Bias, Constant, H, Input, Matrix, State, Vector, maximum, sigmoid, softplus, tanh, trace
from gatework.compiler import sum as feature_sum
from gatework.compiler import where as chosen

OPERATIONS = [
    lambda a, d, U, v: a + d, lambda a, d, U, v: a - d, lambda a, d, U, v: a * d, lambda a, d, U, v: tanh(a),
    lambda a, d, U, v: sigmoid(a - d), lambda a, d, U, v: softplus(a) / (1.5 + abs(d)),
    lambda a, d, U, v: maximum(a, d), lambda a, d, U, v: chosen(a < d, a, d),
    lambda a, d, U, v: U.b @ tanh(a), lambda a, d, U, v: U.a @ a,
    lambda a, d, U, v: feature_sum(v.b * a) * d, lambda a, d, U, v: feature_sum(a * d) + a,
]


def drawn(seed: int):
    """Equations over two inputs, a constant and two states: a handful of operations, each on any two values so far."""
    draw = random.Random(seed)

    def cell(x: Input, k: Constant, u: Input[H], h: State, s: State, W: Matrix, V: Matrix, U: Matrix, v: Vector,
             b: Bias):
        values = [W.a @ x, V.a @ k, h, s, u, U.a @ h, v.a * h, b.a + s]
        for _ in range(draw.randint(3, 9)):
            values.append(draw.choice(OPERATIONS)(draw.choice(values), draw.choice(values), U, v))
        total = U.z @ draw.choice([h, s])
        for value in values:  # each has its part in the output
            total = total + draw.choice([0.2, 0.3]) * value
        output = tanh(total)
        return dict(h=output, s=draw.choice([h, tanh(values[-1] * h), 0.5 * s + 0.1 * output]))

    return cell


@pytest.mark.parametrize("seed", range(16), ids=lambda seed: f"seed{seed}-T3-B2-I2-H11")
def test_random_cell_equals_the_reference(seed):
    example = Example(trace(drawn(seed)), 3, 2, 2, 11, seed=seed)
    # float64; products of products reach 1e3 inside, where a rounding is 1e-13, before tanh brings them back
    assert_close(example.fused(reverse=seed % 2 == 1), example.expected(reverse=seed % 2 == 1), 1e-11)
