"""Texts for language models as a user would have them: a file, or a folder of train.txt, valid.txt and test.txt."""

from __future__ import annotations

import gzip
from pathlib import Path

import real_data


def write_ptb(folder: Path, lines: int | None = None) -> Path:
    """The words of the Penn Treebank, 10,000 different ones, or the first lines of each of its parts."""
    return write_parts(folder, lambda line: line, lines)


def write_ptb_characters(folder: Path) -> Path:
    """Its characters, with _ for the space between words."""
    return write_parts(folder, lambda line: line.strip().replace(" ", "_") + "\n", None)


def write_parts(folder: Path, written, lines: int | None) -> Path:
    source = real_data.needed("language_modelling/ptb")
    for part in ("train", "valid", "test"):
        text = gzip.decompress((source / f"ptb.{part}.txt.gz").read_bytes()).decode()
        (folder / f"{part}.txt").write_text("".join(map(written, text.splitlines(keepends=True)[:lines])))
    return folder


def write_tiny_shakespeare(folder: Path, characters: int | None = None) -> Path:
    """40,000 lines of plays in one file, or so many characters of it."""
    source = real_data.needed("language_modelling/tiny_shakespeare")
    file = folder / "tiny_shakespeare.txt"
    file.write_text(gzip.decompress((source / "input.txt.gz").read_bytes()).decode()[:characters])
    return file
