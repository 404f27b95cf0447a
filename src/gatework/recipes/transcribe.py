"""Speech into words: log-mel spectrogram, bidirectional recurrent layers of any cell, CTC.

Nobody has to say when a sound is made: connectionist temporal classification (Graves et al., 2006) counts all ways to
stretch a text over the steps. While training, the spectrogram is warped in time and pitch, which makes other speakers
of those that there are, and parts of it are hidden (SpecAugment; Park et al., 2019).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from torchmetrics.functional.text import char_error_rate, edit_distance, word_error_rate

from gatework.compiler import Cell
from gatework.nn import Recurrent
from gatework.recipes import RecipeError, settings, vocabulary
from gatework.recipes.baselines.transcribe import whole_recordings
from gatework.recipes.batches import pad
from gatework.recipes.ctc import BLANK, Lexicon, beam_search, best_path, least_steps
from gatework.recipes.reading import Role, read_table
from gatework.recipes.recipe import Recipe, one_input
from gatework.recipes.settings import number
from gatework.recipes.sound import HOP, SUFFIXES, common_rate, header, log_mel, mel, read_sound, standardise


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """The choices of a recogniser of speech."""

    hidden: int = number(96, least=1)
    """Hidden units H of every layer and direction."""
    layers: int = number(2, least=1)
    """Recurrent layers on top of each other."""
    dropout: float = number(0.3, least=0, below=1)
    """Probability of dropping a value between layers and before the output, while training."""
    epochs: int = number(20, least=1)
    """Passes over the training data."""
    batch_size: int = number(16, least=1)
    """Recordings B that are read side by side, per process."""
    learning_rate: float = number(0.006, above=0)
    """Step size of AdamW at the start; it falls to zero along a cosine."""
    tokens: Literal["characters", "bpe", "spaces"] = "characters"
    """What is written: characters, pieces of words, or whatever stands between spaces (a few known words)."""
    vocabulary: int = number(1000, least=5)
    """Different tokens at most."""
    lowercase: bool = True
    """Write small letters only."""
    bands: int = number(40, least=1)
    """Bands of the spectrogram."""
    stack: int = number(2, least=1)
    """Frames, of 10 ms each, that are read as one step; a text needs a step for each of its tokens."""
    warp: float = number(0.2, least=0, below=1)
    """Speech is read up to this share faster or slower, and higher or lower, while training."""
    mask: float = number(0.1, least=0, below=1)
    """Two bands, and two spans of time, of up to this share of the spectrogram are hidden while training."""
    beams: int = number(8, least=1)
    """Texts that beam search keeps. 1: the likeliest token of each step is written."""
    lexicon: bool = False
    """Write only words of the training texts; needs beam search over characters."""

    def __post_init__(self):
        super().__post_init__()
        if self.lexicon and (self.beams == 1 or self.tokens != "characters"):
            raise RecipeError(f"--lexicon needs beam search over characters, such as --beams 8; --beams {self.beams} "
                              f"and --tokens {self.tokens} were given")


class Transcribe(Recipe):
    name = "transcribe"
    Settings = Settings
    roles = (Role("audio", Path, ("file_name", "file", "path", "wav", "sound")),
             Role("text", str, ("transcription", "transcript", "sentence", "label")))
    monitor, use = "valid_error", "transcribe"

    @classmethod
    def read_inputs(cls, file: Path, settings: Settings) -> Any:
        """A sound, or a table that names sounds."""
        if file.suffix.lower() in SUFFIXES:
            return pl.DataFrame({"audio": [str(file)]})
        columns = {role: column for role, column in settings.columns.items() if role == "audio"}
        return read_table(file, cls.roles[:1], columns)

    @classmethod
    def facts_of(cls, train, settings: Settings) -> dict:
        texts = [normal(text) for text in train["text"]]
        tokenizer = vocabulary.learn(texts, settings.tokens, settings.vocabulary, lowercase=settings.lowercase)
        words = {word for text in texts for word in written(tokenizer, text).split()}
        return {"rate": common_rate(train["audio"]),
                "tokenizer": tokenizer.to_str(), "words": sorted(words) if settings.lexicon else []}

    def __init__(self, cell: Cell, settings: Settings, facts: dict):
        super().__init__(one_input(cell, self.name), settings, facts)
        self.tokenizer = Tokenizer.from_str(facts["tokenizer"])
        self.lexicon = Lexicon([self.tokenizer.encode(word).ids for word in facts["words"]],
                               self.tokenizer.token_to_id(" ")) if settings.lexicon else None
        self.recurrent = Recurrent(cell, settings.bands * settings.stack, settings.hidden, settings.layers,
                                   bidirectional=True, dropout=settings.dropout if settings.layers > 1 else 0.0)
        self.dropout = torch.nn.Dropout(settings.dropout)
        self.tokens = torch.nn.Linear(self.recurrent.output_size, self.tokenizer.get_vocab_size())

    def encode(self, row: dict) -> tuple[Tensor, Tensor, dict]:
        frames = standardise(log_mel(read_sound(row["audio"], self.facts["rate"]), self.facts["rate"],
                                     self.settings.bands))
        ids = self.tokenizer.encode(normal(row.get("text", ""))).ids
        steps = ceil(len(frames) / self.settings.stack)
        if least_steps(ids) > steps:
            raise RecipeError(f"{row['audio']} lasts {steps} steps of {self.settings.stack * HOP:g} s, its text needs "
                              f"{least_steps(ids)}: {row['text'][:60]!r}. Lower --stack, or correct the text")
        return torch.from_numpy(frames), torch.tensor(ids, dtype=torch.long), row

    def collate(self, examples: list) -> tuple[Tensor, Tensor, Tensor, Tensor, list[dict]]:
        frames, ids, rows = zip(*examples)
        return *pad(frames), torch.cat(ids), torch.tensor([len(i) for i in ids]), list(rows)

    def forward(self, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithms of the probabilities of tokens [T, B, tokens] in spectrograms [frames, B, bands], and how many
        steps each row has."""
        frames = frames.to(self.tokens.weight.dtype)
        if self.training:
            frames, lengths = warp(frames, lengths, self.settings.warp)
            frames = mask(frames, lengths, self.settings.mask)
        stack = self.settings.stack
        frames = functional.pad(frames, (0, 0, 0, 0, 0, -len(frames) % stack))
        steps = frames.unflatten(0, (-1, stack)).transpose(1, 2).flatten(2)
        lengths = (lengths + stack - 1) // stack
        output, _ = self.recurrent(steps, lengths=lengths)
        return self.tokens(self.dropout(output)).log_softmax(-1), lengths

    def loss(self, batch: Any) -> tuple[Tensor, int]:
        frames, lengths, ids, counts, _ = batch
        logs, steps = self(frames, lengths)
        # zero_infinity: a text that fits its sound may no longer fit when that is warped to go faster
        total = functional.ctc_loss(logs, ids, steps, counts, BLANK, "sum", zero_infinity=self.training)
        return total, int(counts.sum())

    def validation_step(self, batch: Any, index: int) -> None:
        super().validation_step(batch, index)
        frames, lengths, _, _, rows = batch
        logs, steps = self(frames, lengths)
        said = [self.tokenizer.decode(best_path(logs[:n, b])[0]) for b, n in enumerate(steps)]
        true = [written(self.tokenizer, row["text"]) for row in rows]
        length = sum(map(len, true))
        wrong = edit_distance(said, true, reduction="sum") / length
        self.log("valid_error", wrong, prog_bar=True, on_epoch=True, batch_size=length, sync_dist=True)

    def answers(self, batch: Any) -> list[dict]:
        frames, lengths, *_, rows = batch
        logs, steps = self(frames, lengths)
        said = []
        for b, (n, row) in enumerate(zip(steps, rows)):
            p, beams = logs[:n, b], self.settings.beams
            ids, begins = best_path(p) if beams == 1 else beam_search(p.exp(), beams, self.lexicon)
            words, times = self.tokenizer.decode(ids).split(), []
            for k, step in enumerate(begins):
                if len(self.tokenizer.decode(ids[:k + 1]).split()) > len(times):  # a word begins with this token
                    times.append(round(step * self.settings.stack * HOP, 3))
            said.append({"text": " ".join(words), "audio": row["audio"], "times": list(zip(words, times))})
        return said

    def figures(self, table: Any) -> dict[str, float]:
        return scores([row["text"] for row in self.predict(table)],
                      [written(self.tokenizer, text) for text in table["text"]])

    @classmethod
    def baselines(cls, train: Any, held_out: Any, settings: Settings) -> dict[str, dict[str, float]]:
        known, truth = ([normal(t).lower() if settings.lowercase else normal(t) for t in table["text"]]
                        for table in (train, held_out))
        counts = Counter(known)
        found = {"majority": scores([counts.most_common(1)[0][0]] * len(truth), truth)}
        if 2 <= len(counts) <= len(known) / 10:  # the same few texts again and again: they may as well be labels
            rate = common_rate(train["audio"])
            sounds, others = ([standardise(log_mel(read_sound(path, rate), rate, settings.bands))
                               for path in table["audio"]] for table in (train, held_out))
            found["a label for the whole"] = scores(whole_recordings(sounds, known, others), truth)
        return found

    def picture(self, table: Any):
        from matplotlib import colormaps
        from matplotlib.figure import Figure

        colours = colormaps["magma"].resampled(24)  # as many as the eye needs; the file is half as large
        rate, bands = self.facts["rate"], self.settings.bands
        lasting = [header(path).duration for path in table["audio"]]
        rows = table[sorted(range(len(table)), key=lasting.__getitem__)[-3:]]
        figure = Figure(figsize=(7, 1.7 * len(rows)), layout="constrained")
        for axes, row, said in zip(figure.subplots(len(rows), squeeze=False)[:, 0], rows.rows(named=True),
                                   self.predict(rows)):
            frames = log_mel(read_sound(row["audio"], rate), rate, bands)
            axes.imshow(frames.T, origin="lower", aspect="auto", cmap=colours, interpolation="nearest",
                        extent=(0, len(frames) * HOP, 0, bands))
            marks = [k for k in (0.25, 0.5, 1, 2, 4, 8) if k * 1000 < rate / 2]
            axes.set(yticks=mel(1000 * np.array(marks)) / mel(rate / 2) * (bands + 1) - 0.5, yticklabels=marks,
                     ylabel="kHz")
            for word, at in said["times"]:
                axes.axvline(at, color="white", linewidth=1)
                axes.text(at, bands, printable(word), va="bottom")
            axes.set_xlabel(f"seconds; said: {printable(normal(row['text']))}")
        return figure


