"""The reference backend against literal loops, written from the papers in numpy, and to second order."""

from __future__ import annotations

import functools

import my_cells
import numpy as np
import pytest
import torch
from numpy_meaning import draw_parameters, stacked

from gatework import cells
from gatework.backends import reference
from gatework.compiler import trace

SIZES = {"I": 3, "H": 5, "P": 2, "S": 4}
T, B = 4, 3


def sigma(a):
    return 1.0 / (1.0 + np.exp(-a))


def elman(x, h, p):
    return (np.tanh(p["W"] @ x + p["b"] + p["U"] @ h + p["d"]),)


def elman_relu(x, h, p):
    return (np.maximum(p["W"] @ x + p["b"] + p["U"] @ h + p["d"], 0.0),)


def gates(x, h, p, names, rows=5):
    """The pre-activations W x + U h + b (+ d) of the gates, cut from the stacked parameters."""
    a = p["W"] @ x + p["U"] @ h + p["b"] + p.get("d", 0.0)
    return [a[k * rows:(k + 1) * rows] for k in range(len(names))]


def lstm(x, h, c, p):
    i, f, g, o = gates(x, h, p, "ifgo")
    c = sigma(f) * c + sigma(i) * np.tanh(g)
    return sigma(o) * np.tanh(c), c


def projected_lstm(x, h, c, p):
    m, c = lstm(x, h, c, p)
    return p["R"] @ m, c


def coupled_lstm(x, h, c, p):
    i, g, o = gates(x, h, p, "igo")
    c = (1.0 - sigma(i)) * c + sigma(i) * np.tanh(g)
    return sigma(o) * np.tanh(c), c


def peephole_lstm(x, h, c, p, order="ifo"):
    # rows of p in the order of first use: i, f, then o, those that exist
    peep = {gate: p["p"][5 * k:5 * k + 5] for k, gate in enumerate(order)}
    i, f, g, o = gates(x, h, p, "ifgo")
    i, f = i + peep.get("i", 0.0) * c, f + peep.get("f", 0.0) * c
    c = sigma(f) * c + sigma(i) * np.tanh(g)
    return sigma(o + peep.get("o", 0.0) * c) * np.tanh(c), c


def gru(x, h, p):
    a, u = p["W"] @ x + p["b"], p["U"] @ h + p["d"]
    r, z = sigma(a[:5] + u[:5]), sigma(a[5:10] + u[5:10])
    n = np.tanh(a[10:] + r * u[10:])
    return ((1.0 - z) * n + z * h,)


def gru_reset_before(x, h, p):
    a = p["W"] @ x + p["b"]
    r, z = sigma(a[:5] + p["U"][:5] @ h), sigma(a[5:10] + p["U"][5:10] @ h)
    n = np.tanh(a[10:] + p["U"][10:] @ (r * h))
    return ((1.0 - z) * n + z * h,)


LITERAL = [
    (cells.elman, elman), (functools.partial(cells.elman, nonlinearity="relu"), elman_relu), (cells.lstm, lstm),
    (cells.projected_lstm, projected_lstm), (cells.coupled_lstm, coupled_lstm), (cells.gru, gru),
    (cells.gru_reset_before, gru_reset_before),
    *((functools.partial(cells.peephole_lstm, peepholes=which), functools.partial(peephole_lstm, order=which))
      for which in ("ifo", "i", "f", "o", "if", "io", "fo")),
]


def name_of(function) -> str:
    if isinstance(function, functools.partial):
        return "-".join([function.func.__name__, *map(str, function.keywords.values())])
    return function.__name__


def draw(cell):
    rng = np.random.default_rng(21)
    parameters = dict(zip(cell.families, stacked(cell, draw_parameters(rng, cell, SIZES))))
    return *drawn_sequences(rng, cell, SIZES, T, B), parameters


def drawn_sequences(rng, cell, sizes, steps, rows):
    """Inputs and first states."""
    shapes = [(*((rows,) if e.op == "constant" else (steps, rows)), *([sizes[d] for d in e.dims] or [1]))
              for e in cell.inputs.values()]
    return ([rng.standard_normal(shape) for shape in shapes],
            [rng.standard_normal((rows, sizes[e.dims[0]])) for e in cell.states.values()])


