"""French text with its accents, and words with what a writer does around them, as a user would have them."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import real_data

PARTS = {"train": "train", "valid": "val", "test": "test_2016_flickr"}


def lines(language: str, part: str, rows: int | None) -> list[str]:
    """The captions of a part; with `rows`, so many to train on, a tenth of that to validate and half of it to test."""
    packed = (real_data.needed("translation/multi30k") / f"{PARTS[part]}.{language}.gz").read_bytes()
    found = [line.strip() for line in gzip.decompress(packed).decode().split("\n") if line.strip()]
    return found if rows is None else found[:rows // {"train": 1, "valid": 10, "test": 2}[part]]


def write_french(folder: Path, rows: int | None = None) -> Path:
    """The French captions of Multi30k, one on each line of train.txt, valid.txt and test.txt."""
    for part in PARTS:
        (folder / f"{part}.txt").write_text("\n".join(lines("fr", part, rows)) + "\n", encoding="utf-8")
    return folder


def write_german_writing(folder: Path, rows: int | None = None) -> Path:
    """The German captions as columns, a word in small letters and how it is written: Aa if it begins with a capital
    (in German nouns do), aa if not, and the comma after it."""
    for part in PARTS:
        sentences = [re.findall(r"(\w+)\W*?(,?)(?=\W*(?:\w|$))", line) for line in lines("de", part, rows)]
        text = "\n".join("".join(f"{word.lower()}\t{'Aa' if word[0].isupper() else 'aa'}{sign}\n" for word, sign in s)
                         for s in sentences if s)
        (folder / f"{part}.conll").write_text(text, encoding="utf-8")
    return folder
