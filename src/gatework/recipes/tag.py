"""One label for each word or character: embeddings, bidirectional recurrent layers of any cell, a softmax at each step.

Two tasks. "columns": words with labels that somebody gave them, such as parts of speech; a word is known by itself, its
first and last letters and its shape, so that a new one is not all unknown. "accents": text whose accents are taken away
and restored; each character is labelled with the marks above and below it, and what is restored is the text, unchanged
in all else. A character is known by itself, its neighbours and the word it is part of.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl
import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics.functional.classification import multiclass_confusion_matrix

from gatework.compiler import Cell
from gatework.compiler.roles import keeping_gates
from gatework.nn import Recurrent
from gatework.recipes import RecipeError, settings
from gatework.recipes.accents import with_marks, without_marks
from gatework.recipes.baselines.tag import most_frequent
from gatework.recipes.batches import pad
from gatework.recipes.reading import Draw, Role, Splits, check_known, read, read_lines, read_table
from gatework.recipes.reading.files import files_of_splits
from gatework.recipes.reading.tagged import SUFFIXES, read_tagged
from gatework.recipes.recipe import Recipe, one_input
from gatework.recipes.settings import number

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
    word_dropout: float = number(0.05, least=0, below=1)
    """Probability of reading a word as unknown but for its letters, while training."""
    min_count: int = number(2, least=1)
    """Words, letters of words, and characters that are rarer in the training data are unknown."""


class Tag(Recipe):
    name = "tag"
    Settings = Settings
    monitor, better = "valid_accuracy", "max"

    @classmethod
    def read(cls, source: str, settings: Settings) -> Splits:
        if settings.task == "accents":
            return read(source, TEXT, settings.columns, seed=settings.seed)
        files = files_of_splits(source, SUFFIXES)
        tables = {split: read_tagged(file, settings.columns) for split, file in files.items()}
        if "valid" not in tables:
            drawn = pl.Series(Draw(settings.seed)(len(tables["train"])))  # one of each ten sentences
            if not drawn.any():
                raise RecipeError(f"{files['train']} has {len(drawn)} sentences, of which none is left to validate; "
                                  "give more, or a folder with train and valid files")
            tables |= {"train": tables["train"].filter(~drawn), "valid": tables["train"].filter(drawn)}
        check_known(tables["valid"]["labels"].explode(), tables["train"]["labels"].explode().unique().sort(), "label",
                    files.get("valid", files["train"]))
        return Splits(tables["train"], tables["valid"], tables.get("test"), {s: str(f) for s, f in files.items()})

    @classmethod
    def read_part(cls, file: Path, settings: Settings) -> pl.DataFrame:
        accents = settings.task == "accents"
        return read_table(file, TEXT, settings.columns) if accents else read_tagged(file, settings.columns)

    @classmethod
    def read_inputs(cls, file: Path, settings: Settings) -> pl.DataFrame:
        """A sentence on each line; for the task "columns" its words between spaces."""
        return table_of(read_lines(file), settings.task)

    @classmethod
    def read_line(cls, line: str, settings: Settings) -> pl.DataFrame:
        return table_of([line], settings.task)

    @classmethod
    def facts_of(cls, train: pl.DataFrame, settings: Settings) -> dict:
        seen, labels = Counter(), set()
        for tokens, given in tagged(train):
            seen.update(feature for of_token in features(tokens, settings.task) for feature in of_token)
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
            dropped = torch.rand(ids.shape[:2]) < self.settings.word_dropout
            ids = torch.cat([ids[..., :1].masked_fill(dropped[..., None], UNKNOWN), ids[..., 1:]], 2)
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
        truth = list(tagged(table))
        if self.settings.task == "columns":
            check_known(table["labels"].explode(), self.facts["labels"], "label", "this data")
        return scores([row["labels"] for row in self.predict(table)], truth, self.settings.task)

    @classmethod
    def baselines(cls, train: pl.DataFrame, held_out: pl.DataFrame, settings: Settings) -> dict[str, dict[str, float]]:
        truth = list(tagged(held_out))
        said = most_frequent(((tokens, labels, words(tokens, settings.task)) for tokens, labels in tagged(train)),
                             ((tokens, words(tokens, settings.task)) for tokens, _ in truth))
        return {"most frequent form": scores(said, truth, settings.task)}

    def picture(self, table: pl.DataFrame):
        """Which of the most frequent labels is taken for which; a sentence, and how sure the model is of each token."""
        from matplotlib.figure import Figure

        table = table.head(2000)
        truth, answers = list(tagged(table)), list(self.predict(table))
        counts = Counter(label for _, labels in truth for label in labels)
        shown = [label for label, _ in counts.most_common(12) if label in self.label_ids]
        pairs = [(shown.index(b), shown.index(a)) for (_, labels), answer in zip(truth, answers)
                 for a, b in zip(labels, answer["labels"]) if a in shown and b in shown]
        matrix = multiclass_confusion_matrix(*torch.tensor(pairs).T, len(shown))
        figure = Figure(figsize=(12, 5), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.8))
        left.imshow((matrix / matrix.sum(1, keepdim=True).clamp(min=1)).numpy(), cmap="Blues")
        names = [" ".join(f"\N{DOTTED CIRCLE}{mark}" for mark in label) or "none" if self.settings.task == "accents"
                 else label for label in shown]
        left.set_xticks(range(len(shown)), names, rotation=90 if max(map(len, names)) > 4 else 0)
        left.set_yticks(range(len(shown)), names)
        left.set(xlabel="said", ylabel="true", title="held-out labels (colour: share of the row)")
        for i, j in matrix.nonzero().tolist():
            left.text(j, i, int(matrix[i, j]), ha="center", va="center", fontsize=7,
                      color="white" if matrix[i, j] > matrix[i].sum() / 2 else "black")
        mistakes = [k for k, ((_, given), answer) in enumerate(zip(truth, answers)) if given != answer["labels"]]
        k = min(mistakes or range(len(truth)), key=lambda k: abs(len(truth[k][0]) - 40))
        (tokens, labels), answer = truth[k], answers[k]
        good = [a == b for a, b in zip(labels, answer["labels"])]
        signs = [with_marks([t], [x]) if self.settings.task == "accents" else f"{t} {x}"
                 for t, x in zip(tokens, answer["labels"])]
        right.bar(range(len(tokens)), answer["probabilities"], color=["tab:blue" if ok else "tab:red" for ok in good])
        right.set_xticks(range(len(tokens)), signs, rotation=0 if self.settings.task == "accents" else 90)
        right.set(ylabel="probability of what was said", title="a held-out sentence as the model reads it (red: wrong)")
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


def words(tokens: Sequence[str], task: str) -> list[slice]:
    """Where the words are: runs of letters and digits among characters; else each token is one."""
    if task == "columns":
        return [slice(k, k + 1) for k in range(len(tokens))]
    return [slice(*m.span()) for m in re.finditer(r"\w+", tokens)]


def features(tokens: Sequence[str], task: str) -> list[list[str]]:
    """By what each token is known: a word by itself, its ends and its shape; a character by its word and itself, alone
    and between its neighbours.

    >>> features(["Paris2"], "columns")
    [['Paris2', 'paris2', '^p', '^pa', '^par', '2$', 's2$', 'is2$', 'ris2$', 'shape Xx0']]
    >>> features("l'ane", "accents")[2]
    ['word ane', 'a', "'an"]
    """
    if task == "columns":
        return [[token, low, *(f"^{low[:n]}" for n in (1, 2, 3)), *(f"{low[-n:]}$" for n in (1, 2, 3, 4)), shape(token)]
                for token, low in ((token, token.lower()) for token in tokens)]
    within = {k: tokens[word] for word in words(tokens, task) for k in range(word.start, word.stop)}
    padded = f" {tokens} "
    return [[f"word {within.get(k, token)}", token, padded[k:k + 3]] for k, token in enumerate(tokens)]


def shape(token: str) -> str:
    signs = "".join("X" if c.isupper() else "x" if c.isalpha() else "0" if c.isdigit() else c for c in token)
    return "shape " + re.sub(r"(.)\1+", r"\1", signs)


def scores(said: Sequence[Sequence[str]], truth: Sequence[tuple[Sequence[str], Sequence[str]]],
           task: str) -> dict[str, float]:
    """The share of words with the right labels, and of rows in which all words have."""
    right = [[labels[w] == row[w] for w in words(tokens, task)] for row, (tokens, labels) in zip(said, truth)]
    total = sum(map(len, right))
    if not total:
        raise RecipeError("there is no word in this data; give some")
    return {"accuracy": sum(map(sum, right)) / total, "sentences": sum(map(all, right)) / len(right)}
