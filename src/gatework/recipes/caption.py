"""A picture into words or digits: convolutions, and attention over places while writing (Xu et al., "Show, attend and
tell", 2015).

Convolutions make a grid of places of the picture. A bidirectional layer reads each row of the grid, so that a place
knows what is beside it (Deng et al., "What you get is what you see", 2016). A first recurrent layer reads what is
written so far, its output asks the places, and further layers read what was found and write on. Pictures are scaled to
one height and keep their proportions; what fills up the narrower ones of a batch changes nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from torchmetrics.functional.text import char_error_rate

from gatework.compiler import Cell
from gatework.compiler.roles import keeping_gates
from gatework.nn import AdditiveAttention, Recurrent
from gatework.nn.attention import Prepared
from gatework.recipes import RecipeError, settings, vocabulary
from gatework.recipes.baselines.caption import equal_slices, nearest_picture
from gatework.recipes.batches import pad
from gatework.recipes.beam_search import Found, beam_search
from gatework.recipes.pictures import columns_of, is_picture
from gatework.recipes.reading import Role, read_table
from gatework.recipes.recipe import Recipe, one_input
from gatework.recipes.settings import number
from gatework.recipes.vocabulary import BEGIN, END, PADDING, UNKNOWN

FILTERS = 16, 32, 64  # of the three convolutions
SHRINKS = (2, 2), (2, 2), (2, 1)  # what follows each: rows are pooled by 8 in all, columns by 4
ROW, COLUMN = 8, 4


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """The choices of a writer of captions."""

    hidden: int = number(128, least=2)
    """Hidden units H of the layers that write, and of both directions together of the one that reads places."""
    dropout: float = number(0.2, least=0, below=1)
    """Probability of dropping a value of the places and before the next token, while training."""
    epochs: int = number(5, least=1)
    """Passes over the training data."""
    batch_size: int = number(16, least=1)
    """Pictures B that are read side by side, per process."""
    learning_rate: float = number(0.003, above=0)
    """Step size of AdamW at the start; it falls to zero along a cosine."""
    height: int = number(32, least=8)
    """Pixels in height to which pictures are scaled; a multiple of 8."""
    color: bool = False
    """Read red, green and blue instead of grey."""
    tokens: Literal["characters", "spaces", "bpe"] = "characters"
    """What is written one after the other: characters, words between spaces, or pieces of words."""
    vocabulary: int = number(10_000, least=5)
    """Different tokens at most."""
    embedding: int = number(64, least=1)
    """Numbers by which a token is described."""
    beam: int = number(3, least=1)
    """Beginnings that are pursued side by side when a text is written; 1 takes the likeliest token each time."""

    def __post_init__(self):
        super().__post_init__()
        if self.height % ROW:
            raise RecipeError(f"--height must be a multiple of {ROW}; {self.height} was given")


class Caption(Recipe):
    name = "caption"
    Settings = Settings
    roles = (Role("image", Path, ("file_name", "picture", "file")),
             Role("text", str, ("caption", "label", "transcription")))
    monitor, better = "valid_accuracy", "max"

    @classmethod
    def read_inputs(cls, file: Path, settings: Settings) -> pl.DataFrame:
        """A picture, or a table of pictures."""
        if is_picture(file):
            return pl.DataFrame({"image": [str(file)]})
        return read_table(file, cls.roles[:1], settings.columns)

    @classmethod
    def facts_of(cls, train, settings: Settings) -> dict:
        tokenizer = vocabulary.learn(train["text"], settings.tokens, settings.vocabulary)
        longest = 1 + max(len(encoded.ids) for encoded in tokenizer.encode_batch(list(train["text"])))
        return {"tokenizer": tokenizer.to_str(), "longest": longest}

    def __init__(self, cell: Cell, settings: Settings, facts: dict):
        super().__init__(one_input(cell, self.name), settings, facts)
        self.tokenizer = Tokenizer.from_str(facts["tokenizer"])
        self.convolutions = torch.nn.ModuleList(
            torch.nn.Conv2d(c, f, 3, padding=1) for c, f in zip((3 if settings.color else 1, *FILTERS), FILTERS))
        self.grid_rows = settings.height // ROW
        for convolution in self.convolutions:
            torch.nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        self.norm = torch.nn.LayerNorm(FILTERS[-1])
        self.places = self.recurrent(FILTERS[-1] + 2, settings.hidden // 2, bidirectional=True)
        tokens, found = self.tokenizer.get_vocab_size(), self.places.output_size + FILTERS[-1]
        self.embedding = torch.nn.Embedding(tokens, settings.embedding, PADDING)
        self.asking = self.recurrent(settings.embedding, settings.hidden)
        self.attention = AdditiveAttention(self.asking.output_size, found, settings.hidden // 2)
        self.writing = self.recurrent(self.asking.output_size + found, settings.hidden, num_layers=settings.layers,
                                      dropout=settings.dropout if settings.layers > 1 else 0.0)
        self.dropout = torch.nn.Dropout(settings.dropout)
        self.following = torch.nn.Linear(self.writing.output_size + found, tokens)

    def recurrent(self, features: int, hidden: int, **options) -> Recurrent:
        return Recurrent(self.cell, features, hidden, forget_bias=1.0 if keeping_gates(self.cell) else None, **options)

    def encode(self, row: dict) -> tuple[Tensor, Tensor]:
        columns = columns_of(Path(row["image"]), self.settings.height, self.settings.color)
        filled = functional.pad(columns, (0, 0, 0, 0, 0, -len(columns) % COLUMN))
        return filled, torch.tensor(self.tokenizer.encode(row.get("text", "")).ids, dtype=torch.int64)

    def collate(self, examples: list) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        pictures, texts = zip(*examples)
        begin, end = torch.tensor([BEGIN]), torch.tensor([END])
        tokens, _ = pad([torch.cat([begin, text, end]) for text in texts], PADDING)
        columns, widths = pad(pictures)
        return columns.permute(1, 2, 3, 0), widths, tokens[:-1], tokens[1:]

    def look(self, pixels: Tensor, widths: Tensor) -> Prepared:
        """What attention finds in pictures [B, channels, height, W] whose columns end at widths [B], a grid [M, R, W/4]
        of places for each, column by column."""
        x = pixels.to(self.embedding.weight.dtype) / 255
        for convolution, shrink in zip(self.convolutions, SHRINKS):
            x = functional.max_pool2d(convolution(x).relu(), shrink)
            # Beyond the picture there is nothing, as on its other sides.
            inside = torch.arange(x.shape[-1]) < (widths * x.shape[-1] // pixels.shape[-1])[:, None]
            x = x * inside[:, None, None]
        columns, rows = widths // COLUMN, self.grid_rows
        # Convolutions see a thing alike wherever it is; coordinates tell the places apart (Liu et al., 2018).
        seen = self.dropout(self.norm(x.permute(3, 0, 2, 1)))  # [W/4, B, R, filters]
        right = torch.arange(len(seen)).to(x)[:, None, None].expand(seen.shape[:3]) * COLUMN / self.settings.height
        down = torch.arange(rows).to(x).expand(seen.shape[:3]) / rows
        read, _ = self.places(torch.cat([seen, right[..., None], down[..., None]], -1).flatten(1, 2),
                              lengths=columns.repeat_interleave(rows))
        places = torch.cat([read.unflatten(1, (-1, rows)), seen], -1).transpose(1, 2).flatten(0, 1)
        return self.attention.prepare(places, columns * rows)

    def forward(self, places: Prepared, before: Tensor) -> tuple[Tensor, Tensor]:
        """The logits [T, B, tokens] of each next token after texts [T, B], and where it was looked for [T, B, places].
        """
        asked, _ = self.asking(self.embedding(before))
        found, weights = self.attention(asked, places)
        written, _ = self.writing(torch.cat([asked, found], -1))
        return self.following(self.dropout(torch.cat([written, found], -1))), weights

    def loss(self, batch: Any) -> tuple[Tensor, int]:
        pixels, widths, before, after = batch
        logits, _ = self(self.look(pixels, widths), before)
        return (functional.cross_entropy(logits.flatten(0, 1), after.flatten(), reduction="sum", ignore_index=PADDING),
                int((after != PADDING).sum()))

    def validation_step(self, batch: Any, index: int) -> None:
        super().validation_step(batch, index)
        pixels, widths, before, after = batch
        # A text that is right in each step, after what was right before, is the one that is written from the beginning.
        logits, _ = self(self.look(pixels, widths), before)
        right = ((logits.argmax(-1) == after) | (after == PADDING)).all(0)
        self.log("valid_accuracy", right.float().mean(), prog_bar=True, on_epoch=True, batch_size=len(right),
                 sync_dist=True)

    def write(self, places: Prepared, count: int) -> Found:
        """The likeliest texts of `count` pictures."""
        def step(tokens: Tensor, state):
            asking, writing, places = state
            asked, asking = self.asking.step(self.embedding(tokens), asking)
            found, _ = self.attention(asked, places)
            written, writing = self.writing.step(torch.cat([asked, found], -1), writing)
            chances = self.following(torch.cat([written, found], -1)).log_softmax(-1)
            return chances.index_fill(1, torch.tensor([PADDING, UNKNOWN, BEGIN]), -torch.inf), (asking, writing, places)

        def choose(state, rows: Tensor):
            if isinstance(state, Tensor):
                return state[:, rows]
            return state.rows(rows) if isinstance(state, Prepared) else tuple(choose(s, rows) for s in state)

        beam = self.settings.beam
        several = places.rows(torch.arange(count).repeat_interleave(beam))
        # Twice as long as any text that was seen is long enough, and ends what would never end.
        return beam_search(step, (None, None, several), choose, count, beam, 2 * self.facts["longest"])

    def answers(self, batch: Any) -> list[dict]:
        pixels, widths, *_ = batch
        places = self.look(pixels, widths)
        found = self.write(places, len(widths))
        written = found.best()
        before, _ = pad([torch.tensor([BEGIN, *ids]) for ids in written], PADDING)
        _, looked = self(places, before)
        rows = []
        for k, (ids, columns) in enumerate(zip(written, (widths // COLUMN).tolist())):
            grid = looked[:len(ids), k, :columns * self.grid_rows].unflatten(1, (columns, self.grid_rows)).mT
            rows.append({"text": self.tokenizer.decode(ids), "score": found.scores[k, 0].item(),
                         "ended": found.ended[k, 0].item(), "tokens": [self.tokenizer.decode([i]) for i in ids],
                         "looked": grid.tolist()})  # for each token the weights of all places, row by row
        return rows

    def figures(self, table: Any) -> dict[str, float]:
        return scores([row["text"] for row in self.predict(table)], list(table["text"]))

    @classmethod
    def baselines(cls, train: Any, held_out: Any, settings: Settings) -> dict[str, dict[str, float]]:
        texts, truth = list(train["text"]), list(held_out["text"])
        known, new = ([columns_of(Path(p), settings.height, False)[:, 0].mT.numpy() for p in table["image"]]
                      for table in (train, held_out))
        said = {"equal slices": equal_slices(known, texts, new)} if settings.tokens == "characters" else {}
        said |= {"nearest picture": nearest_picture(known, texts, new),
                 "majority": [Counter(texts).most_common(1)[0][0]] * len(truth)}
        return {method: scores(each, truth) for method, each in said.items()}

    def picture(self, table: Any):
        from matplotlib.figure import Figure

        rows = list(self.predict(table[:3]))
        pictures = [columns_of(Path(p), self.settings.height, self.settings.color) for p in table["image"][:3]]
        most = max(1, min(8, max(len(row["tokens"]) for row in rows)))
        figure = Figure(figsize=(9, 0.7 + 0.9 * (most + 1)), layout="constrained")
        axes = figure.subplots(most + 1, len(rows), squeeze=False)
        for k, (row, true, columns) in enumerate(zip(rows, table["text"], pictures)):
            shown = columns.permute(2, 0, 1).numpy() if self.settings.color else columns[:, 0].mT.numpy()
            for j, axis in enumerate(axes[:, k]):
                axis.set_axis_off()
                if j > len(row["tokens"]):
                    continue
                axis.imshow(shown, cmap="gray")
                axis.set_title(row["tokens"][j - 1] if j else f"{row['text']} (true: {true})", fontsize=9, pad=2)
                if j:
                    weights = np.array(row["looked"][j - 1])
                    axis.imshow(np.ones_like(weights), cmap="autumn", alpha=0.75 * weights / weights.max(),
                                extent=(-0.5, shown.shape[1] - 0.5, self.settings.height - 0.5, -0.5))
        figure.suptitle("What was written for held-out pictures, and where the model looked each time", fontsize=10)
        return figure


def scores(said: list[str], truth: list[str]) -> dict[str, float]:
    """accuracy: the share of texts without a mistake. error_rate: characters to change, per character."""
    return {"accuracy": sum(a == b for a, b in zip(said, truth, strict=True)) / len(truth),
            "error_rate": float(char_error_rate(said, truth))}
