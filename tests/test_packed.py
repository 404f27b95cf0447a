"""PackedSequence in and out of the layers, against torch.nn."""

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import gatework

OURS = {"LSTM": gatework.nn.LSTM, "GRU": gatework.nn.GRU, "RNN": gatework.nn.RNN}
LENGTHS = {
    "sorted": [7, 5, 5, 2, 1],
    "unsorted": [2, 7, 1, 5, 5],
    "all-equal": [4, 4, 4],
    "one-row": [6],
    "all-different": [3, 1, 6, 4, 2, 5],
}
OPTIONS = {
    "plain": {},
    "layers": dict(num_layers=2),
    "bidirectional": dict(bidirectional=True),
    "bidirectional-layers": dict(bidirectional=True, num_layers=2),
    "no-bias": dict(bias=False),
}
EXACT = dict(rtol=0, atol=1e-10)  # float64: the bound; only the order of sums differs


def pair(name, options, dtype=torch.float64, I=4, H=6):  # noqa: E741
    torch.manual_seed(2)
    theirs = getattr(torch.nn, name)(I, H, **options, dtype=dtype)
    ours = OURS[name](I, H, **options, dtype=dtype)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def first_states(name, options, rows, size=6):
    count = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    sizes = [options.get("proj_size") or size, size] if name == "LSTM" else [size]
    return [torch.randn(count, rows, n, dtype=torch.float64) for n in sizes]


def results(layer, padded, lengths, states, enforce_sorted, batch_first=False):
    padded = padded.detach().requires_grad_()
    states = [s.detach().requires_grad_() for s in states]
    hx = None if not states else states[0] if len(states) == 1 else tuple(states)
    packed = pack_padded_sequence(padded, lengths, batch_first=batch_first, enforce_sorted=enforce_sorted)
    output, last = layer(packed, hx)
    last = [last] if isinstance(last, torch.Tensor) else list(last)
    assert isinstance(output, PackedSequence)
    weight = torch.linspace(-1, 2, output.data.numel(), dtype=padded.dtype).view(output.data.shape)
    layer.zero_grad()
    ((output.data * weight).sum() + sum((s ** 2).sum() for s in last)).backward()
    order = [output.batch_sizes, output.sorted_indices, output.unsorted_indices]
    gradients = [padded.grad, *(s.grad for s in states), *(p.grad.clone() for p in layer.parameters())]
    return order, [output.data.detach(), *(s.detach() for s in last), *gradients]


def assert_same(found, expected):
    for a, b in zip(found[0], expected[0], strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
    for k, (a, b) in enumerate(zip(found[1], expected[1], strict=True)):
        assert a.shape == b.shape
        assert torch.allclose(a, b, **EXACT), f"value {k}: {(a - b).abs().max():.2e}"


@pytest.mark.parametrize("given", [True, False], ids=["given-state", "default-state"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("name", OURS)
def test_packed_sequence_equals_torch_nn_in_outputs_states_and_all_gradients(name, lengths, options, given):
    ours, theirs = pair(name, OPTIONS[options])
    rows = LENGTHS[lengths]
    padded = torch.randn(max(rows), len(rows), 4, dtype=torch.float64)
    states = first_states(name, OPTIONS[options], len(rows)) if given else []
    args = padded, rows, states, rows == sorted(rows, reverse=True)
    assert_same(results(ours, *args), results(theirs, *args))


@pytest.mark.parametrize("name", OURS)
def test_sorted_lengths_packed_without_enforcing_the_order_equal_torch_nn(name):
    ours, theirs = pair(name, {})
    padded = torch.randn(7, 5, 4, dtype=torch.float64)
    args = padded, LENGTHS["sorted"], first_states(name, {}, 5), False
    assert_same(results(ours, *args), results(theirs, *args))


def test_packed_projection_equals_torch_nn():
    options = dict(proj_size=3, num_layers=2, bidirectional=True)
    ours, theirs = pair("LSTM", options)
    args = torch.randn(7, 5, 4, dtype=torch.float64), LENGTHS["unsorted"], first_states("LSTM", options, 5), False
    assert_same(results(ours, *args), results(theirs, *args))


def test_batch_first_makes_no_difference_to_a_packed_sequence():
    ours, theirs = pair("LSTM", dict(batch_first=True))
    args = torch.randn(5, 7, 4, dtype=torch.float64), LENGTHS["unsorted"], first_states("LSTM", {}, 5), False, True
    assert_same(results(ours, *args), results(theirs, *args))


def test_packed_dropout_drops_the_same_values_as_torch_nn_under_the_same_seed():
    ours, theirs = pair("GRU", dict(num_layers=3, dropout=0.4, bidirectional=True))
    args = torch.randn(7, 5, 4, dtype=torch.float64), LENGTHS["unsorted"], [], False
    torch.manual_seed(9)
    expected = results(theirs, *args)
    torch.manual_seed(9)
    assert_same(results(ours, *args), expected)


@pytest.mark.parametrize("layer", [gatework.nn.PeepholeLSTM(4, 6, dtype=torch.float64, bidirectional=True),
                                   gatework.nn.CoupledLSTM(4, 6, dtype=torch.float64, num_layers=2)],
                         ids=["peephole-bidirectional", "coupled-layers"])
def test_every_packed_row_equals_the_row_run_alone(layer):
    lengths = LENGTHS["unsorted"]
    padded = torch.randn(7, 5, 4, dtype=torch.float64)
    packed = pack_padded_sequence(padded, lengths, enforce_sorted=False)
    output, (h, c) = layer(packed)
    output, found = pad_packed_sequence(output)
    assert found.tolist() == lengths
    for row, length in enumerate(lengths):
        alone, (h1, c1) = layer(padded[:length, row])
        assert torch.allclose(output[:length, row], alone, **EXACT)
        assert torch.allclose(h[:, row], h1, **EXACT)
        assert torch.allclose(c[:, row], c1, **EXACT)
        assert not output[length:, row].any()


def test_float32_packed_lstm_equals_torch_nn_to_rounding():
    ours, theirs = pair("LSTM", {}, torch.float32, 17, 33)
    packed = pack_padded_sequence(torch.randn(7, 5, 17), LENGTHS["unsorted"], enforce_sorted=False)
    # a sum of 50 products of values near 1 is rounded to a few 1e-7, and 7 steps carry that on
    assert torch.allclose(ours(packed)[0].data, theirs(packed)[0].data, rtol=0, atol=5e-6)


PACKED = pack_padded_sequence(torch.zeros(7, 5, 4), LENGTHS["unsorted"], enforce_sorted=False)


@pytest.mark.parametrize("rows", [4, 6], ids=["B4-for-5", "B6-for-5"])
def test_first_states_with_other_rows_than_the_packed_ones_are_refused(rows):
    with pytest.raises(ValueError, match=rf"first state h has shape \(1, {rows}, 6\).*\(1, 5, 6\)"):
        gatework.nn.GRU(4, 6)(PACKED, torch.zeros(1, rows, 6))


def test_packed_values_of_another_width_are_refused():
    with pytest.raises(ValueError, match="4 features.*input_size=9"):
        gatework.nn.GRU(9, 6)(PACKED)


def test_packed_values_of_another_dtype_are_refused():
    with pytest.raises(ValueError, match="input has dtype torch.float32.*torch.float64"):
        gatework.nn.GRU(4, 6, dtype=torch.float64)(PACKED)


def test_a_cell_with_further_inputs_refuses_a_packed_sequence():
    with pytest.raises(ValueError, match="give padded tensors"):
        gatework.nn.GRU(4, 6)(PACKED, mask=torch.zeros(7, 5, 6))
