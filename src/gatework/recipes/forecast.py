"""What comes next in tables whose rows follow each other in time: an encoder of any cell, and an interval around it.

Three ways to use the same layers:

    direct       reads a window, and says all steps of the horizon at once
    recursive    says one step after the other, each after reading the one before; intervals come from drawn paths
    simulation   (--horizon 0) says each step from covariates up to that step, never from targets: rivers from weather

The forecast is the difference from the same step of the last season, so that the network only learns what that does not
know already (--season 1: the difference from the last value).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from torch import Tensor

from gatework.compiler import Cell
from gatework.nn import Recurrent
from gatework.recipes import RecipeError, settings
from gatework.recipes.baselines.forecast import without_network
from gatework.recipes.batches import Batches
from gatework.recipes.forecast_outputs import OUTPUTS
from gatework.recipes.forecast_results import draw, in_units, rows_of, scores
from gatework.recipes.reading import Splits, read, read_table
from gatework.recipes.recipe import Recipe, one_input
from gatework.recipes.settings import number
from gatework.recipes.windows import Example, Windows, columns_of, last_tenth, scales_of, side_by_side, windows_of


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """The choices of a forecast."""

    hidden: int = number(64, least=1)
    """Hidden units H of every layer."""
    learning_rate: float = number(0.001, above=0)
    """Step size of AdamW at the start; it falls to zero along a cosine."""
    targets: tuple[str, ...] = ("target",)
    """Columns to forecast."""
    past: tuple[str, ...] = ()
    """Columns that are known up to the present."""
    known: tuple[str, ...] = ()
    """Columns that are known ahead: prices, holidays, weather forecasts."""
    static: tuple[str, ...] = ()
    """Columns that stay the same over a series: attributes of a place."""
    window: int = number(96, least=1)
    """Steps W that are read before the first forecast."""
    horizon: int = number(24, least=0)
    """Steps to forecast. 0: simulate each step from the known columns up to it."""
    season: int = number(1, least=1)
    """Steps after which the series resembles itself, such as 24 hours; 1 where it does not."""
    difference: bool = True
    """Learn the difference from the last season instead of the values; not in simulation."""
    decoder: Literal["direct", "recursive"] = "direct"
    """All steps at once, or one after the other."""
    output: Literal["quantile", "gaussian", "mean"] = "quantile"
    """Quantiles, mean and deviation, or a mean without an interval, which has the least squared error."""
    coverage: float = number(0.9, above=0.5, below=1)
    """Share of what comes that the interval should hold."""
    stride: int = number(0, least=0)
    """Steps from one forecast to the next in evaluation. 0: the horizon, so that each step is forecast once."""
    missing: Literal["error", "previous", "interpolate"] = "error"
    """What stands in for blank cells: nothing, the value before, or the line from the one before to the one after."""
    forget_bias: float = number(0.0)
    """Bias of the gate that keeps the state at first; 0: as drawn. 3 suits rivers, which remember for months."""
    samples: int = number(200, least=2)
    """Paths that are drawn for the intervals of the recursive decoder."""

    def __post_init__(self):
        super().__post_init__()
        named = [*self.targets, *self.past, *self.known, *self.static]
        if not self.targets or len(set(named)) < len(named):
            raise RecipeError("--targets names at least one column, and no column may be in two of --targets, --past, "
                              f"--known and --static; {', '.join(named) or 'none'} were given")
        if self.horizon == 0 and (self.past or not self.known):
            raise RecipeError("--horizon 0 computes each step from --known columns; name them all there, none under "
                              "--past")
        if self.horizon and self.season > self.window:
            raise RecipeError(f"--window must hold a season, --season {self.season}; {self.window} was given")
        if self.decoder == "recursive" and (self.past or self.output == "quantile" or self.horizon == 0):
            raise RecipeError("--decoder recursive goes on from values that it draws: it needs --output gaussian or "
                              "mean, a --horizon, and covariates that are known ahead; name those of --past under "
                              "--targets, to forecast them too, or under --known")

    @property
    def steps(self) -> int:
        """Steps of one forecast; a simulation goes on as long as it has read before."""
        return self.horizon or self.window


class Forecast(Recipe):
    name = "forecast"
    Settings = Settings

    @classmethod
    def read(cls, source: str, settings: Settings) -> Splits:
        """The last tenth of each series validates, unless a file does. The window before the first forecast is read."""
        roles = columns_of(settings).roles(gaps=settings.missing != "error")
        splits = read(source, roles, settings.columns, ordered=True)
        if splits.files["valid"] != splits.files["train"]:
            return splits
        train, valid = last_tenth(pl.concat([splits.train, splits.valid]), settings.window)
        return replace(splits, train=train, valid=valid)

    @classmethod
    def read_part(cls, file: Path, settings: Settings) -> pl.DataFrame:
        return read_table(file, columns_of(settings).roles(gaps=settings.missing != "error"), settings.columns)

    @classmethod
    def read_inputs(cls, file: Path, settings: Settings) -> pl.DataFrame:
        """What went before, and with known columns the rows ahead, whose targets are blank; a simulation needs none."""
        roles = columns_of(settings).roles(gaps=True, without_targets=settings.horizon == 0)
        table = read_table(file, roles, settings.columns)
        return table.with_columns(pl.lit(None, pl.Float64).alias(name) for name in settings.targets
                                  if name not in table.columns)

    @classmethod
    def read_line(cls, line: str, settings: Settings) -> Any:
        raise RecipeError("a forecast goes on from a table, not from a line:  gatework predict MODEL table.csv")

    @classmethod
    def facts_of(cls, train: pl.DataFrame, settings: Settings) -> dict:
        return scales_of(train, columns_of(settings), settings.season, settings.missing)

    def __init__(self, cell: Cell, settings: Settings, facts: dict):
        super().__init__(cell, settings, facts)
        columns = columns_of(settings)
        self.kind = OUTPUTS[settings.output](settings.coverage)
        self.constant = next((name for name, leaf in cell.inputs.items() if leaf.op == "constant"), None)
        if self.constant is None or not columns.static:
            one_input(cell, "without --static a forecast")
        targets, known = len(columns.targets), len(columns.known) + 2 * len(facts["cycles"])
        features = known + (targets + len(columns.past) if self.settings.horizon else 0)
        features += 0 if self.constant else len(columns.static)
        sizes = {cell.inputs[self.constant].dims[0]: len(columns.static)} if self.constant else None
        self.recurrent = Recurrent(cell, features, settings.hidden, settings.layers, sizes=sizes,
                                   dropout=settings.dropout if settings.layers > 1 else 0.0,
                                   forget_bias=settings.forget_bias or None)
        self.dropout = torch.nn.Dropout(settings.dropout)
        ahead, beside = (settings.horizon, settings.horizon * known) if self.way == "direct" else (1, 0)
        self.head = torch.nn.Linear(self.recurrent.output_size + beside, ahead * targets * self.kind.size)
        if self.way == "direct":  # the same for all targets, as in LSTNet (Lai et al., 2018); at first it adds nothing
            self.linear = torch.nn.Linear(settings.window, settings.horizon)
            torch.nn.init.zeros_(self.linear.weight)
            torch.nn.init.zeros_(self.linear.bias)

    @property
    def way(self) -> str:
        return self.settings.decoder if self.settings.horizon else "simulation"

    def training_batches(self, table: pl.DataFrame) -> Batches:
        chosen = self.settings
        # A simulation has a loss at each of its steps, so that few windows hold them all, in other places each.
        windows = windows_of(table, self.facts, chosen, stride=1 if chosen.horizon else max(1, chosen.window // 32))
        return Batches(windows, self.collate, chosen.batch_size, seed=chosen.seed, world=chosen.devices * chosen.nodes)

    def examples(self, table: pl.DataFrame) -> Windows:
        return windows_of(table, self.facts, self.settings)

    def collate(self, examples: list[Example]) -> Example:
        return side_by_side(examples)

    def read_steps(self, x: Tensor, static: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """The output [T, B, H] after each step [T, B, ...], and the last states."""
        if self.constant is not None:
            return self.recurrent(x, state, **{self.constant: static})
        return self.recurrent(torch.cat([x, static.expand(len(x), *static.shape)], -1), state)

    def numbers(self, output: Tensor, ahead: int = 1) -> Tensor:
        """What the output says, [ahead * T, B, Y, size of the kind]."""
        numbers = self.head(self.dropout(output)).unflatten(-1, (ahead, -1, self.kind.size))
        return numbers.movedim(-3, 1).flatten(0, 1)

    def forward(self, batch: Example) -> Tensor:
        """What is said of each step from the origin on, [n, B, Y, size]; if recursive, given those before it."""
        y, window = batch.target.shape[-1], len(batch.past)
        known = torch.cat([batch.past[..., y + len(self.settings.past):], batch.future])
        if self.way == "simulation":
            return self.numbers(self.read_steps(known, batch.static)[0][window:])
        if self.way == "recursive":
            targets = torch.cat([batch.past[..., :y], batch.target - batch.offset])
            output, _ = self.read_steps(torch.cat([targets[:-1], known[1:]], -1), batch.static)
            return self.numbers(output[window - 1:])
        last = self.read_steps(batch.past, batch.static)[0][-1:]
        return self.numbers(torch.cat([last, batch.future.movedim(0, 1).flatten(1)[None]], -1), len(batch.future))

    def start(self, batch: Example) -> Tensor:
        """What the network adds to, [n, B, Y]: the last season and, if direct, a linear function of the window."""
        if self.way != "direct":
            return batch.base
        return batch.base + self.linear(batch.past[..., :batch.base.shape[-1]].movedim(0, -1)).movedim(-1, 0)

    def loss(self, batch: Example) -> tuple[Tensor, int]:
        truth = batch.target - self.start(batch)
        there = truth.isfinite()
        return self.kind.loss(self(batch)[there], truth[there]).sum(), int(there.sum())

    def intervals(self, batch: Example) -> Tensor:
        """Low, middle and high value of each step, standardised: [n, B, Y, 3], or [..., 1] of a mean."""
        if self.way == "recursive":
            return self.paths(batch)
        return self.kind.interval(self(batch)) + self.start(batch)[..., None]

    def paths(self, batch: Example) -> Tensor:
        """The intervals of a recursive forecast: of paths that go on from what they have drawn."""
        y, n = batch.base.shape[-1], len(batch.base)
        samples = self.settings.samples if self.kind.size > 1 else 1
        past, future, base = (x.repeat_interleave(samples, 1) for x in (batch.past, batch.future, batch.base))
        offset, static = (x.repeat_interleave(samples, 0) for x in (batch.offset, batch.static))
        known = torch.cat([past[..., y:], future])
        output, state = self.read_steps(torch.cat([past[..., :y], known[1:len(past) + 1]], -1), static)
        drawn = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)  # the same forecast each time
            for k in range(n):
                drawn.append(base[k] + self.kind.draw(self.numbers(output[-1:]))[0])
                if k + 1 < n:
                    step = torch.cat([drawn[-1] - offset, future[k + 1]], -1)[None]
                    output, state = self.read_steps(step, static, state)
        paths = torch.stack(drawn).unflatten(1, (-1, samples))
        if samples == 1:
            return paths.movedim(2, -1)
        share = (1 - self.settings.coverage) / 2
        return paths.quantile(paths.new_tensor([share, 0.5, 1 - share]), 2).movedim(0, -1)

    @torch.no_grad()
    def forecasts(self, windows: Windows) -> list[np.ndarray]:
        """Of each window the values in their units: [n, Y, 3], or [n, Y, 1]."""
        self.eval()
        padded = [one for batch in Batches(windows, self.collate, 256) for one in self.intervals(batch).unbind(1)]
        return [in_units(one[:len(example.base)].double().numpy(), self.facts) for one, example in zip(padded, windows)]

    def predict(self, table: pl.DataFrame) -> Iterator[dict]:
        windows = windows_of(table, self.facts, self.settings, beyond=True)
        return rows_of(self.forecasts(windows), windows, self.settings.targets)

    def figures(self, table: pl.DataFrame) -> dict[str, float]:
        windows = windows_of(table, self.facts, self.settings)
        return scores(self.forecasts(windows), windows, self.facts)

    @classmethod
    def baselines(cls, train: pl.DataFrame, held_out: pl.DataFrame, settings: Settings) -> dict[str, dict[str, float]]:
        facts = cls.facts_of(train, settings)
        training, windows = windows_of(train, facts, settings, stride=1), windows_of(held_out, facts, settings)
        found = without_network(training, windows, settings.horizon, settings.season)
        return {name: scores([in_units(one[..., None], facts) for one in said], windows, facts)
                for name, said in found.items()}

    def picture(self, table: pl.DataFrame):
        windows = windows_of(table, self.facts, self.settings, self.settings.steps)
        return draw(self.forecasts(windows), windows, self.facts, self.settings.targets[0], self.settings.coverage,
                    simulated=self.way == "simulation")
