"""Receives a file of rows in one of the formats, hands on batches of raw cells with the line of each row.

A format is one function here: from a file to batches. What the cells mean is for `columns`.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import polars as pl

from .. import RecipeError
from .text import numbered_lines, read_text

BATCH = 2**24  # characters of cells after which a batch is handed on
LONGEST_CELL = 2**26  # characters; the csv module's own limit of 131072 is shorter than many an article
PARQUET_ROWS = 2**16
LINE = "line"  # the column of a file without columns


@dataclass(frozen=True)
class Batch:
    """Some rows: `lines` says where each begins, `columns` holds the raw cells (str, values of JSON, or a Series)."""

    lines: Sequence[int]
    columns: Mapping[str, Sequence[Any] | pl.Series]


def batches(file: Path) -> Iterator[Batch]:
    """The rows of a file, a batch at a time, in the format that its suffix names.

    Raises RecipeError, with the line, for what is no such file, and where there is no row at all.
    """
    suffix = table_suffix(file)
    if not suffix:
        raise RecipeError(f"{file} has no suffix of a table; those known are {', '.join(READERS)}, each also with .gz "
                          "but .parquet. Convert it, or give it the suffix that fits its content")
    if not file.is_file():
        raise RecipeError(f"there is no file {file}; give the path of a table, as seen from the current folder")
    empty = True
    for batch in READERS[suffix](file):
        empty = False
        yield batch
    if empty:
        raise RecipeError(f"{file} names its columns but has no rows below; give at least one")


def table_suffix(file: Path) -> str:
    """The suffix by which a file is read, without .gz; "" if it is none of a table."""
    name = file.name.lower().removesuffix(".gz")
    return next((s for s in READERS if name.endswith(s) and not (s == ".parquet" and file.suffix == ".gz")), "")


def _gathered(rows: Iterable[tuple[int, Any, int]], columns: Callable[[list], Mapping]) -> Iterator[Batch]:
    """Rows of (line, row, size in characters) as batches; `columns` turns a list of rows into columns."""
    lines, held_rows, held = [], [], 0
    for line, row, size in rows:
        lines.append(line)
        held_rows.append(row)
        held += size
        if held >= BATCH:
            yield Batch(lines, columns(held_rows))
            lines, held_rows, held = [], [], 0
    if lines:
        yield Batch(lines, columns(held_rows))


def _read_csv(file: Path) -> Iterator[Batch]:
    rows = _records(file, lambda header: dict(delimiter=_delimiter(header), strict=True))
    _, names = next(rows)
    return _gathered(_whole_rows(file, names, rows), lambda cells: dict(zip(names, zip(*cells))))


def _read_tsv(file: Path) -> Iterator[Batch]:
    # text/tab-separated-values has no quoting: a quotation mark is a character of the text
    rows = _records(file, lambda header: dict(delimiter="\t", quoting=csv.QUOTE_NONE))
    _, names = next(rows)
    return _gathered(_whole_rows(file, names, rows), lambda cells: dict(zip(names, zip(*cells))))


def _delimiter(header: str) -> str:
    """The comma, unless the header has none: spreadsheets write ";" where the comma is the decimal point."""
    return next((d for d in ",;\t" if d in header), ",")


def _records(file: Path, dialect: Callable[[str], dict]) -> Iterator[tuple[int, list[str]]]:
    """The records with the line where each begins, the names of the columns first; blank lines hold no record."""
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_CELL))
    lines = (line for _, line in numbered_lines(file))
    header = next(lines)
    names = [name.strip() for name in next(csv.reader([header], **dialect(header)), [])]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        raise RecipeError(f"{file}, line 1: " + (f"the column {twice[0]!r} is there twice; rename one of them" if twice
                          else "it is blank; the first line gives the names of the columns"))
    yield 1, names
    records = csv.reader(lines, **dialect(header))
    while True:
        line = records.line_num + 2
        try:
            record = next(records, None)
        except csv.Error as error:
            raise RecipeError(f"{file}, line {line}: the row that begins here cannot be read ({error}). Close its "
                              'quotation marks; one inside a quoted text is written twice ("")') from error
        if record is None:
            return
        if record:
            yield line, record


def _whole_rows(file: Path, names: list[str], rows: Iterator[tuple[int, list[str]]]):
    for line, row in rows:
        if len(row) != len(names):
            raise RecipeError(f"{file}, line {line}: the row has {len(row)} fields, line 1 names {len(names)} columns "
                              f"({', '.join(names)}). Give each row as many; in CSV a text with the delimiter in it "
                              "stands in quotation marks")
        yield line, row, sum(map(len, row)) + 8 * len(row)


def _read_txt(file: Path) -> Iterator[Batch]:
    return _gathered(((number, line.rstrip("\r\n"), len(line)) for number, line in numbered_lines(file)),
                     lambda texts: {LINE: texts})


def _read_json_lines(file: Path) -> Iterator[Batch]:
    def objects():
        for number, line in numbered_lines(file):
            if line.strip():
                try:
                    yield number, json.loads(line, object_pairs_hook=_object), len(line)
                except (ValueError, RecursionError) as error:
                    raise RecipeError(f"{file}, line {number}: this is no JSON ({error}). Each line holds one object, "
                                      'such as {"text": "...", "label": "..."}') from error
    return _gathered(_only_objects(file, objects()), _columns_of_objects)


def _read_json(file: Path) -> Iterator[Batch]:
    text, hook = read_text(file), dict(object_pairs_hook=_object)
    try:
        content = json.loads(text, **hook)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        again = ". With one object on each line its suffix is .jsonl" if str(error).startswith("Extra data") else ""
        raise RecipeError(f"{file}, line {line}: this is no JSON ({error}){again}") from error
    if not isinstance(content, list):
        raise RecipeError(f"{file}, line 1: a table in JSON is a list of objects, [{{...}}, {{...}}]; this file holds "
                          f"{_named(content)}. Give the list alone, or one object on each line of a .jsonl")

    def objects():  # once more, one by one, for their lines: the text is known to be right
        at, line, decoder = text.index("[") + 1, text.count("\n", 0, text.index("[")) + 1, json.JSONDecoder(**hook)
        for _ in content:
            start = _BETWEEN.match(text, at).end()
            line += text.count("\n", at, start)
            value, at = decoder.raw_decode(text, start)
            yield line, value, at - start
            line += text.count("\n", start, at)
    return _gathered(_only_objects(file, objects()), _columns_of_objects)


_BETWEEN = re.compile(r"[\s,]*")


def _object(pairs: list[tuple[str, Any]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has the same name twice")
    return found


def _only_objects(file: Path, rows: Iterator[tuple[int, Any, int]]) -> Iterator[tuple[int, dict, int]]:
    for line, value, size in rows:
        if not isinstance(value, dict):
            raise RecipeError(f"{file}, line {line}: here is {_named(value)}, a row is an object such as "
                              '{"text": "...", "label": "..."}')
        yield line, value, size


def _named(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "a text", type(None): "null"}.get(type(value), f"{value!r}")


def _columns_of_objects(objects: list[dict]) -> dict[str, list]:
    return {name: [row.get(name) for row in objects] for name in dict.fromkeys(chain.from_iterable(objects))}


def _read_parquet(file: Path) -> Iterator[Batch]:
    from pyarrow import ArrowException, parquet  # only here: it takes a while to load
    try:
        with parquet.ParquetFile(file) as table:
            row = 1
            for part in table.iter_batches(PARQUET_ROWS):
                columns = pl.from_arrow(part)
                yield Batch(range(row, row + len(columns)), columns.to_dict())
                row += len(columns)
    except ArrowException as error:
        raise RecipeError(f"{file} cannot be read as Parquet ({error}); copy it again, or give it the suffix that fits "
                          "its content") from error


READERS: dict[str, Callable[[Path], Iterator[Batch]]] = {
    ".csv": _read_csv, ".tsv": _read_tsv, ".jsonl": _read_json_lines, ".ndjson": _read_json_lines,
    ".json": _read_json, ".parquet": _read_parquet, ".txt": _read_txt,
}
