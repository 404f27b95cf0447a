"""Receives a table whose rows follow each other in time, hands on windows: steps that are known, and steps to forecast.

All numbers are standardised by the means and deviations of the training table, which `Scales` holds as JSON has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from . import RecipeError
from .reading import Role, check_fits

FORMATS = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f", "%+", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M", "%Y-%m-%d",
           "%Y/%m/%d %H:%M", "%Y/%m/%d")  # %+: with a time zone
CYCLES = {"day": 86_400, "week": 604_800, "year": 31_556_952}  # seconds


@dataclass(frozen=True)
class Columns:
    """Which columns play which part: forecast, read up to the origin, known beyond it, the same all along."""

    targets: tuple[str, ...]
    past: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    static: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        return (*self.targets, *self.past, *self.known, *self.static)

    def roles(self, gaps: bool, without_targets: bool = False) -> list[Role]:
        """What to read from a table: these columns, the time if there is one, and what tells several series apart."""
        numbers = [Role(name, float, ("y", "value") if name == "target" else (), option=option, gaps=gaps,
                        optional=without_targets and option == "--targets",
                        remedy="Fill it in, or choose --missing previous or interpolate")
                   for option, names in (("--targets", self.targets), ("--past", self.past), ("--known", self.known),
                                         ("--static", self.static)) for name in names]
        return [Role("time", str, ("date", "datetime", "timestamp", "month", "year", "day", "ds"), optional=True),
                Role("series", str, ("id", "series_id", "unique_id", "station", "basin", "gauge"), optional=True),
                *numbers]


class Example(NamedTuple):
    """One window of W steps and the n steps after its end, the origin. Sizes: targets Y, inputs F, known K, static S.

    past: float [W, F], targets, then past covariates, then known ones. future: float [n, K]. target: float [n, Y], NaN
    where nobody knows it. base: float [n, Y], what the forecast is the difference from, and offset: float [Y], what was
    taken off the targets in `past`. static: float [S]. series and origin: where the window lies.
    """

    past: Tensor
    future: Tensor
    target: Tensor
    base: Tensor
    offset: Tensor
    static: Tensor
    series: int
    origin: int


@dataclass
class Series:
    """The standardised steps of one series: float [T, columns] by part, `time` as it stands in the table."""

    name: str
    targets: np.ndarray
    past: np.ndarray
    known: np.ndarray
    static: np.ndarray
    time: list[str]


class Windows(Sequence):
    """The windows of a table: every `stride`-th step from which on is forecast, series by series.

    ahead: steps after the origin; with partial=True the last window of a series may have fewer. season: the forecast is
    the difference from the same step of the last season of so many steps; 0: from nothing. beyond: the targets of the
    last rows may be lacking; unless partial, each series has one window, with its origin behind the last target.

    Raises RecipeError if a table has no window, or its rows are not in the order of time.
    """

    def __init__(self, table: pl.DataFrame, columns: Columns, scales: dict, *, window: int, ahead: int, stride: int,
                 season: int = 0, partial: bool = False, beyond: bool = False,
                 missing: str = "error"):
        inputs = len(columns.all) + 2 * len(scales["cycles"])
        check_fits(len(table) * inputs * 4 * 2, "the table", "Give fewer series or columns at once")
        self.columns, self.window, self.ahead, self.season = columns, window, ahead, season
        prolong = ahead if beyond and not partial else 0
        self.series = [_series(part, columns, scales, beyond, prolong, missing) for part in parts(table)]
        least = 1 if partial else ahead
        self.places = [(k, origin) for k, one in enumerate(self.series) for origin in (
            _after(one, window) if prolong else range(window, len(one.targets) - least + 1, stride))]
        if not self.places:
            longest = max(len(one.targets) for one in self.series)
            raise RecipeError(f"the longest series has {longest} steps; a forecast needs {window} to read (--window) "
                              f"and {0 if prolong else least} after them. Give more rows (those before the first "
                              "forecast are only read), or lower --window or --horizon")

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, k: int) -> Example:
        which, origin = self.places[k]
        one, start = self.series[which], origin - self.window
        end = min(origin + self.ahead, len(one.known))
        targets = one.targets[start:origin]
        offset, base = np.zeros(targets.shape[1], np.float32), np.zeros((end - origin, targets.shape[1]), np.float32)
        if self.season:
            offset = targets[-self.season:].mean(0)
            base = one.targets[origin - self.season + np.arange(end - origin) % self.season]
        past = np.concatenate([targets - offset, one.past[start:origin], one.known[start:origin]], 1)
        return Example(*map(torch.from_numpy, (past, one.known[origin:end].copy(), one.targets[origin:end].copy(), base,
                                               offset, one.static)), which, origin)


def _after(one: Series, window: int) -> list[int]:
    """The step behind the last that has its targets, if there is a window before it."""
    known = int(np.isfinite(one.targets).all(1).sum())
    return [known] if known >= window else []


def columns_of(settings) -> Columns:
    """The columns that the settings of a forecast name."""
    return Columns(tuple(settings.targets), tuple(settings.past), tuple(settings.known), tuple(settings.static))


def windows_of(table: pl.DataFrame, facts: dict, settings, stride: int = 0, **options) -> Windows:
    """The windows of a table that the settings of a forecast ask for; `options` are those of Windows."""
    options = {"partial": settings.horizon == 0} | options
    return Windows(table, columns_of(settings), facts, window=settings.window, ahead=settings.steps,
                   stride=stride or settings.stride or settings.steps, missing=settings.missing,
                   season=settings.season if settings.difference and settings.horizon else 0, **options)


def parts(table: pl.DataFrame) -> list[pl.DataFrame]:
    """The table of each series, in the order in which they begin."""
    return table.partition_by("series", maintain_order=True) if "series" in table.columns else [table]


def last_tenth(table: pl.DataFrame, window: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Each series without its last tenth, and the last tenth with the window before it."""
    series = [(one, max(1, len(one) // 10)) for one in parts(table)]
    return pl.concat([one.head(-n) for one, n in series]), pl.concat([one.tail(n + window) for one, n in series])


def side_by_side(examples: Sequence[Example]) -> Example:
    """Examples as a batch, [steps, B, ...]; the targets behind the end of a shorter one are NaN."""
    past, future, target, base, offset, static, series, origin = zip(*examples)
    return Example(torch.stack(past, 1), pad_sequence(list(future)),
                   pad_sequence(list(target), padding_value=torch.nan), pad_sequence(list(base)),
                   torch.stack(offset), torch.stack(static), torch.tensor(series), torch.tensor(origin))


def scales_of(table: pl.DataFrame, columns: Columns, season: int, missing: str) -> dict[str, Any]:
    """What must be known of the training table: means, deviations, seasonal differences, and which cycles time has.

    The seasonal differences, one for each target, are the mean absolute ones between a value and that a season before:
    the scale of the mean absolute scaled error (Hyndman & Koehler, 2006).
    """
    if table.is_empty():
        raise RecipeError("there are no rows to train on")
    tables = [filled(part, columns, missing) for part in parts(table)]
    values = pl.concat(tables).select(columns.all)
    deviations = [float(s) if s else 1.0 for s in values.std(ddof=0).row(0)] if len(columns.all) else []
    differences = pl.concat([part.select(pl.col(columns.targets).diff(season).abs()) for part in tables]).drop_nulls()
    if differences.is_empty():
        raise RecipeError(f"no series is longer than one season of {season} steps (--season); give longer ones")
    return {"columns": list(columns.all), "mean": list(map(float, values.mean().row(0))), "deviation": deviations,
            "seasonal_difference": [float(d) or 1.0 for d in differences.mean().row(0)], "cycles": _cycles(tables)}


def _series(table: pl.DataFrame, columns: Columns, scales: dict, open_end: bool, prolong: int,
            missing: str) -> Series:
    table = filled(table, columns, missing, open_end)
    if prolong:
        known = table[columns.targets[0]].is_not_null().sum()
        table = _prolonged(table.head(known + prolong), columns, known + prolong)
    mean, deviation = (np.array(scales[k], np.float64) for k in ("mean", "deviation"))
    values = ((table.select(columns.all).to_numpy() - mean) / deviation).astype(np.float32)
    edges = np.cumsum([len(columns.targets), len(columns.past), len(columns.known)])
    targets, past, known, static = np.split(values, edges, axis=1)
    if len(static) and not np.allclose(static, static[0]):
        name = columns.static[int(np.argmax(np.ptp(static, axis=0)))]
        raise RecipeError(f"the column {name!r} (--static) changes within a series; it is a covariate: --known {name} "
                          f"or --past {name}")
    seconds = seconds_of(table)
    waves = [wave(2 * np.pi * seconds / CYCLES[c]) for c in scales["cycles"] for wave in (np.sin, np.cos)]
    time = table["time"].to_list() if "time" in table.columns else [str(k) for k in range(1, len(table) + 1)]
    return Series(table["series"][0] if "series" in table.columns else "", targets, past,
                  np.column_stack([known, *waves]).astype(np.float32), static[0], time)


def _prolonged(table: pl.DataFrame, columns: Columns, length: int) -> pl.DataFrame:
    """The table with rows up to a length, with times that go on, where no column must be known for them."""
    extra = length - len(table)
    if not extra or columns.known:
        return table
    rows = {name: [table[name][0]] * extra for name in ("series", *columns.static) if name in table.columns}
    seconds = seconds_of(table)
    if "time" in table.columns:
        step = np.median(np.diff(seconds)) if seconds is not None and len(seconds) > 1 else None
        rows["time"] = [f"+{k}" if step is None else
                        str(np.datetime64(int(seconds[-1] + k * step), "s")).replace("T", " ")
                        for k in range(1, extra + 1)]
    rows = rows or {columns.targets[0]: [None] * extra}
    return pl.concat([table, pl.DataFrame(rows)], how="diagonal_relaxed")


def filled(table: pl.DataFrame, columns: Columns, missing: str, open_end: bool = False) -> pl.DataFrame:
    """A series in the order of time, without missing values. open_end: rows at the end may lack their targets."""
    check_order(table)
    rows = table.height
    if open_end:
        values = table.select(pl.all_horizontal(pl.col(columns.targets).is_not_null())).to_series()
        rows = int(values.arg_true()[-1]) + 1 if values.any() else 0
    late = pl.int_range(pl.len()) >= rows
    own = {name: pl.col(name) for name in columns.all}
    if missing == "interpolate":
        own = {name: column.interpolate() for name, column in own.items()}
    if missing != "error":
        own = {name: column.forward_fill() for name, column in own.items()}
    measured = (*columns.targets, *columns.past)
    table = table.with_columns(pl.when(late).then(None).otherwise(column).alias(name) if name in measured else
                               column.alias(name) for name, column in own.items())
    for name in columns.all:
        gaps = (table[name].head(rows) if name in measured else table[name]).is_null()
        if gaps.any():
            at = int(gaps.arg_true()[0])
            where = f"at {table['time'][at]!r}" if "time" in table.columns else f"in row {at + 1} of a series"
            remedy = "give a first value" if missing != "error" else "fill it in, or choose --missing previous"
            raise RecipeError(f"the column {name!r} has no value {where}; {remedy}")
    return table


def seconds_of(table: pl.DataFrame) -> np.ndarray | None:
    """The times of a series in seconds, or None if there are none, or none that are dates."""
    if "time" not in table.columns:
        return None
    time, found = table["time"], pl.Series([None] * len(table), dtype=pl.Int64)
    for texts, form in (*((time, form) for form in FORMATS), (time + "-01", "%Y-%m-%d")):  # the last: months
        # Rows that were added behind a table write their times in one form, whatever that of the table is.
        seconds = texts.str.to_datetime(form, strict=False, time_unit="us").dt.epoch("s")
        found = found.zip_with(found.is_not_null(), seconds)
        if found.null_count() == 0:
            return found.to_numpy()
    return None


def check_order(table: pl.DataFrame) -> None:
    """Raise RecipeError unless times, where a table has them, can be read and rise, without holes."""
    if "time" not in table.columns or len(table) < 3:
        return
    seconds = seconds_of(table)
    if seconds is None:
        numbers = table["time"].cast(pl.Float64, strict=False)
        if numbers.null_count():
            strange = table["time"][int(numbers.is_null().arg_max())]
            raise RecipeError(f"{strange or 'a blank cell'!r} in the column of the time, in row "
                              f"{numbers.is_null().arg_max() + 1} of a series, cannot be read. Write all times as "
                              "2024-01-31, 2024-01-31 17:30, 2024-01, or as numbers; or leave the column out")
        seconds = numbers.to_numpy()
    steps = np.diff(seconds)
    at = int(np.argmin(steps))
    if steps[at] <= 0:
        raise RecipeError(f"after {table['time'][at]!r} comes {table['time'][at + 1]!r}, which is not later. Sort the "
                          "rows by time; if these are several series, name the column that tells them apart: "
                          "--columns.series station")
    at = int(np.argmax(steps))
    if steps[at] > 1.5 * np.median(steps):  # months and years differ by less, a missing row doubles a step
        raise RecipeError(f"between {table['time'][at]!r} and {table['time'][at + 1]!r} rows are missing: steps must "
                          "be equally long. Add them, with blank cells and --missing previous")


def _cycles(tables: list[pl.DataFrame]) -> list[str]:
    """The cycles that steps are short enough, and the training rows long enough, to show: two whole turns of them."""
    seconds = seconds_of(tables[0])
    if seconds is None or len(seconds) < 2:
        return []
    step, span = float(np.median(np.diff(seconds))), float(seconds[-1] - seconds[0])
    return [name for name, length in CYCLES.items() if step <= length / 4 and span >= 2 * length]
