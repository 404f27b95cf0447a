"""What the notation has beyond vectors and matrices: a scalar per step, means and norms, block-diagonal matrices."""

from __future__ import annotations

import json

import my_cells
import pytest
import torch
from torch.nn import functional

from gatework import autograd
from gatework.backends import reference
from gatework.compiler import (
    Blocks,
    CellError,
    Family,
    Gain,
    H,
    Input,
    Matrix,
    Scalar,
    State,
    layer_norm,
    mean,
    rms_norm,
    tanh,
    trace,
)
from gatework.compiler.text import fingerprint, from_json, show, to_json

BACKENDS = pytest.mark.parametrize("backend", ["reference", "cpu"])
T, B, HIDDEN = 3, 2, 33


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def run(cell, inputs, states, parameters, backend: str):
    (output,), last = autograd.scan(cell, inputs, states, parameters, False, backend)
    return output, *last


# Scalars


def scaled(x: Input[H], dt: Scalar, h: State, W: Matrix):
    return dict(h=dt * (W @ x) + 0.0 * h)


@BACKENDS
def test_gradient_of_a_scalar_input_is_the_sum_over_the_features_it_was_spread_to(backend):
    x, dt, W = drawn(T, B, HIDDEN), drawn(T, B, 1).requires_grad_(), drawn(HIDDEN, HIDDEN)
    output, _ = run(trace(scaled), [x, dt], [drawn(B, HIDDEN)], [W], backend)
    upstream = drawn(T, B, HIDDEN)
    gradient, = torch.autograd.grad(output, dt, upstream)
    torch.testing.assert_close(output.detach(), dt.detach() * (x @ W.T), rtol=1e-12, atol=1e-12)  # float64
    torch.testing.assert_close(gradient, (upstream * (x @ W.T)).sum(-1, keepdim=True), rtol=1e-12, atol=1e-12)


@BACKENDS
def test_nan_in_a_scalar_input_spoils_its_row_from_its_step_on_and_no_other(backend):
    cell = trace(my_cells.spans)
    dt = drawn(T, B, 1)
    parameters = [drawn(HIDDEN, 2), drawn(HIDDEN, HIDDEN), drawn(HIDDEN), drawn(HIDDEN)]
    given = [drawn(T, B, 2), dt], [drawn(B, HIDDEN)], parameters
    expected, _ = run(cell, *given, backend)
    dt[1, 0] = float("nan")
    found, _ = run(cell, *given, backend)
    assert found[1:, 0].isnan().all()
    assert torch.equal(found[:, 1], expected[:, 1])
    assert torch.equal(found[0], expected[0])


# Means and norms


def one_norm(x: Input[H], h: State, W: Matrix):
    return dict(h=layer_norm(W @ x + h, eps=1e-3))


def four_norms(x: Input, h: State, W: Matrix, U: Matrix):
    i, f, g, o = layer_norm(*(getattr(W, k) @ x + getattr(U, k) @ h for k in "ifgo"))
    return dict(h=i + 2.0 * f + 3.0 * g + 4.0 * o)


def root_mean_square(x: Input[H], h: State, W: Matrix):
    return dict(h=rms_norm(W @ x + h, eps=1e-3))


def mean_of_each(x: Input, h: State, W: Matrix):
    return dict(h=W @ x + mean(x) * h + mean(h))


@BACKENDS
def test_mean_divides_by_the_length_of_its_own_vector(backend):
    x, h, W = drawn(1, B, 5), drawn(B, HIDDEN), drawn(HIDDEN, 5)
    output, _ = run(trace(mean_of_each), [x], [h], [W], backend)
    wanted = x @ W.T + x.sum(-1, keepdim=True) / 5 * h + h.sum(-1, keepdim=True) / HIDDEN
    torch.testing.assert_close(output, wanted, rtol=1e-12, atol=1e-12)  # float64


