"""Answers that are spans of a text: read from the JSON of SQuAD, found among the words, chosen from scores.

A row takes one or more answers as right, {"text": ..., "start": ...}; start, in characters, is None where nobody said
which of the places is meant.
"""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import torch
from torch import Tensor
from torch.nn import functional

from . import RecipeError
from .reading import read_text

SCHEMA = {"text": pl.String, "question": pl.String, "answer": pl.String,
          "answers": pl.List(pl.Struct({"text": pl.String, "start": pl.Int64})), "article": pl.Int64}


def is_squad(file: Path) -> bool:
    """Whether a file is JSON and begins with an object; a table in JSON is a list."""
    return (file.is_file() and file.name.lower().removesuffix(".gz").endswith(".json")
            and read_text(file).lstrip()[:1] == "{")


def read_squad(file: Path, *, answered: bool = True) -> pl.DataFrame:
    """The questions of a file in the form of SQuAD (Rajpurkar et al., 2016): a row each, with text, question, answer,
    answers and the number of the article.

    answered=False takes questions that have no answers. Raises RecipeError, with the place, for any other form.
    """
    rows = []
    try:
        articles = json.loads(read_text(file))["data"]
        for number, article in enumerate(articles):
            for paragraph in article["paragraphs"]:
                for asked in paragraph["qas"]:
                    answers = [{"text": a["text"], "start": a.get("answer_start")} for a in asked.get("answers", [])]
                    if answered and not answers:
                        raise RecipeError(f"{file}: the question {asked['question']!r} has no answer. Delete it: every "
                                          "question needs one (those of SQuAD 2 that cannot be answered, too)")
                    rows.append((paragraph["context"], asked["question"], answers[0]["text"] if answers else None,
                                 answers, number))
        table = pl.DataFrame(rows, SCHEMA, orient="row", strict=True)
    except (KeyError, TypeError, AttributeError, RecursionError, json.JSONDecodeError) as error:
        place = f", article {number + 1}, row {len(rows) + 1}" if rows else ""
        raise RecipeError(f"{file}{place}: this is not the form of SQuAD ({type(error).__name__}: {error}). It is "
                          '{"data": [{"paragraphs": [{"context": "...", "qas": [{"question": "...", "answers": '
                          '[{"text": "...", "answer_start": 0}]}]}]}]}; any other JSON is a list of rows') from error
    if table.is_empty():
        raise RecipeError(f"{file} has no question; give at least one")
    return table


def split_by_article(table: pl.DataFrame, seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows to train on, and those of a tenth of the articles: a text that was trained on is no text to validate on."""
    articles = table["article"].unique().sort()
    if len(articles) < 2:
        raise RecipeError("all questions are about one article, and no other is there to validate on. Give more, or a "
                          "folder with train.json and valid.json")
    held_out = articles.sample(max(1, len(articles) // 10), seed=seed).implode()
    return table.filter(~pl.col("article").is_in(held_out)), table.filter(pl.col("article").is_in(held_out))


def answers_of(row: dict) -> list[dict]:
    """The answers that a row takes as right; none where it is for `predict`."""
    if row.get("answers"):
        return row["answers"]
    return [] if row.get("answer") is None else [{"text": row["answer"], "start": row.get("start")}]


def places(answer: dict, text: str) -> list[int]:
    """The characters of a text at which an answer begins.

    >>> places({"text": "an", "start": None}, "a banana"), places({"text": "an", "start": 5}, "a banana")
    ([3, 5], [5])
    """
    said, start = answer["text"], answer["start"]
    if start is not None and start >= 0 and text.startswith(said, start):
        return [start]
    return [k for k in range(len(text)) if text.startswith(said, k)]


def shares(answers: list[dict], text: str, offsets: list[tuple[int, int]]) -> Tensor:
    """How many of the answers begin and end at each word of a text [T, 2], as shares; zeros if it has none of them.

    offsets: the characters of each word. An answer that is found in several places counts in all of them.

    >>> shares([{"text": "b", "start": None}, {"text": "a b", "start": 0}], "a b b", [(0, 1), (2, 3), (4, 5)])
    tensor([[0.5000, 0.0000],
            [0.2500, 0.7500],
            [0.2500, 0.2500]])
    """
    found = torch.zeros(len(offsets), 2)
    for answer in answers:
        starts = places(answer, text)
        for start in starts:
            end = start + len(answer["text"])
            inside = [k for k, (a, b) in enumerate(offsets) if a < end and b > start]
            if inside:  # else it consists of spaces
                found[inside[0], 0] += 1 / len(starts)
                found[inside[-1], 1] += 1 / len(starts)
    return found / found.sum(0).clamp(min=1e-9)


def best_spans(scores: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """First and last word [B] of the best span of at most `longest` words: the greatest sum of two of scores [B, 2, T].

    >>> scores = torch.tensor([[[0.0, 3.0, 2.0], [9.0, 0.0, 4.0]]])
    >>> best_spans(scores, 2), best_spans(scores, 1)
    ((tensor([0]), tensor([0])), (tensor([0]), tensor([0])))
    >>> best_spans(scores[:, :, 1:], 2), best_spans(scores[:, :, 1:], 1)
    ((tensor([0]), tensor([1])), (tensor([1]), tensor([1])))
    """
    starts, ends = scores.unbind(1)
    steps = starts.shape[1]
    sums = [functional.pad(starts[:, :steps - k] + ends[:, k:], (0, k), value=-torch.inf)
            for k in range(min(longest, steps))]
    best = torch.cat(sums, 1).argmax(1)
    return best % steps, best % steps + best // steps
