"""One label for each word or character: embeddings, bidirectional recurrent layers of any cell, a softmax at each step.

Two tasks. "columns": words with labels that somebody gave them, such as parts of speech; a word is known by itself, its
first and last letters and its shape, so that a new one is not all unknown. "accents": text whose accents are taken away
and restored; each character is labelled with the marks above and below it, and what is restored is the text, unchanged
in all else. A character is known by itself, its neighbours and the word it is part of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl
import torch
from torch import Tensor
from torch.nn import functional

from gatework.compiler import Cell
from gatework.compiler.roles import keeping_gates
from gatework.nn import Recurrent
from gatework.recipes import RecipeError, settings
from gatework.recipes.accents import name_of, with_marks, without_marks
from gatework.recipes.baselines.tag import most_frequent
from gatework.recipes.batches import pad
from gatework.recipes.confusion import draw_confusion
from gatework.recipes.reading import Role, Splits, check_known, read, read_lines, read_table
from gatework.recipes.reading.tagged import read_tagged, read_tagged_splits
from gatework.recipes.recipe import Recipe, one_input
from gatework.recipes.settings import number
from gatework.recipes.token_features import features, words

TEXT = (Role("text", str, ("sentence", "content")),)
PADDING, UNKNOWN, NO_LABEL = 0, 1, -100  # -100 is what cross_entropy leaves out


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """The choices of a tagger."""

    task: Literal["columns", "accents"] = "columns"
    """What the data are: "columns", a word and its label in each line and a blank line between sentences; "accents",
    text with its accents, to learn to restore them."""
    dropout: float = number(0.2, least=0, below=1)
    """Probability of dropping a value after the embedding and every layer, while training."""
    epochs: int = number(5, least=1)
    """Passes over the training data."""
    learning_rate: float = number(0.005, above=0)
    """Step size of AdamW at the start; it falls to zero along a cosine."""
    embedding: int = number(64, least=1)
    """Numbers by which a word or a character is described."""
    word_dropout: float = number(0.1, least=0, below=1)
    """Probability of reading a word as unknown but for its letters, while training: so new words are learned."""
    min_count: int = number(2, least=1)
    """Words, letters of words, and characters that fewer training sentences have are unknown."""


class Tag(Recipe):
    name = "tag"
    Settings = Settings
    monitor, better = "valid_accuracy", "max"

    @classmethod
    def read(cls, source: str, settings: Settings) -> Splits:
        if settings.task == "accents":
            return read(source, TEXT, settings.columns, seed=settings.seed)
        return read_tagged_splits(source, settings.columns, settings.seed)

    @classmethod
    def read_part(cls, file: Path, settings: Settings) -> pl.DataFrame:
        if settings.task == "accents":
            return read_table(file, TEXT, settings.columns)
        return read_tagged(file, settings.columns)

    @classmethod
    def read_inputs(cls, file: Path, settings: Settings) -> pl.DataFrame:
        """A sentence on each line; for the task "columns" its words between spaces, if it is no file of columns."""
        if settings.task == "columns" and not file.name.lower().removesuffix(".gz").endswith(".txt"):
            return read_tagged(file, settings.columns, labelled=False)
        return table_of(read_lines(file), settings.task)

    @classmethod
    def read_line(cls, line: str, settings: Settings) -> pl.DataFrame:
        return table_of([line], settings.task)

    @classmethod
    def facts_of(cls, train: pl.DataFrame, settings: Settings) -> dict:
        seen, labels = Counter(), set()
        for tokens, given in tagged(train):
            seen.update({feature for of_token in features(tokens, settings.task) for feature in of_token})
            labels.update(given)
        if len(labels) < 2:
            raise RecipeError(f"every {'character' if settings.task == 'accents' else 'word'} has the label "
                              f"{min(labels, default='')!r}; a tagger needs two or more")
        return {"features": sorted(f for f, n in seen.items() if n >= settings.min_count), "labels": sorted(labels)}

    def __init__(self, cell: Cell, settings: Settings, facts: dict):
        super().__init__(one_input(cell, self.name), settings, facts)
        self.ids = {feature: k for k, feature in enumerate(facts["features"], start=2)}
        self.label_ids = {label: k for k, label in enumerate(facts["labels"])}
        self.embedding = torch.nn.Embedding(2 + len(self.ids), settings.embedding, PADDING)
        self.recurrent = Recurrent(cell, settings.embedding, settings.hidden, settings.layers, bidirectional=True,
                                   dropout=settings.dropout if settings.layers > 1 else 0.0,
                                   forget_bias=1.0 if keeping_gates(cell) else None)
        self.dropout = torch.nn.Dropout(settings.dropout)
        self.classes = torch.nn.Linear(self.recurrent.output_size, len(self.label_ids))

    def encode(self, row: dict) -> tuple[Tensor, Tensor, Sequence[str]]:
        """The numbers of the features of each token [n, features], those of their labels [n], and the tokens."""
        tokens, labels = tokens_and_labels(row)
        # A row of nothing is read as one blank, which is not answered.
        ids = [[self.ids.get(f, UNKNOWN if k == 0 else PADDING) for k, f in enumerate(of_token)]
               for of_token in features(tokens or " ", self.settings.task)]
        return (torch.tensor(ids), torch.tensor([self.label_ids.get(x, NO_LABEL) for x in labels or [""] * len(ids)]),
                tokens)

    def collate(self, examples: list) -> tuple[Tensor, Tensor, Tensor, list]:
        ids, labels, tokens = zip(*examples)
        return *pad(ids, PADDING), pad(labels, NO_LABEL)[0], list(tokens)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """The logits [T, B, labels] of rows [T, B, features]."""
        if self.training:
            # A word is dropped wherever it stands in the batch, or its other characters would tell it.
            dropped = torch.rand(self.embedding.num_embeddings) < self.settings.word_dropout
            ids = torch.cat([ids[..., :1].masked_fill(dropped[ids[..., :1]], UNKNOWN), ids[..., 1:]], 2)
        output, _ = self.recurrent(self.dropout(self.embedding(ids).sum(2)), lengths=lengths)
        return self.classes(self.dropout(output))

    def loss(self, batch: Any) -> tuple[Tensor, int]:
        ids, lengths, labels, _ = batch
        logits = self(ids, lengths).flatten(0, 1)
        # A held-out row may have marks that no training row has: it has no loss, and counts as wrong in the figures.
        return (functional.cross_entropy(logits, labels.flatten(), reduction="sum", ignore_index=NO_LABEL),
                max(1, int((labels != NO_LABEL).sum())))

    def validation_step(self, batch: Any, index: int) -> None:
        super().validation_step(batch, index)
        ids, lengths, labels, _ = batch
        known = labels != NO_LABEL
        right = (self(ids, lengths).argmax(2) == labels)[known].float().mean()
        self.log("valid_accuracy", right, prog_bar=True, on_epoch=True, batch_size=int(known.sum()), sync_dist=True)

    def answers(self, batch: Any) -> list[dict]:
        ids, lengths, _, rows = batch
        best, chosen = self(ids, lengths).softmax(2).max(2)
        found = []
        for tokens, probabilities, of_row in zip(rows, best.T.tolist(), chosen.T.tolist()):
            labels = [self.facts["labels"][k] for k in of_row[:len(tokens)]]
            text = (with_marks(tokens, labels) if self.settings.task == "accents" else
                    "".join(f"{token}\t{label}\n" for token, label in zip(tokens, labels)))
            found.append({"text": text, "labels": labels, "probabilities": probabilities[:len(tokens)]})
        return found

    def figures(self, table: pl.DataFrame) -> dict[str, float]:
        truth, answers = self.answered(table)
        return scores([answer["labels"] for answer in answers], truth, self.settings.task)

    def answered(self, table: pl.DataFrame) -> tuple[list, list[dict]]:
        """The tokens of each row with their true labels, and what the model says of it."""
        if self.settings.task == "columns":
            check_known(table["labels"].explode(), self.facts["labels"], "label", "this data")
        return list(tagged(table)), list(self.predict(table))

    @classmethod
    def baselines(cls, train: pl.DataFrame, held_out: pl.DataFrame, settings: Settings) -> dict[str, dict[str, float]]:
        truth = list(tagged(held_out))
        said = most_frequent(((tokens, labels, words(tokens, settings.task)) for tokens, labels in tagged(train)),
                             ((tokens, words(tokens, settings.task)) for tokens, _ in truth))
        return {"most frequent form": scores(said, truth, settings.task)}

    def picture(self, table: pl.DataFrame):
        """Which of the most frequent labels is taken for which; a sentence, and how sure the model is of each token."""
        from matplotlib.figure import Figure

        accents = self.settings.task == "accents"
        truth, answers = self.answered(table.head(2000))
        true, said = ([label for labels in rows for label in labels]
                      for rows in ((labels for _, labels in truth), (answer["labels"] for answer in answers)))
        shown = [label for label, _ in Counter(true).most_common(12)]
        pairs = [(shown.index(a), shown.index(b)) for a, b in zip(said, true) if a in shown and b in shown]
        figure = Figure(figsize=(12, 4.5), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 2))
        draw_confusion(left, *torch.tensor(pairs, dtype=torch.long).view(-1, 2).T,
                       [name_of(label) if accents else label for label in shown])
        mistakes = [k for k, ((_, labels), answer) in enumerate(zip(truth, answers)) if labels != answer["labels"]]
        at = min(mistakes or range(len(truth)), key=lambda k: abs(len(truth[k][0]) - (50 if accents else 12)))
        (tokens, labels), answer = truth[at], answers[at]
        for k, (token, label, given, sure) in enumerate(zip(tokens, labels, answer["labels"], answer["probabilities"])):
            right.bar(k, sure, color="tab:blue" if given == label else "tab:red")
            if given != label:
                right.text(k, sure + 0.02, with_marks([token], [label]) if accents else label, ha="center",
                           color="tab:red")
        signs = [with_marks([token], [label]) if accents else f"{token}  {label}"
                 for token, label in zip(tokens, answer["labels"])]
        right.set_xticks(range(len(tokens)), signs, rotation=0 if accents else 90)
        right.tick_params(axis="x", length=0)
        right.set(ylim=(0, 1.1), ylabel="probability of what was said",
                  title="a held-out sentence as the model reads it; red: wrong, and what is right")
        return figure


def table_of(lines: Sequence[str], task: str) -> pl.DataFrame:
    """Rows without labels."""
    if task == "accents":
        return pl.DataFrame({"text": lines})
    return pl.DataFrame({"tokens": [line.split() for line in lines]}, schema={"tokens": pl.List(pl.String)})


def tokens_and_labels(row: dict) -> tuple[Sequence[str], Sequence[str] | None]:
    """The tokens of a row and their labels: characters and their marks where it is a text, else its words."""
    return without_marks(row["text"]) if "text" in row else (row["tokens"], row.get("labels"))


def tagged(table: pl.DataFrame) -> Iterable[tuple[Sequence[str], Sequence[str]]]:
    return map(tokens_and_labels, table.iter_rows(named=True))


def scores(said: Sequence[Sequence[str]], truth: Sequence[tuple[Sequence[str], Sequence[str]]],
           task: str) -> dict[str, float]:
    """The share of words with the right labels, and of rows in which all words have."""
    right = [[labels[w] == row[w] for w in words(tokens, task)] for row, (tokens, labels) in zip(said, truth)]
    total = sum(map(len, right))
    if not total:
        raise RecipeError("there is no word in this data; give some")
    return {"accuracy": sum(map(sum, right)) / total, "sentences": sum(map(all, right)) / len(right)}
