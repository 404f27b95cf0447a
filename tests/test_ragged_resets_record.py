"""Ragged batches, resets, recorded values and checkpoints of layers, against loops by hand that cut row by row."""

from __future__ import annotations

import literal
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import gatework
from gatework import cells
from gatework.autograd.ragged import Ragged
from gatework.compiler import Input, Matrix, State, mean, tanh

# float64 against float64: sums of at most forty terms, some ten steps; the largest difference seen is 3e-14.
CLOSE = dict(rtol=1e-10, atol=1e-11)


def layer_of(kind: str, inputs: int, units: int, **options):
    torch.manual_seed(3)
    layer = gatework.nn.Recurrent(getattr(cells, kind), inputs, units, dtype=torch.float64, **options)
    for name, p in layer.named_parameters():
        if name.startswith("initial_"):
            torch.nn.init.normal_(p)
    return layer


def compare(layer, x, hx, lengths, resets, seed: int = 5) -> None:
    """Output, last states, records and all gradients of a layer against those of the loop by hand."""
    leaves = [x, *([] if hx is None else hx), *layer.parameters()]
    for t in leaves:
        t.requires_grad_()
    T_first = x.transpose(0, 1) if layer.batch_first else x
    wanted, ends, values = literal.run(layer, T_first, hx, lengths, resets)
    state = hx if hx is None or len(hx) > 1 else hx[0]
    given = dict(lengths=lengths, record=True)
    if resets is not None:
        given["resets"] = resets.T if layer.batch_first else resets
    output, last, records = layer(x, state, **given)
    last = list(last) if isinstance(last, tuple) else [last]
    if layer.batch_first:
        output, records = output.transpose(0, 1), {n: v.transpose(0, 1) for n, v in records.items()}
    assert records.keys() == values.keys()
    made, expected = [output, *last, *records.values()], [wanted, *ends, *(values[n] for n in records)]
    for a, b in zip(made, expected, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)
    generator = torch.Generator().manual_seed(seed)
    upstream = [torch.randn(y.shape, dtype=y.dtype, generator=generator) for y in made]
    for picked in ([*range(len(made))], [0], [1], [len(made) - 1]):  # all at once, and alone
        found, right = (gradients([ys[k] for k in picked], leaves, [upstream[k] for k in picked])
                        for ys in (made, expected))
        for a, b in zip(found, right, strict=True):
            torch.testing.assert_close(a, b, **CLOSE)


def gradients(outputs, leaves, upstream) -> list[torch.Tensor]:
    """Zero where nothing reaches a leaf, as where no row has a step."""
    reached = [(y, d) for y, d in zip(outputs, upstream) if y.requires_grad]
    if not reached:
        return [torch.zeros_like(t) for t in leaves]
    ys, ds = zip(*reached)
    return list(torch.autograd.grad(ys, leaves, ds, retain_graph=True, materialize_grads=True, allow_unused=True))


