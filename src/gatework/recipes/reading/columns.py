"""Receives the names and raw cells of a table, hands on the columns that a recipe asked for, in its names and types."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from .. import RecipeError
from .formats import LINE, Batch

MISSING = ("", "na", "n/a", "nan", "null", "none")  # in a column of numbers; in one of texts only what is blank
TRUTH = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}
TYPES = {str: pl.String, Path: pl.String, float: pl.Float64, int: pl.Int64, bool: pl.Boolean}
NAMES = {float: "a number", int: "a whole number", bool: "true or false"}


@dataclass(frozen=True)
class Role:
    """One thing that a recipe needs from each row.

    name: what the column is called in the table that the recipe gets, and after --columns. kind: str, float, int, bool,
    or Path for a file whose path, relative to the folder of the table, stands in the cell. also: names under which such
    a column is found without being told. optional: a table may come without it, and then has no such column; where it
    has one, cells may be missing and are null. gaps: cells may be missing, but not the column. option: what names it on
    the command line, besides --columns. remedy: what to do about blank cells.
    """

    name: str
    kind: type
    also: tuple[str, ...] = ()
    optional: bool = False
    gaps: bool = False
    option: str = ""
    remedy: str = "Fill it in or delete the row"


def find_columns(source: str, names: Sequence[str], roles: Sequence[Role],
                 columns: Mapping[str, str]) -> dict[str, str]:
    """Which column each role is read from, {role: column}; an optional role without one is left out.

    Raises RecipeError if a column is missing, named wrongly, or not the only one that could be meant.

    >>> find_columns("a.csv", ["Review", "stars"], [Role("text", str, also=("review",))], {})
    {'text': 'Review'}
    >>> find_columns("a.csv", ["Review", "stars"], [Role("label", str)], {"label": "star"})
    Traceback (most recent call last):
    gatework.recipes.RecipeError: a.csv has no column 'star', did you mean 'stars'? It has Review, stars
    """
    wrong = sorted(columns.keys() - {role.name for role in roles})
    if wrong:
        raise RecipeError(f"there is nothing called {wrong[0]!r} to give a column for (--columns.{wrong[0]}); this "
                          f"recipe reads {', '.join(role.name for role in roles)}")
    if list(names) == [LINE] and source.removesuffix(".gz").endswith(".txt"):
        return {_only_text(source, roles): LINE}
    found = {}
    for role in roles:
        column = _find(source, names, role, columns.get(role.name))
        if column in found.values():
            other = next(name for name, taken in found.items() if taken == column)
            raise RecipeError(f"{source}: the column {column!r} would be both {other} and {role.name}; name two with "
                              f"--columns.{other} and --columns.{role.name}")
        if column is not None:
            found[role.name] = column
    return found


def _only_text(source: str, roles: Sequence[Role]) -> str:
    needed = [role for role in roles if not role.optional]
    if len(needed) != 1 or needed[0].kind is not str:
        raise RecipeError(f"{source} is plain text, one text in each line; this recipe needs the columns "
                          f"{', '.join(role.name for role in needed)}. Give a table such as .csv or .jsonl")
    return needed[0].name


def _find(source: str, names: Sequence[str], role: Role, wanted: str | None) -> str | None:
    option = f"--columns.{role.name}"
    if wanted is not None:
        if wanted in names:
            return wanted
        raise RecipeError(f"{source} has no column {wanted!r}{_close(wanted, names)} It has {', '.join(names)}")
    usual = (role.name, *role.also)
    for known, candidates in (((role.name,), names), (usual, names),
                              ([name.lower() for name in usual], [name.lower() for name in names])):
        hits = [name for name, candidate in zip(names, candidates) if candidate in known]
        if len(hits) == 1:
            return hits[0]
        if hits:
            raise RecipeError(f"{source} has more than one column that could be the {role.name}: {', '.join(hits)}. "
                              f"Say which: {option} {hits[0]}")
    if role.optional:
        return None
    raise RecipeError(f"{source} has no column {role.name!r}{_close(role.name, names)} It has {', '.join(names)}. Say "
                      f"which is meant{f' with {role.option}' if role.option else f', such as {option} {names[0]}'}")


def _close(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f", did you mean {near[0]!r}?" if near else "."


class Converter:
    """Turns batches of raw cells into tables with the columns of the roles, checked cell by cell.

    source and unit name the place in errors ("reviews.csv", "line"); folder is what the paths in cells are relative to.
    With others=True the other columns come along, as numbers where all of the first batch are, else as texts.
    """

    def __init__(self, source: str, unit: str, folder: Path, roles: Sequence[Role], columns: Mapping[str, str],
                 others: bool):
        self.source, self.unit, self.folder = source, unit, folder
        self.roles, self.columns, self.others = roles, columns, others
        self.found: dict[str, tuple[Role, str]] | None = None  # name in the result: role and column

    def __call__(self, batch: Batch) -> pl.DataFrame:
        if self.found is None:
            self.found = self._choose(batch)
        known = {column for _, column in self.found.values()}
        new = [name for name in batch.columns if self.others and name not in known]
        if new:
            raise RecipeError(f"{self.source}, from {self.unit} {batch.lines[0]} on: a column {new[0]!r} that no row "
                              "before has; give every row the same columns")
        nothing = [None] * len(batch.lines)
        return pl.DataFrame([self._convert(name, role, batch.columns.get(column, nothing), batch.lines)
                             for name, (role, column) in self.found.items()])

    def _choose(self, batch: Batch) -> dict[str, tuple[Role, str]]:
        by_name = {role.name: role for role in self.roles}
        columns = find_columns(self.source, list(batch.columns), self.roles, self.columns)
        found = {name: (by_name[name], column) for name, column in columns.items()}
        for column in batch.columns if self.others else ():
            if column not in columns.values():
                if column in found:
                    raise RecipeError(f"{self.source}: the column {columns[column]!r} is read as {column}, but there "
                                      f"is a column {column!r} too; rename it")
                texts = self._texts(column, batch.columns[column], batch.lines)
                kind = float if _are_numbers(texts) else str
                found[column] = (Role(column, kind, optional=True), column)
        return found

    def _convert(self, name: str, role: Role, cells: Sequence[Any] | pl.Series, lines: Sequence[int]) -> pl.Series:
        texts = self._texts(name, cells, lines)
        present = _present(texts, role.kind)
        if not (role.optional or role.gaps) and not present.all():
            at = present.arg_min()
            given = "is blank" if texts[at] is None or not texts[at].strip() else f"is {texts[at]!r}"
            self._fail(lines[at], name, f"{given}; {(~present).sum()} of these {len(texts)} rows lack it. "
                       f"{role.remedy}")
        if role.kind in (str, Path):
            values = pl.select(pl.when(present).then(texts)).to_series()
            return (self._paths(name, values, lines) if role.kind is Path else values).alias(name)
        words = texts.str.strip_chars()
        values = words.str.to_lowercase().replace_strict(TRUTH, default=None, return_dtype=pl.Boolean) \
            if role.kind is bool else words.cast(TYPES[role.kind], strict=False)
        good = values.is_not_null() & (values.is_finite() if role.kind is float else True)
        wrong = present & ~good
        if wrong.any():
            at = wrong.arg_max()
            hint = "; the decimal sign is a point" if "," in texts[at] else ""
            self._fail(lines[at], name, f"is {texts[at]!r}, {NAMES[role.kind]} is needed{hint}. Correct it or delete "
                       "the row")
        return pl.select(pl.when(present).then(values)).to_series().alias(name)

    def _texts(self, name: str, cells: Sequence[Any] | pl.Series, lines: Sequence[int]) -> pl.Series:
        if isinstance(cells, pl.Series):
            if cells.dtype.is_nested() or cells.dtype == pl.Binary:
                self._fail(lines[0], name, f"is of the type {cells.dtype}; a text or a number is needed")
            return cells.cast(pl.String)
        try:
            return pl.Series(cells, dtype=pl.String, strict=True)
        except TypeError:  # values of JSON other than texts
            return pl.Series([self._text(name, cell, line) for cell, line in zip(cells, lines)], dtype=pl.String)

    def _text(self, name: str, cell: Any, line: int) -> str | None:
        if isinstance(cell, dict | list):
            self._fail(line, name, f"is {json.dumps(cell)[:40]}; a text or a number is needed")
        return cell if cell is None or isinstance(cell, str) else json.dumps(cell)

    def _paths(self, name: str, values: pl.Series, lines: Sequence[int]) -> pl.Series:
        paths = [None if value is None else self.folder / value for value in values]
        for path, line in zip(paths, lines):
            if path is not None and not path.is_file():
                self._fail(line, name, f"names the file {path}, which is not there. Paths are relative to "
                           f"{self.folder}, the folder of the table")
        return pl.Series([path and str(path) for path in paths], dtype=pl.String)

    def _fail(self, line: int, name: str, what: str) -> None:
        column = self.found[name][1] if self.found and name in self.found else name
        raise RecipeError(f"{self.source}, {self.unit} {line}: the column {column!r} {what}")


def _are_numbers(texts: pl.Series) -> bool:
    present = texts.filter(_present(texts, float))
    return len(present) > 0 and present.str.strip_chars().cast(pl.Float64, strict=False).is_not_null().all()


def _present(texts: pl.Series, kind: type) -> pl.Series:
    words = texts.fill_null("").str.strip_chars()
    return words != "" if kind in (str, Path) else ~words.str.to_lowercase().is_in(MISSING)
