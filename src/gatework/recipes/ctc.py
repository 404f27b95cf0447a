"""Receives the probabilities of tokens at each step, hands on the text that they mean: connectionist temporal
classification (Graves et al., 2006), in which a text may be stretched, with blanks (token 0) anywhere between.

No library was found that searches with a lexicon and is still kept up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import nlargest
from itertools import groupby
from typing import NamedTuple

from torch import Tensor

BLANK = 0


def least_steps(tokens: Sequence[int]) -> int:
    """So many steps a sequence of tokens needs: one for each, and a blank between two that are the same.

    >>> least_steps([3, 5, 5])
    4
    """
    return len(tokens) + sum(a == b for a, b in zip(tokens, tokens[1:]))


def best_path(probabilities: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The likeliest token of each step, repetitions and blanks taken out.

    Args:
        probabilities: [T, tokens], or their logarithms.

    Returns the tokens, and the step at which each begins.

    >>> import torch
    >>> best_path(torch.eye(3)[[0, 2, 2, 0, 2, 1]])
    ((2, 2, 1), (1, 4, 5))
    """
    runs = [(token, next(steps)[0]) for token, steps in
            groupby(enumerate(probabilities.argmax(1).tolist()), lambda pair: pair[1]) if token != BLANK]
    return tuple(token for token, _ in runs), tuple(step for _, step in runs)


class Lexicon:
    """The words that may be written, as tokens.

    Args:
        words: sequences of tokens, none empty.
        space: the token between words; None: a text is one word.
    """

    def __init__(self, words: Iterable[Sequence[int]], space: int | None):
        self.words, self.space = {tuple(word) for word in words}, space
        self.beginnings = {word[:k] for word in self.words for k in range(1, len(word) + 1)}

    def last_word(self, text: tuple[int, ...]) -> tuple[int, ...]:
        return next((text[k:] for k in range(len(text), 0, -1) if text[k - 1] == self.space), text)

    def allows(self, text: tuple[int, ...], token: int) -> bool:
        """Whether the token may follow the text."""
        word = self.last_word(text)
        return word in self.words if token == self.space else (*word, token) in self.beginnings

    def ends(self, text: tuple[int, ...]) -> bool:
        """Whether the text may end here."""
        return not text or self.last_word(text) in self.words


class Hypothesis(NamedTuple):
    """Probabilities of all alignments of a text so far: of those that end in a blank, and in its last token; and the
    step at which each token begins."""

    blank: float
    token: float
    steps: tuple[int, ...]


def beam_search(probabilities: Tensor, beams: int,
                lexicon: Lexicon | None = None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The likeliest text, where the alignments of a text count together (prefix beam search, Graves & Jaitly, 2014).

    Args:
        probabilities: [T, tokens], not their logarithms.
        beams: texts that are kept after each step, and likeliest tokens by which each may grow there.
        lexicon: the words that may be written. Where none of the texts that are left ends with a whole word, the
            likeliest is given without its last part of one.

    Returns the tokens, and the step at which each begins in the alignments that count most.

    >>> import torch
    >>> p = torch.tensor([[.6, .4], [.6, .4]])  # "" has 0.36; "1", as 1-, -1 or 11, has 0.64
    >>> best_path(p), beam_search(p, beams=4)
    (((), ()), ((1,), (0,)))
    """
    kept = {(): Hypothesis(1.0, 0.0, ())}
    for step, row in enumerate(probabilities.tolist()):
        grown: dict[tuple[int, ...], Hypothesis] = {}
        likely = nlargest(beams, range(1, len(row)), key=row.__getitem__)
        for text, (blank, token, steps) in kept.items():
            stays = token * row[text[-1]] if text else 0.0
            _add(grown, text, Hypothesis((blank + token) * row[BLANK], stays, steps))
            for new in likely:
                if lexicon is None or lexicon.allows(text, new):
                    # A token that is there already is written again only after a blank.
                    before = blank if text and new == text[-1] else blank + token
                    _add(grown, (*text, new), Hypothesis(0.0, before * row[new], (*steps, step)))
        best = nlargest(beams, grown.items(), key=lambda item: item[1].blank + item[1].token)
        total = sum(h.blank + h.token for _, h in best)  # of thousands of steps, the products would be zero
        kept = {text: Hypothesis(h.blank / total, h.token / total, h.steps) for text, h in best}
    ranked = sorted(kept.items(), key=lambda item: -item[1].blank - item[1].token)
    text, found = next((item for item in ranked if lexicon is None or lexicon.ends(item[0])), ranked[0])
    if lexicon is not None and not lexicon.ends(text):
        text = text[:len(text) - len(lexicon.last_word(text))]
    return text, found.steps[:len(text)]


def _add(grown: dict, text: tuple[int, ...], h: Hypothesis) -> None:
    other = grown.get(text)
    if other is not None:
        steps = max(h, other, key=lambda each: each.blank + each.token).steps
        h = Hypothesis(h.blank + other.blank, h.token + other.token, steps)
    grown[text] = h
