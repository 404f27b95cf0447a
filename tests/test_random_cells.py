"""Cells that nobody would write: equations drawn at random, fused, against the reference backend."""

from __future__ import annotations

import random

import pytest
import torch
from examples import Example, assert_close

from gatework.autograd import scan
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
        following = dict(h=output, s=draw.choice([h, tanh(values[-1] * h), 0.5 * s + 0.1 * output, W.a @ x]))
        return following, {f"value{k}": value for k, value in enumerate(values)}

    return cell


@pytest.mark.parametrize("seed", range(16), ids=lambda seed: f"seed{seed}-T3-B2-I2-H11")
def test_random_cell_equals_the_reference(seed):
    example = Example(trace(drawn(seed)), 3, 2, 2, 11, seed=seed)
    # float64; products of products reach 1e3 inside, where a rounding is 1e-13, before tanh brings them back
    assert_close(example.fused(reverse=seed % 2 == 1), example.expected(reverse=seed % 2 == 1), 1e-11)


@pytest.mark.parametrize("seed", range(16))
def test_recorded_values_of_a_random_cell_equal_the_reference_and_outlive_its_backward_pass(seed):
    cell = trace(drawn(seed))
    example, names = Example(cell, 3, 2, 2, 11, seed=seed), tuple(random.Random(seed).sample(list(cell.record), 4))
    made = {}
    for backend in ("cpu", "reference"):
        tensors = [[t.detach().requires_grad_() for t in ts] for ts in
                   (example.inputs, example.states, example.parameters)]
        handed, last = scan(cell, *tensors, reverse=seed % 2 == 1, backend=backend, outputs=names)
        torch.stack([y.square().sum() for y in (*handed, *last)]).sum().backward()
        gradients = [torch.zeros_like(t) if t.grad is None else t.grad for ts in tensors for t in ts]
        made[backend] = [y.detach() for y in (*handed, *last)] + gradients
    for a, b in zip(made["cpu"], made["reference"], strict=True):
        # float64; squares of values that reach 1e3, in sums of 100 terms
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * max(1.0, float(b.abs().max())))
