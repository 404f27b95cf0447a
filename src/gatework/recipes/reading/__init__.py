"""Receives what a user named as data, hands on its tables with the columns that a recipe asked for.

    text      a file as text: UTF-8, gzip, lines and their numbers
    formats   a file as batches of raw cells, one function per format
    columns   raw cells as the columns of a recipe, checked
    sources   what was named: a file, a folder, a name of the datasets library
    large     tables that do not fit into memory
    size      what fits

The forms of data, with an example for each, are in docs/data.md.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from .. import RecipeError
from .columns import Converter, Role
from .formats import batches, table_suffix
from .large import gather
from .size import check_fits
from .sources import Source, find_sources, from_file, from_media
from .text import read_lines, read_text

__all__ = ["Role", "Splits", "check_fits", "check_known", "read", "read_lines", "read_table", "read_text"]


@dataclass(frozen=True)
class Splits:
    """The tables of one source, columns called as the roles are. `files` says where each comes from, for errors."""

    train: pl.DataFrame
    valid: pl.DataFrame
    test: pl.DataFrame | None
    files: Mapping[str, str] = field(default_factory=dict)


def read(source: str | Path, roles: Sequence[Role], columns: Mapping[str, str] = {}, *, seed: int = 0,  # noqa: B006
         ordered: bool = False, others: bool = False) -> Splits:
    """The tables of a file, a folder, or "datasets:NAME", to train, validate and test on.

    columns: {role: column}, as the user said with --columns.ROLE. Without a validation file a tenth of the rows
    validates, drawn by seed, in the order of the file; the last tenth if the rows are ordered. others=True brings the
    columns that no role names along, as float64 where all their cells are numbers, else as texts, null where blank.

    Raises RecipeError, with file, line and remedy, for whatever cannot be read as it stands.

    >>> import tempfile; folder = Path(tempfile.mkdtemp())
    >>> rows = "".join(f"text {k},{k % 2}\\n" for k in range(30))
    >>> _ = (folder / "reviews.csv").write_text("review,stars\\n" + rows)
    >>> splits = read(folder / "reviews.csv", [Role("text", str, also=("review",)), Role("stars", int)])
    >>> splits.train.shape, splits.valid.shape, splits.test
    ((27, 2), (3, 2), None)
    >>> splits.train.row(0)
    ('text 0', 0)
    """
    found = find_sources(source, roles)
    draw = seed if "valid" not in found and not ordered else None
    tables = {split: _tables(origin, roles, columns, others, draw if split == "train" else None)
              for split, origin in found.items()}
    train = tables["train"]
    for split, table in tables.items():
        _check_same_columns(found["train"], train["rows" if draw is None else "train"], found[split],
                            next(iter(table.values())))
    files = {split: origin.name for split, origin in found.items()}
    test = tables["test"]["rows"] if "test" in found else None
    if "valid" in found:
        return Splits(train["rows"], tables["valid"]["rows"], test, files)
    files["valid"] = files["train"]
    rows = sum(map(len, train.values()))
    if rows < TENTH:
        raise RecipeError(f"{found['train'].name} has {rows} rows, a tenth of which would validate: at least {TENTH} "
                          "are needed. Give more, or a folder with train.csv and valid.csv")
    if ordered:
        whole = train["rows"]
        return Splits(whole.head(-(rows // TENTH)), whole.tail(rows // TENTH), test, files)
    return Splits(train["train"], train["valid"], test, files)


def read_table(file: Path, roles: Sequence[Role], columns: Mapping[str, str] = {}, *,  # noqa: B006
               others: bool = False) -> pl.DataFrame:
    """The table of one file, or of one folder of sounds or pictures. Arguments and errors are those of `read`."""
    file = Path(file)
    origin = from_media(file, roles) if file.is_dir() else from_file(file)
    return _tables(origin, roles, columns, others, None)["rows"]


def check_known(values: pl.Series, known: Iterable[str], what: str, file: str | Path) -> None:
    """Raise RecipeError if one of the values, a column of a table read from `file`, is not among those known.

    The message has the lines of the file, and what to do. Nulls are not looked at.

    >>> check_known(pl.Series(["cat", "dgo"]), ["cat", "dog"], "label", "pets.csv")
    Traceback (most recent call last):
    gatework.recipes.RecipeError: pets.csv: the label 'dgo' (1 row) is not one of those trained on, cat, dog; did you \
