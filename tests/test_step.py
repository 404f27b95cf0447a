"""The step kernels against literal steps in numpy, and the bits that must not depend on how a sequence is cut."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from literal_cells import LITERAL

from gatework import cells, trace
from gatework.backends.cpu.step import Stack, dense


def name_of(function) -> str:
    if isinstance(function, functools.partial):
        return "-".join([function.func.__name__, *map(str, function.keywords.values())])
    return getattr(function, "__name__", "")


def drawn(cell, I=5, H=33, layers=1, dtype=np.float64, seed=0):
    """A stack with weights as layers draw them; heads of 11 features, no multiple of any vector."""
    rng = np.random.default_rng(seed)
    first = {"I": I, "H": H, "P": 7, "S": 2, "D": 11}
    sizes = [{k: v for k, v in first.items() if k in cell.sizes}]
    sizes += [sizes[0] | {"I": sizes[0][cell.states[cell.output].dims[0]]}] * (layers - 1)
    parameters = []
    for s in sizes:
        shapes = [(len(f.gates) * s[f.rows], *([s[f.stored_columns]] if f.stored_columns else []))
                  for f in cell.families.values()]
        parameters.append([rng.uniform(-1, 1, n).astype(dtype) / (n[1] if len(n) > 1 else 1) ** 0.5 for n in shapes])
    return Stack(cell, sizes, parameters), parameters, rng


def fill(call, rng):
    """Draw inputs and first states; spans of time, normalisers and what else may be no less than 0 are positive."""
    for a in (*call.inputs.values(), call.first):
        a[...] = np.abs(rng.standard_normal(a.shape))


@pytest.mark.parametrize(("function", "literal"), LITERAL, ids=name_of)
def test_steps_are_those_of_the_paper_for_every_stream(function, literal):
    cell = trace(function)
    stack, [parameters], rng = drawn(cell)
    steps, rows = 3, 2
    call = stack.prepare(steps, rows)
    fill(call, rng)
    call.run()
    for row in range(rows):
        states = [v[row] for v in _named(stack, call.first, rows)]
        for t in range(steps):
            inputs = {n: a[row] if cell.inputs[n].op == "constant" else a[t, row] for n, a in call.inputs.items()}
            states = literal(*inputs.values(), *states, dict(zip(cell.families, parameters)))
            states = states if isinstance(states, tuple) else (states,)
            for got, wanted in zip(_named(stack, call.states[t], rows), states, strict=True):
                # another order of sums over some 40 products of size 1, a few steps long
                np.testing.assert_allclose(got[row], wanted, rtol=1e-11, atol=1e-12)


def _named(stack, memory, rows):
    """The states [B, size] in a piece of memory, in the order of the stack."""
    ends = np.cumsum([rows * n for _, _, n in stack.states])
    return [memory[end - rows * n:end].reshape(rows, n) for end, (_, _, n) in zip(ends, stack.states)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["lstm", "gru_reset_before", "slstm", "layer_norm_lstm", "projected_lstm"])
def test_a_sequence_in_one_call_has_the_bits_of_its_steps_and_a_batch_those_of_its_rows(name, dtype):
    cell = trace(getattr(cells, name))
    stack, _, rng = drawn(cell, layers=2, dtype=dtype)
    steps, rows = 4, 5
    whole = stack.prepare(steps, rows)
    fill(whole, rng)
    whole.run()
    for row in range(rows):
        one = stack.prepare(1, 1)
        np.concatenate([a[row] for a in _named(stack, whole.first, rows)], out=one.first)
        for t in range(steps):
            one.inputs["x"][0, 0] = whole.inputs["x"][t, row]
            one.run()
            assert np.array_equal(one.output[0, 0], whole.output[t, row])
            one.first[:] = one.states[0]
        assert np.array_equal(one.first, np.concatenate([a[row] for a in _named(stack, whole.states[-1], rows)]))


@pytest.mark.parametrize(("I", "H"), [(1, 1), (1, 33), (33, 1), (16, 16), (130, 65)])
def test_sizes_that_fit_no_vector_give_what_numpy_gives(I, H):
    cell = trace(cells.elman)
    stack, [(W, U, b, d)], rng = drawn(cell, I, H)
    call = stack.prepare(1, 3)
    fill(call, rng)
    call.run()
    wanted = np.tanh(call.inputs["x"][0] @ W.T + b + call.first.reshape(3, H) @ U.T + d)
    np.testing.assert_allclose(call.output[0], wanted, rtol=0, atol=1e-12)  # sums of 200 values of size 1 at most


def test_blocks_are_laid_into_a_matrix_of_zeros():
    family = trace(cells.slstm).families["R"]
    stored = np.random.default_rng(0).standard_normal((4 * 6, 3))
    whole = dense(family, stored)
    assert whole.shape == (24, 6)
    for row in range(24):
        head = row % 6 // 3
        wanted = np.zeros(6)
        wanted[3 * head:3 * head + 3] = stored[row]
        assert np.array_equal(whole[row], wanted)
