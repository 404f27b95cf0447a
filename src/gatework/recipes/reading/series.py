"""Receives a file of series of numbers with labels, hands on a table with one row for each.

Its columns are `series`, `channels` and `label`. `series` holds the numbers as one list, step after step, `channels` of
them for each step.

    .ts       the format of the UCR and UEA archives: channels between colons, values between commas, the label last
    .txt      the same lines, without header and label, to predict
    a table   with a column `file`: each row names a table with a column for each channel and a row for each step
              with a column `id`: each row is a step, the rows with the same id are a series
              with neither: each row is a series of one channel, each column but the label a step, blank beyond its end
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from .. import RecipeError
from . import Role, read_table
from .formats import READERS
from .text import numbered_lines

SUFFIXES = (".ts", *READERS)
ROLES = (Role("file", Path, ("file_name", "path"), optional=True),
         Role("id", str, ("series_id", "case", "case_id"), optional=True),
         Role("label", str, ("class", "category", "target"), optional=True))


def read_series(file: Path, columns: Mapping[str, str], *, labelled: bool) -> pl.DataFrame:
    """The series of a file, in its order; the column `label` is there if the file has labels.

    Args:
        file: .ts, .txt or a table.
        columns: {role: column} where those of a table are not called file, id and label.
        labelled: a file without labels is an error.

    Raises RecipeError, naming the line or the row, for missing values, broken lines and series that do not go together.
    """
    name = file.name.lower().removesuffix(".gz")
    if name.endswith(".ts"):
        rows = _read_ts(file)
    elif name.endswith(".txt"):
        rows = ((series_of_line(line.strip(), f"{file}, line {k}"), None) for k, line in numbered_lines(file))
    else:
        table = read_table(file, ROLES, columns, others=True)
        rows = (_from_files if "file" in table.columns else _from_steps if "id" in table.columns else _from_rows)(
            file, table)
    rows = list(rows)
    unlabelled = [label is None for _, label in rows]
    if labelled and any(unlabelled):
        raise RecipeError(f"{file}: series {unlabelled.index(True) + 1} has no label. Each needs one: a column label "
                          "(or name it, --columns.label NAME), or @classLabel true in a .ts file, with the label last")
    if not rows:
        raise RecipeError(f"{file} holds no series; give at least one")
    counts = [values.shape[1] for values, _ in rows]
    if len(set(counts)) > 1:
        at = next(k for k, n in enumerate(counts) if n != counts[0])
        raise RecipeError(f"{file}: series {at + 1} has {counts[at]} channels, those before have {counts[0]}; give all "
                          "the same")
    values, labels = zip(*rows)
    return table_of(values, None if all(unlabelled) else labels)


def table_of(series: Sequence[np.ndarray], labels: Sequence[str] | None = None) -> pl.DataFrame:
    """Series [steps, channels] as a table.

    >>> table_of([np.array([[1.0, 10.0], [2.0, 20.0]])], ["up"]).row(0)
    ([1.0, 10.0, 2.0, 20.0], 2, 'up')
    """
    data = {"series": pl.Series([values.ravel() for values in series], dtype=pl.List(pl.Float32)),
            "channels": [values.shape[1] for values in series]}
    return pl.DataFrame(data if labels is None else data | {"label": pl.Series(labels, dtype=pl.String)})


def series_of_line(line: str, place: str) -> np.ndarray:
    """A series [steps, channels] from a line of a .ts file, without its label.

    >>> series_of_line("1,2,3:0.5,0.25,0", "line 1").tolist()
    [[1.0, 0.5], [2.0, 0.25], [3.0, 0.0]]
    """
    channels = line.split(":")
    try:
        values = [np.array([float(value) for value in channel.split(",")], np.float32) for channel in channels]
    except ValueError as error:
        raise RecipeError(f"{place}: {str(error).removeprefix('could not convert string to float: ')} is no number. A "
                          "series is numbers with commas between them, and colons between channels; a missing one (?) "
                          "is to be filled in before, or its series taken out") from error
    lengths = [len(channel) for channel in values]
    if len(set(lengths)) > 1:
        raise RecipeError(f"{place}: the channels of the series have {', '.join(map(str, lengths))} steps; each needs "
                          "as many")
    if not all(np.isfinite(channel).all() for channel in values):
        raise RecipeError(f"{place}: a value is not finite; fill it in, or take the series out")
    return np.stack(values, 1)


def _read_ts(file: Path) -> Iterator[tuple[np.ndarray, str | None]]:
    header: dict[str, list[str]] = {}
    inside = False
    for number, line in numbered_lines(file):
        line, place = line.strip(), f"{file}, line {number}"
        if not line or line.startswith("#"):
            continue
        if line.startswith("@"):
            key, *values = line.lower().split()
            header[key], inside = values, key == "@data"
            if values[:1] == ["true"] and key in ("@timestamps", "@targetlabel"):
                raise RecipeError(f"{place}: {line} is not supported; give values at even steps, without their times, "
                                  "and @classLabel")
        elif not inside:
            raise RecipeError(f"{place}: a .ts file begins with lines of @ and #, and series come after @data; this is "
                              f"{line[:40]!r}")
        elif header.get("@classlabel", ["false"])[0] == "true":
            line, colon, label = line.rpartition(":")
            if not colon:
                raise RecipeError(f"{place}: @classLabel true promises a label behind the last colon; there is none")
            yield series_of_line(line, place), label.strip()
        else:
            yield series_of_line(line, place), None
    if not inside:
        raise RecipeError(f"{file} has no line @data, after which the series of a .ts file come")


def _numbers(file: Path, table: pl.DataFrame) -> np.ndarray:
    """All columns as numbers [rows, columns], NaN where a cell is blank."""
    texts = [name for name, kind in table.schema.items() if kind != pl.Float64]
    if texts or not table.columns:
        raise RecipeError(f"{file}: " + (f"the column {texts[0]!r} holds texts" if texts else "there is no column")
                          + "; besides file, id and label each column holds numbers. If it is one of these, say so, "
                          f"such as --columns.label {texts[0] if texts else 'NAME'}; else take it out")
    return table.to_numpy().astype(np.float32)


def _complete(values: np.ndarray, what: str) -> np.ndarray:
    blank = np.isnan(values).any(1)
    if blank.any():
        raise RecipeError(f"{what}: a value of step {blank.argmax() + 1} is missing; fill it in, or take it out")
    return values


def _from_files(file: Path, table: pl.DataFrame) -> Iterator[tuple[np.ndarray, str | None]]:
    names: list[str] | None = None
    for row in table.iter_rows(named=True):
        if row["file"] is None:
            raise RecipeError(f"{file}: a row names no file; fill the column in, or delete the row")
        path = Path(row["file"])
        steps = read_table(path, (), others=True)
        names = names or steps.columns
        if steps.columns != names:
            raise RecipeError(f"{path} has the columns {', '.join(steps.columns)}, the series before have "
                              f"{', '.join(names)}; give all the same, in the same order")
        yield _complete(_numbers(path, steps), str(path)), row.get("label")


def _from_steps(file: Path, table: pl.DataFrame) -> Iterator[tuple[np.ndarray, str | None]]:
    if table["id"].null_count():
        raise RecipeError(f"{file}: {table['id'].null_count()} rows have no id; fill the column in, or delete them")
    for (name,), steps in table.group_by("id", maintain_order=True):
        labels = list(steps["label"].unique(maintain_order=True)) if "label" in steps.columns else [None]
        if len(labels) > 1:
            raise RecipeError(f"{file}: the series {name} has the labels {labels[0]} and {labels[1]}; all its rows "
                              "need the same")
        values = _numbers(file, steps.drop("id", "label", strict=False))
        yield _complete(values, f"{file}, series {name}"), labels[0]


def _from_rows(file: Path, table: pl.DataFrame) -> Iterator[tuple[np.ndarray, str | None]]:
    labels = table["label"] if "label" in table.columns else [None] * len(table)
    for k, (values, label) in enumerate(zip(_numbers(file, table.drop("label", strict=False)), labels), start=1):
        length = len(values) - np.isnan(values[::-1]).argmin() if not np.isnan(values).all() else 0
        if not length:
            raise RecipeError(f"{file}: series {k} has no values; delete its row")
        yield _complete(values[:length, None], f"{file}, series {k}"), label
