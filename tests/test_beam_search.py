"""Beam search, beside all sequences there are, and beside taking the likeliest token each time."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from gatework.recipes.beam_search import beam_search
from gatework.recipes.vocabulary import BEGIN, END, PADDING, UNKNOWN

ROWS, SIZE = 3, 7
ALLOWED = [END, 4, 5, 6]


class Chances:
    """A model whose next token depends on the row and on the two last tokens; its state is (row, token before)."""

    def __init__(self, seed: int = 0):
        random = torch.Generator().manual_seed(seed)
        table = torch.randn(ROWS, SIZE, SIZE, SIZE, generator=random) * 2
        table[..., [PADDING, UNKNOWN, BEGIN]] = -torch.inf
        self.table = table.log_softmax(-1)

    def step(self, tokens: Tensor, state: Tensor):
        row, before = state.unbind(1)
        return self.table[row, before, tokens], torch.stack([row, tokens], 1)

    def search(self, beam: int, longest: int, penalty: float):
        state = torch.stack([torch.arange(ROWS).repeat_interleave(beam), torch.full((ROWS * beam,), PADDING)], 1)
        return beam_search(self.step, state, lambda s, rows: s[rows], ROWS, beam, longest, penalty)

    def score(self, row: int, tokens: tuple[int, ...], penalty: float) -> float:
        total, before, last = 0.0, PADDING, BEGIN
        for token in tokens:
            total += float(self.table[row, before, last, token])
            before, last = last, token
        return total / len(tokens) ** penalty


def all_sequences(longest: int):
    """All that end, and those that are cut off at the longest."""
    for length in range(longest + 1):
        for tokens in itertools.product(ALLOWED[1:], repeat=length):
            yield tokens if length == longest else (*tokens, END)


def test_with_room_for_all_beginnings_it_finds_the_likeliest_of_all_sequences():
    model, longest = Chances(), 4
    found = model.search(beam=200, longest=longest, penalty=0.0)
    for row in range(ROWS):
        scored = [(model.score(row, s, 0.0), s) for s in all_sequences(longest)]
        assert len(scored) == 121  # 1 + 3 + 9 + 27 that end, 81 that do not
        score, tokens = max(scored)
        assert found.tokens[row, 0].tolist() == [*tokens, *[PADDING] * (found.tokens.shape[2] - len(tokens))]
        assert float(found.scores[row, 0]) == pytest.approx(score, abs=1e-5)  # float32
        assert bool(found.ended[row, 0]) == (tokens[-1] == END)


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("beam", [1, 3, 20])
def test_scores_are_log_probabilities_over_a_power_of_the_length_and_fall_within_a_row(beam, penalty):
    model = Chances(3)
    found = model.search(beam, longest=5, penalty=penalty)
    assert (found.scores[:, 1:] <= found.scores[:, :-1]).all()
    for row in range(ROWS):
        for tokens, score, ended in zip(found.tokens[row], found.scores[row], found.ended[row]):
            if score == -torch.inf:  # a row that was done when there were fewer beginnings than 20
                continue
            tokens = tuple(tokens[tokens != PADDING].tolist())
            assert float(score) == pytest.approx(model.score(row, tokens, penalty), abs=1e-5)  # float32
            assert bool(ended) == (tokens[-1] == END)
        assert found.ended[row, 0] or len(found.tokens[row, 0]) == 5


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_row_has_alone_what_it_has_beside_others(penalty):
    model = Chances(4)
    together = model.search(3, longest=8, penalty=penalty)
    for row in range(ROWS):
        state = torch.tensor([[row, PADDING]] * 3)
        alone = beam_search(model.step, state, lambda s, rows: s[rows], 1, 3, 8, penalty)
        assert alone.best()[0] == together.best()[row]
        assert torch.equal(alone.scores[0], together.scores[row])


def test_a_beam_of_one_takes_the_likeliest_token_each_time():
    model = Chances(1)
    found = model.search(beam=1, longest=9, penalty=1.0)
    for row, tokens in enumerate(found.best()):
        before, last, greedy = PADDING, BEGIN, []
        while len(greedy) < 9:
            before, last = last, int(model.table[row, before, last].argmax())
            if last == END:
                break
            greedy.append(last)
        assert tokens == greedy


def test_a_wider_beam_finds_nothing_worse():
    scores = [Chances(2).search(beam, longest=6, penalty=0.0).scores[:, 0] for beam in (1, 100)]
    assert (scores[1] >= scores[0]).all()
    assert (scores[1] > scores[0]).any()
