"""Receives a file of columns, one token with its label in each line, hands on a table of sentences: `tokens`, `labels`.

Columns are parted by tabs, or by spaces where a line has no tab; a blank line ends a sentence. In a file with tabs, a
line without one that begins with # is a comment, as in CoNLL-U.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from .. import RecipeError
from . import Draw, Splits, check_known
from .files import files_of_splits
from .text import read_lines

SUFFIXES = (".conllu", ".conll", ".iob", ".bio", ".tsv", ".txt", ".tags")


def read_tagged_splits(source: str, columns: Mapping[str, str], seed: int) -> Splits:
    """Training, validation and test sentences of a file or folder; a tenth, drawn, where no file is to validate."""
    files = files_of_splits(source, SUFFIXES)
    tables = {split: read_tagged(file, columns) for split, file in files.items()}
    if "valid" not in tables:
        drawn = pl.Series(Draw(seed)(len(tables["train"])))
        rest = tables["train"].filter(~drawn)["labels"].explode().unique()
        # A sentence with a label that no other has cannot validate: the label would never have been learned.
        drawn &= tables["train"]["labels"].list.eval(pl.element().is_in(rest.implode())).list.all()
        if not drawn.any():
            raise RecipeError(f"{files['train']} has {len(drawn)} sentences, of which none is left to validate; give "
                              "more, or a folder with train and valid files")
        tables |= {"train": tables["train"].filter(~drawn), "valid": tables["train"].filter(drawn)}
    check_known(tables["valid"]["labels"].explode(), tables["train"]["labels"].explode().unique().sort(), "label",
                files.get("valid", files["train"]))
    return Splits(tables["train"], tables["valid"], tables.get("test"), {s: str(f) for s, f in files.items()})


def read_tagged(file: Path, columns: Mapping[str, str], *, labelled: bool = True) -> pl.DataFrame:
    """The sentences of a file.

    Args:
        file: in UTF-8, plain or gzip.
        columns: the numbers of the columns "token" and "label", from 1, or from -1 at the end. Else the first and the
            last; in a .conllu file the second and the fourth, word and part of speech.
        labelled: False reads the tokens only.

    Raises RecipeError, with the line, for lines with fewer or more columns than the first, and for blank cells.

    >>> import tempfile; file = Path(tempfile.mkdtemp()) / "a.conll"
    >>> _ = file.write_text("The DT\\ncat NN\\n\\nIt PRP\\n")
    >>> read_tagged(file, {}).rows()
    [(['The', 'cat'], ['DT', 'NN']), (['It'], ['PRP'])]
    """
    places = _places(file, columns)
    if not labelled:
        del places["label"]
    sentences: list[tuple[list[str], ...]] = []
    lines = read_lines(file)
    tabs, width, inside = any("\t" in line for line in lines), 0, False
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            inside = False
            continue
        if tabs and line.startswith("#") and "\t" not in line:
            continue
        cells = line.split("\t") if "\t" in line else line.split()
        width = width or len(cells)
        if len(cells) != width or width < len(places):
            raise RecipeError(f"{file}, line {number}: the line has {len(cells)} columns, "
                              + (f"those before have {width}" if width > 1 else "a token and its label are needed")
                              + ". Part them by tabs, or by spaces where there is no tab, and sentences by blank "
                              "lines. If this is a text whose accents are to be learned, say --task accents")
        for what, place in places.items():
            if not -width <= place < width:
                raise RecipeError(f"{file}, line {number}: the {what} was said to be in column {columns[what]}, there "
                                  f"are {width}")
            if not cells[place].strip():
                raise RecipeError(f"{file}, line {number}: the {what} is blank; fill it in, or take the line out")
        if not inside:
            sentences.append(tuple([] for _ in places))
        inside = True
        for column, place in zip(sentences[-1], places.values()):
            column.append(cells[place])
    if not sentences:
        raise RecipeError(f"{file} holds no sentences; each line gives a token{' and its label' * labelled}")
    return pl.DataFrame(sentences, orient="row", schema={f"{what}s": pl.List(pl.String) for what in places})


def _places(file: Path, columns: Mapping[str, str]) -> dict[str, int]:
    usual = ("2", "4") if file.name.lower().removesuffix(".gz").endswith(".conllu") else ("1", "-1")
    places = {}
    for what, default in zip(("token", "label"), usual):
        given = columns.get(what, default)
        if not given.lstrip("-").isdecimal() or int(given) == 0:
            raise RecipeError(f"--columns.{what} is the number of a column, from 1, or from -1 at the end; {given!r} "
                              "was given")
        places[what] = int(given) - (int(given) > 0)
    wrong = sorted(columns.keys() - {"token", "label"})
    if wrong:
        raise RecipeError(f"there is no --columns.{wrong[0]} in a file of columns; give --columns.token and "
                          "--columns.label")
    return places