@BACKENDS
@pytest.mark.parametrize(("equations", "function"), [
    (one_norm, lambda a: functional.layer_norm(a, [HIDDEN], eps=1e-3)),
    (root_mean_square, lambda a: functional.rms_norm(a, [HIDDEN], eps=1e-3)),
], ids=["layer_norm", "rms_norm"])
def test_norm_equals_that_of_torch(equations, function, backend):
    x, h, W = drawn(T, B, HIDDEN), drawn(B, HIDDEN), drawn(HIDDEN, HIDDEN)
    output, _ = run(trace(equations), [x], [h], [W], backend)
    for t in range(T):
        h = function(x[t] @ W.T + h)
        torch.testing.assert_close(output[t], h, rtol=1e-11, atol=1e-12)  # float64, sums in another order


@BACKENDS
def test_layer_norm_of_several_vectors_is_that_of_torch_over_all_of_them(backend):
    x, h, W, U = drawn(1, B, 5), drawn(B, HIDDEN), drawn(4 * HIDDEN, 5), drawn(4 * HIDDEN, HIDDEN)
    output, _ = run(trace(four_norms), [x], [h], [W, U], backend)
    i, f, g, o = functional.layer_norm(x[0] @ W.T + h @ U.T, [4 * HIDDEN]).chunk(4, -1)
    torch.testing.assert_close(output[0], i + 2.0 * f + 3.0 * g + 4.0 * o, rtol=1e-11, atol=1e-12)  # float64


def test_mean_and_size_are_printed_by_name():
    def cell(x: Input, h: State, W: Matrix):
        a = W @ x + h
        return dict(h=a - mean(a) * mean(x))

    assert show(trace(cell), "equations") == "t1 = W @ x + h\nh' = t1 - mean(t1) * mean(x)"
    assert r"\operatorname{mean}\left(x_{t}\right)" in show(trace(cell), "latex")
    assert "size(I)" in show(trace(cell), "graph")
    assert "/ size(H)" in show(trace(cell), "derivative")


# Block-diagonal matrices


def whole(x: Input, h: State, W: Matrix, R: Matrix):
    return dict(h=tanh(W @ x + R.a @ h + R.b @ (h * h)))


def by_heads(x: Input, h: State, W: Matrix, R: Blocks):
    return dict(h=tanh(W @ x + R.a @ h + R.b @ (h * h)))


def spread(stored: torch.Tensor, gates: int, D: int) -> torch.Tensor:
    """The dense matrix, weight by weight: unit u of a gate reads the D units of its own head."""
    rows = stored.shape[0] // gates
    made = torch.zeros(gates * rows, rows, dtype=stored.dtype)
    for gate in range(gates):
        for u in range(rows):
            for k in range(D):
                made[gate * rows + u, u // D * D + k] = stored[gate * rows + u, k]
    return made


@pytest.mark.parametrize("D", [1, 3, 11, HIDDEN])
def test_blocks_become_a_dense_matrix_with_zeros_between_the_heads(D):
    family = Family("R", "Blocks", "H", "H", ["a", "b"])
    stored = drawn(2 * HIDDEN, D)
    assert torch.equal(reference.dense(family, stored), spread(stored, 2, D))


@BACKENDS
@pytest.mark.parametrize("D", [1, 11, HIDDEN])
def test_a_cell_with_heads_equals_one_with_the_dense_matrix_and_learns_only_the_blocks(D, backend):
    x, h, W, stored = drawn(T, B, 2), drawn(B, HIDDEN), drawn(HIDDEN, 2), drawn(2 * HIDDEN, D) * 0.2
    stored.requires_grad_()
    matrix = spread(stored.detach(), 2, D).requires_grad_()
    found, _ = run(trace(by_heads), [x], [h], [W, stored], backend)
    wanted, _ = run(trace(whole), [x], [h], [W, matrix], "reference")
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)  # float64
    gradient, = torch.autograd.grad(found.square().sum(), stored)
    dense, = torch.autograd.grad(wanted.square().sum(), matrix)
    torch.testing.assert_close(spread(gradient, 2, D), dense * (spread(torch.ones_like(stored), 2, D) > 0.0),
                               rtol=1e-11, atol=1e-11)