@pytest.mark.parametrize("option", ["lengths", "resets", "both", "neither"])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize(("T", "B", "H"), [(1, 1, 33), (5, 4, 3), (6, 9, 17)])
def test_layer_equals_rows_cut_by_hand(kind, T, B, H, option):
    generator = torch.Generator().manual_seed(T)
    layer = layer_of(kind, 2, H, num_layers=2, bidirectional=True, initial_state=True)
    x = torch.randn(T, B, 2, dtype=torch.float64, generator=generator)
    lengths = torch.randint(0, T + 1, (B,), generator=generator) if option in ("lengths", "both") else None
    resets = torch.rand(T, B, generator=generator) < 0.4 if option in ("resets", "both") else None
    count = 2 if kind == "lstm" else 1
    hx = [torch.randn(4, B, H, dtype=torch.float64, generator=generator) for _ in range(count)]
    compare(layer, x, hx, lengths, resets)
    compare(layer, x.detach(), None, lengths, resets)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_layer_equals_rows_cut_by_hand_for_any_combination_of_options(data):
    def draw(strategy):
        return data.draw(strategy)

    kind, T, B = draw(st.sampled_from(["lstm", "gru"])), draw(st.integers(1, 6)), draw(st.integers(1, 5))
    layer = layer_of(kind, 2, draw(st.sampled_from([1, 3, 17])), num_layers=draw(st.integers(1, 2)),
                     bidirectional=draw(st.booleans()), batch_first=draw(st.booleans()),
                     initial_state=draw(st.booleans()), checkpoint_every=draw(st.sampled_from([None, 1, 2, "auto"])))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    shape = (B, T, 2) if layer.batch_first else (T, B, 2)
    x = torch.randn(shape, dtype=torch.float64, generator=generator)
    count, states = (2 if kind == "lstm" else 1), layer.num_layers * (1 + layer.bidirectional)
    hx = [torch.randn(states, B, layer.hidden_size, dtype=torch.float64, generator=generator)
          for _ in range(count)] if draw(st.booleans()) else None
    lengths = draw(st.none() | st.lists(st.integers(0, T), min_size=B, max_size=B))
    resets = torch.rand(T, B, generator=generator) < 0.3 if draw(st.booleans()) else None
    compare(layer, x, hx, None if lengths is None else torch.tensor(lengths), resets)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_gradcheck_with_lengths_resets_records_first_states_and_checkpoints_all_on(backend):
    layer = layer_of("lstm", 2, 3, num_layers=2, bidirectional=True, initial_state=True, checkpoint_every=2,
                     backend=backend)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    resets = torch.rand(4, 3, generator=generator) < 0.4
    names = [n for n, _ in layer.named_parameters()]

    def run(x, *parameters):
        output, last, records = torch.func.functional_call(
            layer, dict(zip(names, parameters)), (x,), dict(lengths=[4, 0, 2], resets=resets, record=["i", "c"]))
        return output, *last, *records.values()

    assert torch.autograd.gradcheck(run, (x, *(p.detach().requires_grad_() for p in layer.parameters())),
                                    fast_mode=True)


@pytest.mark.parametrize("name", ["peephole_lstm", "projected_lstm", "gru_reset_before", "elman", "coupled_lstm"])
def test_fused_ragged_reset_recorded_call_equals_the_reference_backend_for_other_cells(name):
    results = []
    for backend in ("cpu", "reference"):
        torch.manual_seed(1)
        layer = gatework.nn.Recurrent(getattr(cells, name), 3, 19, proj_size=7 * (name == "projected_lstm"),
                                      bidirectional=True, initial_state=True, dtype=torch.float64, backend=backend)
        x = torch.randn(5, 6, 3, dtype=torch.float64, requires_grad=True)
        output, _, records = layer(x, lengths=[5, 1, 0, 4, 4, 2], resets=torch.rand(5, 6) < 0.3, record=True)
        loss = sum((v * torch.randn_like(v)).sum() for v in (output, *records.values()))
        results.append([output, *records.values(), *torch.autograd.grad(loss, [x, *layer.parameters()])])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


# What padding holds does not matter, and costs nothing.

def test_padding_may_hold_anything_and_gets_no_gradient():
    layer = layer_of("lstm", 3, 17, num_layers=2, bidirectional=True)
    clean = torch.randn(6, 4, 3, dtype=torch.float64)
    lengths = torch.tensor([2, 6, 0, 5])
    padding = torch.arange(6)[:, None] >= lengths
    dirty = clean.masked_fill(padding[:, :, None], float("nan")).requires_grad_()
    output, state = layer(dirty, lengths=lengths)
    expected, end = layer(clean.masked_fill(padding[:, :, None], 0.0), lengths=lengths)
    assert torch.equal(output, expected)
    assert all(torch.equal(a, b) for a, b in zip(state, end))
    assert (output[padding] == 0).all()
    (output.sum() + state[1].sum()).backward()
    assert (dirty.grad[padding] == 0).all()
    assert dirty.grad.isfinite().all()