mean dog? Correct it, delete the rows, or train on data that has it
    """
    known = list(known)
    strange = values.filter(values.is_not_null() & ~values.is_in(known))
    if strange.is_empty():
        return
    first = strange[0]
    near = difflib.get_close_matches(str(first), map(str, known), n=1)
    shown = ", ".join(map(str, known[:20])) + (", ..." if len(known) > 20 else "")
    more = f"; {strange.n_unique() - 1} more are not" if strange.n_unique() > 1 else ""
    raise RecipeError(f"{file}{_lines(Path(file), values, first)}: the {what} {first!r} ({(values == first).sum()} row"
                      f"{'s' * ((values == first).sum() > 1)}) is not one of those trained on, {shown}{more}"
                      f"{f'; did you mean {near[0]}?' if near else '.'} Correct it, delete the rows, or train on data "
                      "that has it")


TENTH = 10


def _lines(file: Path, values: pl.Series, wanted: str) -> str:
    """Where in the file the first rows with that value are. Of rows that were drawn only the content is known."""
    if not (file.is_file() and table_suffix(file)):
        return ""
    everything = list(batches(file))
    lines = [line for batch in everything for line in batch.lines]
    if len(lines) == len(values):
        hits = [line for line, value in zip(lines, values) if value == wanted]
    else:
        hits = [line for batch in everything for line, *cells in zip(batch.lines, *batch.columns.values())
                if wanted in cells]
    return f", line {', '.join(map(str, hits[:3]))}{', ...' if len(hits) > 3 else ''}" if hits else ""


def _tables(origin: Source, roles: Sequence[Role], columns: Mapping[str, str], others: bool,
            seed: int | None) -> dict[str, pl.DataFrame]:
    """The table of a source as {"rows": table}, or with a seed as {"train": nine tenths, "valid": one}."""
    columns = dict(origin.columns) | dict(columns)
    convert = Converter(origin.name, origin.unit, origin.folder, roles, columns, others)

    def parts() -> Iterator[dict[str, pl.DataFrame]]:
        draw = None if seed is None else Draw(seed)
        for batch in origin.batches():
            table = convert(batch)
            if draw is None:
                yield {"rows": table}
            else:
                valid = pl.Series(draw(len(table)))
                yield {"train": table.filter(~valid), "valid": table.filter(valid)}

    return gather(parts(), origin.name, (origin.key, list(roles), sorted(columns.items()), others, seed))


class Draw:
    """Draws one row of each ten that follow each other, so that the number of rows need not be known before.

    >>> draw = Draw(seed=0)
    >>> [int(draw(n).sum()) for n in (10, 35, 5)]
    [1, 4, 0]
    """

    def __init__(self, seed: int):
        self.random, self.row, self.positions = np.random.default_rng(seed), 0, np.zeros(0, np.int64)

    def __call__(self, rows: int) -> np.ndarray:
        """Whether each of the next rows is drawn, bool [rows]."""
        tens, place = np.divmod(np.arange(self.row, self.row + rows), TENTH)
        begun = -(-self.row // TENTH)  # tens of which a row has been seen
        fresh = self.random.integers(0, TENTH, max(0, tens[-1] + 1 - begun))
        self.positions = np.append(self.positions[-1:], fresh)
        self.row += rows
        return place == self.positions[tens - tens[-1] - 1]


def _check_same_columns(first: Source, train: pl.DataFrame, origin: Source, table: pl.DataFrame) -> None:
    for name, kind in train.schema.items():
        if name not in table.columns:
            raise RecipeError(f"{origin.name} has no column for {name}, which {first.name} has; give both the "
                              "same columns")
        if table.schema[name] != kind:
            raise RecipeError(f"{origin.name}: the column {name!r} holds {_held(table.schema[name])}, in {first.name} "
                              f"it holds {_held(kind)}; give both the same")


def _held(kind: pl.DataType) -> str:
    return "texts" if kind == pl.String else "numbers"
