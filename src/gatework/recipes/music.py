"""The notes of each next step: stacked recurrent layers read a piano roll, and each of 88 keys sounds next, or not.

The keys are independent given what was heard (Bernoulli outputs), as in the simpler models of Boulanger-Lewandowski,
Bengio & Vincent, "Modeling temporal dependencies in high-dimensional sequences", 2012. A piece begins after a silent
step. The loss of a step is its negative log-likelihood in nats, summed over the keys.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics.functional.classification import binary_jaccard_index

from gatework.compiler import Cell
from gatework.nn import Recurrent
from gatework.recipes import RecipeError, settings
from gatework.recipes.baselines.music import last_step, note_frequencies
from gatework.recipes.batches import pad
from gatework.recipes.notes import HIGHEST, LOWEST, Piece, checked_piece, read_music
from gatework.recipes.reading import Splits
from gatework.recipes.recipe import Recipe, one_input
from gatework.recipes.settings import number

KEYS = HIGHEST - LOWEST + 1


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """The choices of a model of music."""

    hidden: int = number(256, least=1)
    """Hidden units H of every layer."""
    layers: int = number(2, least=1)
    """Recurrent layers on top of each other."""
    dropout: float = number(0.5, least=0, below=1)
    """Probability of dropping a value between layers and before the notes, while training."""
    epochs: int = number(60, least=1)
    """Passes over the training pieces."""
    batch_size: int = number(16, least=1)
    """Pieces B that are read side by side, per process."""
    transpose: int = number(0, least=0)
    """Move each piece by up to so many keys while training, up or down, another way each time. 0: never."""
    steps_per_beat: int = number(4, least=1)
    """Steps into which a quarter note of a MIDI file is divided; JSON has its own steps."""


class Music(Recipe):
    name, use, unit = "music", "generate", "pieces"
    Settings = Settings

    @classmethod
    def read(cls, source: str, settings: Settings) -> Splits:
        parts = read_music(Path(source), settings.steps_per_beat, least=2)
        train, valid = parts.get("train") or parts.get("all"), parts.get("valid")
        if train is None:
            raise RecipeError(f"{source} has the part {', '.join(parts)}, but none called train")
        if valid is None:
            if len(train) < 2:
                raise RecipeError(f"{source} has one piece; two or more are needed, to train on and to validate")
            order = torch.randperm(len(train), generator=torch.Generator().manual_seed(settings.seed)).tolist()
            held_out = max(1, len(train) // 10)
            train, valid = [train[k] for k in order[held_out:]], [train[k] for k in order[:held_out]]
        return Splits(*(table(part) if part else None for part in (train, valid, parts.get("test"))))

    @classmethod
    def read_part(cls, file: Path, settings: Settings) -> pl.DataFrame:
        """The pieces of a file; its test part, if it has parts."""
        return table(cls.pieces(file, settings, least=2))

    @classmethod
    def read_inputs(cls, file: Path, settings: Settings) -> pl.DataFrame:
        return table(cls.pieces(file, settings))

    @classmethod
    def pieces(cls, file: Path, settings: Settings, least: int = 1) -> list[Piece]:
        parts = read_music(file, settings.steps_per_beat, least)
        if not parts.keys() & {"all", "test"}:
            raise RecipeError(f"{file} has the parts {', '.join(parts)}; needed is a part called test, or just a list "
                              "of pieces")
        return parts.get("all") or parts["test"]

    def __init__(self, cell: Cell, settings: Settings, facts: dict):
        super().__init__(one_input(cell, self.name), settings, facts)
        self.recurrent = Recurrent(cell, KEYS, settings.hidden, settings.layers,
                                   dropout=settings.dropout if settings.layers > 1 else 0.0)
        self.dropout = torch.nn.Dropout(settings.dropout)
        # The notes of the last step itself also tell which come next, before the layers have learned to carry them.
        self.notes = torch.nn.Linear(self.recurrent.output_size + KEYS, KEYS)
        torch.nn.init.constant_(self.notes.bias, -3.0)  # log odds: of 88 keys about four sound

    def encode(self, row: dict) -> Tensor:
        return piano_roll(row["steps"])

    def length(self, example: Tensor) -> int:
        return len(example)

    def collate(self, examples: list) -> tuple[Tensor, Tensor]:
        return pad(examples)

    def forward(self, rolls: Tensor, lengths: Tensor) -> Tensor:
        """Log odds [T + 1, B, 88] of the notes of each step of piano rolls [T, B, 88], and of the one that follows."""
        begun = functional.pad(rolls, (0, 0, 0, 0, 1, 0)).to(self.notes.weight.dtype)
        output, _ = self.recurrent(begun, lengths=lengths + 1)
        return self.notes(torch.cat([self.dropout(output), begun], -1))

    def surprise(self, rolls: Tensor, lengths: Tensor) -> Tensor:
        """The negative log-likelihood [T, B] of each step, 0 behind the end of a piece."""
        nll = functional.binary_cross_entropy_with_logits(self(rolls, lengths)[:-1], rolls, reduction="none").sum(-1)
        return nll.masked_fill(torch.arange(len(rolls), device=rolls.device)[:, None] >= lengths, 0.0)

    def loss(self, batch: Any) -> tuple[Tensor, int]:
        rolls, lengths = batch
        if self.training and self.settings.transpose:
            rolls = transposed(rolls, self.settings.transpose)
        return self.surprise(rolls, lengths).sum(), int(lengths.sum())

    def answers(self, batch: Any) -> list[dict]:
        rolls, lengths = batch
        logits, nll = self(rolls, lengths), self.surprise(rolls, lengths)
        following = logits[lengths, torch.arange(len(lengths))].sigmoid()
        return [{"next": pitches(p > 0.5), "probabilities": dict(zip(map(str, range(LOWEST, HIGHEST + 1)), p.tolist())),
                 "nll": float(total / length)} for p, total, length in zip(following, nll.sum(0), lengths)]

    @torch.no_grad()
    def odds(self, table: pl.DataFrame) -> Iterator[Tensor]:
        """Log odds [T, 88] of the notes of each step, piece by piece."""
        self.eval()
        for rolls, lengths in self.validation_batches(table):
            for logits, length in zip(self(rolls, lengths).unbind(1), lengths):
                yield logits[:length]

    def figures(self, table: pl.DataFrame) -> dict[str, float]:
        return scores(list(self.odds(table)), rolls_of(table))

    @classmethod
    def baselines(cls, train: pl.DataFrame, held_out: pl.DataFrame, settings: Settings) -> dict[str, dict[str, float]]:
        known, truth = rolls_of(train), rolls_of(held_out)
        return {"last step": scores(last_step(known, truth), truth),
                "note frequencies": scores(note_frequencies(known, truth), truth)}

    @torch.no_grad()
    def generate(self, prompt: str, length: int, temperature: float, seed: int) -> str:
        """A beginning and `length` steps more, drawn one after the other, as one line of JSON.

        Args:
            prompt: the beginning: a JSON or MIDI file whose first piece is continued, or steps such as "[[60, 64]]".
                Blank: from nothing.
            temperature: what log odds are divided by; 0 takes the notes that are more likely than not.
        """
        piece = self.beginning(prompt.strip())
        random = torch.Generator().manual_seed(seed)
        self.eval()
        read, state = functional.pad(piano_roll(piece), (0, 0, 1, 0)).to(self.notes.weight.dtype), None
        for _ in range(length):
            output, state = self.recurrent(read, state)
            odds = self.notes(torch.cat([output[-1], read[-1]]))
            sounds = torch.bernoulli((odds / temperature).sigmoid(), generator=random) if temperature else odds > 0
            piece.append(pitches(sounds))
            read = sounds.to(odds.dtype)[None]
        return json.dumps(piece)

    def beginning(self, prompt: str) -> Piece:
        if not prompt.startswith("["):
            return self.pieces(Path(prompt), self.settings)[0] if prompt else []
        try:
            return checked_piece(json.loads(prompt), "the prompt")
        except json.JSONDecodeError as error:
            raise RecipeError(f"the prompt is no JSON: {error}; give steps such as [[60, 64, 67], [62]]") from error

    def picture(self, table: pl.DataFrame):
        from matplotlib.figure import Figure

        roll, odds = rolls_of(table[:1])[0][:96], next(self.odds(table[:1]))[:96]
        steps, keys = roll.nonzero(as_tuple=True)
        lowest, highest = (int(keys.min()), int(keys.max())) if len(keys) else (0, KEYS - 1)
        figure = Figure(figsize=(9, 4), layout="constrained")
        axes = figure.add_subplot(xlabel="step", ylabel="MIDI pitch", xlim=(-0.5, len(roll) - 0.5),
                                  ylim=(LOWEST + lowest - 5, LOWEST + highest + 5),
                                  title="A held-out piece: what was expected of each step, and what came")
        image = axes.imshow(odds.sigmoid().T.numpy(), cmap="Blues", vmin=0, vmax=1, origin="lower", aspect="auto",
                            extent=(-0.5, len(roll) - 0.5, LOWEST - 0.5, HIGHEST + 0.5))
        axes.scatter(steps.numpy(), keys.numpy() + LOWEST, s=6, color="darkorange", label="came")
        axes.legend(loc="upper right")
        figure.colorbar(image, label="probability")
        return figure


def table(pieces: list[Piece]) -> pl.DataFrame:
    return pl.DataFrame({"steps": pieces}, schema={"steps": pl.List(pl.List(pl.Int64))})


def piano_roll(piece: Piece) -> Tensor:
    """[T, 88], 1 where a key sounds."""
    roll = torch.zeros(len(piece), KEYS)
    for at, step in zip(roll, piece):
        at[[pitch - LOWEST for pitch in step]] = 1
    return roll


def pitches(sounds: Tensor) -> list[int]:
    return [LOWEST + key for key in sounds.nonzero().flatten().tolist()]


def rolls_of(table: pl.DataFrame) -> list[Tensor]:
    return [piano_roll(piece) for piece in table["steps"].to_list()]


def transposed(rolls: Tensor, most: int) -> Tensor:
    """Each piece of rolls [T, B, 88] moved by up to `most` keys, up or down, and not off the piano."""
    keys, sounding = torch.arange(KEYS, device=rolls.device), rolls.amax(0) > 0
    lowest, highest = keys.where(sounding, KEYS).amin(1), keys.where(sounding, -1).amax(1)
    shift = torch.randint(-most, most + 1, lowest.shape, device=rolls.device).clamp(-lowest, KEYS - 1 - highest)
    return rolls.gather(2, ((keys - shift[:, None]) % KEYS).expand(rolls.shape))


def scores(odds: list[Tensor], truth: list[Tensor]) -> dict[str, float]:
    """From log odds [T, 88] and piano rolls [T, 88] of pieces, without their first steps, as in the literature.

    nll: negative log-likelihood per step in nats (Boulanger-Lewandowski et al., 2012). accuracy: notes that were
    expected and came, of all that were expected or came (Bay, Ehmann & Downie, 2009).
    """
    said, true = (torch.cat([piece[1:] for piece in pieces]).double() for pieces in (odds, truth))
    nll = functional.binary_cross_entropy_with_logits(said, true, reduction="sum") / len(true)
    return {"nll": float(nll), "accuracy": float(binary_jaccard_index((said > 0).long(), true.long()))}