def normal(text: str) -> str:
    """The text with one space between words."""
    return " ".join(text.split())


def written(tokenizer: Tokenizer, text: str) -> str:
    """The text as the model should write it."""
    text = normal(text)
    return tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text


def printable(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def scores(said: list[str], truth: list[str]) -> dict[str, float]:
    """Words and characters to insert, delete or replace, over those that were said."""
    return {"word_error_rate": float(word_error_rate(said, truth)),
            "character_error_rate": float(char_error_rate(said, truth))}


def warp(frames: Tensor, lengths: Tensor, most: float) -> tuple[Tensor, Tensor]:
    """Each row of frames [T, B, bands] slower or faster and lower or higher by a random share, and its new length."""
    stretch, pitch = 1 + most * (2 * torch.rand(2, len(lengths), dtype=frames.dtype) - 1)
    lengths = ((lengths - 1) * stretch).long() + 1
    steps, (old, rows, bands) = int(lengths.max()), frames.shape
    # Where each new value is taken from, in coordinates from -1 to 1: the first frame and band stay where they are.
    rate = (steps - 1) / max(old - 1, 1) / stretch
    zero = torch.zeros_like(stretch)
    where = torch.stack([pitch, zero, pitch - 1, zero, rate, rate - 1], 1).unflatten(1, (2, 3))
    grid = functional.affine_grid(where, [rows, 1, steps, bands], align_corners=True)
    return functional.grid_sample(frames.transpose(0, 1)[:, None], grid, padding_mode="border",
                                  align_corners=True)[:, 0].transpose(0, 1), lengths


def mask(frames: Tensor, lengths: Tensor, most: float) -> Tensor:
    """Each row of frames [T, B, bands] with two random bands and two random spans of its time set to 0, the mean."""
    bands = torch.full_like(lengths, frames.shape[2])
    for at, size in ((torch.arange(len(frames))[:, None, None], lengths), (torch.arange(frames.shape[2]), bands)) * 2:
        width, start = torch.rand(2, len(lengths), 1)
        width = most * width * size[:, None]
        start = start * (size[:, None] - width)
        frames = frames.masked_fill((start <= at) & (at < start + width), 0)
    return frames
