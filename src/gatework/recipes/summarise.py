"""A long text into a short one.

Two ways, by the setting `output`. "words" writes the summary with the model of `text_to_text`, a pointer-generator (See
et al., 2017), which has to learn the language of summaries and wants tens of thousands of them. "sentence" chooses the
sentence that says most, and learns from a thousand: words make sentences, sentences make the text (as in SummaRuNNer,
Nallapati et al., 2017), and a softmax over the sentences points to one.

    encoder    embedded pieces of each sentence, a bidirectional recurrent layer of any cell, attention over the pieces
    sentences  a bidirectional recurrent layer over the sentences of a text, in their order
    softmax    over the sentences; learns to be near those with a high ROUGE

Data are texts and their summaries, in two columns of a table. Where a text has several summaries, each is a line of its
own: figures take the one that fits best, and training in words the first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
from rouge_score.rouge_scorer import RougeScorer
from torch import Tensor

from gatework.nn import AttentionPooling
from gatework.recipes import RecipeError, text_to_text
from gatework.recipes.baselines.summarise import most_central
from gatework.recipes.batches import pad
from gatework.recipes.reading import Role
from gatework.recipes.settings import number
from gatework.recipes.text_to_text import TextToText

STEMS, WORDS = RougeScorer(("rouge1", "rouge2", "rougeL"), use_stemmer=True), RougeScorer(("rouge1", "rouge2"))
SHARPNESS = 20.0  # a sentence with 0.1 more ROUGE is to be e ** 2 times as likely
BOUNDARY = re.compile(r"(?<=[.!?])\s+(?=[^a-z])|\n+")


@dataclass(frozen=True, kw_only=True)
class Settings(text_to_text.Settings):
    """The choices of a summariser."""

    hidden: int = number(64, least=1)
    """Hidden units H of every layer and direction."""
    embedding: int = number(64, least=1)
    """Numbers by which a piece of a word is described."""
    vocabulary: int = number(4000, least=261)
    """Different pieces of words at most, in both texts together; 260 are bytes and signs."""
    dropout: float = number(0.5, least=0, below=1)
    """Probability of dropping a value after the embedding, between layers and before the softmax, while training."""
    batch_size: int = number(32, least=1)
    """Texts that are read side by side, per process."""
    epochs: int = number(5, least=1)
    """Passes over the training data."""
    output: Literal["sentence", "words"] = "sentence"
    """Choose a sentence of the text, or write a summary; the latter wants tens of thousands of examples."""


class Summarise(TextToText):
    name = "summarise"
    Settings = Settings
    roles = (Role("text", str, ("source", "document", "article", "abstract")),
             Role("summary", str, ("target", "tldr", "highlights", "headline", "title")))

    def make_writer(self) -> None:
        if self.settings.output == "words":
            return super().make_writer()
        features = self.encoder.output_size
        self.pooling = AttentionPooling(features, features)
        self.sentences = self.recurrent(features, self.settings.layers, bidirectional=True)
        self.score = torch.nn.Linear(self.sentences.output_size, 1)

    def encode(self, row: dict) -> Any:
        references = row["summary"].splitlines() if "summary" in row else []
        if self.settings.output == "words":
            return super().encode(row | ({"summary": references[0]} if references else {}))
        sentences = split(row["text"])
        wanted = torch.tensor([gain(references, s) if references else 0.0 for s in sentences])
        return [torch.tensor(self.pieces(s)) for s in sentences], wanted, sentences

    def length(self, example: Any) -> int:
        return len(example[0])

    def collate(self, examples: list) -> Any:
        if self.settings.output == "words":
            return super().collate(examples)
        pieces, wanted, sentences = zip(*examples)
        return *pad([s for text in pieces for s in text]), *pad(wanted), sentences

    def forward(self, *batch: Any) -> Any:
        """For "sentence": the log-probability [S, B] of each of the S sentences of each text, -inf behind the last."""
        if self.settings.output == "words":
            return super().forward(*batch)
        pieces, lengths, _, counts, _ = batch
        output, _ = self.encoder(self.embed(pieces), lengths=lengths)
        vectors, _ = self.pooling(output, lengths)
        texts, _ = pad(vectors.split(counts.tolist()))
        output, _ = self.sentences(self.dropout(texts), lengths=counts)
        scores = self.score(self.dropout(output))[..., 0]
        return scores.masked_fill(behind(scores, counts), -torch.inf).log_softmax(0)

    def loss(self, batch: Any) -> tuple[Tensor, int]:
        if self.settings.output == "words":
            return super().loss(batch)
        wanted, counts = batch[2:4]
        beyond = behind(wanted, counts)
        truth = (SHARPNESS * wanted).masked_fill(beyond, -torch.inf).softmax(0)
        return -(truth * self(*batch).masked_fill(beyond, 0.0)).sum(), len(counts)

    def answers(self, batch: Any) -> list[dict]:
        if self.settings.output == "words":
            return super().answers(batch)
        rows = []
        for chances, sentences in zip(self(*batch).exp().T, batch[-1]):
            chances = chances[:len(sentences)].tolist()
            rows.append({"summary": sentences[chances.index(max(chances))], "sentences": list(zip(sentences, chances))})
        return rows

    def figures(self, table: Any) -> dict[str, float]:
        return scores([row["summary"] for row in self.predict(table)], list(table["summary"]))

    @classmethod
    def baselines(cls, train: Any, held_out: Any, settings: Settings) -> dict[str, dict[str, float]]:
        truth, texts = list(held_out["summary"]), [split(text) for text in held_out["text"]]
        best = [max(t, key=lambda s: gain(y.splitlines(), s)) for t, y in zip(texts, truth)]
        central = most_central(list(train["text"]), texts)
        return {"first sentence": scores([t[0] for t in texts], truth), "most central sentence": scores(central, truth),
                "the best sentence, were it known": scores(best, truth)}

    def picture(self, table: Any):
        """The sentences of a few texts, and how likely each is to be chosen."""
        if self.settings.output == "words":
            return None
        from matplotlib.figure import Figure

        rows = list(self.predict(table.head(3)))
        figure = Figure(figsize=(9, 0.6 + 0.32 * sum(len(r["sentences"]) + 1 for r in rows)), layout="constrained")
        panels = figure.subplots(len(rows), squeeze=False, height_ratios=[len(r["sentences"]) + 1 for r in rows])[:, 0]
        for axes, row in zip(panels, rows):
            sentences, chances = zip(*row["sentences"])
            axes.barh(range(len(chances)), chances, color="lightsteelblue")
            axes.set_xlim(0, 1)
            axes.set_yticks([])
            axes.invert_yaxis()
            for k, sentence in enumerate(sentences):
                axes.text(0.005, k, sentence[:115] + "..." * (len(sentence) > 115), va="center", fontsize=8)
        panels[-1].set_xlabel("probability of being the summary")
        return figure


def split(text: str) -> list[str]:
    """The sentences of a text: up to a dot, question or exclamation mark before a space, or the end of a line.

    >>> split("It works. We e.g. tried it! Does it?\\nYes")
    ['It works.', 'We e.g. tried it!', 'Does it?', 'Yes']
    """
    sentences = [s for s in BOUNDARY.split(text.strip()) if s]
    if not sentences:
        raise RecipeError("a text has no sentence: it is empty, or only spaces. Leave out its row")
    return sentences


def behind(values: Tensor, counts: Tensor) -> Tensor:
    """True behind the last sentence of each text, for values [S, B]."""
    return torch.arange(len(values))[:, None] >= counts


def gain(references: list[str], sentence: str) -> float:
    """How much a sentence says of the summary that it is most like: the mean of ROUGE-1 and -2 of words as they stand,
    which takes a fifth of the time that stems take."""
    found = (WORDS.score(reference, sentence) for reference in references)
    return max((score["rouge1"].fmeasure + score["rouge2"].fmeasure) / 2 for score in found)


def rouge(references: list[str], said: str) -> dict[str, float]:
    """ROUGE-1, -2 and -L (Lin, 2004), F1 of stems from 0 to 100, with the reference that shares most words."""
    found = (STEMS.score(reference, said) for reference in references)
    best = max(found, key=lambda score: score["rouge1"].fmeasure)
    return {kind: 100 * score.fmeasure for kind, score in best.items()}


def scores(said: list[str], truth: list[str]) -> dict[str, float]:
    rows = [rouge(references.splitlines(), one) for one, references in zip(said, truth, strict=True)]
    return {kind: sum(row[kind] for row in rows) / len(rows) for kind in rows[0]}
