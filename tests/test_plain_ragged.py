"""Padded batches with lengths, which go the short way once one like them has gone the whole one: the same bits."""

from functools import partial

import pytest
import torch
from test_plain import LAYERS, as_list, short_ways, whole_way  # noqa: F401  (fixtures)

import gatework
from gatework.autograd import padded
from gatework.backends.cpu import kernel
from gatework.backends.cpu.target import target

needs_bfloat16 = pytest.mark.skipif(not target().multiplies_bfloat16, reason="this CPU does not multiply bfloat16")


def results(layer, x, lengths, hx=None, record=None):
    """The output, last states and recorded values, and the gradients of what is given and of all parameters."""
    x = x.detach().requires_grad_()
    given = [x, *(h for h in as_list(() if hx is None else hx) if h.requires_grad), *layer.parameters()]
    output, last, *records = layer(x, hx, lengths=lengths, record=record)
    made = [output, *as_list(last), *(y for named in records for y in named.values())]
    return [*made, *torch.autograd.grad(sum((k + y).sin().sum() for k, y in enumerate(made)), given)]


def rows_and_steps(layer, rows: int, steps: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(*((rows, steps) if layer.batch_first else (steps, rows)), 5, dtype=dtype)


@pytest.fixture
def with_threads():
    """Choose the number of threads for the rest of a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# Of one row, whose batch has no padding but behind it; in any order; once again with other lengths; of equal lengths;
# with all steps, where the batch is dense.
LENGTHS = [[4], [7], [3, 7, 1, 5], [7, 1, 1, 1], [2, 3, 7, 6], [2, 2, 2, 2], [7, 7, 7, 7], [1, 1, 1, 1]]


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_lengths_go_the_short_way_with_the_bits_of_the_whole_one(make, dtype, batch_first, short_ways,  # noqa: F811
                                                                 whole_way):  # noqa: F811
    layer = make(batch_first=batch_first, dtype=dtype)
    for lengths in LENGTHS:
        for _ in range(3):  # once walked, once recorded, then by the program
            x = rows_and_steps(layer, len(lengths), 7, dtype)
            found = results(layer, x, lengths)
            expected = whole_way(results, layer, x, torch.tensor(lengths))
            assert [(y.dtype, y.shape) for y in found] == [(y.dtype, y.shape) for y in expected]
            assert found[0].is_contiguous()
            assert all(map(torch.equal, found, expected))
        with torch.no_grad():
            whole = partial(layer, lengths=lengths)
            assert torch.equal(whole(x)[0], whole_way(whole, x)[0])
    assert short_ways.count(False) == 2  # the first batch of one row, and the first one of four


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("record", [None, "h", True], ids=str)
@pytest.mark.parametrize("make", [LAYERS["lstm"], LAYERS["projected"]], ids=["lstm", "projected"])
def test_given_states_and_recorded_values_go_the_short_way_with_lengths(
        make, record, learned, batch_first, short_ways, whole_way):  # noqa: F811
    layer = make(batch_first=batch_first)
    sizes = [layer.sizes[e.dims[0]] for e in layer.cell.states.values()]
    for lengths in ([3, 6, 1], [6, 5, 2], [1, 2, 3], [4, 4, 6]):
        x = rows_and_steps(layer, 3, 6)
        hx = tuple(torch.randn(1, 3, n, requires_grad=learned) for n in sizes)
        found, expected = results(layer, x, lengths, hx, record), whole_way(results, layer, x, lengths, hx, record)
        assert all(map(torch.equal, found, expected))
    assert short_ways == [False, True, True, True]


@needs_bfloat16
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_lengths_under_autocast_go_the_short_way_with_the_bits_of_the_whole_one(make, short_ways,  # noqa: F811
                                                                                whole_way):  # noqa: F811
    layer = make()
    for steps, *lengths in ((9, 9, 5, 7), (9, 3, 9, 8), (8, 8, 8, 7), (6, 6, 6, 6),
                            (9, 1, 1, 2), (2, 2, 2, 2)):  # the last two of fewer places than products need
        x = rows_and_steps(layer, 3, steps)
        with torch.autocast("cpu", torch.bfloat16):
            found, expected = results(layer, x, lengths), whole_way(results, layer, x, lengths)
        assert [(y.dtype, y.shape) for y in found] == [(y.dtype, y.shape) for y in expected]
        assert all(map(torch.equal, found, expected))
    assert short_ways == [False, True, True, True, False, False]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_sequences_of_other_lengths_share_programs(make, threads, with_threads, whole_way, monkeypatch):  # noqa: F811
    with_threads(threads)
    if threads > 1:  # each for rows of its own, however little there is to do
        monkeypatch.setattr(kernel, "WORTH_A_THREAD", 1)
        monkeypatch.setattr(kernel, "WORTH_A_MEETING", 1 << 40)
    layer, walks = make(), []
    walk = padded.Padded._walk_forward
    monkeypatch.setattr(padded.Padded, "_walk_forward", lambda self, *given: walks.append(1) or walk(self, *given))
    for lengths in ([30, 21, 8, 3], [30, 22, 8, 1], [27, 30, 2, 3], [31, 21, 4, 6], [1, 30, 1, 31]):
        for _ in range(2):
            x = rows_and_steps(layer, 4, 32)
            assert all(map(torch.equal, results(layer, x, lengths), whole_way(results, layer, x, lengths)))
    assert len(walks) == 2  # one with values, one that was written down; all batches have 32 to 63 places


@pytest.mark.parametrize("batch_first", [False, True])
def test_batches_of_any_length_are_of_one_kind(batch_first, short_ways, whole_way):  # noqa: F811
    layer = gatework.nn.GRU(5, 8, batch_first=batch_first)
    for steps, *lengths in ((6, 3, 6, 1), (9, 9, 2, 7), (4, 4, 4, 4), (2, 1, 1, 2), (7, 6, 6, 6), (3, 1, 1, 1)):
        x = rows_and_steps(layer, 3, steps)
        found, expected = results(layer, x, lengths), whole_way(results, layer, x, lengths)
        assert all(map(torch.equal, found, expected))
    assert short_ways == [False, True, True, True, True, True]


def test_a_longer_batch_keeps_checkpoints_where_that_is_asked_for(short_ways, whole_way):  # noqa: F811
    layer = gatework.nn.GRU(5, 8, checkpoint_every=4)
    for steps in (3, 3, 9, 9):
        x = torch.randn(steps, 2, 5)
        found, expected = results(layer, x, [steps, 1]), whole_way(results, layer, x, [steps, 1])
        assert all(map(torch.equal, found, expected))
    assert short_ways == [False, True, False, False]


@pytest.mark.parametrize("lengths", [[5], [9, 1], [9, 1, 1, 1]], ids=str)
def test_one_row_with_most_of_the_steps_and_two_threads(lengths, with_threads, whole_way, monkeypatch):  # noqa: F811
    monkeypatch.setattr(kernel, "WORTH_A_THREAD", 1)
    monkeypatch.setattr(kernel, "WORTH_A_MEETING", 1 << 40)
    layer = gatework.nn.LSTM(5, 8)
    for threads in (2, 3):
        with_threads(threads)
        for _ in range(4):
            x = rows_and_steps(layer, len(lengths), 9)
            assert all(map(torch.equal, results(layer, x, lengths), whole_way(results, layer, x, lengths)))


def test_padding_is_neither_read_nor_has_it_a_gradient(short_ways):  # noqa: F811
    layer, lengths = gatework.nn.LSTM(5, 8), torch.tensor([2, 6, 4])
    padding = torch.arange(6)[:, None] >= lengths
    for _ in range(4):
        x = torch.randn(6, 3, 5).masked_fill(padding[:, :, None], torch.nan).requires_grad_()
        y, (h, c) = layer(x, lengths=lengths)
        assert not y[padding].any()
        assert torch.equal(h[0], y[lengths - 1, torch.arange(3)])
        (y.sum() + c.sum()).backward()
        assert not x.grad[padding].any()
        assert x.grad[~padding].all()
        assert all(p.grad.isfinite().all() for p in layer.parameters())
    assert short_ways == [False, True, True, True]


def test_the_padded_output_may_be_written_into_before_the_backward_pass(whole_way):  # noqa: F811
    layer, x, lengths = gatework.nn.LSTM(5, 8), torch.randn(6, 3, 5), [2, 6, 4]

    def gradients():
        y, _ = layer(x, lengths=lengths)
        y *= 2
        return torch.autograd.grad(y.square().sum(), list(layer.parameters()))

    for _ in range(3):
        assert all(map(torch.equal, gradients(), whole_way(gradients)))


def test_a_graph_with_lengths_may_be_walked_twice_and_differentiated_again(short_ways, whole_way):  # noqa: F811
    torch.manual_seed(0)
    layer, lengths = gatework.nn.LSTM(5, 4, batch_first=True, dtype=torch.float64), [2, 5, 4]

    def gradients(x):
        y, (h, c) = layer(x, (h0, h0), lengths=lengths)
        total = y.sin().sum() + c.square().sum() + h.sum()
        first = torch.autograd.grad(total, [x, h0, *layer.parameters()], create_graph=True)
        again = torch.autograd.grad(total, [x, h0, *layer.parameters()], retain_graph=True)
        assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-14) for a, b in zip(first, again))  # other kernels
        return [*again, *torch.autograd.grad(sum(g.square().sum() for g in first), [x, h0, *layer.parameters()])]

    for _ in range(3):
        x = torch.randn(3, 5, 5, dtype=torch.float64, requires_grad=True)
        h0 = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
        for found, expected in zip(gradients(x), whole_way(gradients, x)):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert short_ways == [False, True, True]


@pytest.mark.parametrize("lengths", [[0, 4, 2], [0, 0, 0], [4, 4, 4]], ids=str)
def test_rows_without_steps_and_rows_with_all_of_them_come_out_as_ever(lengths, whole_way):  # noqa: F811
    layer = gatework.nn.GRU(5, 8)
    for first in ([3, 4, 2], lengths, lengths):
        x = torch.randn(4, 3, 5)
        assert all(map(torch.equal, results(layer, x, first), whole_way(results, layer, x, first)))


@pytest.mark.parametrize("batch_first", [False, True])
def test_an_empty_batch_is_refused_as_ever(batch_first, short_ways):  # noqa: F811
    layer = gatework.nn.GRU(5, 8, batch_first=batch_first)
    for _ in range(2):
        layer(rows_and_steps(layer, 3, 4), lengths=[4, 1, 2])
    for rows, steps in ((3, 0), (0, 4)):
        with pytest.raises(ValueError, match=f"input has {steps} time steps and {rows} rows; both must be at least 1"):
            layer(rows_and_steps(layer, rows, steps), lengths=[0] * rows)
    assert short_ways == [False, True, False, False]


@pytest.mark.parametrize(("lengths", "error"), [
    ([5, 1, 1], ValueError), ([-1, 1, 4], ValueError), ([1, 2], ValueError), ([1.0, 2.0, 3.0], TypeError),
    ([[1, 2, 3]], ValueError), ("long", TypeError)])
def test_lengths_that_do_not_fit_are_refused_as_ever(lengths, error):
    layer, x = gatework.nn.LSTM(5, 8), torch.randn(4, 3, 5)
    for _ in range(2):
        layer(x, lengths=[1, 4, 2])
    with pytest.raises(error, match="lengths must be 3 whole numbers"):
        layer(x, lengths=lengths)
