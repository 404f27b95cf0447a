"""Recorded calls of ragged batches: one program serves batches of other lengths, with the bits of the walk."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from examples import CELLS, Example
from test_record import needs_bfloat16

import gatework
from gatework import autograd
from gatework.autograd import calls
from gatework.backends.batch import Batch
from gatework.backends.cpu import kernel, record
from gatework.backends.cpu.any_batch import Known, NotRecorded, numbers
from gatework.backends.cpu.target import target

# Rows of every step; each of a group has as many places as fit one program.
LIKE = [(3, 3, 2, 1, 1), (3, 2, 2, 2, 1), (3, 3, 3, 1), (3, 3, 3, 2, 1, 1, 1, 1), (3, 3, 3)]
LARGER = [(3,) * 5 + (2,) * 3, (3,) * 7 + (1,) * 9]


@pytest.fixture
def walked(monkeypatch):
    """Run something without programs."""
    def run(function, *given, **named):
        with monkeypatch.context() as patch:
            patch.setattr(calls.Call, "_repeated", lambda *_: None)
            return function(*given, **named)
    return run


def results(cell, sizes, reverse, dtype=torch.float32, H=6, autocast=False) -> list[torch.Tensor]:
    """Outputs, last states and gradients of a batch with these rows in every step."""
    example = Example(cell, len(sizes), sizes[0], 4, H, dtype)
    total, inputs = sum(sizes), len(example.inputs)
    tensors = [t.flatten(0, 1)[:total] if t.dim() == 3 else t for t in example.tensors]
    tensors = [t.clone().requires_grad_() for t in tensors]
    if autocast:
        tensors[:inputs] = [t.detach().bfloat16().requires_grad_() for t in tensors[:inputs]]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        (output,), last = autograd.scan(cell, *example.parts(tensors), reverse, sizes=torch.tensor(sizes))
    upstream = example.upstream[0].flatten(0, 1)[:total], *example.upstream[1:]
    pairs = [(y, d.to(y)) for y, d in zip((output, *last), upstream)]
    return [output.detach(), *(s.detach() for s in last),
            *torch.autograd.grad([y for y, _ in pairs], tensors, [d for _, d in pairs])]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("cell", CELLS, ids=lambda c: c.name)
def test_one_program_serves_batches_of_other_lengths_with_the_bits_of_the_walk(cell, dtype, reverse, taken, walked):
    expected = [walked(results, cell, sizes, reverse, dtype) for sizes in LIKE + LARGER]
    assert not taken
    for _ in range(2):
        found = [results(cell, sizes, reverse, dtype) for sizes in LIKE + LARGER]
    for a, b in zip(found, expected):
        assert all(map(torch.equal, a, b))
    # Not recorded are gradients of constants; the batch of three full steps is dense.
    constant = "constant" in {e.op for e in cell.inputs.values()}
    assert len({p for p in taken if p.numbers}) == (2 if constant else 4)


@needs_bfloat16
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS, ids=lambda c: c.name)
def test_under_autocast_a_program_serves_batches_of_other_lengths(cell, reverse, taken, walked):
    many = [tuple(9 if t < 3 else 9 - (t + k) % 8 for t in range(3)) + (5, 4, 4, 1 + k) for k in range(3)]
    expected = [walked(results, cell, sizes, reverse, torch.float32, 18, True) for sizes in many]
    for _ in range(2):
        found = [results(cell, sizes, reverse, torch.float32, 18, True) for sizes in many]
    for a, b in zip(found, expected):
        assert all(map(torch.equal, a, b))
    assert any(p.numbers for p in taken)


@pytest.mark.parametrize("options", [dict(num_layers=2, bidirectional=True), dict(batch_first=True),
                                     dict(initial_state=True)], ids=str)
def test_layers_with_lengths_are_repeated_with_the_bits_of_the_walk(options, taken, walked):
    torch.manual_seed(0)
    layer = gatework.nn.LSTM(5, 33, **options)
    drawn = [torch.randint(4, 13, (7,)) for _ in range(6)]
    for lengths in drawn:
        lengths[0] = 12
    x = torch.randn(*((7, 12) if layer.batch_first else (12, 7)), 5)
    resets = torch.rand(x.shape[:2]) < 0.2

    def run(lengths, **more):
        output, (h, c), *_ = layer(x, lengths=lengths, **more)
        return [output, h, c, *torch.autograd.grad(output.square().sum() + h.sum() + c.square().sum(),
                                                   list(layer.parameters()))]

    for more in ({}, dict(resets=resets), dict(record=True)):
        expected = [walked(run, lengths, **more) for lengths in drawn]
        for lengths, right in zip(drawn, expected):
            assert all(map(torch.equal, run(lengths, **more), right))
    assert any(p.numbers for p in taken)


def test_what_is_nan_stays_in_its_row_of_a_repeated_batch(taken):
    layer, x = gatework.nn.LSTM(5, 33), torch.randn(6, 3, 5)
    clean = layer(x, lengths=[6, 4, 2])[0]
    x[1, 1] = torch.nan
    for _ in range(3):
        output, _ = layer(x, lengths=[6, 4, 2])
    assert taken[-1].numbers
    assert output[1:4, 1].isnan().all()
    assert torch.equal(output[:, [0, 2]], clean[:, [0, 2]])
    assert not output[4:, 1].any()  # padding


def test_threads_may_run_one_program_for_batches_of_other_lengths_at_the_same_time(taken, walked):
    layer, x = gatework.nn.LSTM(5, 33), torch.randn(12, 7, 5)
    drawn = [torch.randint(4, 13, (7,)) for _ in range(4)]

    def run(lengths):
        return torch.autograd.grad(layer(x, lengths=lengths)[0].square().sum(), list(layer.parameters()))

    expected = [walked(run, lengths) for lengths in drawn]

    def work(k: int) -> bool:
        return all(all(map(torch.equal, run(drawn[k]), expected[k])) for _ in range(40))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
    assert any(p.numbers for p in taken)


def test_threads_that_own_rows_are_told_which(taken, walked, monkeypatch):
    monkeypatch.setattr(kernel, "WORTH_A_THREAD", 1)
    monkeypatch.setattr(kernel, "WORTH_A_MEETING", 1 << 40)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    cell = gatework.compiler.trace(gatework.cells.lstm)
    like = [(9, 9, 8, 1, 1), (9, 7, 6, 6), (9, 9, 9, 2)]
    expected = [walked(results, cell, sizes, False) for sizes in like]
    for _ in range(2):
        found = [results(cell, sizes, False) for sizes in like]
    torch.set_num_threads(threads)
    for a, b in zip(found, expected):
        assert all(map(torch.equal, a, b))
    assert any("count 1" in dict(p.numbers) for p in taken)


def test_batches_of_one_thread_and_of_two_have_programs_of_their_own(taken, walked, monkeypatch):
    monkeypatch.setattr(kernel, "WORTH_A_THREAD", 24 * 256)  # from 24 places on, for so few units
    monkeypatch.setattr(kernel, "WORTH_A_MEETING", 1 << 40)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    cell = gatework.compiler.trace(gatework.cells.lstm)
    alone, shared = (9, 7, 3, 1), (9, 9, 8, 2)
    expected = [walked(results, cell, sizes, False) for sizes in (alone, shared)]
    for _ in range(2):
        found = [results(cell, sizes, False) for sizes in (alone, shared)]
    torch.set_num_threads(threads)
    for a, b in zip(found, expected):
        assert all(map(torch.equal, a, b))
    assert {"count 1" in dict(p.numbers) for p in taken} == {False, True}


def test_rows_without_steps_and_matrix_units_are_walked(taken):
    layer = gatework.nn.LSTM(5, 6)
    for lengths in ([3, 0], [2, 0], [3, 0]):
        layer(torch.randn(3, 2, 5), lengths=lengths)[0].sum().backward()
    assert not taken
    if target().tiles:
        large = gatework.nn.LSTM(128, 128)
        for _ in range(3):
            large(torch.randn(5, 32, 128), lengths=[5] * 31 + [4])[0].sum().backward()
        assert not taken


def test_what_a_batch_tells_is_what_it_is():
    batch = Batch(np.array([3, 2, 2]), rows=3)
    found = numbers(batch, {"ends", "previous"}, 2, True)
    assert (found["total"], found["steps"], found["last"]) == (7, 3, 2)
    assert [(found[f"first {k}"], found[f"count {k}"]) for k in range(2)] == batch.parts(2)
    more = Batch(np.array([9, 9, 8, 5]), rows=9)
    assert [len(more.parts(count)) for count in (2, 3, 2)] == [2, 3, 2]
    assert found["ends"] == batch.end(False).ctypes.data
    assert found["previous"] == batch.previous(True).ctypes.data


def test_parts_of_what_grows_are_its_first_rows_or_refused():
    xp = record.Recorder(4, 1, 0)
    a = xp.given((Known(9, "total"), 4))
    assert a[:3].shape == (3, 4)
    assert a[:, 1:3].shape == (9, 2)
    assert a[:, 1:3].shape[0].name == "total"
    for wrong in (lambda: a[3:], lambda: a[-2:], lambda: a[:-1], lambda: a[:Known(5, "total")], lambda: a.reshape(-1)):
        with pytest.raises(NotRecorded):
            wrong()


def test_a_number_that_is_told_later_has_multiples_and_no_sums():
    number = Known(7, "total")
    assert (3 * number).times == (number * 3).times == 3
    assert 3 * number == 21
    assert number - 0 is number
    assert (3 * number).most == 21
    assert Known(8, "total", 1).most == 15
    for wrong in (lambda: number + 1, lambda: 1 + number, lambda: number - 1, lambda: number - number):
        with pytest.raises(NotRecorded):
            wrong()
