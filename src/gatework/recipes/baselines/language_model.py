"""How well counts of tokens, and of what follows what, predict a text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


def unigram(ids: np.ndarray, held_out: np.ndarray, size: int) -> float:
    """Nats per token of a text, but its first, by how often tokens are in another one, each counted once more.

    Both are numbers of tokens below `size`, [tokens], here and below.
    """
    counts = np.bincount(ids[1:], minlength=size) + 1
    return -np.log(counts[held_out[1:]] / counts.sum()).mean()


def bigram(ids: np.ndarray, held_out: np.ndarray, size: int) -> float:
    """The same by how often tokens follow the one before, each counted once more."""
    pairs, counts = np.unique(ids[:-1] * np.int64(size) + ids[1:], return_counts=True)
    at = lookup(pairs, held_out[:-1] * np.int64(size) + held_out[1:])
    before = np.bincount(ids[:-1], minlength=size)[held_out[:-1]]
    return -np.log((np.where(at >= 0, counts[at], 0) + 1) / (before + size)).mean()


def kneser_ney(ids: np.ndarray, held_out: np.ndarray, size: int, order: int = 5) -> float:
    """The same by interpolated Kneser-Ney smoothing (Kneser and Ney, 1995; interpolated as by Chen and Goodman, 1999).

    A token has its count behind the `order` - 1 tokens before it, less a discount; what the discounts leave is shared
    out by the context that is a token shorter. There a token counts as often as there are different tokens before it
    and the context. The empty context shares out evenly. Of the counts of an order n1 are 1 and n2 are 2; its discount
    is (n1 + 1) / (n1 + 2 n2 + 3), which is n1 / (n1 + 2 n2) but for texts so short or uniform that this would be 0.
    """
    levels = list(n_grams(ids, held_out, size, order))
    probability = np.full(len(held_out) - 1, 1 / size)
    for n, level in enumerate(levels, start=1):
        if n < len(levels):
            # The different longer n-grams end in this one: how many tokens it is seen behind.
            counts = np.bincount(level.at[1:][levels[n].first], minlength=len(level.first))
        else:
            counts = np.bincount(level.at)
        ones, twos = (counts == 1).sum(), (counts == 2).sum()
        discount = (ones + 1) / (ones + 2 * twos + 3)
        contexts = level.context[level.first]
        known = len(levels[n - 2].first) if n > 1 else 1
        total, different = np.bincount(contexts, counts, known), np.bincount(contexts, counts > 0, known)
        # The first token is not predicted, and the next ones have no long contexts.
        shorter = probability[max(n - 2, 0):]
        at, context = level.held_out[len(level.held_out) - len(shorter):], level.held_out_context[-len(shorter):]
        seen = np.flatnonzero((context >= 0) & (total[context] > 0))
        at, context = at[seen], context[seen]
        count = np.where(at >= 0, counts[at], 0)
        shorter[seen] = (np.maximum(count - discount, 0) + discount * different[context] * shorter[seen]
                         ) / total[context]
    return -np.log(probability).mean()


class NGrams(NamedTuple):
    """The n-grams of a text, numbered; each is a context, an n-gram of one token less, and a token."""

    at: np.ndarray  # the number of the n-gram that ends at each place, from the n-th token on
    context: np.ndarray  # and that of its context
    first: np.ndarray  # where each is seen first
    held_out: np.ndarray  # the numbers for the held-out text, -1 for what is not in the first
    held_out_context: np.ndarray


def n_grams(ids: np.ndarray, held_out: np.ndarray, size: int, order: int) -> Iterator[NGrams]:
    """The n-grams of one token, of two, ..., of `order` or as many as both texts have."""
    context, held_out_context = np.zeros(len(ids), np.int64), np.zeros(len(held_out), np.int64)
    for n in range(1, min(order, len(ids), len(held_out)) + 1):
        found, first, at = np.unique(context * size + ids[n - 1:], return_index=True, return_inverse=True)
        known = lookup(found, held_out_context * size + held_out[n - 1:])
        known[held_out_context < 0] = -1
        yield NGrams(at, context, first, known, held_out_context)
        context, held_out_context = at[:-1], known[:-1]


def lookup(sorted_keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The places of numbers among rising ones, -1 for those that are not there."""
    at = np.searchsorted(sorted_keys, wanted)
    return np.where(sorted_keys[np.minimum(at, len(sorted_keys) - 1)] == wanted, at, -1)
