"""Receives a model that tells how likely each next token is, hands on the likeliest sequences by beam search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gatework.recipes.vocabulary import BEGIN, END, PADDING


@dataclass(frozen=True)
class Found:
    """The sequences of every row, the best first.

    tokens: int64 [B, K, T], without the token of the beginning, with that of the end, padding behind it.
    scores: [B, K], log-probability / length ** penalty; -inf where a row was done before it had K beginnings.
    ended: [B, K]; false for the best of a row where `longest` came before its end.
    """

    tokens: Tensor
    scores: Tensor
    ended: Tensor

    def best(self) -> list[list[int]]:
        """The best tokens of every row, without those of beginning, end and padding."""
        return [[k for k in row if k not in (PADDING, END)] for row in self.tokens[:, 0].tolist()]


@torch.no_grad()
def beam_search(step: Callable[[Tensor, Any], tuple[Tensor, Any]], state: Any, choose: Callable[[Any, Tensor], Any],
                rows: int, beam: int, longest: int, penalty: float = 1.0) -> Found:
    """Keep the `beam` likeliest beginnings of every row, lengthened token by token until the best of them has ended.

    What is found for a row does not depend on the other rows. With a penalty of 0 nothing likelier can follow; above 0
    something may, but what could go on for ever, such as a repeated word, is not waited for.

    Args:
        step: from tokens int64 [B * K] and a state, the log-probabilities [B * K, vocabulary] of each next token, and
            the next state. Called first with tokens of the beginning.
        state: the first state, of B * K rows, those of one row of the batch side by side.
        choose: from a state and int64 [B * K], the state of these rows, in this order.
        rows, beam: B and K.
        longest: tokens at most, that of the end included.
        penalty: 0 compares log-probabilities, which favours short sequences, 1 their means per token (Wu et al., 2016,
            section 7, have the idea).
    """
    last = torch.full((rows * beam,), BEGIN)
    totals = torch.full((rows, beam), -torch.inf)
    totals[:, 0] = 0.0  # all beginnings of a row are the same one
    lengths, ended = torch.zeros(rows, beam), torch.zeros(rows, beam, dtype=torch.bool)
    tokens = torch.zeros(rows, beam, 0, dtype=torch.int64)
    for _ in range(longest):
        chances, state = step(last, state)
        chances = chances.float().view(rows, beam, -1)
        size = chances.shape[-1]
        nothing = torch.full((size,), -torch.inf)
        nothing[PADDING] = 0.0
        stays = ended | ended[:, :1]  # the other beginnings of a row that is done, too
        chances = torch.where(stays[..., None], nothing, chances)
        lengths = lengths + ~stays
        scores = (totals[..., None] + chances) / lengths[..., None] ** penalty
        scores, places = scores.flatten(1).topk(beam)
        parents, last = places // size, places % size
        lengths = lengths.gather(1, parents)
        totals = scores * lengths**penalty
        ended = ended.gather(1, parents) | (last == END)
        tokens = torch.cat([tokens.gather(1, parents[..., None].expand_as(tokens)), last[..., None]], 2)
        if ended[:, 0].all():
            break
        state = choose(state, (parents + torch.arange(rows)[:, None] * beam).flatten())
        last = last.flatten()
    return Found(tokens, scores, ended)