@pytest.mark.parametrize("batch_first", [False, True])
def test_lengths_in_any_order_give_what_torch_gives_for_sorted_and_packed_rows(batch_first):
    theirs = torch.nn.LSTM(3, 17, 2, bidirectional=True, batch_first=batch_first, dtype=torch.float64)
    ours = gatework.nn.LSTM(3, 17, 2, bidirectional=True, batch_first=batch_first, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(*((4, 6) if batch_first else (6, 4)), 3, dtype=torch.float64)
    lengths = [2, 6, 1, 5]
    packed = pack_padded_sequence(x, torch.tensor(lengths), batch_first, enforce_sorted=False)
    wanted, ends = theirs(packed)
    wanted, _ = pad_packed_sequence(wanted, batch_first)
    output, state = ours(x, lengths=lengths)
    torch.testing.assert_close(output, wanted, **CLOSE)
    for a, b in zip(state, ends):
        torch.testing.assert_close(a, b, **CLOSE)


def test_rows_without_steps_keep_their_first_state_and_all_rows_may_be_without():
    layer = layer_of("gru", 2, 5)
    x, first = torch.randn(3, 2, 2, dtype=torch.float64), torch.randn(1, 2, 5, dtype=torch.float64, requires_grad=True)
    output, last = layer(x, first, lengths=[0, 0])
    assert (output == 0).all()
    assert torch.equal(last, first)
    last.sum().backward()
    assert torch.equal(first.grad, torch.ones_like(first))
    assert all((p.grad == 0).all() for p in layer.parameters())


def test_reset_of_a_row_without_steps_leaves_its_state_as_it_was_given():
    layer = layer_of("gru", 2, 5)
    x, first = torch.randn(3, 2, 2, dtype=torch.float64), torch.randn(1, 2, 5, dtype=torch.float64)
    _, last = layer(x, first, lengths=[0, 3], resets=torch.ones(3, 2, dtype=torch.bool))
    assert torch.equal(last[:, 0], first[:, 0])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_rows_shared_among_threads_by_their_steps_give_the_same_bits(threads, monkeypatch):
    from gatework.backends.cpu import kernel
    monkeypatch.setattr(kernel, "WORTH_A_THREAD", 1)
    layer = layer_of("lstm", 2, 19, bidirectional=True)
    x, lengths = torch.randn(7, 20, 2, dtype=torch.float64), torch.arange(20) % 8
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        wanted, _ = layer(x, lengths=lengths)
        torch.set_num_threads(threads)
        assert torch.equal(layer(x, lengths=lengths)[0], wanted)
    finally:
        torch.set_num_threads(before)


def test_what_is_stored_is_what_packing_by_torch_stores():
    x, lengths = torch.arange(24.0).reshape(4, 3, 2), torch.tensor([2, 4, 1])
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    ours = Ragged.of_lengths(lengths, 4, False, x.device)
    assert torch.equal(ours.pack(x), packed.data)
    assert torch.equal(ours.sizes, packed.batch_sizes)
    assert torch.equal(ours.order, packed.sorted_indices)
    assert torch.equal(ours.back, packed.unsorted_indices)


# Resets.

def test_reset_hides_what_was_before_it_even_nan():
    layer = layer_of("lstm", 3, 17)
    x = torch.randn(6, 2, 3, dtype=torch.float64)
    spoiled = x.clone()
    spoiled[2, 1] = float("nan")
    resets = torch.zeros(6, 2, dtype=torch.bool)
    resets[4, 1] = True
    wanted, (h, c) = layer(x, resets=resets)
    output, (h2, c2) = layer(spoiled, resets=resets)
    assert output[2:4, 1].isnan().all()
    assert torch.equal(output[4:], wanted[4:])
    assert torch.equal(h, h2)
    assert torch.equal(c, c2)


def test_reset_at_the_first_step_ignores_the_state_that_was_given():
    layer = layer_of("gru", 3, 5)
    x, first = torch.randn(2, 2, 3, dtype=torch.float64), torch.randn(1, 2, 5, dtype=torch.float64)
    resets = torch.tensor([[True, False], [False, False]])
    output, _ = layer(x, first, resets=resets)
    torch.testing.assert_close(output[:, 0], layer(x)[0][:, 0], **CLOSE)
    torch.testing.assert_close(output[:, 1], layer(x, first)[0][:, 1], **CLOSE)


def test_chunks_that_pass_their_state_on_give_what_one_call_with_resets_gives():
    layer = layer_of("lstm", 3, 17, num_layers=2)
    x, resets = torch.randn(9, 3, 3, dtype=torch.float64), torch.rand(9, 3) < 0.3
    wanted, ends = layer(x, resets=resets)
    state, pieces = None, []
    for t in range(0, 9, 2):
        y, state = layer(x[t:t + 2], state, resets=resets[t:t + 2])
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces), wanted, **CLOSE)
    for a, b in zip(state, ends):
        torch.testing.assert_close(a, b, **CLOSE)


# Records.