@BACKENDS
def test_units_that_are_no_whole_number_of_heads_are_refused_by_name(backend):
    given = [drawn(T, B, 2)], [drawn(B, HIDDEN)], [drawn(HIDDEN, 2), drawn(2 * HIDDEN, 4)]
    with pytest.raises(ValueError, match="R has blocks of D = 4 features.* H = 33 .*divisors of 33"):
        run(trace(by_heads), *given, backend)


def test_blocks_are_whole_matrices_in_the_graph_and_rows_of_one_head_in_storage():
    cell = trace(by_heads)
    family = cell.families["R"]
    assert {part.dims for part in family.parts.values()} == {("H", "H")}
    assert (family.columns, family.stored_columns) == ("H", "D")
    assert cell.families["W"].stored_columns == "I"
    assert cell.sizes == ["I", "H", "D"]
    assert fingerprint(cell) != fingerprint(trace(whole))


def test_a_gain_is_a_vector_of_its_own_kind():
    def cell(x: Input, h: State, W: Matrix, gain: Gain):
        return dict(h=gain * layer_norm(W @ x + h))

    family = from_json(to_json(trace(cell))).families["gain"]
    assert (family.kind, family.stored_columns) == ("Gain", None)


# Derivatives of all of it


EXAMPLES = {
    "spans": (my_cells.spans, [drawn(2, 2, 2), drawn(2, 2, 1)], [drawn(4, 2), drawn(4, 4), drawn(4).abs(), drawn(4)]),
    "means": (my_cells.means, [drawn(2, 2, 2)], [drawn(8, 2), drawn(4, 4), drawn(4), drawn(4)]),
    "heads": (my_cells.heads, [drawn(2, 2, 2)], [drawn(4, 2), drawn(8, 2), drawn(4, 2), drawn(8)]),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_gradients_of_the_kernels_equal_finite_differences(name):
    check(name, "cpu", torch.autograd.gradcheck)


@pytest.mark.parametrize("name", EXAMPLES)
def test_second_derivatives_of_the_reference_equal_finite_differences(name):
    check(name, "reference", torch.autograd.gradgradcheck)


def check(name: str, backend: str, compare) -> None:
    """torch's own bounds stand: 1e-5 absolute, 1e-3 relative, with a step of 1e-6. No drawn value is near a kink."""
    equations, inputs, parameters = EXAMPLES[name]
    cell, count = trace(equations), len(inputs)
    leaves = [t.clone().requires_grad_() for t in (*inputs, drawn(2, 4), *parameters)]
    assert compare(lambda *ts: run(cell, ts[:count], ts[count:count + 1], ts[count + 1:], backend), leaves)


# As data


def described(function) -> dict:
    return json.loads(to_json(trace(function)))


def changed(function, what: str, number: int, **entries) -> dict:
    data = described(function)
    data[what][number] |= entries
    return data


LIES = {
    "scalar constant": (changed(my_cells.spans, "inputs", 1, kind="constant"), "identifier"),
    "scalar first": (described(my_cells.spans) | {"inputs": described(my_cells.spans)["inputs"][::-1]}, "first input"),
    "no vector input": (changed(my_cells.spans, "inputs", 0, size=""), "scalar|matvec needs"),
    "unknown size": (json.loads(json.dumps(described(my_cells.means)).replace('{"size": "I"}', '{"size": "Q"}')),
                     "asks for the size Q"),
    "size that is no name": (json.loads(json.dumps(described(my_cells.means)).replace('{"size": "I"}', '{"size": ""}')),
                             "identifier"),
    "size and number": (json.loads(json.dumps(described(my_cells.means)).replace(
        '{"size": "I"}', '{"size": "I", "number": "1.0"}')), "with the keys size"),
    "blocks that are not square": (changed(my_cells.heads, "parameters", 1, columns="I"), '"kind" of parameter'),
    "gain with columns": (changed(my_cells.means, "parameters", 2, columns="H"), '"kind" of parameter'),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_description_that_lies_about_scalars_sizes_or_blocks_is_refused(lie):
    data, message = LIES[lie]
    with pytest.raises(CellError, match=message):
        from_json(json.dumps(data))
