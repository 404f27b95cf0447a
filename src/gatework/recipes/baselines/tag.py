"""The label that a word has most often, whatever stands around it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

Example = tuple[Sequence[str], Sequence[str], Sequence[slice]]  # tokens, their labels, where the words are


def most_frequent(train: Iterable[Example],
                  held_out: Iterable[tuple[Sequence[str], Sequence[slice]]]) -> list[list[str]]:
    """The labels of held-out tokens. Each word gets those it has most often in training, the first if there
    are several; words that are new, and what is in no word, get the most frequent label of all.

    >>> train = [("la", ["", "`"], [slice(0, 2)])] * 2 + [("la", ["", ""], [slice(0, 2)])]
    >>> most_frequent(train, [("la la", [slice(0, 2), slice(3, 5)]), ("a", [slice(0, 1)])])
    [['', '`', '', '', '`'], ['']]
    """
    forms: dict[tuple, Counter] = defaultdict(Counter)
    labels: Counter = Counter()
    for tokens, given, words in train:
        labels.update(given)
        for word in words:
            forms[tuple(tokens[word])][tuple(given[word])] += 1
    usual, = labels.most_common(1)[0][:1]
    found = []
    for tokens, words in held_out:
        said = [usual] * len(tokens)
        for word in words:
            seen = forms.get(tuple(tokens[word]))
            if seen:
                said[word] = seen.most_common(1)[0][0]
        found.append(said)
    return found
