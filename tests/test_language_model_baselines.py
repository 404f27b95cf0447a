"""What counting predicts: unigram, bigram and Kneser-Ney, each against counting by hand."""

import gzip
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
import real_data

from gatework.recipes import vocabulary
from gatework.recipes.baselines.language_model import bigram, kneser_ney, unigram


def numbers(text: str) -> np.ndarray:
    return np.array(["?abcdr".find(c) if c in "abcdr" else 0 for c in text], np.uint16)


def test_unigram_and_bigram_equal_counting_by_hand():
    fitted, other = "abracadabra", "cabbage"
    known = [c if c in "abcdr" else "?" for c in other]
    ones, twos = Counter(fitted[1:]), Counter(zip(fitted, fitted[1:]))
    once = [-math.log((ones[c] + 1) / (10 + 6)) for c in known[1:]]
    pairs = [-math.log((twos[a, b] + 1) / (sum(twos[a, c] for c in "abcdr") + 6)) for a, b in zip(known, known[1:])]
    # 12 digits: the same few double-precision operations in another order
    assert unigram(numbers(fitted), numbers(other), 6) == pytest.approx(sum(once) / 6, rel=1e-12)
    assert bigram(numbers(fitted), numbers(other), 6) == pytest.approx(sum(pairs) / 6, rel=1e-12)


class LiteralKneserNey:
    """The recursion as Chen and Goodman write it, over dictionaries of tuples."""

    def __init__(self, ids: list[int], size: int, order: int):
        self.size, self.counts, self.discounts = size, [{}], [0.0]
        grams = [None, *(Counter(tuple(ids[t - n + 1:t + 1]) for t in range(n - 1, len(ids)))
                         for n in range(1, order + 1))]
        for n in range(1, order + 1):
            counts = grams[n]
            if n < order:
                before = defaultdict(set)
                for gram in grams[n + 1]:
                    before[gram[1:]].add(gram[0])
                counts = {gram: len(seen) for gram, seen in before.items()}
            values = list(counts.values())
            self.counts.append(counts)
            self.discounts.append((values.count(1) + 1) / (values.count(1) + 2 * values.count(2) + 3))

    def probability(self, token: int, context: tuple[int, ...]) -> float:
        n = len(context) + 1
        shorter = self.probability(token, context[1:]) if context else 1 / self.size
        after = {gram: count for gram, count in self.counts[n].items() if gram[:-1] == context}
        if not after:
            return shorter
        own = max(after.get((*context, token), 0) - self.discounts[n], 0)
        return (own + self.discounts[n] * len(after) * shorter) / sum(after.values())


@pytest.mark.parametrize(("length", "size", "order"), [(50, 4, 3), (200, 6, 5), (120, 3, 1), (120, 5, 2), (3, 4, 5)])
def test_kneser_ney_equals_the_recursion_over_dictionaries_and_its_probabilities_add_up_to_1(length, size, order):
    random = np.random.default_rng(length)
    ids = random.integers(0, size - 1, length).astype(np.uint16)  # the last token is new in the other text
    other = random.integers(0, size, 40).astype(np.uint16)
    longest = min(order, length)
    literal, total = LiteralKneserNey(ids.tolist(), size, longest), 0.0
    for t in range(1, len(other)):
        context = tuple(other[max(0, t - longest + 1):t].tolist())
        assert sum(literal.probability(w, context) for w in range(size)) == pytest.approx(1, abs=1e-12)
        total -= math.log(literal.probability(int(other[t]), context))
    # 12 digits: the same few double-precision operations in another order
    assert kneser_ney(ids, other, size, order) == pytest.approx(total / 39, rel=1e-12)


def test_kneser_ney_of_a_text_of_two_tokens_and_of_one_that_repeats_is_finite():
    assert math.isfinite(kneser_ney(np.array([1, 2]), np.array([2, 1]), 4))
    assert math.isfinite(kneser_ney(np.array([1, 2] * 50), np.array([3, 1, 2, 2, 1]), 4))


def test_kneser_ney_on_the_penn_treebank_is_near_the_published_perplexity():
    source = real_data.needed("language_modelling/ptb")
    lines = {part: gzip.decompress((source / f"ptb.{part}.txt.gz").read_bytes()).decode().splitlines()
             for part in ("train", "test")}
    tokenizer = vocabulary.learn(lines["train"], "spaces", 20_000)
    ids = {part: np.array([k for e in tokenizer.encode_batch_fast(text) for k in [*e.ids, vocabulary.END]], np.uint16)
           for part, text in lines.items()}
    assert [len(ids["train"]), len(ids["test"])] == [929_589, 82_430]
    # 141.2 is that of Mikolov and Zweig (2012), with three discounts per order instead of one, worth some 2 %.
    assert math.exp(kneser_ney(ids["train"], ids["test"], 10_002)) == pytest.approx(141.2, rel=0.03)
