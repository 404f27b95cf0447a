"""Batches of examples: what is in them, how they go on, and how processes share them."""

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatework.recipes import RecipeError, batches
from gatework.recipes.batches import Batches, Examples, pad


def all_of(loader):
    return [list(batch) for batch in loader]


@pytest.mark.parametrize(("count", "size"), [(1, 1), (1, 4), (4, 4), (5, 4), (103, 4), (1000, 3)])
@pytest.mark.parametrize("length", [None, lambda k: k % 7])
def test_every_example_comes_once_per_epoch_and_epochs_differ_in_order(count, size, length):
    loader = Batches(range(count), list, size, length=length, seed=3)
    epochs = [all_of(loader), all_of(loader)]
    for epoch in epochs:
        assert sorted(k for batch in epoch for k in batch) == list(range(count))
        assert len(epoch) == len(loader) == -(-count // size)
        assert sorted(map(len, epoch))[1:] == [size] * (len(epoch) - 1)
    if count > 100:
        assert epochs[0] != epochs[1]


def test_without_a_seed_examples_come_in_their_order():
    loader = Batches(range(10), list, 4, length=lambda k: -k)
    assert all_of(loader) == all_of(loader) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_examples_of_similar_length_come_together_and_batches_are_not_sorted():
    lengths = torch.randint(1, 200, (1000,), generator=torch.Generator().manual_seed(0)).tolist()
    spans = [max(batch) - min(batch) for batch in Batches(lengths, list, 10, length=int, seed=0)]
    assert sum(spans) / len(spans) < 20  # of 199; at random it would be 160
    firsts = [batch[0] for batch in Batches(lengths, list, 10, length=int, seed=0)]
    assert firsts != sorted(firsts)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_batches_go_on_exactly_where_they_stopped(data):
    count, size = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 9))
    length = data.draw(st.sampled_from([None, lambda k: k % 5]))
    whole = Batches(range(count), list, size, length=length, seed=1)
    expected = [all_of(whole) for _ in range(2)]
    stopped = Batches(range(count), list, size, length=length, seed=1)
    stop = data.draw(st.integers(1, len(stopped)))
    found = [batch for batch, _ in zip(stopped, range(stop), strict=False)][:stop]
    fresh = Batches(range(count), list, size, length=length, seed=1)
    # zip has asked for one more batch than it handed on, unless the epoch was over
    state = {"epoch": 0, "position": stop} if stop < len(fresh) else stopped.state_dict()
    fresh.load_state_dict(state)
    if stop < len(fresh):
        found += all_of(fresh)
    assert found == expected[0]
    assert all_of(fresh) == expected[1]


@pytest.mark.parametrize(("count", "size", "world"),
                         [(8, 2, 2), (9, 2, 2), (11, 2, 4), (23, 4, 3), (5, 4, 3), (2, 1, 2)])
def test_processes_together_read_what_one_with_a_larger_batch_reads(count, size, world, monkeypatch):
    shares = []
    for rank in range(world):
        monkeypatch.setattr(batches.distributed, "get_rank", lambda rank=rank: rank)
        shares.append(all_of(Batches(range(count), list, size, seed=2, world=world)))
    assert len({len(share) for share in shares}) == 1
    together = [sorted(k for part in parts for k in part) for parts in zip(*shares)]
    assert sorted(k for batch in together for k in batch) == list(range(count))
    assert all(part for parts in zip(*shares) for part in parts)  # a process without rows could not take its step
    one = [sorted(batch) for batch in all_of(Batches(range(count), list, size * world, seed=2))]
    if count % (size * world) in (0, *range(world, size * world)):
        assert together == one


def test_fewer_examples_than_processes_are_refused():
    with pytest.raises(RecipeError, match="2 examples for 3 processes.*lower --devices"):
        Batches([1, 2], list, 1, world=3)


def test_rows_are_encoded_once_while_the_bytes_of_their_examples_fit_and_else_whenever_they_are_needed(monkeypatch):
    table, seen = pl.DataFrame({"n": [1, 2, 3]}), []

    def encode(row):
        seen.append(row["n"])
        return torch.full((10_000,), row["n"]), {"name": "row"}

    examples = Examples(table, encode)
    assert [examples[k][0][0].item() for k in (2, 2, 0)] == [3, 3, 1]
    assert seen == [3, 1]
    monkeypatch.setattr(batches, "KEPT", 200_000)  # two examples of 80,000 bytes and a little
    examples, seen[:] = Examples(table, encode), []
    assert [examples[k][0][0].item() for k in (0, 1, 2, 2, 1, 0)] == [1, 2, 3, 3, 2, 1]
    assert seen == [1, 2, 3, 3]


def test_padding_keeps_every_value_and_tells_the_lengths():
    padded, lengths = pad([torch.ones(2, 3), torch.zeros(0, 3), 2 * torch.ones(1, 3)], value=-1)
    assert lengths.tolist() == [2, 0, 1]
    assert padded[:, :, 0].T.tolist() == [[1, 1], [-1, -1], [2, -1]]
