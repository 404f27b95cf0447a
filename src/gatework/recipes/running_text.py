"""Receives what a user named, hands on texts of any size, read line by line whenever they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import polars as pl

from .reading import Role, Splits, read, read_table
from .reading.formats import table_suffix
from .reading.sources import find_sources
from .reading.text import numbered_lines


class Text:
    """Characters `begin` to `end` of lines, which are read anew each time.

    Args:
        lines: gives the lines, with their ends.
        begin, end: the part of them that is meant, in characters; to their end by default.

    >>> text = Text(lambda: ["The cat\\n", "sat."], begin=4)
    >>> list(text), len(text)
    (['cat\\n', 'sat.'], 8)
    """

    def __init__(self, lines: Callable[[], Iterable[str]], begin: int = 0, end: int | None = None):
        self.lines, self.begin = lines, begin
        self.end = sum(map(len, lines())) if end is None else end

    def __len__(self) -> int:
        return self.end - self.begin

    def __iter__(self) -> Iterator[str]:
        at = 0
        for line in self.lines():
            part = line[max(0, self.begin - at):max(0, self.end - at)]
            if part:
                yield part
            at += len(line)
            if at >= self.end:
                return

    def split(self) -> tuple[Text, Text]:
        """The first nine tenths and the last."""
        at = self.end - len(self) // 10
        return Text(self.lines, self.begin, at), Text(self.lines, at, self.end)


def read_splits(source: str, roles: Sequence[Role], columns: Mapping[str, str]) -> Splits:
    """The texts of a file or a folder as they are, or the rows of a table as lines; the last tenth validates if
    nothing else does. Raises RecipeError as `gatework.recipes.reading` does."""
    found = find_sources(source, roles)
    files = {split: Path(origin.name) for split, origin in found.items()}
    if all(map(is_text, files.values())):
        texts = {split: of_file(file) for split, file in files.items()}
        halves = (texts["train"], texts["valid"]) if "valid" in texts else texts["train"].split()
        return Splits(*halves, texts.get("test"), {split: str(file) for split, file in files.items()})
    tables = read(source, roles, columns, ordered=True)
    train, valid, test = (t if t is None else of_rows(t[roles[0].name]) for t in (tables.train, tables.valid,
                                                                                 tables.test))
    return Splits(train, valid, test, tables.files)


def read_file(file: Path, roles: Sequence[Role], columns: Mapping[str, str]) -> Text:
    """The same of one file."""
    return of_file(file) if is_text(file) else of_rows(read_table(file, roles, columns)[roles[0].name])


def is_text(file: Path) -> bool:
    return not file.is_dir() and table_suffix(file) in ("", ".txt")


def of_file(file: Path) -> Text:
    return Text(lambda: (line for _, line in numbered_lines(file)))


def of_rows(rows: pl.Series) -> Text:
    return Text(lambda: (row + "\n" for row in rows))
