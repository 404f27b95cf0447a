"""Series of the UCR and UEA archives, and digits read pixel by pixel, as a user would have them."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import polars as pl
import real_data

PARTS = {"train": "TRAIN", "test": "TEST"}


def write_ucr(folder: Path, name: str) -> Path:
    """A set of the archive in its official split, NAME_TRAIN.ts and NAME_TEST.ts; a share of the first validates."""
    for part in PARTS.values():
        packed = (real_data.needed("time_series/ucr_uea") / name / f"{name}_{part}.ts.gz").read_bytes()
        (folder / f"{name}_{part}.ts").write_bytes(gzip.decompress(packed))
    return folder


def test_of_ucr(folder: Path, name: str) -> Path:
    return folder / f"{name}_TEST.ts"


def write_digits(folder: Path, rows: int | None = None) -> Path:
    """Handwritten digits as series of 784 grey values from 0 to 1, the last tenth of the training images validates."""
    source = real_data.needed("image_sequences/mnist")
    for name, part in (("train", "train"), ("t10k", "test")):
        images, labels = (np.frombuffer(gzip.decompress((source / f"{name}-{kind}-ubyte.gz").read_bytes()), np.uint8)
                          for kind in ("images-idx3", "labels-idx1"))
        images, labels = images[16:].reshape(-1, 784)[:rows], labels[8:][:rows]
        table = pl.DataFrame(images / np.float32(255), schema=[f"pixel_{k}" for k in range(784)])
        table = table.with_columns(label=pl.Series(labels.astype(str)))
        if part == "train":
            table.tail(len(table) // 10).write_parquet(folder / "valid.parquet")
            table = table.head(-(len(table) // 10))
        table.write_parquet(folder / f"{part}.parquet")
    return folder
