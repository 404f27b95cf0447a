"""A sentence into another language: the model of `text_to_text`, its figures, and a map of what it looked at.

Data are pairs of sentences, in two columns of a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sacrebleu.metrics import BLEU, CHRF

from gatework.recipes import text_to_text
from gatework.recipes.baselines.translate import most_similar
from gatework.recipes.reading import Role
from gatework.recipes.settings import number
from gatework.recipes.text_to_text import TextToText


@dataclass(frozen=True, kw_only=True)
class Settings(text_to_text.Settings):
    """The choices of a translator."""

    epochs: int = number(10, least=1)
    """Passes over the training data."""


class Translate(TextToText):
    name = "translate"
    Settings = Settings
    roles = (Role("source", str, ("src", "from", "text", "sentence")),
             Role("translation", str, ("target", "tgt", "to", "trg")))

    def figures(self, table: Any) -> dict[str, float]:
        return scores([row["translation"] for row in self.predict(table)], list(table["translation"]))

    @classmethod
    def baselines(cls, train: Any, held_out: Any, settings: Settings) -> dict[str, dict[str, float]]:
        truth = list(held_out["translation"])
        nearest = most_similar(list(train["source"]), list(train["translation"]), list(held_out["source"]))
        return {"most similar pair": scores(nearest, truth), "source as it is": scores(list(held_out["source"]), truth)}

    @torch.no_grad()
    def picture(self, table: Any):
        """Where the model looked while it wrote, for one sentence: the median in length of the first hundred."""
        if self.attention is None:
            return None
        self.eval()
        rows = sorted(table.head(100).to_dicts(), key=lambda row: len(row["source"]))
        source, lengths, *_ = self.collate([self.encode(rows[len(rows) // 2])])
        written = [text_to_text.BEGIN, *self.write(source, lengths).best()[0], text_to_text.END]
        target = torch.tensor(written)[:, None]
        _, weights = self(source, lengths, target, torch.tensor([len(written)]))
        return attention_map(weights[:, 0], self.words(source[:, 0].tolist()), self.words(written[1:]))

    def words(self, ids: list[int]) -> list[str]:
        """Each piece as it reads."""
        return ["(end)" if k == text_to_text.END else self.tokenizer.decode([k]) for k in ids]


def scores(said: Sequence[str], truth: Sequence[str]) -> dict[str, float]:
    """BLEU (Papineni et al., 2002) and chrF (Popović, 2015), from 0 to 100, of texts with capitals, by sacrebleu."""
    return {"bleu": BLEU().corpus_score(said, [truth]).score, "chrf": CHRF().corpus_score(said, [truth]).score}


def attention_map(weights: torch.Tensor, read: list[str], written: list[str]):
    """Weights [T, Tm] as a picture: a row for each piece that was written, a column for each that was read."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 + 0.35 * len(read), 1.2 + 0.3 * len(written)), layout="constrained")
    axes = figure.add_subplot(title="where it looked")
    axes.imshow(weights.numpy(), cmap="Blues", aspect="auto", vmin=0)
    axes.set_xticks(range(len(read)), read, rotation=60, ha="right")
    axes.set_yticks(range(len(written)), written)
    axes.set_xlabel("read")
    axes.set_ylabel("written")
    return figure