def test_recording_changes_no_bit_of_the_output():
    layer = layer_of("lstm", 3, 17, num_layers=2, bidirectional=True)
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    assert torch.equal(layer(x)[0], layer(x, record=True)[0])


def test_recorded_values_outlive_the_backward_pass_that_reads_them():
    layer = layer_of("lstm", 3, 17)
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    output, _, records = layer(x, record=True)
    before = {n: v.clone() for n, v in records.items()}
    output.sum().backward()
    assert all(torch.equal(records[n], v) for n, v in before.items())


def test_a_packed_sequence_is_recorded_as_packed_sequences():
    layer = layer_of("lstm", 3, 5)
    x = torch.randn(4, 3, 3, dtype=torch.float64)
    lengths = torch.tensor([2, 4, 1])
    _, _, records = layer(pack_padded_sequence(x, lengths, enforce_sorted=False), record="c")
    _, _, wanted = layer(x, lengths=lengths, record="c")
    found, _ = pad_packed_sequence(records["c_l0"])
    assert torch.equal(found, wanted["c_l0"])


def test_unbatched_input_is_recorded_and_reset_as_a_batch_of_one():
    layer = layer_of("lstm", 3, 5, batch_first=True, bidirectional=True)
    x, resets = torch.randn(4, 3, dtype=torch.float64), torch.tensor([False, True, False, True])
    output, (h, _), records = layer(x, resets=resets, record=["f"])
    wanted, (end, _), values = layer(x[None], resets=resets[None], record=["f"])
    assert torch.equal(output, wanted[0])
    assert torch.equal(h, end[:, 0])
    assert torch.equal(records["f_l0_reverse"], values["f_l0_reverse"][0])


# What makes no sense is refused.

@pytest.mark.parametrize(("given", "error", "says"), [
    (dict(lengths=[1, 2]), ValueError, "lengths must be 3 whole numbers.*shape is \\(2,\\)"),
    (dict(lengths=[1, 2, 5]), ValueError, "from 0 to the 4 steps; they go from 1 to 5"),
    (dict(lengths=[1, -2, 3]), ValueError, "they go from -2 to 3"),
    (dict(lengths=[1.0, 2.0, 3.0]), TypeError, "their dtype is torch.float32"),
    (dict(lengths="long"), TypeError, "str was given"),
    (dict(resets=torch.zeros(4, 3)), ValueError, "boolean tensor of shape \\(4, 3\\).*dtype torch.float32"),
    (dict(resets=torch.zeros(3, 4, dtype=torch.bool)), ValueError, "boolean tensor of shape \\(4, 3\\)"),
    (dict(record="forget"), ValueError, "lstm has no value 'forget' to record; it has i, f, g, o, h, c"),
])
def test_arguments_that_make_no_sense_are_refused_with_what_is_needed(given, error, says):
    with pytest.raises(error, match=says):
        gatework.nn.LSTM(2, 5)(torch.randn(4, 3, 2), **given)


def test_lengths_of_an_unbatched_input_and_of_a_packed_one_are_refused():
    layer = gatework.nn.LSTM(2, 5)
    with pytest.raises(ValueError, match="has just its own length"):
        layer(torch.randn(4, 2), lengths=[2])
    packed = pack_padded_sequence(torch.randn(4, 3, 2), [4, 2, 1])
    with pytest.raises(ValueError, match="brings its own lengths"):
        layer(packed, resets=torch.zeros(4, 3, dtype=torch.bool))


@pytest.mark.parametrize("every", [0, -1, 2.0, True, "often"])
def test_checkpoints_at_no_whole_number_of_steps_are_refused(every):
    with pytest.raises(ValueError, match="checkpoint_every is a number of steps"):
        gatework.nn.Recurrent(cells.lstm, 2, 5, checkpoint_every=every)


def plain_number(x: Input, h: State, W: Matrix):
    return dict(h=tanh(W @ x + h)), dict(half=0.5, size=mean(h - h + 2.0))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_recorded_number_is_one_value_for_every_step_and_row(backend):
    layer = gatework.nn.Recurrent(plain_number, 2, 5, backend=backend)
    _, _, records = layer(torch.randn(4, 3, 2), record=True)
    assert torch.equal(records["half_l0"], torch.full((4, 3, 1), 0.5))
    assert torch.equal(records["size_l0"], torch.full((4, 3, 1), 2.0))