def tensors(arrays, **options):
    return [torch.tensor(a, **options) for a in arrays]


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize(("function", "literal"), LITERAL, ids=name_of)
def test_reference_equals_a_literal_loop(function, literal, reverse):
    cell = trace(function)
    (x,), states, parameters = draw(cell)
    wanted = np.empty((T, B, states[0].shape[1]))
    last = [np.empty_like(s) for s in states]
    for b in range(B):
        state = [s[b] for s in states]
        for t in reversed(range(T)) if reverse else range(T):
            state = literal(x[t, b], *state, parameters)
            wanted[t, b] = state[0]
        for end, s in zip(last, state):
            end[b] = s
    (output,), end = reference.run(cell, tensors([x]), tensors(states), tensors(parameters.values()), reverse)
    # float64 both; sums in another order round differently
    np.testing.assert_allclose(output.numpy(), wanted, rtol=1e-11, atol=1e-12)
    for got, s in zip(end, last):
        np.testing.assert_allclose(got.numpy(), s, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("function", [getattr(cells, n) for n in cells.__all__] + my_cells.CELLS, ids=name_of)
def test_second_derivatives_are_right(function):
    cell = trace(function)
    sizes = {"I": 1, "H": 2, "P": 1, "S": 1}
    rng = np.random.default_rng(22)
    inputs, states = drawn_sequences(rng, cell, sizes, 2, 1)
    parameters = stacked(cell, draw_parameters(rng, cell, sizes))
    given = tensors([*inputs, *states, *parameters], requires_grad=True)
    a, b = len(inputs), len(inputs) + len(states)

    def run(*values):
        (output,), last = reference.run(cell, values[:a], values[a:b], values[b:])
        return output, *last

    assert torch.autograd.gradcheck(run, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, given, fast_mode=True)


@pytest.mark.parametrize("function", [getattr(cells, n) for n in cells.__all__], ids=name_of)
def test_recorded_values_have_a_step_axis_and_the_output_is_unchanged(function):
    cell = trace(function)
    inputs, states, parameters = draw(cell)
    given = tensors(inputs), tensors(states), tensors(parameters.values())
    (plain,), _ = reference.run(cell, *given)
    (output, *values), _ = reference.run(cell, *given, outputs=[cell.output, *cell.record])
    assert torch.equal(plain, output)
    assert [v.shape for v in values] == [(T, B, SIZES["H"])] * len(cell.record)


def test_recorded_gates_of_the_lstm_explain_its_cell_state():
    cell = trace(cells.lstm)
    inputs, states, parameters = draw(cell)
    names = ["h", "i", "f", "g", "o"]
    (output, *gates), last = reference.run(cell, tensors(inputs), tensors(states), tensors(parameters.values()),
                                           outputs=names)
    v = dict(zip(names[1:], gates))
    c = torch.tensor(states[1])
    for t in range(T):
        c = v["f"][t] * c + v["i"][t] * v["g"][t]
        torch.testing.assert_close(v["o"][t] * torch.tanh(c), output[t])
    torch.testing.assert_close(c, last[1])


def test_nan_in_one_row_stays_in_that_row():
    cell = trace(cells.lstm)
    inputs, states, parameters = draw(cell)
    inputs[0][1, 2, 0] = np.nan
    (output,), _ = reference.run(cell, tensors(inputs), tensors(states), tensors(parameters.values()))
    assert output[1:, 2].isnan().all()
    assert not output[:, :2].isnan().any()
    assert not output[0].isnan().any()


def test_float32_in_gives_float32_out():
    cell = trace(my_cells.elementary)
    inputs, states, parameters = (tensors(v, dtype=torch.float32) for v in
                                  (lambda i, s, p: (i, s, p.values()))(*draw(cell)))
    (output,), last = reference.run(cell, inputs, states, parameters)
    assert output.dtype == torch.float32
    assert last[0].dtype == torch.float32
