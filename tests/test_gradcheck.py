"""Gradients of the fused kernels against finite differences in float64, and the ways in which torch asks for them."""

from __future__ import annotations

import pytest
import torch
from examples import CELLS, Example

import gatework
from gatework import autograd, cells
from gatework.compiler import trace

# The steps of the differences leave the kinks of relu, abs, minimum, maximum and where alone: no drawn value is that
# close to one. torch's own bounds for float64 stand: a step of 1e-6, 1e-5 absolute and 1e-3 relative.


@pytest.mark.parametrize("reverse", [False, True], ids=["", "reverse"])
@pytest.mark.parametrize("cell", CELLS, ids=lambda c: f"{c.name}-T3-B2-I2-H3")
def test_gradients_of_a_cell_equal_finite_differences(cell, reverse):
    example = Example(cell, 3, 2, 2, 3, seed=2)

    def run(*tensors):
        (output,), last = autograd.scan(cell, *example.parts(tensors), reverse, "cpu")
        return output, *last

    assert torch.autograd.gradcheck(run, [t.requires_grad_() for t in example.tensors])


LAYERS = {
    "LSTM": gatework.nn.LSTM, "GRU": gatework.nn.GRU, "RNN": gatework.nn.RNN, "PeepholeLSTM": gatework.nn.PeepholeLSTM,
    "CoupledLSTM": gatework.nn.CoupledLSTM,
    "own": lambda *a, **k: gatework.nn.Recurrent(cells.gru_reset_before, *a, **k),
}


def call(layer, x, states, parameters):
    """The layer as a function of tensors."""
    hx = states[0] if len(states) == 1 else tuple(states)
    output, last = torch.func.functional_call(layer, parameters, (x, hx))
    return output, *([last] if isinstance(last, torch.Tensor) else last)


def layer_and_arrays(name, **options):
    torch.manual_seed(4)
    layer = LAYERS[name](2, 3, num_layers=2, bidirectional=True, dtype=torch.float64, **options)
    count = 2 if name.endswith("LSTM") else 1
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    states = [torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(count)]
    return layer, x, states


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_two_layers_in_both_directions_equal_finite_differences(name):
    layer, x, states = layer_and_arrays(name)
    names = [n for n, _ in layer.named_parameters()]

    def run(x, *rest):
        return call(layer, x, rest[:len(states)], dict(zip(names, rest[len(states):])))

    values = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    assert torch.autograd.gradcheck(run, [x, *states, *values], fast_mode=True)


def gradients(outputs, leaves, **options):
    made = torch.autograd.grad([y.square().sum() for y in outputs], leaves, allow_unused=True, **options)
    return [None if g is None else g.clone() for g in made]


@pytest.mark.parametrize("cell", CELLS, ids=lambda c: c.name)
def test_second_backward_pass_over_a_retained_graph_gives_the_same_bits(cell):
    example = Example(cell, 4, 3, 2, 19)
    leaves = [t.requires_grad_() for t in example.tensors]
    (output,), last = autograd.scan(cell, *example.parts(leaves), False, "cpu")
    first = gradients([output, *last], leaves, retain_graph=True)
    again = gradients([output, *last], leaves, retain_graph=True)
    once_more = gradients([output, *last], leaves)
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(first, again, once_more))


def test_backward_pass_over_a_freed_graph_is_refused():
    example = Example(trace(cells.lstm), 3, 2, 2, 5)
    leaves = [t.requires_grad_() for t in example.tensors]
    (output,), _ = autograd.scan(example.cell, *example.parts(leaves), False, "cpu")
    output.sum().backward()
    with pytest.raises(RuntimeError, match="retain_graph"):
        output.sum().backward()


@pytest.mark.parametrize("reverse", [False, True], ids=["", "reverse"])
@pytest.mark.parametrize("cell", CELLS, ids=lambda c: c.name)
def test_gradients_from_single_results_add_up_to_those_from_all(cell, reverse):
    example = Example(cell, 4, 3, 2, 19)
    leaves = [t.requires_grad_() for t in example.tensors]

    def run():
        (output,), last = autograd.scan(cell, *example.parts(leaves), reverse, "cpu")
        return [output, *last]

    def weighted(numbers):
        made = run()
        return torch.autograd.grad([made[k] for k in numbers], leaves, [example.upstream[k] for k in numbers],
                                   materialize_grads=True)

    count = len(example.upstream)
    single = [weighted([k]) for k in range(count)]
    for total, *parts in zip(weighted(range(count)), *single):
        # the same terms, added up in another order: a few roundings of 1.1e-16
        assert torch.allclose(total, sum(parts), rtol=1e-13, atol=1e-13 * max(1.0, total.abs().max().item()))


@pytest.mark.parametrize("cell", CELLS, ids=lambda c: c.name)
def test_gradient_of_one_tensor_is_the_same_bits_as_among_all(cell):
    example = Example(cell, 4, 3, 2, 19)
    everything = example.fused()
    for number, name in enumerate(example.names[1 + len(example.states):]):
        tensors = [t.detach().requires_grad_(k == number) for k, t in enumerate(example.tensors)]
        (output,), last = autograd.scan(cell, *example.parts(tensors), False, "cpu")
        made, = torch.autograd.grad([output, *last], [tensors[number]], example.upstream, materialize_grads=True)
        assert torch.equal(made, everything[name]), name
