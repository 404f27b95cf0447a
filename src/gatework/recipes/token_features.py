"""Receives the tokens of a row, hands on where its words are and by what each token is known.

In the task "columns" the tokens are words; in the task "accents" they are the characters of a text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence


def words(tokens: Sequence[str], task: str) -> list[slice]:
    """Where the words are: runs of letters and digits among characters; else each token is one."""
    if task == "columns":
        return [slice(k, k + 1) for k in range(len(tokens))]
    return [slice(*found.span()) for found in re.finditer(r"\w+", tokens)]


def features(tokens: Sequence[str], task: str) -> list[list[str]]:
    """By what each token is known: a word by itself, its ends and its shape; a character by its word and itself, alone
    and between its neighbours. The first is the word.

    >>> features(["Paris2"], "columns")
    [['Paris2', 'paris2', '^p', '^pa', '^par', '2$', 's2$', 'is2$', 'ris2$', 'shape Xx0']]
    >>> features("L'Ane", "accents")[2]
    ['word ane', 'A', "'an"]
    """
    if task == "columns":
        return [[token, low, *(f"^{low[:n]}" for n in (1, 2, 3)), *(f"{low[-n:]}$" for n in (1, 2, 3, 4)), shape(token)]
                for token, low in ((token, token.lower()) for token in tokens)]
    within = {k: tokens[word] for word in words(tokens, task) for k in range(word.start, word.stop)}
    padded = f" {tokens} "
    return [[f"word {within.get(k, token).lower()}", token, padded[k:k + 3].lower()] for k, token in enumerate(tokens)]


def shape(token: str) -> str:
    """Capitals, small letters, digits and signs, each run as one.

    >>> shape("Berlin-2024")
    'shape Xx-0'
    """
    signs = "".join("X" if c.isupper() else "x" if c.isalpha() else "0" if c.isdigit() else c for c in token)
    return "shape " + re.sub(r"(.)\1+", r"\1", signs)
