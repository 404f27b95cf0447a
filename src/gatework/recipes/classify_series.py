"""One label for a series of numbers: a bidirectional recurrent layer of any cell, pooling over the steps, a softmax.

Series may have several channels and lengths of their own; the layer stops at the end of each. Channels are standardised
by the training series, and a little noise is added to them while training, since such sets are often small. Pooling
takes the largest value of each unit over the steps, and the mean.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

from gatework.compiler import Cell
from gatework.compiler.roles import keeping_gates
from gatework.nn import Recurrent
from gatework.recipes import RecipeError, settings
from gatework.recipes.baselines.classify_series import LARGEST, nearest_by_dtw, work
from gatework.recipes.batches import pad
from gatework.recipes.confusion import draw_confusion
from gatework.recipes.reading import Splits, check_known
from gatework.recipes.reading.files import files_of_splits
from gatework.recipes.reading.series import ROLES, SUFFIXES, read_series, series_of_line, table_of
from gatework.recipes.recipe import Recipe, one_input
from gatework.recipes.settings import number


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """The choices of a classifier of series."""

    hidden: int = number(64, least=1)
    """Hidden units H of every layer and direction."""
    dropout: float = number(0.3, least=0, below=1)
    """Probability of dropping a value after pooling and between layers, while training."""
    epochs: int = number(60, least=1)
    """Passes over the training data; small sets need many."""
    batch_size: int = number(16, least=1)
    """Series B that are read side by side, per process."""
    learning_rate: float = number(0.005, above=0)
    """Step size of AdamW at the start; it falls to zero along a cosine."""
    noise: float = number(0.3, least=0)
    """Standard deviation of what is added to the standardised values while training."""
    differences: bool = True
    """Also read by how much each value differs from that of the step before."""
    frame: int = number(1, least=1)
    """So many neighbouring steps are read as one; more for long series."""
    held_out: float = number(0.2, least=0, below=1)
    """The share of each label's training series that validates, where there is no validation file. 0, for very small
    sets: all are trained on, and the epoch with the least loss on them without noise is kept."""


class ClassifySeries(Recipe):
    name = "classify-series"
    Settings = Settings
    roles = ROLES

    @classmethod
    def read(cls, source: str, settings: Settings) -> Splits:
        files = files_of_splits(source, SUFFIXES)
        tables = {split: read_series(file, settings.columns, labelled=True) for split, file in files.items()}
        labels = sorted(set(tables["train"]["label"]))
        for split, table in tables.items():
            check_channels(table, tables["train"]["channels"][0], files[split])
            check_known(table["label"], labels, "label", files[split])
        if "valid" not in tables and not settings.held_out:
            print("--held-out 0: figures are those of the training series; `gatework evaluate` gives those of others")
            tables["valid"] = tables["train"]
        elif "valid" not in tables:
            tables["train"], tables["valid"] = held_back(tables["train"], settings.held_out, settings.seed)
        return Splits(tables["train"], tables["valid"], tables.get("test"), {s: str(f) for s, f in files.items()})

    @classmethod
    def read_part(cls, file: Path, settings: Settings) -> pl.DataFrame:
        return read_series(file, settings.columns, labelled=True)

    @classmethod
    def read_inputs(cls, file: Path, settings: Settings) -> pl.DataFrame:
        return read_series(file, settings.columns, labelled=False)

    @classmethod
    def read_line(cls, line: str, settings: Settings) -> pl.DataFrame:
        return table_of([series_of_line(line, "this line")])

    @classmethod
    def facts_of(cls, train: pl.DataFrame, settings: Settings) -> dict:
        labels = sorted(set(train["label"]))
        if len(labels) < 2:
            raise RecipeError(f"all {len(train)} series have the label {labels[0]!r}; a classifier needs two or more")
        values = torch.cat([features(row, settings.differences) for row in train.iter_rows(named=True)]).double()
        deviation = values.std(0, correction=0)
        deviation[deviation == 0] = 1.0  # a constant channel says nothing
        return {"labels": labels, "channels": train["channels"][0], "mean": values.mean(0).tolist(),
                "deviation": deviation.tolist()}

    def __init__(self, cell: Cell, settings: Settings, facts: dict):
        super().__init__(one_input(cell, self.name), settings, facts)
        self.recurrent = Recurrent(cell, len(facts["mean"]) * settings.frame, settings.hidden, settings.layers,
                                   bidirectional=True, dropout=settings.dropout if settings.layers > 1 else 0.0,
                                   forget_bias=1.0 if keeping_gates(cell) else None)
        self.dropout = torch.nn.Dropout(settings.dropout)
        self.classes = torch.nn.Linear(2 * self.recurrent.output_size, len(facts["labels"]))

    def examples(self, table: pl.DataFrame):
        check_channels(table, self.facts["channels"], "this data")
        return super().examples(table)

    def encode(self, row: dict) -> tuple[Tensor, int]:
        """Frames [steps / frame, frame * features], the last filled up with the last step; the number of the label."""
        values = features(row, self.settings.differences)
        values = (values - torch.tensor(self.facts["mean"])) / torch.tensor(self.facts["deviation"])
        values = torch.cat([values, values[-1:].expand(-len(values) % self.settings.frame, -1)])
        known = {label: k for k, label in enumerate(self.facts["labels"])}
        return values.view(-1, self.recurrent.input_size), known.get(row.get("label"), -1)

    def collate(self, examples: list) -> tuple[Tensor, Tensor, Tensor]:
        series, labels = zip(*examples)
        return *pad(series), torch.tensor(labels)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """The logits [B, labels] of series [T, B, I]."""
        x = x.to(self.classes.weight.dtype)
        if self.training:
            x = x + self.settings.noise * torch.randn_like(x)
        output, _ = self.recurrent(x, lengths=lengths)
        beyond = torch.arange(len(x))[:, None, None] >= lengths[:, None]
        largest, mean = output.masked_fill(beyond, -torch.inf).amax(0), output.sum(0) / lengths[:, None]
        return self.classes(self.dropout(torch.cat([largest, mean], 1)))

    def loss(self, batch: Any) -> tuple[Tensor, int]:
        x, lengths, labels = batch
        return functional.cross_entropy(self(x, lengths), labels, reduction="sum"), len(labels)

    def validation_step(self, batch: Any, index: int) -> None:
        super().validation_step(batch, index)
        x, lengths, labels = batch
        right = (self(x, lengths).argmax(1) == labels).float().mean()
        self.log("valid_accuracy", right, prog_bar=True, on_epoch=True, batch_size=len(labels), sync_dist=True)

    def answers(self, batch: Any) -> list[dict]:
        x, lengths, _ = batch
        return [{"label": self.facts["labels"][int(p.argmax())],
                 "probabilities": dict(zip(self.facts["labels"], p.tolist()))} for p in self(x, lengths).softmax(1)]

    def figures(self, table: pl.DataFrame) -> dict[str, float]:
        check_known(table["label"], self.facts["labels"], "label", "this data")
        return scores([row["label"] for row in self.predict(table)], list(table["label"]), self.facts["labels"])

    @classmethod
    def baselines(cls, train: pl.DataFrame, held_out: pl.DataFrame, settings: Settings) -> dict[str, dict[str, float]]:
        labels, truth = sorted({*train["label"], *held_out["label"]}), list(held_out["label"])
        known, asked = ([np.array(row["series"]).reshape(-1, row["channels"]) for row in table.iter_rows(named=True)]
                        for table in (train, held_out))
        most = Counter(train["label"]).most_common(1)[0][0]
        found = {"majority": scores([most] * len(truth), truth, labels)}
        if work(known, asked) <= LARGEST:
            nearest = nearest_by_dtw(known, list(train["label"]), asked)
            return {"nearest by DTW": scores(nearest, truth, labels), **found}
        print(f"nearest by DTW: left out, {len(asked):,} series against {len(known):,} would take hours")
        return found

    @torch.no_grad()
    def picture(self, table: pl.DataFrame):
        """The confusion matrix, and beside it a series with what the first layer keeps of its state over time."""
        from matplotlib.figure import Figure

        check_known(table["label"], self.facts["labels"], "label", "this data")
        labels, truth = self.facts["labels"], list(table["label"])
        said = [row["label"] for row in self.predict(table)]
        figure = Figure(figsize=(10, 4.5), layout="constrained")
        axes = figure.subplot_mosaic([["matrix", "series"], ["matrix", "forward"], ["matrix", "backward"]],
                                     width_ratios=(1, 1.3))
        draw_confusion(axes["matrix"], numbers(said, labels), numbers(truth, labels), labels)
        shown = next((k for k, (a, b) in enumerate(zip(said, truth)) if a == b), 0)
        values, _ = example = self.encode(table.row(shown, named=True))
        x, lengths, _ = self.collate([example])
        gate, sign = next(iter(keeping_gates(self.cell).items()), (self.cell.output, 0))
        _, _, recorded = self.recurrent(x.to(self.classes.weight.dtype), lengths=lengths, record=gate)
        steps = len(x) * self.settings.frame
        values = values.view(steps, -1)[:, :self.facts["channels"]]  # without the differences
        axes["series"].plot(np.arange(steps) + 0.5, values.numpy(), linewidth=1)
        axes["series"].set(ylabel="standardised", title=f"one of them: label {truth[shown]}, said {said[shown]}")
        axes["series"].locator_params(axis="x", integer=True)
        for direction, suffix in (("forward", "_l0"), ("backward", "_l0_reverse")):
            axes[direction].sharex(axes["series"])
            units = recorded[gate + suffix][:, 0].float()
            units = units[:, units.mean(0).argsort()].T.numpy()
            image = axes[direction].imshow(units, aspect="auto", extent=(0, steps, 0, len(units)),
                                           **(dict(vmin=0, vmax=1) if sign else {}))
            axes[direction].set_ylabel(f"units, {direction}")
            what = {1: f"{gate}, 1: kept", -1: f"{gate}, 0: kept", 0: f"state {gate}"}[sign]
            figure.colorbar(image, ax=axes[direction], label=what)
        axes["backward"].set_xlabel("step")
        return figure


def features(row: dict, differences: bool) -> Tensor:
    """What is read of each step of a row: its values, and their differences from the step before, 0 in the first.

    >>> features({"series": [1.0, 10.0, 3.0, 30.0], "channels": 2}, differences=True)
    tensor([[ 1., 10.,  0.,  0.],
            [ 3., 30.,  2., 20.]])
    """
    values = torch.tensor(row["series"], dtype=torch.float32).view(-1, row["channels"])
    return torch.cat([values, values.diff(dim=0, prepend=values[:1])], 1) if differences else values


def held_back(table: pl.DataFrame, share: float, seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows to train on and those to validate, `share` of those with each label, drawn by the seed."""
    mixed = table[torch.randperm(len(table), generator=torch.Generator().manual_seed(seed)).tolist()]
    validates = pl.int_range(pl.len()).over("label") < (pl.len().over("label") * share).round()
    train, valid = mixed.filter(~validates), mixed.filter(validates)
    if not len(train) or not len(valid):
        raise RecipeError(f"of {len(table)} series, {share:g} of each label leaves {len(train)} to train on and "
                          f"{len(valid)} to validate; give more, a folder with train and valid files, or another "
                          "--held-out")
    return train, valid


def check_channels(table: pl.DataFrame, channels: int, file: Any) -> None:
    if len(table) and table["channels"][0] != channels:
        raise RecipeError(f"{file}: its series have {table['channels'][0]} channels, those trained on have {channels}; "
                          "give the same")


def numbers(labels: list[str], known: list[str]) -> Tensor:
    return torch.tensor([known.index(label) for label in labels])


def scores(said: list[str], truth: list[str], labels: list[str]) -> dict[str, float]:
    """The share of right labels, and the F1 score, as the mean over the labels."""
    a, b = numbers(said, labels), numbers(truth, labels)
    return {"accuracy": float(multiclass_accuracy(a, b, len(labels), average="micro")),
            "f1": float(multiclass_f1_score(a, b, len(labels), average="macro"))}
