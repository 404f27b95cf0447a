"""Sentiment of film reviews as a user would have them: tables with the columns text and label."""

from __future__ import annotations

import bz2
import gzip
import json
import random
from pathlib import Path

import polars as pl
import real_data


def write_mr(folder: Path, rows: int | None = None) -> Path:
    """The 10,662 snippets of MR, shuffled: a tenth each to validate and to test (there is no official split)."""
    source, found = real_data.needed("sentiment/mr"), []
    for name, label in (("neg", "negative"), ("pos", "positive")):
        text = gzip.decompress((source / f"rt-polarity.{name}.gz").read_bytes()).decode("cp1252")
        found += [(line.strip(), label) for line in text.strip("\n").split("\n")]
    random.Random(0).shuffle(found)
    return write_splits(folder, found[:rows])


def write_imdb(folder: Path) -> Path:
    """A fifth of the large set of reviews: 5000 to train on, of which 500 validate, and 5000 to test."""
    source, parts = real_data.needed("sentiment/imdb_subset"), {}
    for part in ("train", "test"):
        lines = bz2.decompress((source / f"{part}.jsonl.bz2").read_bytes()).decode().strip("\n").split("\n")
        parts[part] = [(r["text"].replace("<br />", " "), ("negative", "positive")[r["label"]])
                       for r in map(json.loads, lines)]
    random.Random(0).shuffle(parts["train"])
    return write(folder, train=parts["train"][500:], valid=parts["train"][:500], test=parts["test"])


def write_sst(folder: Path, kind: str = "binary") -> Path:
    """The sentences of the Stanford treebank with two labels ("binary") or five ("fine"), in their official split."""
    source, parts = real_data.needed("sentiment/sst"), {}
    for name, part in (("train", "train"), ("dev", "valid"), ("test", "test")):
        lines = gzip.decompress((source / f"stsa.{kind}.{name}.gz").read_bytes()).decode().strip("\n").split("\n")
        parts[part] = [(line[2:], line[0]) for line in lines]
    return write(folder, **parts)


def write_splits(folder: Path, rows: list[tuple[str, str]]) -> Path:
    tenth = len(rows) // 10
    return write(folder, train=rows[2 * tenth:], valid=rows[:tenth], test=rows[tenth:2 * tenth])


def write(folder: Path, **parts: list[tuple[str, str]]) -> Path:
    for part, rows in parts.items():
        pl.DataFrame(rows, schema=["text", "label"], orient="row").write_parquet(folder / f"{part}.parquet")
    return folder
