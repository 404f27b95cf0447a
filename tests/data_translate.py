"""Multi30k as a user would have it: tables of two columns."""

from __future__ import annotations

import gzip
from pathlib import Path

import polars as pl
import real_data


def write_multi30k(folder: Path, source: str = "de", target: str = "en", train_rows: int | None = None,
                   longest: int | None = None) -> Path:
    """train.parquet, valid.parquet and test.parquet (of 2016) in `folder`.

    The first `train_rows` pairs train, or all. Sentences of more than `longest` words are left out.
    """
    data = real_data.needed("translation/multi30k")
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", "train"), ("valid", "val"), ("test", "test_2016_flickr")):
        sides = [gzip.decompress((data / f"{part}.{language}.gz").read_bytes()).decode().splitlines()
                 for language in (source, target)]
        pairs = [pair for pair in zip(*sides, strict=True) if longest is None or len(pair[0].split()) <= longest]
        rows = pairs[:train_rows] if name == "train" else pairs
        pl.DataFrame(rows, ["source", "translation"], orient="row").write_parquet(folder / f"{name}.parquet")
    return folder
