"""One label for a text: embedded words, a bidirectional recurrent layer of any cell, pooling over the words, a softmax.

Pooling takes the largest value of each unit over the words ("max"), or a mean with learned weights ("attention"), whose
weights show which words count. Words that are rare in the training texts are unknown; some of the others are dropped
while training, so that the model learns to do without each of them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_confusion_matrix, multiclass_f1_score

from gatework.compiler import Cell
from gatework.nn import AttentionPooling, Recurrent
from gatework.recipes import RecipeError, settings, vocabulary
from gatework.recipes.baselines.classify_text import bag_of_words
from gatework.recipes.batches import pad
from gatework.recipes.reading import Role, check_known
from gatework.recipes.recipe import Recipe, one_input
from gatework.recipes.settings import number


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """The choices of a classifier of texts."""

    hidden: int = number(128, least=1)
    """Hidden units H of every layer and direction."""
    dropout: float = number(0.5, least=0, below=1)
    """Probability of dropping a value after the embedding and after pooling, while training."""
    epochs: int = number(6, least=1)
    """Passes over the training data."""
    learning_rate: float = number(0.002, above=0)
    """Step size of AdamW at the start; it falls to zero along a cosine."""
    embedding: int = number(128, least=1)
    """Numbers by which a word is described."""
    word_dropout: float = number(0.1, least=0, below=1)
    """Probability of reading a word as unknown, while training."""
    pooling: Literal["max", "attention"] = "max"
    """How the words of a text become one vector."""
    tokens: Literal["words", "spaces", "bpe", "characters"] = "words"
    """What the model reads: words and signs, whatever stands between spaces, pieces of words, or characters."""
    vocabulary: int = number(30_000, least=5)
    """Different tokens at most."""
    min_count: int = number(2, least=1)
    """Tokens that are rarer in the training texts are unknown."""
    lowercase: bool = True
    """Read capital letters as small ones."""
    longest: int = number(1000, least=1)
    """Tokens that a text may have; a longer one is an error."""


class ClassifyText(Recipe):
    name = "classify-text"
    Settings = Settings
    roles = (Role("text", str, ("sentence", "review", "content", "phrase")),
             Role("label", str, ("sentiment", "class", "category", "target")))
    monitor, better = "valid_accuracy", "max"

    @classmethod
    def facts_of(cls, train, settings: Settings) -> dict:
        labels = sorted(set(train["label"]))
        if len(labels) < 2:
            raise RecipeError(f"all {len(train)} rows have the label {labels[0]!r}; a classifier needs two or more")
        tokenizer = vocabulary.learn(train["text"], settings.tokens, settings.vocabulary,
                                     lowercase=settings.lowercase, min_count=settings.min_count)
        return {"labels": labels, "tokenizer": tokenizer.to_str()}

    def __init__(self, cell: Cell, settings: Settings, facts: dict):
        super().__init__(one_input(cell, self.name), settings, facts)
        self.tokenizer = Tokenizer.from_str(facts["tokenizer"])
        self.embedding = torch.nn.Embedding(self.tokenizer.get_vocab_size(), settings.embedding, vocabulary.PADDING)
        torch.nn.init.normal_(self.embedding.weight, std=0.1)  # with 1, as torch has it, the noise of rare words wins
        self.recurrent = Recurrent(cell, settings.embedding, settings.hidden, settings.layers, bidirectional=True,
                                   dropout=settings.dropout if settings.layers > 1 else 0.0)
        features = self.recurrent.output_size
        self.pooling = AttentionPooling(features, features) if settings.pooling == "attention" else None
        self.dropout = torch.nn.Dropout(settings.dropout)
        self.classes = torch.nn.Linear(features, len(facts["labels"]))

    def encode(self, row: dict) -> tuple[Tensor, int]:
        ids = self.tokenizer.encode(row["text"]).ids or [vocabulary.UNKNOWN]  # a text of nothing is an unknown word
        if len(ids) > self.settings.longest:
            raise RecipeError(f"a text has {len(ids)} {self.settings.tokens}: {row['text'][:60]!r}...; raise --longest "
                              "or cut the text")
        return torch.tensor(ids), self.facts["labels"].index(row["label"]) if "label" in row else -1

    def collate(self, examples: list) -> tuple[Tensor, Tensor, Tensor]:
        ids, labels = zip(*examples)
        return *pad(ids, vocabulary.PADDING), torch.tensor(labels)

    def forward(self, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        """The logits [B, labels] of texts [T, B], and how much each token counts [B, T], if attention pools."""
        if self.training:
            ids = ids.masked_fill(torch.rand(ids.shape) < self.settings.word_dropout, vocabulary.UNKNOWN)
        output, _ = self.recurrent(self.dropout(self.embedding(ids)), lengths=lengths)
        if self.pooling is not None:
            pooled, weights = self.pooling(output, lengths)
            return self.classes(self.dropout(pooled)), weights
        beyond = torch.arange(len(ids))[:, None, None] >= lengths[:, None]
        return self.classes(self.dropout(output.masked_fill(beyond, -torch.inf).amax(0))), None

    def loss(self, batch: Any) -> tuple[Tensor, int]:
        ids, lengths, labels = batch
        return functional.cross_entropy(self(ids, lengths)[0], labels, reduction="sum"), len(labels)

    def validation_step(self, batch: Any, index: int) -> None:
        super().validation_step(batch, index)
        ids, lengths, labels = batch
        right = (self(ids, lengths)[0].argmax(1) == labels).float().mean()
        self.log("valid_accuracy", right, prog_bar=True, on_epoch=True, batch_size=len(labels), sync_dist=True)

    def answers(self, batch: Any) -> list[dict]:
        ids, lengths, _ = batch
        logits, weights = self(ids, lengths)
        rows = [{"label": self.facts["labels"][int(p.argmax())],
                 "probabilities": dict(zip(self.facts["labels"], map(float, p)))} for p in logits.softmax(1)]
        if weights is not None:
            for row, at, weight, length in zip(rows, ids.T, weights, lengths):
                tokens = map(self.tokenizer.id_to_token, at[:length].tolist())
                row["weights"] = list(zip(tokens, map(float, weight[:length])))
        return rows

    def figures(self, table: Any) -> dict[str, float]:
        check_known(table["label"], self.facts["labels"], "label", "this data")
        return scores([row["label"] for row in self.predict(table)], list(table["label"]), self.facts["labels"])

    @classmethod
    def baselines(cls, train: Any, held_out: Any, settings: Settings) -> dict[str, dict[str, float]]:
        labels, truth = sorted({*train["label"], *held_out["label"]}), list(held_out["label"])
        most = Counter(train["label"]).most_common(1)[0][0]
        words = bag_of_words(list(train["text"]), list(train["label"]), list(held_out["text"]))
        return {"bag of words": scores(words, truth, labels), "majority": scores([most] * len(truth), truth, labels)}

    def picture(self, table: Any):
        from matplotlib.figure import Figure

        labels = self.facts["labels"]
        said, truth = numbers([r["label"] for r in self.predict(table)], labels), numbers(list(table["label"]), labels)
        counts = multiclass_confusion_matrix(said, truth, len(labels))
        figure = Figure(figsize=(4, 4), layout="constrained")
        axes = figure.add_subplot(xlabel="said", ylabel="true", title="held-out texts")
        axes.imshow(counts.numpy(), cmap="Blues")
        axes.set_xticks(range(len(labels)), labels)
        axes.set_yticks(range(len(labels)), labels)
        for i, j in torch.cartesian_prod(*[torch.arange(len(labels))] * 2):
            axes.text(j, i, int(counts[i, j]), ha="center", va="center",
                      color="white" if counts[i, j] > counts.max() / 2 else "black")
        return figure


def numbers(labels: list[str], known: list[str]) -> Tensor:
    return torch.tensor([known.index(label) for label in labels])


def scores(said: list[str], truth: list[str], labels: list[str]) -> dict[str, float]:
    """The share of right labels, and the F1 score, as the mean over the labels."""
    a, b = numbers(said, labels), numbers(truth, labels)
    return {"accuracy": float(multiclass_accuracy(a, b, len(labels), average="micro")),
            "f1": float(multiclass_f1_score(a, b, len(labels), average="macro"))}
