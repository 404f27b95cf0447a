"""Questions about a text: two readers of any cell, attention, and a span of the text or a word as the answer.

One recurrent layer reads the question, and attention pools it to a vector. Another one reads the text; with each word
it is told whether the question has it too, which words of the question are most like it, and what is asked (after Chen
et al., "Reading Wikipedia to answer open-domain questions", 2017). A span is where the answer begins and where it ends;
a word is one of the answers of the training data, chosen from what attention finds in the text.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

import polars as pl
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from torchmetrics.functional.text import squad

from gatework.compiler import Cell
from gatework.nn import AttentionPooling, MultiplicativeAttention, Recurrent
from gatework.recipes import RecipeError, settings, vocabulary
from gatework.recipes.baselines.answer import most_frequent, nearest_sentence
from gatework.recipes.batches import pad
from gatework.recipes.reading import Role, Splits, read_table
from gatework.recipes.reading.sources import find_sources
from gatework.recipes.recipe import Recipe, one_input
from gatework.recipes.settings import number
from gatework.recipes.shaded_text import shaded_text
from gatework.recipes.spans import answers_of, best_spans, is_squad, places, read_squad, shares, split_by_article

ENDINGS = 512  # the last three letters of a word are one of so many numbers: what is left of a word that is unknown


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """The choices of a reader that answers."""

    hidden: int = number(64, least=1)
    """Hidden units H of every layer and direction."""
    dropout: float = number(0.3, least=0, below=1)
    """Probability of dropping a value before and after the readers, while training."""
    epochs: int = number(12, least=1)
    """Passes over the training data."""
    learning_rate: float = number(0.003, above=0)
    """Step size of AdamW at the start; it falls to zero along a cosine."""
    output: Literal["auto", "span", "word"] = "auto"
    """A span of the text, or one of the training answers; auto: a span if more than a tenth of the answers differ."""
    embedding: int = number(64, least=1)
    """Numbers by which a word is described."""
    word_dropout: float = number(0.0, least=0, below=1)
    """Probability of reading a word as unknown, while training."""
    tokens: Literal["words", "spaces"] = "words"
    """What the model reads: words and signs, or whatever stands between spaces."""
    vocabulary: int = number(30_000, least=5)
    """Different words at most."""
    min_count: int = number(2, least=1)
    """Words that are rarer in the training texts are unknown; their last letters are read all the same."""
    longest: int = number(2000, least=1)
    """Words that a text or a question may have; a longer one is an error."""
    longest_answer: int = number(20, least=1)
    """Words that a span may have."""


class Answer(Recipe):
    name = "answer"
    Settings = Settings
    roles = (Role("text", str, ("context", "passage", "story", "paragraph")), Role("question", str, ("query",)),
             Role("answer", str, ("answer_text",)), Role("start", int, ("answer_start",), optional=True))
    monitor, better = "valid_exact", "max"

    @classmethod
    def read(cls, source: str, settings: Settings) -> Splits:
        files = {} if str(source).startswith("datasets:") else {
            split: Path(origin.name) for split, origin in find_sources(source, cls.roles).items()}
        if not any(map(is_squad, files.values())):
            return super().read(source, settings)
        parts = {split: read_squad(file) for split, file in files.items()}
        if "valid" not in parts:
            parts["train"], parts["valid"] = split_by_article(parts["train"], settings.seed)
        return Splits(parts["train"], parts["valid"], parts.get("test"))

    @classmethod
    def read_part(cls, file: Path, settings: Settings) -> pl.DataFrame:
        return read_squad(file) if is_squad(file) else super().read_part(file, settings)

    @classmethod
    def read_inputs(cls, file: Path, settings: Settings) -> pl.DataFrame:
        asked = {role: name for role, name in settings.columns.items() if role in ("text", "question")}
        return read_squad(file, answered=False) if is_squad(file) else read_table(file, cls.roles[:2], asked)

    @classmethod
    def read_line(cls, line: str, settings: Settings) -> pl.DataFrame:
        text, tab, question = line.partition("\t")
        if not tab:
            raise RecipeError(f"a line is a text, a tab and a question; this one has no tab: {line[:60]!r}")
        return pl.DataFrame({"text": [text], "question": [question]})

    @classmethod
    def facts_of(cls, train: pl.DataFrame, settings: Settings) -> dict:
        answers, output = sorted(set(train["answer"])), settings.output
        if output == "auto":
            output = "span" if len(answers) > len(train) / 10 else "word"
        for k, row in enumerate(train.iter_rows(named=True) if output == "span" else (), start=1):
            if not any(places(answer, row["text"]) for answer in answers_of(row)):
                raise RecipeError(f"row {k} to train on: the answer {row['answer']!r} is no part of its text "
                                  f"{row['text'][:60]!r}... Correct it or delete the row; with --output word answers "
                                  "need not be in the text")
        texts = (text for role in ("question", "text") for text in train[role])
        tokenizer = vocabulary.learn(texts, settings.tokens, settings.vocabulary, lowercase=True,
                                     min_count=settings.min_count)
        return {"output": output, "answers": answers if output == "word" else [], "tokenizer": tokenizer.to_str()}

    def __init__(self, cell: Cell, settings: Settings, facts: dict):
        super().__init__(one_input(cell, self.name), settings, facts)
        self.tokenizer = Tokenizer.from_str(facts["tokenizer"])
        self.embedding = torch.nn.Embedding(self.tokenizer.get_vocab_size(), settings.embedding, vocabulary.PADDING)
        self.endings = torch.nn.Embedding(ENDINGS, 16)
        size, options = settings.embedding + 16 + len(marks("", set(), set())), dict(
            bidirectional=True, dropout=settings.dropout if settings.layers > 1 else 0.0)
        self.question = Recurrent(cell, size, settings.hidden, settings.layers, **options)
        features = self.question.output_size
        self.pooling = AttentionPooling(features, features)
        self.like = MultiplicativeAttention(size, size, scaled=True)
        self.text = Recurrent(cell, 2 * size + features, settings.hidden, settings.layers, **options)
        self.dropout = torch.nn.Dropout(settings.dropout)
        if facts["output"] == "span":
            self.ends = torch.nn.Linear(features, 2 * features)
        else:
            self.look = MultiplicativeAttention(features, features)
            self.answer = torch.nn.Linear(2 * features, len(facts["answers"]))

    def encode(self, row: dict) -> tuple:
        """The words of the text and of the question, numbers [T, 2 + marks] each; the truth; where the words stand."""
        sides = {role: self.tokenizer.encode(row[role]) for role in ("text", "question")}
        words = {role: [row[role][a:b] for a, b in side.offsets] for role, side in sides.items()}
        numbers = []
        for role, other in (("text", "question"), ("question", "text")):
            if not 0 < len(words[role]) <= self.settings.longest:
                raise RecipeError(f"a {role} has {len(words[role])} words: {row[role][:60]!r}...; it must have 1 to "
                                  f"{self.settings.longest}. Cut it, or raise --longest")
            there = {word.casefold() for word in words[other]}
            begun = {word[:5] for word in there}
            numbers.append(torch.tensor([
                [number, crc32(word[-3:].casefold().encode()) % ENDINGS, *marks(word, there, begun)]
                for number, word in zip(sides[role].ids, words[role])], dtype=torch.int32))
        if self.facts["output"] == "span":
            truth = shares(answers_of(row), row["text"], sides["text"].offsets)
        else:
            known = self.facts["answers"]
            truth = torch.tensor(known.index(row["answer"]) if row.get("answer") in known else -1)
        return *numbers, truth, (row["text"], sides["text"].offsets)

    def collate(self, examples: list) -> tuple:
        texts, questions, truths, passages = zip(*examples)
        truth = pad(truths)[0] if self.facts["output"] == "span" else torch.stack(truths)
        return pad(texts), pad(questions), truth, passages

    def forward(self, text: tuple[Tensor, Tensor], question: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Of words [T, B, 2 + marks] and lengths [B] of texts and questions: the log probabilities of the answers, and
        how much each word of the text counts [B, T]. Answers are [B, labels], or [B, 2, T] for where a span begins and
        ends."""
        (words, lengths), (asked, asked_lengths) = text, question
        words, asked = self.describe(words), self.describe(asked)
        summary, _ = self.pooling(self.dropout(self.question(asked, lengths=asked_lengths)[0]), asked_lengths)
        like, _ = self.like(words, asked, asked_lengths)
        states, _ = self.text(torch.cat([words, like, summary.expand(len(words), -1, -1)], -1), lengths=lengths)
        states = self.dropout(states)
        if self.facts["output"] == "word":
            found, weights = self.look(summary, states, lengths)
            return self.answer(torch.cat([found, summary], -1)).log_softmax(-1), weights
        scores = torch.einsum("tbh,bkh->bkt", states, self.ends(summary).unflatten(-1, (2, -1)))
        beyond = torch.arange(len(words)) >= lengths[:, None, None]
        scores = scores.masked_fill(beyond, -torch.inf).log_softmax(-1).masked_fill(beyond, -1e9)
        return scores, scores.exp().amax(1)

    def describe(self, words: Tensor) -> Tensor:
        ids = words[..., 0]
        if self.training:
            ids = ids.masked_fill(torch.rand(ids.shape) < self.settings.word_dropout, vocabulary.UNKNOWN)
        parts = [self.embedding(ids), self.endings(words[..., 1])]
        return torch.cat([self.dropout(torch.cat(parts, -1)), words[..., 2:].to(parts[0].dtype)], -1)

    def loss(self, batch: Any) -> tuple[Tensor, int]:
        text, question, truth, _ = batch
        scores, _ = self(text, question)
        # Held-out rows may have answers that the text or the training data have not: no probability to speak of.
        if self.facts["output"] == "span":
            total, known = -(scores * truth.permute(1, 2, 0)).sum(), truth.amax((0, 2)) > 0
        else:
            total, known = functional.nll_loss(scores, truth, reduction="sum", ignore_index=-1), truth >= 0
        return total, max(1, int(known.sum()))

    def validation_step(self, batch: Any, index: int) -> None:
        super().validation_step(batch, index)
        text, question, truth, _ = batch
        scores, _ = self(text, question)
        if self.facts["output"] == "span":
            starts, ends = best_spans(scores, self.settings.longest_answer)
            rows = torch.arange(len(scores))
            right = (truth[starts, rows, 0] > 0) & (truth[ends, rows, 1] > 0)
        else:
            right = scores.argmax(1) == truth
        self.log("valid_exact", right.float().mean(), prog_bar=True, on_epoch=True, batch_size=len(right),
                 sync_dist=True)

    def answers(self, batch: Any) -> list[dict]:
        text, question, _, passages = batch
        scores, weights = self(text, question)
        rows = []
        if self.facts["output"] == "span":
            for (passage, offsets), row, first, last in zip(
                    passages, scores, *best_spans(scores, self.settings.longest_answer)):
                start, end = offsets[first][0], offsets[last][1]
                rows.append({"answer": passage[start:end], "start": start,
                             "probability": float((row[0, first] + row[1, last]).exp())})
        else:
            for row in scores:
                rows.append({"answer": self.facts["answers"][int(row.argmax())], "probability": float(row.max().exp())})
        for row, (passage, offsets), weight in zip(rows, passages, weights):
            row["weights"] = [(passage[a:b], float(w)) for (a, b), w in zip(offsets, weight)]
        return rows

    def figures(self, table: pl.DataFrame) -> dict[str, float]:
        return squad_scores([row["answer"] for row in self.predict(table)], table)

    @classmethod
    def baselines(cls, train: pl.DataFrame, held_out: pl.DataFrame, settings: Settings) -> dict[str, dict[str, float]]:
        return {"nearest sentence": squad_scores(nearest_sentence(train, held_out), held_out),
                "most frequent answer": squad_scores(most_frequent(train, held_out), held_out)}

    def picture(self, table: pl.DataFrame):
        few = table.gather_every(max(1, len(table) // 3)).head(3)
        return shaded_text([(f"{row['question']} {said['answer']} (right: {row['answer']})", said["weights"])
                            for row, said in zip(few.iter_rows(named=True), self.predict(few))])


def squad_scores(said: list[str], table: pl.DataFrame) -> dict[str, float]:
    """Exact match and F1 in percent as the script of SQuAD has them: without case, articles and punctuation, and of
    several right answers the one that is most like what was said."""
    truth = [{"id": str(k), "answers": {"text": [a["text"] for a in answers_of(row)], "answer_start": []}}
             for k, row in enumerate(table.iter_rows(named=True))]
    found = squad([{"id": str(k), "prediction_text": text} for k, text in enumerate(said)], truth)
    return {name: float(value) for name, value in found.items()}


def marks(word: str, others: set[str], begins: set[str]) -> list[int]:
    """What a word shows without being known. `others` are the words of the other text, `begins` their first letters."""
    low = word.casefold()
    return [low in others, low[:5] in begins, word[:1].isupper(), word.isupper(), word.isdigit(),
            word.isdigit() and len(word) == 4, not any(map(str.isalnum, word))]
