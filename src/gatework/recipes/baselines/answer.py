"""Answers from which sentence shares the most words with the question."""

from __future__ import annotations

import re
from collections import Counter
from math import log

WORD, SENTENCE = re.compile(r"\w+"), re.compile(r"(?<=[.!?])\s+")
RUN = re.compile(r"(?:\b(?:[A-Z]|\d)[\w,.]*\b ?)+")  # of capitalised words and figures


def most_frequent(train, held_out) -> list[str]:
    """The most frequent answer of the training data, whatever is asked."""
    return [Counter(train["answer"]).most_common(1)[0][0]] * len(held_out)


def nearest_sentence(train, held_out) -> list[str]:
    """Looks into the sentence that shares most with the question; of several, the last. The answer is what is not in
    the question and was an answer most often, in this sentence or else last in the text; where nothing was, the longest
    run of capitalised words and figures. Words of the question count the less, the more often the text has them
    (Richardson, Burges & Renshaw, "MCTest", 2013).
    """
    known = Counter(train["answer"])
    return [_nearest(text, question, known) for text, question in held_out.select("text", "question").iter_rows()]


def _nearest(text: str, question: str, known: Counter) -> str:
    asked, counts = _words(question), Counter(WORD.findall(text.lower()))
    sentence = max(reversed(SENTENCE.split(text)),
                   key=lambda s: sum(log(1 + 1 / counts[word]) for word in asked & _words(s)))
    in_sentence = [word for word in WORD.findall(sentence) if known[word] and word.lower() not in asked]
    runs = [run.strip() for run in RUN.findall(sentence) if not _words(run) & asked]
    in_text = [word for word in WORD.findall(text) if known[word] and word.lower() not in asked]
    if in_sentence:
        return max(in_sentence, key=known.__getitem__)
    return max(runs, key=len) if runs else in_text[-1] if in_text else sentence


def _words(text: str) -> set[str]:
    return set(WORD.findall(text.lower()))
